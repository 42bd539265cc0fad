"""CSV: one row a record. Delimiter, encoding and compression are found out; bad rows are kept apart, never guessed."""

from __future__ import annotations

import csv
import gzip
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from medray import limits
from medray.errors import ReadError
from medray.readers import Reader, Records

if TYPE_CHECKING:
    from medray.synthetic import Persona

CHUNK_BYTES = 8 << 20  # a few big Arrow batches beat many small ones
SNIFF_BYTES = 64 << 10


class Csv(Reader):
    """Delimited text: `.csv`, `.tsv`, `.data`, also gzipped.

    Attributes:
        header: names of the columns, for a file without a header line.
        missing: what stands for a missing cell, beside an empty one.
        delimiter: one character; found out from the file where it is not given.
        encoding: of the text; `utf-8` (a byte-order mark is skipped) unless given.
    """

    modality: ClassVar[str] = "table"
    free_form: ClassVar[bool] = True

    header: tuple[str, ...] = ()
    missing: tuple[str, ...] = ("", "?", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")
    delimiter: str = ""
    encoding: str = "utf-8"

    def read(self, path: Path, *, assets: bool = True) -> Iterator[Records]:
        """Rows in chunks, every cell as text."""
        del assets
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        limits.check_file(path)
        head = self._head(path)
        delimiter = self.delimiter or _sniff(path, head)
        names = list(self.header) or next(csv.reader(head.splitlines(), delimiter=delimiter))
        if len(set(names)) != len(names):
            raise ReadError(path, "two columns have the same name in the header line")
        bad: list[int] = []

        def keep_apart(row: Any) -> str:
            bad.append(row.number - 1 - (0 if self.header else 1))  # 1-based line, header line included
            return "skip"

        try:
            chunks = arrow_csv.open_csv(
                path,
                # use_threads=False: only then does Arrow number the invalid rows
                read_options=arrow_csv.ReadOptions(
                    use_threads=False,
                    block_size=CHUNK_BYTES,
                    column_names=names,
                    skip_rows=0 if self.header else 1,
                    encoding=self.encoding,
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
            start, reported = 0, 0
            for batch in chunks:
                fresh = bad[reported:]
                reported = len(bad)
                rows = _numbered(start, batch.num_rows, set(fresh))
                start = max([start, *(row + 1 for row in rows[-1:]), *(row + 1 for row in fresh)])
                columns = pa.Table.from_batches([batch])
                reason = f"the row does not have the {len(names)} cells of the header"
                yield Records(columns, rows, bad=[(row, reason) for row in fresh])
        except (pa.ArrowInvalid, UnicodeDecodeError, OSError, EOFError) as error:
            raise ReadError(path, f"not readable as delimited text ({type(error).__name__})") from error

    def _head(self, path: Path) -> str:
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                raw = file.read(SNIFF_BYTES)
        except (OSError, EOFError) as error:
            raise ReadError(path, f"not readable ({type(error).__name__})") from error
        if b"\0" in raw:
            raise ReadError(path, "holds NUL bytes: not delimited text")
        text = raw.decode(self.encoding, errors="ignore").removeprefix("\ufeff")
        if not text.strip():
            raise ReadError(path, "holds no rows")
        return text

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
                    persona.patient_id,
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


def _sniff(path: Path, head: str) -> str:
    if path.suffixes[:1] == [".tsv"]:
        return "\t"
    lines = head.splitlines()
    sample = "\n".join(lines[: max(1, min(len(lines) - 1, 50))])
    try:
        return csv.Sniffer().sniff(sample, delimiters=",;\t|").delimiter
    except csv.Error:
        return ","


def _numbered(start: int, count: int, skip: set[int]) -> list[int]:
    """The row numbers of `count` good rows from `start` on, stepping over the bad ones."""
    rows: list[int] = []
    row = start
    while len(rows) < count:
        if row not in skip:
            rows.append(row)
        row += 1
    return rows
