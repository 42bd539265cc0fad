"""Which files there are, and which of them are new, changed, vanished or as they were at their receipt."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from medray.artifacts import Workspace
from medray.artifacts.table import Table
from medray.errors import DataError, ReadError, StudyError
from medray.governance.deidentify import Pseudonyms
from medray.readers import Reader
from medray.schema import FILE_ID, POSITION
from medray.study import Study

NUMBERS = "_numbers"  # a table's partition that holds the numbers of files on their way in; empty once all are
FILE_WEIGHT = 64 << 10  # bytes that opening a file is worth


@dataclass(frozen=True)
class File:
    """One file of a source, its companions included.

    Attributes:
        path: POSIX, relative to the source's root.
        size, modified_ns: bytes in all, and the newest change.
        number: its place in the order of arrival; a row's position is number << 32 | row.
    """

    source: str
    path: str
    size: int
    modified_ns: int
    file_id: str
    number: int = -1

    @property
    def weight(self) -> int:
        """What reading it costs, in bytes."""
        return self.size + FILE_WEIGHT


@dataclass(frozen=True)
class Received:
    """A file as the table's index knows it.

    Attributes:
        source, path, size, modified_ns, digest: at its receipt.
        rows: that are in the table.
        duplicates: rows in the quarantine whose record key another row has; another file's change may free them.
        unmatched: rows in the quarantine whose subject the owner did not have.
    """

    file_id: str
    number: int
    source: str
    path: str
    size: int
    modified_ns: int
    digest: str
    rows: int
    duplicates: int
    unmatched: int


@dataclass
class Changes:
    """The files there are, those that the table has, and what is to be done.

    Attributes:
        found: source -> its files.
        known: id -> file in the table's index.
        new, changed, again: to be read; `again` are as they were, but what decides about their rows has changed.
        vanished: in the table, and no longer there.
        pruned: of these, those whose rows are to be taken out.
        unnumbered: whether the numbers of new files are not in the table yet.
    """

    found: Mapping[str, list[File]]
    known: Mapping[str, Received]
    new: list[File] = field(default_factory=list)
    changed: list[File] = field(default_factory=list)
    again: list[File] = field(default_factory=list)
    vanished: list[Received] = field(default_factory=list)
    pruned: list[Received] = field(default_factory=list)
    unnumbered: bool = False

    @property
    def todo(self) -> list[File]:
        """Every file to be read, in the order of their numbers."""
        return sorted([*self.new, *self.changed, *self.again], key=lambda file: file.number)

    @property
    def replaced(self) -> set[str]:
        """The ids of files whose rows are in the table and will be read again."""
        return {file.file_id for file in [*self.changed, *self.again]}

    @property
    def gone(self) -> set[str]:
        """The ids of files whose rows in the table will not stay."""
        return self.replaced | {received.file_id for received in self.pruned}

    @property
    def moved(self) -> set[str]:
        """The sources that have lost rows, or will have other ones."""
        return {file.source for file in self.changed} | {received.source for received in self.pruned}

    def read_again(self, file_ids: Iterable[str]) -> None:
        """Have files read again although they are as they were at their receipt."""
        files = {file.file_id: file for files in self.found.values() for file in files}
        here = files.keys() - {file.file_id for file in self.todo}
        self.again += [
            replace(files[file_id], number=self.known[file_id].number) for file_id in sorted(here & set(file_ids))
        ]


def discover(study: Study, workspace: Workspace, pseudonyms: Pseudonyms) -> dict[str, list[File]]:
    """The files of each source, sorted by path.

    Raises:
        DataError: a source has no file.
        StudyError: a source's `path` is not relative to its root.
    """
    found: dict[str, list[File]] = {}
    for source, reader in study.sources.items():
        root = study.root(source)
        try:
            paths = sorted(path for path in root.glob(reader.path) if _is_data(path, root, workspace.root))
        except (NotImplementedError, ValueError) as error:
            raise StudyError(f"sources.{source}.path: '{reader.path}' must be relative to `root`") from error
        found[source] = [_file(source, reader, root, path, pseudonyms) for path in paths]
        if not found[source]:
            raise DataError(f"sources.{source}: no file matches '{reader.path}' in {root}")
    return found


def index(table: Table) -> dict[str, Received]:
    """The files that the table has received, by id."""
    if table.describe() is None:
        return {}
    rows = table.files().to_pylist()
    names = [name for name in Received.__dataclass_fields__ if name not in {"number", "source"}]
    return {
        row[FILE_ID]: Received(number=row[POSITION] >> 32, source=row["of"], **{name: row[name] for name in names})
        for row in rows
    }


def compare(
    study: Study, found: Mapping[str, list[File]], table: Table, *, force: bool = False, prune: bool = False
) -> Changes:
    """What has changed since the files' receipt. New files are numbered in the order of sources and paths.

    Same size and time of change: as it was. Else its digest decides, so that a file that was only touched or copied is
    not read again. A file is read again too where a row of it is in the quarantine that may be good now: the row whose
    key it repeats, or the source that knows its subject, has changed.
    """
    known = index(table)
    changes, touched = Changes(found, known), []
    numbers = {file_id: received.number for file_id, received in known.items()} | _numbers(table)
    following = max(numbers.values(), default=-1) + 1
    for file in (file for files in found.values() for file in files):
        received = known.get(file.file_id)
        if received is None:
            if file.file_id not in numbers:
                numbers[file.file_id], following = following, following + 1
                changes.unnumbered = True
            changes.new.append(replace(file, number=numbers[file.file_id]))
        elif force:
            changes.changed.append(replace(file, number=received.number))
        elif (file.size, file.modified_ns) != (received.size, received.modified_ns):
            touched.append(replace(file, number=received.number))

    def digest(file: File) -> str:
        return digest_of(study.sources[file.source], study.root(file.source) / file.path)

    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing lets go of the interpreter's lock
        digests = list(pool.map(digest, touched))
    changes.changed += [file for file, seen in zip(touched, digests, strict=True) if seen != known[file.file_id].digest]
    there = {file.file_id for files in found.values() for file in files}
    changes.vanished = [received for file_id, received in known.items() if file_id not in there]
    changes.pruned = changes.vanished if prune else []
    fresh = changes.moved | {file.source for file in changes.new}
    owners = {name: getattr(reader.subject, "of", "") for name, reader in study.sources.items()}
    changes.read_again(
        received.file_id
        for received in known.values()
        if (received.duplicates and received.source in changes.moved)
        or (received.unmatched and owners.get(received.source) in fresh)
    )
    return changes


def shown(path: str) -> str:
    """A path as it is matched and stored; bytes of a name that are not UTF-8 are written as backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def digest_of(reader: Reader, path: Path) -> str:
    """SHA-256 over a file and its companions; empty where one cannot be read, which equals nothing received."""
    try:
        digests = []
        for part in (path, *_companions(reader, path)):
            with part.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    except OSError:
        return ""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def state_of(reader: Reader, path: Path) -> tuple[int, int]:
    """Bytes in all, and the newest time of change in ns, of a file and its companions."""
    size, modified_ns = 0, 0
    for part in (path, *_companions(reader, path)):
        try:
            state = part.stat()
        except OSError:  # missing; the reader says so when it is read
            continue
        size, modified_ns = size + state.st_size, max(modified_ns, state.st_mtime_ns)
    return size, modified_ns


def _companions(reader: Reader, path: Path) -> tuple[Path, ...]:
    try:
        return reader.companions(path)
    except ReadError:  # an unreadable header names none
        return ()


def _is_data(path: Path, root: Path, workspace: Path) -> bool:
    """Hidden files are no data, nor is what medray has written itself."""
    hidden = any(part.startswith(".") and part != ".." for part in path.relative_to(root).parts)
    return path.is_file() and not hidden and not path.is_relative_to(workspace)


def _file(source: str, reader: Reader, root: Path, path: Path, pseudonyms: Pseudonyms) -> File:
    relative = path.relative_to(root).as_posix()
    size, modified_ns = state_of(reader, path)
    return File(source, relative, size, modified_ns, pseudonyms.file(source, shown(relative)).hex())


def _numbers(table: Table) -> dict[str, int]:
    """The numbers of files that a run which was cut off had on their way in."""
    if table.describe() is None or not table.parts(NUMBERS):
        return {}
    rows = table.read(NUMBERS, columns=[FILE_ID, POSITION])
    return {
        file_id: position >> 32
        for file_id, position in zip(rows.column(FILE_ID).to_pylist(), rows.column(POSITION).to_pylist(), strict=True)
    }
