"""Survey: what columns hold, and the keys that decide splits and joins; nothing that identifies leaves a task.

What leaves it is counts, column names, pseudonyms and split names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.errors import ReadError
from medray.governance.deidentify import SKETCH, Facts, Pseudonyms, names_a_number, reason_to_drop
from medray.ingest.files import shown
from medray.ingest.keys import CODES, ID_TYPE, NOBODY, Source, as_ids, choose, extended, keys_of
from medray.ingest.plan import Plan, from_text, to_text
from medray.inputs import count_kinds, kind_of, typed
from medray.readers import Records, column_names, evaluate
from medray.schema import NUMBER, TEXT, TIMESTAMP, canonical

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]


COUNT_BYTES = 8 << 20  # of columns that are counted together


@dataclass
class Keys:
    """The keys of a source's rows, in no order.

    Attributes:
        positions: int64 (n,).
        records: pseudonyms (n,).
        subjects: pseudonyms (n,); zeros where the row does not say or another source knows.
        codes: index into `CODES` of the split, uint8 (n,): as published where the source holds a published split, else
            as drawn for the subject.
    """

    positions: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    records: Array = field(default_factory=lambda: np.zeros(0, ID_TYPE))
    subjects: Array = field(default_factory=lambda: np.zeros(0, ID_TYPE))
    codes: Array = field(default_factory=lambda: np.zeros(0, np.uint8))

    def taken(self, rows: Array) -> Keys:
        """Some of them, by their numbers or a mask."""
        return Keys(self.positions[rows], self.records[rows], self.subjects[rows], self.codes[rows])

    @classmethod
    def together(cls, several: Sequence[Keys]) -> Keys:
        """By position."""
        names = [field.name for field in fields(cls)]
        whole = cls(*(np.concatenate([getattr(keys, name) for keys in (cls(), *several)]) for name in names))
        return whole.taken(np.argsort(whole.positions))

    def to_json(self) -> dict[str, str]:
        """As a task sends them."""
        return {field.name: to_text(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, texts: Mapping[str, str]) -> Keys:
        """The reverse."""
        return cls(*(from_text(texts[field.name], getattr(cls(), field.name).dtype) for field in fields(cls)))


@dataclass
class Surveyed:
    """What was found in a source.

    Attributes:
        files: that could be read.
        rows: in them.
        facts: by column.
        keys: None where they were not asked for.
    """

    files: int = 0
    rows: int = 0
    facts: dict[str, Facts] = field(default_factory=dict)
    keys: Keys | None = None


def survey(plan: Plan, group: Mapping[str, Any]) -> dict[str, Any]:
    """Look at a group of files of one source; files that cannot be read are left to the writing task.

    Args:
        plan: what tasks share.
        group: `types` and `keys` say what is asked for; `open` whether files must be opened for it.
    """
    source = plan.sources[group["source"]]
    pseudonyms = plan.pseudonyms()
    counted = Counted(source, pseudonyms)
    found: list[Keys] = []
    num_files, num_rows = 0, 0
    for number, name, _ in group["files"]:
        path, rows, keys = shown(name), 0, []
        try:
            if source.missing_in_path(path):
                raise ReadError(path, "its path names no key")
            for records in _records(source, name, path, group["open"]):
                if group["types"]:
                    counted.add(records)
                if group["keys"]:
                    keys.append(_keys(source, records, number, path, pseudonyms))
                rows += len(records.rows) + len(records.bad)
        except ReadError:  # one record, for all that is known
            rows, keys = 1, []
        else:
            num_files += group["open"]
        found += keys
        num_rows += rows * group["open"]
    result: dict[str, Any] = {
        "source": source.name,
        "order": group["files"][0][0],
        "files": num_files,
        "rows": num_rows,
        "facts": {name: asdict(fact) for name, fact in counted.facts().items()},
    }
    if group["keys"]:
        result["keys"] = Keys.together(found).to_json()
    return result


def merged(results: Iterable[Mapping[str, Any]]) -> dict[str, Surveyed]:
    """What the groups of each source have found together."""
    sources: dict[str, Surveyed] = {}
    keys: dict[str, list[Keys]] = {}
    for result in sorted(results, key=lambda result: result["order"]):
        found = sources.setdefault(result["source"], Surveyed())
        found.files += result["files"]
        found.rows += result["rows"]
        for name, fact in result["facts"].items():
            found.facts.setdefault(name, Facts()).add(Facts(**fact))
        if "keys" in result:
            keys.setdefault(result["source"], []).append(Keys.from_json(result["keys"]))
    for name, several in keys.items():
        sources[name].keys = Keys.together(several)
    return sources


def described(
    source: Source, facts: Mapping[str, Facts], *, free_text: bool, shift_dates: bool, keep_columns: Iterable[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """What each kept column holds, and why the others are not kept.

    A format with fixed columns has been read for what identifies by who wrote its reader; there the study's own columns
    alone are judged.
    """
    reader = source.reader
    aliased = {name for value in reader.columns.values() for name in column_names(value)}
    kept = set(keep_columns)
    columns: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for name, fact in facts.items():
        kind, reason = _kind(fact), ""
        if reader.free_form or name in reader.columns:
            reason = reason_to_drop(name, kind, fact, free_text=free_text, shift_dates=shift_dates)
        elif name in aliased:
            reason = "read to be kept under another name"
        if reason and f"{source.name}.{name}" not in kept:
            dropped[name] = reason
        else:
            columns[name] = kind
    return columns, dropped


def _records(source: Source, name: str, path: str, opened: bool) -> Iterable[Records]:
    if not opened:
        yield Records(pa.table({}), [0])
        return
    for records in source.reader.read(source.root / name, assets=False):
        yield extended(source.reader, records, path)


def _keys(source: Source, records: Records, number: int, path: str, pseudonyms: Pseudonyms) -> Keys:
    """The keys of some rows of one file; rows without a record key have none."""
    keyed = keys_of(source, records, path, pseudonyms)
    patients = keyed.patients or [None] * len(records.rows)
    values = [None] * len(records.rows) if source.by is None else evaluate(source.by, records, path)
    split = source.split if source.by is not None else source.split.model_copy(update={"by": None})
    chosen = (CODES.index(choose(split, value, patient)) for value, patient in zip(values, patients, strict=True))
    subjects = [None if patient is None else pseudonyms.subject(patient) for patient in patients]
    keys = Keys(
        number << 32 | np.asarray(records.rows, np.int64),
        as_ids(keyed.record_ids),
        as_ids(subjects),
        np.fromiter(chosen, np.uint8, len(patients)),
    )
    return keys.taken(keys.records != NOBODY)


class Counted:
    """What the columns of some files hold. Rows are put together before they are counted: many files have one row."""

    def __init__(self, source: Source, pseudonyms: Pseudonyms) -> None:
        self._keys = source.reader.record_names()  # keys are no columns
        self._pseudonyms = pseudonyms
        self._facts: dict[str, Facts] = {}
        self._waiting: list[pa.Table] = []
        self._bytes = 0

    def add(self, records: Records) -> None:
        """Some rows."""
        columns = [name for name in records.columns.column_names if name not in self._keys]
        if columns:
            self._waiting.append(records.columns.select(columns))
            self._bytes += self._waiting[-1].nbytes
        if self._bytes > COUNT_BYTES:
            self._count()

    def facts(self) -> dict[str, Facts]:
        """By column."""
        self._count()
        return self._facts

    def _count(self) -> None:
        if self._waiting:
            rows = pa.concat_tables(self._waiting, promote_options="permissive").combine_chunks()
            for name in rows.column_names:
                fact = _fact(name, rows.column(name), self._pseudonyms)
                self._facts.setdefault(name, Facts()).add(fact)
        self._waiting, self._bytes = [], 0


def _fact(name: str, column: pa.ChunkedArray, pseudonyms: Pseudonyms) -> Facts:
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if not is_text:
        counts = count_kinds(column)
        native = TIMESTAMP if pa.types.is_temporal(column.type) else "" if pa.types.is_null(column.type) else NUMBER
        fact = Facts(native, values=counts[TEXT], numbers=counts[NUMBER], times=counts[TIMESTAMP])
    else:
        texts = pc.utf8_trim_whitespace(column.drop_null())
        texts = texts.filter(pc.not_equal(texts, ""))
        numbers = _read_as(texts, NUMBER)
        # a number is no time, but for the compact form of dates: most columns are numbers, and times are slow to tell
        dates = pc.match_substring_regex(texts, r"^[0-9]{8}([0-9]{6})?$")
        times = texts.filter(pc.or_(pc.invert(numbers), dates))
        fact = Facts(values=len(texts), numbers=_count_true(numbers), times=_count_true(_read_as(times, TIMESTAMP)))
        fact.codes = _matching(texts, r"^[+-]?0[0-9]")
        fact.whole = _matching(texts, r"^[+-]?[0-9]+(\.0*)?$")
        fact.sentences = _matching(texts, r"\S\s+\S+\s+\S")
        fact.literals = _matching(texts, r"^(\[.*\]|\{.*\}|\(.*\))$")
    if pa.types.is_integer(column.type):
        fact.whole = fact.values
    elif pa.types.is_floating(column.type):
        fact.whole = _count_true(pc.equal(column, pc.floor(column)))
    if (is_text and (fact.numbers < fact.values or names_a_number(name))) or (fact.whole and names_a_number(name)):
        distinct = (canonical(value) for value in pc.unique(column).to_pylist())
        fact.sketch = sorted({pseudonyms.value(value) for value in distinct if value is not None})[:SKETCH]
    return fact


def _read_as(texts: pa.ChunkedArray, kind: str) -> pa.ChunkedArray:
    """Which texts can be read as a kind."""
    return pc.is_valid(typed(pa.table({"": texts}), {"": kind})[0].column(0))


def _matching(texts: pa.ChunkedArray, pattern: str) -> int:
    return _count_true(pc.match_substring_regex(texts, pattern))


def _count_true(found: pa.ChunkedArray) -> int:
    count: int | None = pc.sum(found).as_py()
    return count or 0


def _kind(fact: Facts) -> str:
    """What a column holds: numbers with leading zeros are codes, and 20240131 all over is a date."""
    if not fact.values:
        return fact.native or TEXT
    kind = kind_of({TEXT: fact.values, NUMBER: fact.numbers, TIMESTAMP: fact.times})
    if kind == NUMBER and fact.times >= fact.numbers:
        return TIMESTAMP
    return TEXT if kind == NUMBER and fact.codes else kind
