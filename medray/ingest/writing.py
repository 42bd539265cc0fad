"""Write: the records of some files, de-identified, typed and sealed; what cannot be kept goes to the quarantine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from medray.artifacts.table import PackWriter, Part
from medray.errors import ReadError
from medray.governance.deidentify import cap_ages, shift_dates, shifts
from medray.ingest.decide import CODE
from medray.ingest.files import digest_of, shown, state_of
from medray.ingest.keys import CODES, Keyed, as_ids, choose, extended, keys_of
from medray.ingest.plan import Plan
from medray.inputs import typed
from medray.readers import Records, evaluate
from medray.schema import (
    ASSET,
    EXCLUDED,
    FILE_ID,
    FILES,
    POSITION,
    QUARANTINE,
    RECORD_ID,
    SPLIT,
    SUBJECT_ID,
    TIME,
    TIMESTAMP,
)

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

PART_BYTES = 64 << 20  # of columns in memory before they are written
PART_ROWS = 100_000  # likewise: keys are Python objects
DUPLICATE = "duplicate: another row has its record key"
UNMATCHED = "no subject: '{owner}' has no record of its key"
FILE_COLUMNS = {"size": pa.int64(), "modified_ns": pa.int64(), "digest": pa.string(), "rows": pa.int64(),
                "duplicates": pa.int64(), "unmatched": pa.int64()}  # fmt: skip
BAD = pa.schema(
    [
        (POSITION, pa.int64()), (FILE_ID, pa.string()), (SUBJECT_ID, pa.string()), (RECORD_ID, pa.string()),
        (SPLIT, pa.string()), ("of", pa.string()), ("path", pa.string()), ("row", pa.int64()), ("reason", pa.string()),
    ]
)  # fmt: skip


@dataclass
class FileRef:
    """A file as a task is told of it."""

    number: int
    path: str
    file_id: str


@dataclass
class Chunk:
    """Some rows of one file, keyed.

    Attributes:
        subject_ids, record_ids: pseudonyms; None where they are unknown, which is in `reasons`.
        codes: of the splits.
        assets: as the table's asset column holds them.
        reasons: row -> why it cannot be kept.
    """

    file: FileRef
    rows: Sequence[int]
    columns: pa.Table
    record_ids: list[bytes | None]
    subject_ids: list[bytes | None]
    codes: Array
    times: pa.Array
    assets: list[dict[str, Any] | None]
    reasons: dict[int, str]


@dataclass
class Pile:
    """Chunks that wait until they are worth a part."""

    chunks: list[Chunk] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0

    def add(self, chunks: Sequence[Chunk]) -> None:
        """Put some on it."""
        self.chunks += chunks
        self.rows += sum(len(chunk.rows) for chunk in chunks)
        self.bytes += sum(chunk.columns.nbytes for chunk in chunks)

    @property
    def is_much(self) -> bool:
        """Whether it is worth a part."""
        return self.rows >= PART_ROWS or self.bytes >= PART_BYTES

    def taken(self) -> list[Chunk]:
        """What is on it, which then is empty."""
        chunks, self.chunks, self.rows, self.bytes = self.chunks, [], 0, 0
        return chunks


@dataclass
class Output:
    """What was written of some files, all or nothing of each."""

    parts: list[Part] = field(default_factory=list)
    bad: list[dict[str, Any]] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)  # by file

    def add(self, other: Output) -> None:
        """Take over what was written elsewhere."""
        self.parts += other.parts
        self.bad += other.bad
        self.rows.update(other.rows)


def write(plan: Plan, group: Mapping[str, Any]) -> dict[str, Any]:
    """Read, key, type, de-identify and seal a group of files of one source.

    Returns:
        `parts` to commit, in JSON; `files`, ids; `rows` and `bad`, how many; `unknown`, columns that the table does
        not have. Nothing of a record but these.
    """
    with plan.table.pack() as pack:
        writer = Writer(plan, group["source"], pack)
        for number, path, file_id in group["files"]:
            writer.receive(FileRef(number, path, file_id))
        return writer.finish()


class Writer:
    """Writes the files of one source that one task was given."""

    def __init__(self, plan: Plan, source: str, pack: PackWriter) -> None:
        self.plan = plan
        self.source = plan.sources[source]
        self.kinds = plan.kinds.get(source, {})
        self.pack = pack
        self.pseudonyms = plan.pseudonyms()
        self.output = Output()
        self.waiting = Pile()  # of files that were read to their end
        self.received: list[dict[str, Any]] = []
        self.unknown: set[str] = set()

    def receive(self, file: FileRef) -> None:
        """One file. A file that breaks off is in the quarantine as a whole: its last rows may be cut."""
        path, file = self.source.root / file.path, replace(file, path=shown(file.path))
        size, modified_ns = state_of(self.source.reader, path)
        self.received.append(
            {"file": file, "size": size, "modified_ns": modified_ns, "digest": digest_of(self.source.reader, path)}
        )
        unmatched = self.source.missing_in_path(file.path)
        if unmatched:
            self.output.bad.append(self._bad(file, None, f"its path does not match `{unmatched}`"))
            return
        mine, pile = Output(), Pile()
        seen: set[bytes] = set()
        try:
            for records in self.source.reader.read(path):
                mine.bad += [self._bad(file, row, reason) for row, reason in records.bad]
                pile.add([self._keyed(file, extended(self.source.reader, records, file.path), seen)])
                if pile.is_much:
                    mine.add(self._written(pile.taken()))
        except ReadError as error:
            self.output.bad.append(self._bad(file, None, error.reason))
            return
        self.output.add(mine)
        self.waiting.add(pile.taken())
        if self.waiting.is_much:
            self.output.add(self._written(self.waiting.taken()))

    def finish(self) -> dict[str, Any]:
        """Write what is left, and the index and quarantine of these files."""
        output, table = self.output, self.plan.table
        output.add(self._written(self.waiting.taken()))
        if output.bad:
            rows = [{**row, "of": self.source.name} for row in sorted(output.bad, key=lambda row: row[POSITION])]
            output.parts.append(table.write_part(QUARANTINE, pa.Table.from_pylist(rows, BAD)))
        output.parts.append(table.write_part(FILES, self._index()))
        return {
            "source": self.source.name,
            "parts": [part.model_dump(mode="json") for part in output.parts],
            "files": [received["file"].file_id for received in self.received],
            "rows": output.rows.total(),
            "bad": len(output.bad),
            "unknown": sorted(self.unknown),
        }

    def _index(self) -> pa.Table:
        """The rows of the table's index for these files."""
        unmatched = UNMATCHED.format(owner=self.source.owner)
        counts = Counter((row[FILE_ID], row["reason"]) for row in self.output.bad)
        rows = []
        for received in self.received:
            file: FileRef = received["file"]
            rows.append(
                {
                    **{name: received[name] for name in ("size", "modified_ns", "digest")},
                    FILE_ID: file.file_id,
                    POSITION: file.number << 32,
                    "of": self.source.name,
                    "path": file.path,
                    "rows": self.output.rows[file.file_id],
                    "duplicates": counts[file.file_id, DUPLICATE],
                    "unmatched": counts[file.file_id, unmatched],
                }
            )
        names = {FILE_ID: pa.string(), POSITION: pa.int64(), "of": pa.string(), "path": pa.string(), **FILE_COLUMNS}
        return pa.Table.from_pylist(rows, pa.schema(list(names.items())))

    def _keyed(self, file: FileRef, records: Records, seen: set[bytes]) -> Chunk:
        """Rows with their pseudonyms and splits; the identified keys end here."""
        keyed = keys_of(self.source, records, file.path, self.pseudonyms)
        count = len(records.rows)
        positions = file.number << 32 | np.asarray(records.rows, np.int64)
        reasons = {row: "no record key: `record` is missing" for row in range(count) if keyed.record_ids[row] is None}
        if self.source.names_record:
            known = self.plan.duplicates
            repeated = np.isin(positions, known) if len(known) else np.zeros(count, bool)
            for row, record_id in enumerate(keyed.record_ids):
                if record_id is not None and (repeated[row] or record_id in seen):
                    reasons[row] = DUPLICATE
                elif record_id is not None:
                    seen.add(record_id)
        subject_ids, codes = self._subjects(keyed, reasons)
        times = self._times(file, records, reasons)
        assets: list[dict[str, Any] | None] = [None] * count
        for row, array in enumerate(records.assets or ()):
            if row not in reasons:
                assets[row] = self.pack.append(array)
        names = set(records.columns.column_names)
        self.unknown |= names - self.kinds.keys() - self.plan.dropped.get(self.source.name, frozenset())
        self.unknown -= self.source.reader.record_names()
        columns = records.columns.select([name for name in records.columns.column_names if name in self.kinds])
        if self.kinds and not columns.num_columns:  # else the table would not know how many rows it has
            columns = pa.table({next(iter(self.kinds)): pa.nulls(count, pa.string())})
        return Chunk(file, records.rows, columns, keyed.record_ids, subject_ids, codes, times, assets, reasons)

    def _subjects(self, keyed: Keyed, reasons: dict[int, str]) -> tuple[list[bytes | None], Array]:
        """Whose each row is, and the code of the split; adds the rows that nobody owns to `reasons`."""
        codes: Array
        if keyed.patients is None:
            known, owned = self.plan.owners[self.source.owner].find(as_ids(keyed.record_ids))
            raw = owned["subject"]
            subject_ids = [raw[row : row + 1].tobytes() if known[row] else None for row in range(len(raw))]
            codes = np.where(known, owned["code"], CODE[EXCLUDED])
            missing = UNMATCHED.format(owner=self.source.owner)
        else:
            patients = keyed.patients
            subject_ids = [None if patient is None else self.pseudonyms.subject(patient) for patient in patients]
            drawn = {
                patient: CODES.index(choose(self.source.split, None, patient))
                for patient in (() if self.plan.splits else set(patients))
            }
            codes = np.array([drawn.get(patient, 0) for patient in patients], np.uint8)
            missing = "no subject: `subject` is missing"
        if self.plan.splits is not None:
            known, published = self.plan.splits.find(as_ids(subject_ids))
            codes = np.where(known, published, CODE[EXCLUDED])
        for row, subject_id in enumerate(subject_ids):
            if subject_id is None:
                reasons.setdefault(row, missing)
        return subject_ids, codes

    def _times(self, file: FileRef, records: Records, reasons: dict[int, str]) -> pa.Array:
        """When each row was recorded; null where it does not say."""
        if self.source.reader.time is None:
            return pa.nulls(len(records.rows), pa.timestamp("us", "UTC"))
        texts = pa.table({TIME: pa.array(evaluate(self.source.reader.time, records, file.path), pa.string())})
        times, wrong = typed(texts, {TIME: TIMESTAMP})
        for row in wrong:
            reasons.setdefault(row, "`time` is no time")
        return times.column(0).combine_chunks()

    def _written(self, chunks: Sequence[Chunk]) -> Output:
        """Chunks as one part."""
        output = Output()
        if not chunks:
            return output
        reasons, start = {}, 0
        for chunk in chunks:
            reasons.update({start + row: reason for row, reason in chunk.reasons.items()})
            start += len(chunk.rows)
        columns = None
        if self.kinds:
            columns, wrong = typed(
                pa.concat_tables([chunk.columns for chunk in chunks], promote_options="permissive"), self.kinds
            )
            for row, reason in wrong.items():
                reasons.setdefault(row, reason)
        start = 0
        kept: list[tuple[Chunk, int]] = []
        mask = np.ones(sum(len(chunk.rows) for chunk in chunks), bool)
        for chunk in chunks:
            for row in range(len(chunk.rows)):
                if start + row in reasons:
                    mask[start + row] = False
                    output.bad.append(self._bad(chunk.file, chunk.rows[row], reasons[start + row], chunk, row))
                else:
                    kept.append((chunk, row))
            start += len(chunk.rows)
        output.rows.update(Counter(chunk.file.file_id for chunk, _ in kept))
        if kept:
            times = pa.concat_arrays([chunk.times for chunk in chunks])
            output.parts.append(self.plan.table.write_part(self.source.name, self._rows(kept, times, columns, mask)))
        return output

    def _rows(self, kept: list[tuple[Chunk, int]], times: pa.Array, columns: pa.Table | None, mask: Array) -> pa.Table:
        """The rows as the table holds them."""
        subject_ids = [chunk.subject_ids[row] or b"" for chunk, row in kept]
        keep = pa.array(mask)
        own = pa.table({TIME: times}) if columns is None else cap_ages(columns).append_column(TIME, times)
        own = own.filter(keep)
        if self.plan.shift_dates:
            own = shift_dates(own, shifts(self.pseudonyms, subject_ids))
        names = [name if place == own.num_columns - 1 else f"{self.source.name}.{name}"
                 for place, name in enumerate(own.column_names)]  # fmt: skip
        rows = own.rename_columns(names)
        common: dict[str, Any] = {
            SUBJECT_ID: pa.array([subject_id.hex() for subject_id in subject_ids]),
            SPLIT: pa.array([CODES[chunk.codes[row]] for chunk, row in kept]),
            RECORD_ID: pa.array([(chunk.record_ids[row] or b"").hex() for chunk, row in kept]),
            FILE_ID: pa.array([chunk.file.file_id for chunk, _ in kept]),
            POSITION: pa.array([chunk.file.number << 32 | chunk.rows[row] for chunk, row in kept], pa.int64()),
            ASSET: pa.array([chunk.assets[row] for chunk, row in kept]),
        }
        for name, column in common.items():
            rows = rows.append_column(name, column)
        return rows

    def _bad(
        self, file: FileRef, row: int | None, reason: str, chunk: Chunk | None = None, at: int = 0
    ) -> dict[str, Any]:
        """A row of the quarantine. Its keys are kept where they are its own: other sources may ask for them."""
        bad: dict[str, Any] = {POSITION: file.number << 32 | (row or 0), FILE_ID: file.file_id, "path": file.path}
        bad |= {"row": row, "reason": reason}
        if chunk is not None and reason != DUPLICATE:
            record_id, subject_id = chunk.record_ids[at], chunk.subject_ids[at]
            bad |= {RECORD_ID: record_id and record_id.hex(), SUBJECT_ID: subject_id and subject_id.hex()}
            bad[SPLIT] = CODES[chunk.codes[at]] if subject_id else None
        return bad
