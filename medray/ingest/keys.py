"""Keys: whose record it is, and in which split. Read in the tasks that read records; only pseudonyms leave them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.governance.deidentify import ID_BYTES, Pseudonyms
from medray.readers import OfValue, PathValue, Reader, Records, evaluate, parts, path_text
from medray.schema import EXCLUDED, HELD_OUT, TRAIN, TUNING, canonical
from medray.study import Split, Study

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

UNNAMED = "unnamed"  # a value of `by` that means no split: the subject's own key decides, which another source has
CODES = (EXCLUDED, TRAIN, TUNING, HELD_OUT, UNNAMED)
ID_TYPE = np.dtype(f"S{ID_BYTES}")
NOBODY = np.zeros(1, ID_TYPE)[0]


@dataclass(frozen=True)
class Source:
    """How the records of a source are keyed.

    Attributes:
        owner: the source that knows the subject, by the record's key; empty where this one does.
        split: how subjects are split.
        by: what holds a published split, where this source holds it.
    """

    name: str
    reader: Reader
    root: Path
    owner: str
    split: Split
    by: str | PathValue | None

    @property
    def names_record(self) -> bool:
        """Whether records have a key of their own, which could be there twice."""
        return self.reader.record is not None

    @property
    def subject(self) -> Any:
        """The value that names the subject; None where each record is its own."""
        return None if self.owner else self.reader.subject or self.reader.own_subject()

    def missing_in_path(self, path: str) -> str:
        """The first value that is taken from the path, and not found there; empty where all are."""
        values = {"record": self.reader.record, "subject": self.subject, "time": self.reader.time}
        values |= {f"columns.{name}": value for name, value in self.reader.columns.items()}
        for name, value in values.items():
            patterns = [part.path for part in parts(value) if isinstance(part, PathValue)]
            if any(canonical(path_text(pattern, path)) is None for pattern in patterns):
                return name
        return ""

    def only_by_path(self) -> bool:
        """Whether the path tells record, subject and split, so that no file need be opened for them."""
        named = self.names_record or self.subject is not None  # else the rows are the subjects
        values = [value for value in (self.reader.record, self.subject, self.by) if value is not None]
        return named and all(isinstance(part, PathValue) for value in values for part in parts(value))


@dataclass
class Keyed:
    """The keys of some rows.

    Attributes:
        record_ids: pseudonyms of the record keys; None where a row has none.
        patients: whose record it is; None where a row does not say; no list where another source knows.
    """

    record_ids: list[bytes | None]
    patients: list[str | None] | None


class Lookup:
    """Values by pseudonym, as arrays that Ray shares between processes without a copy."""

    def __init__(self, ids: Array, values: Array) -> None:
        """Args are (n,) of 16 bytes and (n, ...); of equal ids the first counts."""
        self.ids, first = np.unique(ids, return_index=True)
        self.values = values[first]

    def find(self, wanted: Array) -> tuple[Array, Array]:
        """Whether each pseudonym is known, bool (n,), and its value; that of an unknown one means nothing."""
        if not len(self.ids):
            return np.zeros(len(wanted), bool), np.zeros((len(wanted), *self.values.shape[1:]), self.values.dtype)
        places = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        return (self.ids[places] == wanted) & (wanted != NOBODY), self.values[places]


def as_ids(ids: Sequence[bytes | None]) -> Array:
    """Pseudonyms as an array; None as `NOBODY`, which is zeros."""
    return np.frombuffer(b"".join(item or bytes(ID_BYTES) for item in ids), ID_TYPE)


def sources_of(study: Study) -> dict[str, Source]:
    """How each source's records are keyed."""
    split = study.cohort.split
    holder, by = study.split_source(), split.by
    by = by.partition(".")[2] if isinstance(by, str) else by
    return {
        name: Source(
            name,
            reader,
            study.root(name),
            reader.subject.of if isinstance(reader.subject, OfValue) else "",
            split,
            by if name == holder else None,
        )
        for name, reader in study.sources.items()
    }


def extended(reader: Reader, records: Records, path: str) -> Records:
    """Records with the study's further columns of this source."""
    import pyarrow as pa

    if not reader.columns:
        return records
    columns = records.columns
    for name, value in reader.columns.items():
        cells = pa.array(evaluate(value, records, path), pa.string())
        if name in columns.column_names:
            columns = columns.drop_columns(name)
        columns = columns.append_column(name, cells) if columns.num_columns else pa.table({name: cells})
    return replace(records, columns=columns)


def keys_of(source: Source, records: Records, path: str, pseudonyms: Pseudonyms) -> Keyed:
    """The keys of the rows of one file. Without `record` a row's key is its place, which no other source has."""
    reader = source.reader
    if reader.record is None:
        keys: list[str | None] = [f"{source.name}\0{path}\0{row}" for row in records.rows]
    else:
        keys = evaluate(reader.record, records, path)
    patients = None
    if not source.owner:
        patients = evaluate(source.subject, records, path) if source.subject is not None else keys
    return Keyed([None if key is None else pseudonyms.record(key) for key in keys], patients)


def choose(split: Split, value: str | None, patient_id: str | None) -> str:
    """The split that a published value means, or that is drawn for a patient; UNNAMED where neither decides.

    The draw is a hash of the seed and the identified key, not of the pseudonym: two installations with keys of their
    own split the same patients alike.
    """
    if split.by is not None:
        if value is None:
            return EXCLUDED
        if value in split.held_out:
            return HELD_OUT
        if value in split.tuning:
            return TUNING
        if split.held_out and split.tuning:
            return TRAIN
    if patient_id is None:
        return UNNAMED
    if not split.held_out and _drawn(split.seed, HELD_OUT, patient_id) < split.held_out_share:
        return HELD_OUT
    if not split.tuning and _drawn(split.seed, TUNING, patient_id) < split.tuning_share:
        return TUNING
    return TRAIN


def _drawn(seed: int, name: str, patient_id: str) -> float:
    """Uniform in [0, 1)."""
    text = f"medray split\0{seed}\0{name}\0{patient_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2.0**64
