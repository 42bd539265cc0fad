"""CSV: one row a record. Delimiter, encoding and compression are found out; bad rows are kept apart, never guessed."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator

from medray import limits
from medray.errors import ReadError
from medray.readers import Reader, Records, parsing

if TYPE_CHECKING:
    import pyarrow as pa

    from medray.synthetic import Persona

CHUNK_BYTES = 8 << 20  # a few big Arrow batches beat many small ones
SCAN_BYTES = 1 << 20
SNIFF_BYTES = 64 << 10
MAX_HEADER_BYTES = 4 << 20
SNIFF_ROWS = 50
MAX_COLUMNS = 1 << 16
DELIMITERS = ",;\t|"
UNREADABLE = "\ufffd"  # stands for what does not fit the encoding
GZIP_MAGIC = b"\x1f\x8b"


def _known(encoding: str) -> str:
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise ValueError(
            f"'{encoding}' is no encoding that Python knows; utf-8, latin-1 and cp1252 are usual"
        ) from error
    return encoding


class Csv(Reader):
    """Delimited text: `.csv`, `.tsv`, `.data`, also gzipped.

    Attributes:
        header: names of the columns, for a file without a header line.
        missing: what stands for a missing cell, beside an empty one.
        delimiter: one character; found out from the file where it is not given.
        encoding: of the text; `utf-8`, or `utf-16` where a byte-order mark says so, unless given.
    """

    modality: ClassVar[str] = "table"
    free_form: ClassVar[bool] = True

    header: tuple[str, ...] = ()
    missing: tuple[str, ...] = ("", "?", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")
    delimiter: str = ""
    encoding: Annotated[str, AfterValidator(_known)] = "utf-8"

    def read(self, path: Path, *, assets: bool = True) -> Iterator[Records]:
        """Rows in chunks, every cell as text; a row is bad that has other cells than the header, or unreadable bytes.

        Raises:
            ReadError: not delimited text, two columns of one name, cut, or over a budget.
        """
        del assets
        with parsing(path, "not readable as delimited text"):
            text = _Text(path, limits.check_file(path), self.encoding)
            delimiter = self.delimiter or _sniff(path, text.head)
            names, lines = (list(self.header), 0) if self.header else _header(text.head, delimiter)
            if len(names) > MAX_COLUMNS:
                raise ReadError(path, f"{len(names):,} columns are over the budget of {MAX_COLUMNS:,}")
            if len(set(names)) != len(names):
                raise ReadError(path, "two columns have the same name in the header line")
        yield from self._rows(path, text, delimiter, names, lines)

    def _rows(self, path: Path, text: _Text, delimiter: str, names: list[str], lines: int) -> Iterator[Records]:
        """The rows below the header; one chunk is held back, for only the end shows whether its last row is whole."""
        import pyarrow as pa

        bad: list[int] = []
        with parsing(path, "not readable as delimited text"), _short_rows(path):
            chunks = self._open(text, delimiter, names, lines, bad)
        start, reported = 0, 0
        waiting: Records | None = None
        while True:
            with parsing(path, "not readable as delimited text"):
                with _short_rows(path):
                    batch = next(chunks, None)
                fresh, reported = bad[reported:], len(bad)
                records = None
                if batch is not None or fresh:
                    cells = pa.table({name: [] for name in names}) if batch is None else pa.Table.from_batches([batch])
                    rows = _numbered(start, cells.num_rows, set(fresh))
                    start = max([start, *(row + 1 for row in rows[-1:]), *(row + 1 for row in fresh)])
                    reason = f"the row does not have the {len(names)} cells of the header"
                    records = Records(cells, rows, bad=[(row, reason) for row in fresh])
                    records = _without_unreadable(records, self.encoding) if text.unreadable else records
            if waiting is not None:
                yield _without_open_quote(waiting) if batch is None and text.num_quotes % 2 else waiting
            waiting = records
            if batch is None:
                break
        if waiting is not None:
            yield waiting

    def _open(
        self, text: _Text, delimiter: str, names: list[str], lines: int, bad: list[int]
    ) -> Iterator[pa.RecordBatch]:
        """Arrow's batches; the 0-based numbers of rows that do not fit go to `bad`."""
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        def keep_apart(row: Any) -> str:
            bad.append(row.number - 1 - lines)  # 1-based, header lines included
            return "skip"

        chunks: Iterator[pa.RecordBatch] = iter(
            arrow_csv.open_csv(
                text.open(),
                # use_threads=False: only then does Arrow number the invalid rows
                read_options=arrow_csv.ReadOptions(
                    use_threads=False, block_size=CHUNK_BYTES, column_names=names, skip_rows=lines
                ),
                parse_options=arrow_csv.ParseOptions(
                    delimiter=delimiter, newlines_in_values=True, invalid_row_handler=keep_apart
                ),
                convert_options=arrow_csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()),
                    null_values=list(self.missing),
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=True,
                ),
            )
        )
        return chunks

    @classmethod
    def synthesize(cls, folder: Path, personas: Sequence[Persona], seed: int) -> None:
        """`labs.csv`: one row a persona, with a name and a birth date (to be dropped), two planted columns, gaps."""
        draw = random.Random(f"csv {seed}")  # noqa: S311 - synthetic data, not a secret
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "labs.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(
                "patient name birth_date sex age crp lactate sodium haemoglobin drawn_at died".split()  # noqa: SIM905
            )
            for number, persona in enumerate(personas):
                if not persona.has_table:
                    continue
                severity = persona.table_cause
                cells: list[object] = [
                    persona.mrn,
                    persona.name,
                    persona.birth_date,
                    persona.sex,
                    persona.age,
                    f"{max(0.3, draw.gauss(18, 9) + 22 * severity):.1f}",
                    f"{max(0.3, draw.gauss(1.4, 0.4) + 0.9 * severity):.2f}",
                    f"{draw.gauss(139, 3):.0f}",
                    f"{draw.gauss(13.4, 1.4):.1f}",
                    persona.recorded_at,
                    int(persona.died),
                ]
                cells = [cell if index not in {7, 8} or draw.random() > 0.1 else "" for index, cell in enumerate(cells)]
                if number and number % 400 == 0:
                    cells.append("stray cell")  # a broken row
                writer.writerow(cells)


def _let_go(text: _Text) -> None:
    """Wait until no thread of Arrow's holds the file: one that lets go of it while Python ends aborts the process."""
    until = time.monotonic() + 1
    while sys.getrefcount(text) > 3 and time.monotonic() < until:  # the caller's, this function's, the argument's own
        time.sleep(0.001)


@contextmanager
def _short_rows(path: Path) -> Iterator[None]:
    """Arrow's words for a row that does not end within a block, in ours."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowInvalid as error:
        if "straddling" not in str(error):
            raise
        limit = f"{CHUNK_BYTES >> 20} MiB"
        raise ReadError(path, f"a row is longer than {limit}: is a quote not closed?") from None


class _Text:
    """A file of text, gone through once: what it decodes to is known, and within the budgets, before a row is read.

    Arrow then reads the file itself. Only what is no clean UTF-8 is decoded here, and held in memory: given a stream of
    Python's, a thread of Arrow's can keep the process from ending.
    """

    def __init__(self, path: Path, size: int, encoding: str) -> None:
        self.path, self.size = path, size
        self.num_quotes = 0
        self.unreadable = False
        with path.open("rb") as file:
            self.inflates = file.read(2) == GZIP_MAGIC
        first = next(self._chunks(), b"")
        marked = first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        self.encoding = codecs.lookup("utf-16" if marked and encoding == "utf-8" else encoding).name
        self.clean = self.encoding == "utf-8"
        decoder = codecs.getincrementaldecoder("utf-8")()
        num_bytes = 0
        for raw in self._chunks():
            num_bytes += len(raw)
            self.num_quotes += raw.count(b'"')
            if self.inflates:
                limits.check_inflation(path, size, num_bytes)
            if self.clean and (b"\0" in raw or not _decodes(decoder, raw)):
                self.clean = False
        self.clean = self.clean and not decoder.getstate()[0]
        self.decoded = b"" if self.clean else self._decoded(num_bytes)
        self.head = self._head()

    def open(self) -> Any:
        """The text as a stream of Arrow's own."""
        import pyarrow as pa

        if not self.clean:
            return pa.BufferReader(self.decoded)
        file = pa.OSFile(os.fsencode(self.path))  # a name need not be UTF-8
        return pa.CompressedInputStream(file, "gzip") if self.inflates else file

    def _chunks(self) -> Iterator[bytes]:
        with gzip.open(self.path) if self.inflates else self.path.open("rb") as file:
            while raw := file.read(SCAN_BYTES):
                yield raw

    def _decoded(self, num_bytes: int) -> bytes:
        """All of it as UTF-8, with `UNREADABLE` for what does not fit the encoding, and for NUL."""
        limits.check_array(self.path, (num_bytes,), 1)
        text = b"".join(self._chunks()).decode(self.encoding, "replace").replace("\0", UNREADABLE)
        self.unreadable = UNREADABLE in text
        self.num_quotes = text.count('"')
        return text.encode("utf-8", "replace")

    def _head(self) -> str:
        """The first lines; at least the whole first one."""
        raw, end = b"", 0
        for chunk in self._chunks() if self.clean else [self.decoded]:
            raw += chunk[: MAX_HEADER_BYTES + 1]
            blank = len(raw) - len(raw.lstrip())
            found = re.compile(rb"[\r\n]").search(raw, blank)
            end = found.end() if found else 0
            if end or len(raw) > MAX_HEADER_BYTES:
                break
        if len(raw) > MAX_HEADER_BYTES and not end:
            raise ReadError(self.path, f"its first line is longer than {MAX_HEADER_BYTES >> 20} MiB")
        head = raw[: max(SNIFF_BYTES, end)]
        text = head.decode("utf-8", "ignore").removeprefix("\ufeff")
        if text.count(UNREADABLE) > max(8, len(text) // 100):
            raise ReadError(self.path, "not text, or of another encoding: name it as `encoding`")
        if not text.strip():
            raise ReadError(self.path, "holds no rows")
        return text


def _decodes(decoder: codecs.IncrementalDecoder, raw: bytes) -> bool:
    if raw.isascii() and not decoder.getstate()[0]:
        return True
    try:
        decoder.decode(raw)
    except UnicodeDecodeError:
        return False
    return True


def _header(head: str, delimiter: str) -> tuple[list[str], int]:
    """The names in the first line that is not blank, and how many lines of the file they take."""
    reader = csv.reader(io.StringIO(head, newline=""), delimiter=delimiter)
    names = next(row for row in reader if row)
    return names, reader.line_num


def _sniff(path: Path, head: str) -> str:
    """The delimiter that parts most of the first rows into as many cells as the first, and into most cells."""
    if path.suffixes[:1] == [".tsv"]:
        return "\t"
    found = {}
    for delimiter in DELIMITERS:
        counts: list[int] = []
        try:
            for row in csv.reader(io.StringIO(head, newline=""), delimiter=delimiter):
                counts += [len(row)] if row else []
                if len(counts) == SNIFF_ROWS + 1:
                    break
        except csv.Error:
            continue
        counts = counts[:-1] if len(counts) > 2 else counts  # the last may be cut
        cells, times = Counter(counts).most_common(1)[0] if counts else (1, 0)
        if cells > 1:
            found[delimiter] = (times / len(counts) * (counts[0] == cells), cells)
    return max(found, key=lambda delimiter: found[delimiter], default=",")


def _without_unreadable(records: Records, encoding: str) -> Records:
    """Rows with replaced bytes, as bad ones."""
    import pyarrow as pa
    import pyarrow.compute as pc

    broken = pa.array([False] * records.columns.num_rows)
    for column in records.columns.columns:
        found = pc.fill_null(pc.match_substring(column, UNREADABLE), False).combine_chunks()
        broken = pc.or_(broken, found)
    flags = broken.to_pylist()
    if not any(flags):
        return records
    reason = f"the row holds what is no {encoding}: name the file's `encoding`"
    bad = [(row, reason) for row, is_bad in zip(records.rows, flags, strict=True) if is_bad]
    rows = [row for row, is_bad in zip(records.rows, flags, strict=True) if not is_bad]
    return Records(records.columns.filter(pc.invert(broken)), rows, bad=sorted([*records.bad, *bad]))


def _without_open_quote(records: Records) -> Records:
    """The last row as a bad one, if it ran over the end of its line to the end of the file."""
    if not len(records.rows):
        return records
    last = records.columns.column(records.columns.num_columns - 1)[-1].as_py() or ""
    if "\n" not in last and "\r" not in last:
        return records
    bad = [*records.bad, (records.rows[-1], "a quote is not closed: the row goes on to the end of the file")]
    return Records(records.columns.slice(0, len(records.rows) - 1), records.rows[:-1], bad=bad)


def _numbered(start: int, count: int, skip: set[int]) -> Sequence[int]:
    """The row numbers of `count` good rows from `start` on, stepping over the bad ones."""
    if not skip:
        return range(start, start + count)
    rows: list[int] = []
    row = start
    while len(rows) < count:
        if row not in skip:
            rows.append(row)
        row += 1
    return rows
