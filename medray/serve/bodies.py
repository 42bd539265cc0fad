"""Bodies: what a request holds -> values and files by modality. Nothing that is over its budget is read to the end.

Two shapes, both with one field a modality:

    application/json        {"labs": {"crp": 12.0, "sex": "F"}}        tables only
    multipart/form-data     files in their own formats (several parts of one field for a WFDB record), JSON for tables

Files lie in a folder 0700 of this process for the time that they are read, and never under another name than their
field's and their own last part.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from medray import plugins
from medray.errors import AccessError, MedrayError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_VALUES_BYTES = 1 << 20  # JSON grows some thirtyfold when it is parsed
MAX_PARTS = 64
MAX_NUMBER = 1e300
MULTIPART = "multipart/form-data"


class RequestError(MedrayError):
    """A request that gets no answer, and why; `name` is the field that is wrong."""

    def __init__(self, status: int, detail: str, name: str = "") -> None:
        super().__init__(detail)
        self.status, self.detail, self.name = status, detail, name


@dataclass
class Body:
    """What was sent, by modality."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, list[Path]] = field(default_factory=dict)

    @property
    def modalities(self) -> list[str]:
        """The fields that are there."""
        return [*self.values, *self.files]


class Uploads:
    """Where uploaded files lie while they are read.

    A folder of the local disk, this user's alone; what a killed process has left in it is removed at the next start.
    """

    def __init__(self) -> None:
        base = Path(tempfile.gettempdir()) / f"medray-uploads-{os.getuid()}"
        base.mkdir(mode=0o700, exist_ok=True)
        status = base.lstat()
        if base.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise AccessError(f"{base}: not this user's alone. Remove it, or set TMPDIR to a folder of your own.")
        for left in base.iterdir():
            pid = left.name.partition("-")[0]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
                shutil.rmtree(left, ignore_errors=True)
        self._base = base

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder for one request, removed with all it holds."""
        with tempfile.TemporaryDirectory(prefix=f"{os.getpid()}-", dir=self._base) as folder:
            yield Path(folder)


async def read(request: Request, folder: Path, modalities: Collection[str], max_bytes: int) -> Body:
    """A request's body.

    Args:
        request: whose body nobody has read.
        folder: where its files are written.
        modalities: the fields that may be there.
        max_bytes: of the body.

    Raises:
        RequestError: 400 not well-formed, 413 too large, 415 of another type, 422 a field that is wrong.
    """
    kind, _, options = request.headers.get("content-type", "").partition(";")
    chunks = _limited(request, max_bytes)
    match kind.strip().lower():
        case "application/json":
            body = Body(values=_checked(await _values(chunks), modalities))
        case "multipart/form-data":
            body = await _parts(chunks, options, folder, modalities)
        case _:
            raise RequestError(415, f"send application/json, or {MULTIPART} where there are files")
    if not body.values and not body.files:
        raise RequestError(422, f"nothing to predict from: give at least one of {', '.join(modalities)}")
    return body


async def _limited(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The body's chunks, until they are too many; a length that is announced is believed when it is too large."""
    length = request.headers.get("content-length", "")
    total = int(length) if re.fullmatch(r"\d{1,18}", length) else 0
    too_large = RequestError(413, f"the body is over {max_bytes / (1 << 20):g} MB")
    if total > max_bytes:
        raise too_large
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > max_bytes:
            raise too_large
        yield chunk


async def _values(chunks: AsyncIterator[bytes]) -> Any:
    text = bytearray()
    async for chunk in chunks:
        text += chunk
        if len(text) > MAX_VALUES_BYTES:
            raise RequestError(413, f"values are over {MAX_VALUES_BYTES >> 20} MB; send files as {MULTIPART}")
    return _json(bytes(text), "")


def _json(text: bytes, name: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):  # which of the two is meant, nobody can know
            raise RequestError(400, "a name stands twice in one object", name)
        return found

    def refuse(_: str) -> None:
        raise RequestError(400, "NaN and Infinity are no JSON; leave out what is missing, or send null", name)

    try:
        found = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
        if re.search(rb"\\u[dD][89a-fA-F]", text):  # half of a surrogate pair is no text
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "not JSON", name) from error
    return found


def _checked(values: Any, modalities: Collection[str]) -> dict[str, dict[str, Any]]:
    if not isinstance(values, dict):
        raise RequestError(422, f"expected an object with one field a modality: {', '.join(modalities)}")
    for name, given in values.items():
        _known(name, modalities)
        if not isinstance(given, dict):
            raise RequestError(422, "expected an object with the values of one record", name)
        for column, value in given.items():
            if isinstance(value, int | float) and not abs(value) < MAX_NUMBER:
                raise RequestError(422, "the number is too large", f"{name}.{column[:64]}")
    return values


def _known(name: str, modalities: Collection[str]) -> None:
    if name not in modalities:
        hint = plugins.suggest(name[:64], list(modalities))
        raise RequestError(422, f"no such modality{hint} Known: {', '.join(modalities)}.", name[:64])


class _Parts:
    """Takes the parts of a form as they come, files to the disk, values to memory."""

    def __init__(self, folder: Path, modalities: Collection[str]) -> None:
        self.body = Body()
        self.ended = False
        self._folder, self._modalities = folder, modalities
        self._headers: dict[str, str] = {}
        self._header, self._value = bytearray(), bytearray()
        self._name = ""
        self._file: Any = None
        self._text = bytearray()
        self._count = 0

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self.on_part_begin,
            "on_header_field": self.on_header_field,
            "on_header_value": self.on_header_value,
            "on_header_end": self.on_header_end,
            "on_headers_finished": self.on_headers_finished,
            "on_part_data": self.on_part_data,
            "on_part_end": self.on_part_end,
            "on_end": self.on_end,
        }

    def on_part_begin(self) -> None:
        self._headers = {}
        self._count += 1
        if self._count > MAX_PARTS:
            raise RequestError(413, f"more than {MAX_PARTS} parts")

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._header.clear()
        self._value.clear()

    def on_headers_finished(self) -> None:
        from python_multipart.multipart import parse_options_header

        _, options = parse_options_header(self._headers.get("content-disposition"))
        self._name = options.get(b"name", b"").decode("utf-8", errors="replace")
        _known(self._name, self._modalities)
        if self._name in self.body.values:
            raise RequestError(422, "given twice", self._name)
        if b"filename" not in options:
            if self._name in self.body.files:
                raise RequestError(422, "given twice, as a file and as values", self._name)
            self._text.clear()
            return
        # the last part of its own name: a WFDB header names its signal file
        own = re.split(r"[/\\]", options[b"filename"].decode("utf-8", errors="replace"))[-1]
        own = re.sub(r"[^A-Za-z0-9._-]", "_", own)[-100:].lstrip(".") or "file"
        folder = self._folder / str(list(self._modalities).index(self._name))
        folder.mkdir(mode=0o700, exist_ok=True)
        paths = self.body.files.setdefault(self._name, [])
        if folder / own in paths:
            raise RequestError(422, "two files have the same name", self._name)
        paths.append(folder / own)
        self._file = (folder / own).open("xb")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > MAX_VALUES_BYTES:
            raise RequestError(413, f"values are over {MAX_VALUES_BYTES >> 20} MB", self._name)

    def on_part_end(self) -> None:
        if self._file is not None:
            self.close()
            return
        values = _json(bytes(self._text), self._name)
        self.body.values |= _checked({self._name: values}, self._modalities)

    def on_end(self) -> None:
        self.ended = True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


async def _parts(chunks: AsyncIterator[bytes], options: str, folder: Path, modalities: Collection[str]) -> Body:
    plugins.require("python_multipart", "serve")
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    _, given = parse_options_header(f"{MULTIPART};{options}")
    parts = _Parts(folder, modalities)
    try:
        parser = MultipartParser(given.get(b"boundary", b""), parts.callbacks())
        async for chunk in chunks:
            parser.write(chunk)
    except FormParserError as error:
        raise RequestError(400, f"not well-formed {MULTIPART}") from error
    finally:
        parts.close()
    if not parts.ended:
        raise RequestError(400, f"the {MULTIPART} body ends before its last boundary")
    return parts.body
