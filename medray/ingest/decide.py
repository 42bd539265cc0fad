"""What the surveyed keys decide: which rows are duplicates, whose record it is, and each subject's split, once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.artifacts.table import Table
from medray.errors import DataError
from medray.governance.deidentify import ID_BYTES
from medray.ingest.keys import CODES, ID_TYPE, NOBODY, UNNAMED, Lookup, Source
from medray.ingest.survey import Keys
from medray.schema import EXCLUDED, FILE_ID, POSITION, RECORD_ID, SPLIT, SUBJECT_ID

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

OWNED = np.dtype([("subject", ID_TYPE), ("code", np.uint8)])
CODE = {name: np.uint8(number) for number, name in enumerate(CODES)}


@dataclass
class Stored:
    """What the table knows of a source's records, those in the quarantine included.

    Attributes:
        records, subjects: pseudonyms (n,); zeros where unknown.
        codes: of the splits (n,).
        files: ids of their files (n,).
    """

    records: Array
    subjects: Array
    codes: Array
    files: Array

    def without(self, files: Collection[str]) -> Stored:
        """But for the rows of some files."""
        kept = ~np.isin(self.files, sorted(files)) if len(self.files) and files else np.ones(len(self.files), bool)
        return Stored(self.records[kept], self.subjects[kept], self.codes[kept], self.files[kept])


NOTHING = Stored(*(np.zeros(0, kind) for kind in (ID_TYPE, ID_TYPE, np.dtype(np.uint8), np.dtype("U32"))))


def stored(table: Table, source: str) -> Stored:
    """The keys of a source's rows in the table, by position."""
    columns = [POSITION, RECORD_ID, SUBJECT_ID, SPLIT, FILE_ID]
    rows = table.read(source, columns=columns)
    quarantine = table.quarantine()
    if quarantine.num_rows:
        ours = quarantine.filter(pc.equal(quarantine.column("of"), source)).select(columns)
        rows = pa.concat_tables([rows, ours], promote_options="permissive")
    codes = [CODE[name or EXCLUDED] for name in rows.column(SPLIT).to_pylist()]
    return Stored(
        _ids(rows.column(RECORD_ID)),
        _ids(rows.column(SUBJECT_ID)),
        np.array(codes, np.uint8),
        np.array(rows.column(FILE_ID).to_pylist(), dtype=str),
    )


def duplicates(keys: Keys, before: Stored) -> Array:
    """Which of the surveyed rows, in order of position, have the record key of an earlier row or a stored one."""
    first = np.zeros(len(keys.records), bool)
    first[np.unique(keys.records, return_index=True)[1]] = True
    return ~first | np.isin(keys.records, before.records[before.records != NOBODY])


def owner_map(keys: Keys | None, repeated: Array | None, before: Stored) -> Lookup:
    """Record -> (subject, code of the split drawn for it), of a source that others ask."""
    keys = _but(keys, repeated)
    fresh = keys.subjects != NOBODY
    known = (before.records != NOBODY) & (before.subjects != NOBODY)
    values = np.zeros(known.sum() + fresh.sum(), OWNED)
    values["subject"] = np.concatenate([before.subjects[known], keys.subjects[fresh]])
    values["code"] = np.concatenate([before.codes[known], keys.codes[fresh]])
    return Lookup(np.concatenate([before.records[known], keys.records[fresh]]), values)


def moved_files(owner: Lookup, dependent: Stored) -> set[str]:
    """Files with rows whose subject the owner knows differently now."""
    known, owned = owner.find(dependent.records)
    same = known & (owned["subject"] == dependent.subjects)
    keyed = (dependent.records != NOBODY) & (dependent.subjects != NOBODY)
    return set(dependent.files[keyed & ~same].tolist())


def split_map(
    source: Source,
    keys: Keys | None,
    repeated: Array | None,
    owners: Mapping[str, Lookup],
    before: Mapping[str, Stored],
) -> Lookup:
    """Subject -> code of its split, by a published split; a subject that the table has keeps its own.

    Raises:
        DataError: subjects in two splits.
    """
    subjects, codes = _votes(source, _but(keys, repeated), owners)
    pairs = np.unique(np.array(list(zip(subjects, codes, strict=True)), [("subject", ID_TYPE), ("code", np.uint8)]))
    twice = int((np.unique(pairs["subject"], return_counts=True)[1] > 1).sum()) if len(pairs) else 0
    if twice:
        raise DataError(
            f"cohort.split: {twice} subject(s) of {source.name} are in two splits by '{_name(source.by)}'. A subject "
            "in train and held_out makes every result too good; correct the split, or the subject's key."
        )
    known = {name: stored for name, stored in before.items() if len(stored.subjects)}
    old = np.concatenate([stored.subjects for stored in known.values()] or [np.zeros(0, ID_TYPE)])
    old_codes = np.concatenate([stored.codes for stored in known.values()] or [np.zeros(0, np.uint8)])
    lookup = Lookup(old[old != NOBODY], old_codes[old != NOBODY])
    seen, theirs = lookup.find(pairs["subject"])
    changed = int((seen & (theirs != CODE[EXCLUDED]) & (theirs != pairs["code"])).sum())
    if changed:
        raise DataError(
            f"cohort.split: {changed} subject(s) are in another split by '{_name(source.by)}' than at their first "
            "ingest, which never changes. Correct the split, or start over with --force."
        )
    return Lookup(np.concatenate([lookup.ids, pairs["subject"]]), np.concatenate([lookup.values, pairs["code"]]))


def _votes(source: Source, keys: Keys, owners: Mapping[str, Lookup]) -> tuple[Array, Array]:
    """Subjects and the codes that their rows name; a row without a value names none."""
    subjects, codes = keys.subjects, keys.codes.copy()
    if source.owner:
        known, owned = owners[source.owner].find(keys.records)
        subjects = np.where(known, owned["subject"], NOBODY)
        drawn = known & (codes == CODE[UNNAMED])
        codes[drawn] = owned["code"][drawn]
    named = (subjects != NOBODY) & (codes != CODE[EXCLUDED]) & (codes != CODE[UNNAMED])
    return subjects[named], codes[named]


def _but(keys: Keys | None, repeated: Array | None) -> Keys:
    """The keys without those of duplicates."""
    if keys is None or repeated is None:
        return keys or Keys()
    return keys.taken(~repeated)


def _ids(column: pa.ChunkedArray) -> Array:
    """Pseudonyms in hex as an array."""
    raw = b"".join(bytes.fromhex(text) if text else bytes(ID_BYTES) for text in column.to_pylist())
    return np.frombuffer(raw, ID_TYPE)


def _name(by: object) -> str:
    return by if isinstance(by, str) else str(getattr(by, "path", by))
