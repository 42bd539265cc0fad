"""Join: the units of some buckets of subjects, each with its label and one row of each modality.

All records of a subject lie in one bucket, whatever their source, so that a join never leaves its task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from medray.artifacts.table import Table
from medray.batches.labels import Label, Labels
from medray.schema import ASSET, EXCLUDED, POSITION, RECORD_ID, SPLIT, SUBJECT_ID, TIME

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

By = Literal["row", "record", "subject"]

SUBJECT = "subject"  # the unit that is no source
BEFORE, AFTER = np.iinfo(np.int64).min, np.iinfo(np.int64).max  # of a record without a time; of a unit without one
OUTSIDE, NO_LABEL, NO_INPUT = "outside of every split", "no label", "no input"


@dataclass(frozen=True)
class Input:
    """Where a modality's rows come from.

    Attributes:
        source: that it reads.
        by: what joins its rows to the units.
        use: which of several: the latest or the first.
        columns: of the source that it may see, without `source.`.
        assets: whether it sees arrays; a row without one counts as absent.
    """

    source: str
    by: By
    use: str
    columns: tuple[str, ...]
    assets: bool


@dataclass(frozen=True)
class Plan:
    """Which units there are, and what belongs to them; sent to every task.

    Attributes:
        table: pinned to the version that is encoded.
        unit: `subject`, or the source each record of which is one.
        labels: how the target is read.
        labels_by: what joins the target's rows to the units.
        inputs: by modality.
    """

    table: Table
    unit: str
    labels: Labels
    labels_by: By
    inputs: Mapping[str, Input]

    @property
    def target_source(self) -> str:
        """The source that has the target."""
        return self.labels.column.partition(".")[0]


@dataclass
class Units:
    """Units that get a sample.

    Attributes:
        rows: of each source, as the table has them.
        subject: 32 hex digits of each unit's subject, (n,).
        unit: 32 hex digits of each unit, (n,).
        split: of each unit, (n,).
        labels: of each unit.
        places: row of each modality's source, (n,), -1 where it is absent.
        left_out: how many units get none, by reason.
        contradicted: units whose rows have different labels.
        crossing: subjects with rows in several splits.
    """

    rows: dict[str, pa.Table]
    subject: Array
    unit: Array
    split: Array
    labels: list[Label]
    places: dict[str, Array]
    left_out: Counter[str]
    contradicted: int
    crossing: int


def join(plan: Plan, buckets: Sequence[int]) -> Units:
    """The units of some buckets.

    Raises:
        DataError: the target cannot be read.
        IntegrityError: a stored file was changed.
    """
    rows = _read(plan, buckets)
    subjects = {source: _texts(table, SUBJECT_ID) for source, table in rows.items()}
    subject, unit, split, time, own = _units(plan, rows, subjects)
    known, contradicted = _labels(plan, rows, subjects)
    keys = {"row": own, "record": unit, "subject": subject}[plan.labels_by]
    found = [known.get(key) for key in keys]

    places = {name: _place(given, rows, subjects, subject, unit, time, own) for name, given in plan.inputs.items()}
    there = np.zeros(len(subject), bool)
    for place in places.values():
        there |= place >= 0
    inside = split != EXCLUDED
    labelled = np.array([label is not None for label in found], bool)
    kept = np.flatnonzero(inside & labelled & there)
    left_out = Counter(
        {
            OUTSIDE: int((~inside).sum()),
            NO_LABEL: int((inside & ~labelled).sum()),
            NO_INPUT: int((inside & labelled & ~there).sum()),
        }
    )
    return Units(
        rows=rows,
        subject=subject[kept],
        unit=unit[kept],
        split=split[kept],
        labels=[label for label in (found[index] for index in kept) if label is not None],
        places={name: place[kept] for name, place in places.items()},
        left_out=left_out,
        contradicted=sum(keys[index] in contradicted for index in np.flatnonzero(inside)),
        crossing=_crossing(rows, subjects),
    )


def _read(plan: Plan, buckets: Sequence[int]) -> dict[str, pa.Table]:
    """The rows of every source that has a part in it, with the columns that are used."""
    columns: dict[str, set[str]] = {plan.target_source: {plan.labels.column}}
    if plan.unit != SUBJECT:
        columns.setdefault(plan.unit, set())
    for given in plan.inputs.values():
        wanted = columns.setdefault(given.source, set())
        wanted |= {f"{given.source}.{name}" for name in given.columns} | ({ASSET} if given.assets else set())
    always = [SUBJECT_ID, SPLIT, RECORD_ID, TIME, POSITION]
    return {
        source: plan.table.read(source, buckets=buckets, columns=[*always, *sorted(wanted)])
        for source, wanted in columns.items()
    }


def _units(
    plan: Plan, rows: Mapping[str, pa.Table], subjects: Mapping[str, Array]
) -> tuple[Array, Array, Array, Array, Array]:
    """Subject, name, split, time and row (in the source that is the unit, else -1) of every unit."""
    if plan.unit != SUBJECT:
        of = rows[plan.unit]
        subject = subjects[plan.unit]
        return subject, _texts(of, RECORD_ID), _texts(of, SPLIT), _times(of, AFTER), np.arange(len(subject))
    everyone = np.concatenate(list(subjects.values()))
    splits = np.concatenate([_texts(table, SPLIT) for table in rows.values()])
    subject, first = np.unique(everyone, return_index=True)
    none = np.full(len(subject), -1)
    # a subject has no time of its own: all of its records come before it
    return subject, subject, splits[first], np.full(len(subject), AFTER), none


def _labels(
    plan: Plan, rows: Mapping[str, pa.Table], subjects: Mapping[str, Array]
) -> tuple[dict[Any, Label], set[Any]]:
    """Label by row, record or subject; and those whose rows disagree."""
    source = plan.target_source
    of = rows[source]
    labels = plan.labels.read(of.column(plan.labels.column).to_pylist())
    sorts: dict[str, Iterable[Any]] = {
        "row": range(len(labels)),
        "record": _texts(of, RECORD_ID),
        "subject": subjects[source],
    }
    keys = sorts[plan.labels_by]
    known: dict[Any, Label] = {}
    contradicted = set()
    for key, label in zip(keys, labels, strict=True):
        if label is not None and known.setdefault(key, label) != label:
            contradicted.add(key)
    return known, contradicted


def _place(
    given: Input,
    rows: Mapping[str, pa.Table],
    subjects: Mapping[str, Array],
    subject: Array,
    unit: Array,
    time: Array,
    own: Array,
) -> Array:
    """The row of a modality's source that belongs to each unit, -1 where none does."""
    of = rows[given.source]
    usable = np.arange(of.num_rows)
    if given.assets:
        usable = usable[of.column(ASSET).is_valid().to_numpy()]
    if given.by == "row":
        return np.where(np.isin(own, usable), own, -1)
    keys, wanted = (_texts(of, RECORD_ID), unit) if given.by == "record" else (subjects[given.source], subject)
    found = _nearest(keys[usable], _times(of, BEFORE)[usable], wanted, time, first=given.use == "first")
    padded = np.append(usable, -1)
    place: Array = padded[found]
    return place


def _nearest(keys: Array, times: Array, wanted: Array, until: Array, *, first: bool) -> Array:
    """Of the rows with the wanted key up to a time, the last or the first; -1 where there is none.

    Rows are in the order of their arrival, which decides between equal times.
    """
    if not len(keys) or not len(wanted):
        return np.full(len(wanted), -1)
    _, codes = np.unique(np.concatenate([keys, wanted]), return_inverse=True)
    _, ranks = np.unique(np.concatenate([times, until]), return_inverse=True)
    span = int(ranks.max()) + 1
    both = codes.astype(np.int64) * span + ranks  # ordered by key, then time
    have, ask = both[: len(keys)], both[len(keys) :]
    order = np.argsort(have, kind="stable")
    have = have[order]
    if first:
        at = np.searchsorted(have, codes[len(keys) :].astype(np.int64) * span, side="left")
        there = (at < len(have)) & (have[np.minimum(at, len(have) - 1)] <= ask)
    else:
        at = np.searchsorted(have, ask, side="right") - 1
        there = (at >= 0) & (have[at] // span == codes[len(keys) :])
    return np.where(there, order[np.clip(at, 0, len(have) - 1)], -1)


def _crossing(rows: Mapping[str, pa.Table], subjects: Mapping[str, Array]) -> int:
    """How many subjects have rows in more than one split."""
    pairs = {
        (subject, split)
        for source, table in rows.items()
        for subject, split in zip(subjects[source], _texts(table, SPLIT), strict=True)
    }
    splits = Counter(subject for subject, _ in pairs)
    return sum(count > 1 for count in splits.values())


def _texts(table: pa.Table, column: str) -> Array:
    return np.array(table.column(column).to_pylist(), dtype=object).astype(str)


def _times(table: pa.Table, missing: int) -> Array:
    """Microseconds since 1970."""
    import pyarrow.compute as pc

    values: Array = pc.fill_null(table.column(TIME).cast(pa.int64()), missing).to_numpy()
    return values
