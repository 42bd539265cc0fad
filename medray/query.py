"""Query: files of one subject -> an explained answer of a service that runs. `Client` is the same for programs."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlsplit

from medray import plugins
from medray.errors import AccessError, DataError, ServiceError
from medray.runtime import Progress, quiet

if TYPE_CHECKING:
    from medray.artifacts import Workspace
    from medray.readers import Reader

Values = Mapping[str, Any]
Explain = Literal["fast", "full", "none"]

URL = "http://127.0.0.1:8000"
TRIES_S = (0.0, 0.3, 1.0)  # waits before each try: a replica that was killed is replaced meanwhile
SHOWN = 5  # contributions of a modality that people see


class Client:
    """A program's access to a service.

    Args:
        url: of the service, without a path.
        token: the bearer token.
        timeout_s: for one answer.
    """

    def __init__(self, url: str = URL, token: str = "", *, timeout_s: float = 120) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ServiceError(f"'{url}' is no address; expected one such as {URL}")
        if not re.fullmatch(r"[\x21-\x7e]*", token):
            raise AccessError("the token holds a blank, or what no token holds")
        self.url, self._parts, self._timeout_s = url.rstrip("/"), parts, timeout_s
        self._headers = {"authorization": f"Bearer {token}", "accept": "application/json"}

    def models(self) -> list[dict[str, Any]]:
        """The models that are served, with what they take."""
        found: list[dict[str, Any]] = self._ask("GET", "/v1/models")["models"]
        return found

    def model(self, name: str) -> dict[str, Any]:
        """What one model takes and gives."""
        return self._ask("GET", f"/v1/models/{quote(name, safe=':')}")

    def predict(
        self, model: str, inputs: Mapping[str, Values | Path | Sequence[Path]], *, explain: Explain = "fast"
    ) -> dict[str, Any]:
        """The answer for one subject.

        Args:
            model: `name` or `name:version`.
            inputs: any of the model's modalities: the values of a table's record, a file, or the files of one record.
            explain: `fast`; `full` takes integrated gradients and adds the answer without each modality; `none`.

        Raises:
            DataError: an input is wrong; names the field.
            AccessError: the token is not the service's, or may not do this.
            ServiceError: no service answers, or it cannot.
        """
        path = f"/v1/models/{quote(model, safe=':')}/predict?explain={explain}"
        if all(isinstance(given, Mapping) for given in inputs.values()):
            return self._ask("POST", path, json.dumps(inputs).encode(), "application/json")
        boundary = secrets.token_hex(16)
        body = b"".join(_part(boundary, *part) for name, given in inputs.items() for part in _parts(name, given))
        return self._ask(
            "POST", path, body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
        )

    def _ask(self, method: str, path: str, body: bytes = b"", kind: str = "") -> dict[str, Any]:
        for wait_s in TRIES_S:
            time.sleep(wait_s)
            status, text = self._answer(method, path, body, kind)
            try:
                said = json.loads(text)
            except ValueError:
                said = None
            # a prediction changes nothing, so it can be asked again; what medray itself says is final
            if status < 500 or isinstance(said, dict):
                break
        if not isinstance(said, dict):
            raise ServiceError(f"{self.url}: status {status} and no answer of medray's. Is this the service's address?")
        if status == 200:
            return said
        detail = str(said.get("detail", f"status {status}"))
        if status == 401:
            raise AccessError(f"{self.url}: {detail.split(':')[0]}. Name the service's workspace, or set MEDRAY_TOKEN.")
        if status == 403:
            raise AccessError(f"{self.url}: {detail}")
        if status >= 500:
            raise ServiceError(f"{self.url}: {detail} (request {said.get('request', 'unknown')})")
        raise DataError(f"{said['field']}: {detail}" if said.get("field") else detail)

    def _answer(self, method: str, path: str, body: bytes, kind: str) -> tuple[int, str]:
        https = self._parts.scheme == "https"
        connect = http.client.HTTPSConnection if https else http.client.HTTPConnection
        connection = connect(str(self._parts.hostname), self._parts.port, timeout=self._timeout_s)
        try:
            # a body that is too large is refused before all of it was sent, by an answer that says so
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                headers = {**self._headers, **({"content-type": kind} if kind else {})}
                connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ServiceError(f"{self.url}: no service answers ({reason}). Start it: medray serve STUDY") from error
        finally:
            connection.close()


@dataclass(frozen=True)
class Answered:
    """An answer, and where its pictures are.

    Attributes:
        answer: as the service gave it; each `overlay` is the path of its file.
        overlays: by modality.
    """

    answer: dict[str, Any]
    overlays: dict[str, Path] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The answer for people."""
        given = self.answer
        if "value" in given:
            said = f"{given['value']:g}"
        else:
            chances = ", ".join(f"{name} {chance:.1%}" for name, chance in given["probability"].items())
            predicted = given["class"] if isinstance(given["class"], str) else ", ".join(given["class"]) or "none"
            said = f"{predicted} ({chances})"
        lines = [f"{given['model']}:{given['version']}  {said}"]
        for name, attribution in given.get("attributions", {}).items():
            lines.append(f"{name}: {_reasons(attribution)}")
        for name, other in given.get("without", {}).items():
            shown = other if isinstance(other, dict) else {"value": other}
            lines.append(f"without {name}: {', '.join(f'{key} {value:.4g}' for key, value in shown.items())}")
        if given.get("missing"):
            lines.append(f"not sent: {', '.join(given['missing'])}")
        return lines


def query(
    workspace: Workspace | None,
    model: str,
    files: Sequence[str | Path],
    *,
    url: str = "",
    token: str = "",
    explain: Explain = "fast",
    out: Path | str = ".",
    progress: Progress = quiet,
) -> Answered:
    """Ask a service about the files of one subject, and write the overlays of its images.

    Args:
        workspace: the service's, whose token is taken where neither `token` nor MEDRAY_TOKEN is given.
        model: `name` or `name:version`.
        files: `modality=path`, or paths whose suffix tells; a JSON file holds the values of a table's record. The files
            that a WFDB header names are found beside it.
        url: of the service; MEDRAY_URL, else the one that is served by default.
        token: the bearer token.
        explain: as `Client.predict`.
        out: folder of the overlays; made where it is not there.
        progress: what is being done.

    Raises:
        AccessError, DataError, ServiceError: as `Client.predict`; or a file fits no input.
    """
    client = Client(url or os.environ.get("MEDRAY_URL", URL), token or _token(workspace))
    progress("asking", 0, 2)
    inputs = matched(client.model(model), files)
    progress("asking", 1, 2)
    answer = client.predict(model, inputs, explain=explain)
    overlays = {}
    for name, attribution in answer.get("attributions", {}).items():
        if "overlay" in attribution:
            path = Path(out) / f"{answer['model']}-{name}-{answer['request'][:8]}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(attribution["overlay"]))
            attribution["overlay"], overlays[name] = str(path), path
    progress("asking", 2, 2)
    return Answered(answer, overlays)


def matched(signature: Mapping[str, Any], files: Sequence[str | Path]) -> dict[str, Values | list[Path]]:
    """Files by modality, as a model's signature tells them apart.

    Raises:
        DataError: a file is not there, fits no input, or fits several.
    """
    known: dict[str, Any] = signature["inputs"]
    found: dict[str, list[Path]] = {}
    loose: list[Path] = []
    for given in files:
        name, equals, rest = str(given).partition("=")
        path = Path(rest) if equals and name in known else Path(given)
        if not path.is_file():
            raise DataError(f"{path}: not a file")
        if equals and name in known:
            found.setdefault(name, []).append(path)
        elif path.suffix.lower() in _suffixes(known):
            found.setdefault(_by_suffix(path, known), []).append(path)
        else:
            loose.append(path)
    for path in loose:  # a signal file beside its header
        of = [name for name, paths in found.items() if path.stem in {other.stem for other in paths}]
        if len(of) != 1:
            raise DataError(f"{path}: fits no input. {_how(known)}")
        found[of[0]].append(path)
    inputs: dict[str, Values | list[Path]] = {}
    for name, paths in found.items():
        values = len(paths) == 1 and paths[0].suffix.lower() == ".json" and known[name]["suffix"] != ".json"
        inputs[name] = _values(paths[0]) if values else _with_companions(known[name]["format"], paths)
    return inputs


def _suffixes(known: Mapping[str, Any]) -> set[str]:
    own = {str(given["suffix"]).lower() for given in known.values()} - {""}
    return own | ({".json"} if any("columns" in given for given in known.values()) else set())


def _by_suffix(path: Path, known: Mapping[str, Any]) -> str:
    suffix = path.suffix.lower()
    fits = [name for name, given in known.items() if str(given["suffix"]).lower() == suffix]
    fits = fits or [name for name, given in known.items() if suffix == ".json" and "columns" in given]
    if len(fits) > 1:
        raise DataError(f"{path}: fits {' and '.join(fits)}. {_how(known)}")
    return fits[0]


def _how(known: Mapping[str, Any]) -> str:
    inputs = ", ".join(
        f"{name} ({given['format']}, {given['suffix'] or 'any suffix'})" for name, given in known.items()
    )
    return f"Write modality=path; the model takes {inputs}."


def _with_companions(kind: str, paths: list[Path]) -> list[Path]:
    reader: Reader = plugins.resolve("readers", {"kind": kind, "path": "*"})
    further = [companion for path in paths for companion in reader.companions(path) if companion.is_file()]
    return list(dict.fromkeys([*paths, *further]))


def _values(path: Path) -> Values:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected an object with the values of one record")
    return values


def _token(workspace: Workspace | None) -> str:
    if os.environ.get("MEDRAY_TOKEN"):
        return os.environ["MEDRAY_TOKEN"].strip()
    if workspace is not None and (workspace.keyring.folder / "token").exists():
        return workspace.keyring.token()
    raise AccessError("no token: name the workspace of the service, or set MEDRAY_TOKEN")


def _parts(name: str, given: Values | Path | Sequence[Path]) -> list[tuple[str, str, bytes]]:
    """(field, file name, content). The names of a record's several files stay, since one names the other."""
    if isinstance(given, Mapping):
        return [(name, "", json.dumps(given).encode())]
    paths = [given] if isinstance(given, Path) else list(given)
    try:
        return [(name, path.name if len(paths) > 1 else f"{name}{path.suffix}", path.read_bytes()) for path in paths]
    except OSError as error:
        raise DataError(f"{name}: {error.filename} cannot be read ({error.strerror})") from error


def _part(boundary: str, name: str, file: str, content: bytes) -> bytes:
    def plain(text: str) -> str:
        return re.sub(r'["\\\r\n]', "_", text)

    named = f'; filename="{plain(file)}"' if file else ""
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{plain(name)}"{named}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def _reasons(attribution: Mapping[str, Any]) -> str:
    """What an answer rests on, in one line."""
    kind = attribution["explainer"]
    if "contributions" in attribution:
        named = [(f"{c['name']} {_shown(c.get('value'))}", c["contribution"]) for c in attribution["contributions"]]
    elif "leads" in attribution:
        named = [(lead["name"], lead["contribution"]) for lead in attribution["leads"]]
    elif "seconds" in attribution:
        curve = attribution["over_time"]
        return f"{kind}, most at {attribution['seconds'][curve.index(max(curve))]:.2f} s"
    else:
        return f"{kind}, see {attribution['overlay']}" if "overlay" in attribution else kind
    return f"{kind}, " + ", ".join(f"{name.strip()}: {value:+.3g}" for name, value in named[:SHOWN] if value)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is not False else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
