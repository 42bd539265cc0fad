"""Readers: a file format -> records. A record is one identified item as read; it never leaves the task that read it.

One file a format. A reader opens the file itself, inside the task, from its path; it yields `Records`, many rows at a
time where the format has rows, one where a file is one record.
"""

from __future__ import annotations

import importlib
import re
import struct
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, model_validator

from medray.errors import MissingExtraError, ReadError
from medray.plugins import Config, Kind
from medray.schema import FrozenDict, canonical

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from medray.synthetic import Persona

# What parsers raise when bytes are not what they expect; 21 types were seen in 6,800 mutated files. A warning is one
# where a program has turned warnings into errors.
BROKEN = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, LookupError, MemoryError, OSError),
    *(RuntimeError, SyntaxError, SystemError, TypeError, ValueError, Warning, struct.error, zlib.error),
)


@contextmanager
def parsing(path: Path, what: str) -> Iterator[None]:
    """Whatever a parser raises, as one `ReadError` with the file's path; silent, for a warning may quote a cell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BROKEN as error:
        # from None: the parser's own words may quote a cell
        sort = type(error)
        name = sort.__name__ if sort.__name__[0].isupper() else f"{sort.__module__}.{sort.__name__}"  # struct.error
        raise ReadError(path, f"{what} ({name})") from None


@dataclass
class Records:
    """Some rows of one file.

    Attributes:
        columns: one Arrow column a field, text or numbers as read, missing cells null.
        rows: 0-based row in the file, shape (n,).
        assets: one array a row (image (H, W) or (H, W, 3), signal (T, C)), or None for a format that has only columns.
        bad: rows of this chunk that could not be read: (row, reason). A reason never quotes a cell.
    """

    columns: pa.Table
    rows: Sequence[int]
    assets: list[np.ndarray[Any, Any]] | None = None
    bad: list[tuple[int, str]] = field(default_factory=list)


class PathValue(Config):
    """A value found in the file's path: the pattern is searched in `/` + the path relative to the source's root.

    Groups are joined by `/`; a pattern without groups gives the whole match; no match is a quarantined file.
    """

    path: str

    @model_validator(mode="after")
    def _compiles(self) -> PathValue:
        try:
            re.compile(self.path)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return self


class OfValue(Config):
    """The subject is found in another source, by the same `record` key."""

    of: str


class RowValue(Config):
    """The 0-based row in the file."""

    row: bool


def _one_value(value: Any) -> Any:
    if isinstance(value, str | PathValue | OfValue | RowValue):
        return value
    if isinstance(value, Mapping) and len(value) == 1:
        (key,) = value
        if key in {"path", "of", "row"}:
            values: dict[str, type[Config]] = {"path": PathValue, "of": OfValue, "row": RowValue}
            return values[key].model_validate(dict(value))
    raise ValueError("expected a column name, {path: regex}, {of: source}, {row: true}, or a list of these")


def _value(value: Any) -> Any:
    return tuple(_one_value(item) for item in value) if isinstance(value, list | tuple) else _one_value(value)


Value = Annotated[
    str | PathValue | OfValue | RowValue | tuple[str | PathValue | RowValue, ...], BeforeValidator(_value)
]
Columns = Annotated[
    FrozenDict, AfterValidator(lambda columns: FrozenDict({name: _value(value) for name, value in columns.items()}))
]


def parts(value: Any) -> tuple[Any, ...]:
    """A value as the tuple of its parts."""
    return value if isinstance(value, tuple) else (value,)


def column_names(value: Any) -> set[str]:
    """The columns that a value reads."""
    return {part for part in parts(value) if isinstance(part, str)}


def path_text(pattern: str, relative: str) -> str | None:
    """What a path pattern finds in `/` + a POSIX path relative to the source's root; None if it does not match."""
    match = re.search(pattern, "/" + relative)
    if match is None:
        return None
    return "/".join(group or "" for group in match.groups()) if match.groups() else match.group()


def evaluate(value: Any, records: Records, relative: str) -> list[str | None]:
    """A value for each row of `records`, as canonical text; None where a part is missing.

    Args:
        value: a `Value` without `OfValue`, which needs another source.
        records: rows of one file.
        relative: the file's POSIX path relative to the source's root.
    """
    columns: list[list[str | None]] = []
    for part in parts(value):
        if isinstance(part, PathValue):
            columns.append([canonical(path_text(part.path, relative))] * len(records.rows))
        elif isinstance(part, RowValue):
            columns.append([str(row) for row in records.rows])
        elif part in records.columns.column_names:
            columns.append([canonical(cell) for cell in records.columns.column(part).to_pylist()])
        else:
            columns.append([None] * len(records.rows))
    if len(columns) == 1:
        return columns[0]
    return [None if None in cells else "/".join(map(str, cells)) for cells in zip(*columns, strict=True)]


class Reader(Kind, ABC):
    """One source of a study: which files, and which of their values are keys.

    Attributes:
        path: glob of the files, relative to `root`.
        root: folder; relative to the study's folder (the default), or `${NAME}` of the environment.
        record: the key of a record; two sources that both name one are joined by it.
        subject: whose record it is. Without it: the format's own identifier, else each record is its own subject.
        time: when it was recorded.
        columns: further columns, by name, beside what the format holds.
    """

    modality: ClassVar[str] = "table"  # the modality this source feeds, where the study does not say
    extra: ClassVar[str] = ""  # the extra that brings its library
    library: ClassVar[str] = ""  # its library's import name
    free_form: ClassVar[bool] = False  # whether the format has columns of its own that only the file knows

    path: str
    root: str = ""
    record: Value | None = None
    subject: Value | None = None
    time: Value | None = None
    columns: Columns = FrozenDict()

    @abstractmethod
    def read(self, path: Path, *, assets: bool = True) -> Iterator[Records]:
        """The records of one file, many rows at a time.

        Args:
            path: the file.
            assets: False leaves out pixels and samples, where only keys and columns are wanted.

        Raises:
            ReadError: the file cannot be read at all.
        """

    def own_subject(self) -> Value | None:
        """The value that names the subject where the study does not: a DICOM tag, say."""
        return None

    def companions(self, path: Path) -> tuple[Path, ...]:
        """Further files that belong to `path`'s record, such as a WFDB header's signal file."""
        del path
        return ()

    def record_names(self) -> frozenset[str]:
        """The columns named as keys, which are never stored."""
        named: set[str] = set()
        for value in (self.record, self.subject or self.own_subject(), self.time):
            named |= column_names(value) if value is not None else set()
        return frozenset(named)

    @classmethod
    def imported(cls) -> Any:
        """The module of the reader's library.

        Raises:
            MissingExtraError: it is not installed.
        """
        try:
            return importlib.import_module(cls.library)
        except ImportError as error:
            raise MissingExtraError(cls.library, cls.extra) from error

    @classmethod
    @abstractmethod
    def synthesize(cls, folder: Path, personas: Sequence[Persona], seed: int) -> None:
        """Write realistic files of this format for `personas`, with what is planted in them."""
