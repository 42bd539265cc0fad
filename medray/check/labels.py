"""Labels and splits: would there be something to learn, and something to judge it by?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medray.batches.labels import NO, YES, Label, Labels
from medray.check.findings import Findings
from medray.errors import DataError, StudyError
from medray.readers import PathValue
from medray.schema import EXCLUDED, HELD_OUT, SPLITS, TRAIN, TUNING
from medray.study import Study

if TYPE_CHECKING:
    from medray.check.sources import Seen

FEW = 10  # units of a class; an interval of fewer says nothing
Say = Callable[[str, str, str], None]


def check_labels(study: Study, seen: Mapping[str, Seen], findings: Findings) -> None:
    """What is wrong with the target and the split, as far as they can be seen."""
    _check_named(study, seen, findings)
    source, _, column = study.cohort.target.column.partition(".")
    here = seen.get(source)
    if here is None or column not in here.columns:
        return  # said already
    try:
        reading = Labels.of(study)
        labels = reading.read(here.values(column))
    except (DataError, StudyError) as error:
        findings.fail(
            "cohort.target", str(error).removeprefix(f"{study.file}: cohort.target").strip(":. "), "Correct it"
        )
        return
    say = findings.fail if here.complete(column) else findings.mind  # what was not read may have the rest
    looked = "" if here.complete(column) else " looked at"
    known = [label for label in labels if label is not None]
    where = f"{study.cohort.target.column}, of {len(labels):,} rows{looked},"
    if not known:
        say("cohort.target", f"{where} holds no label", "Name the column that says what is to be predicted")
        return
    _check_classes(reading, known, where, say)
    splits = _splits(study, here, len(labels))
    if splits:
        named = [split for split in SPLITS if split != TUNING or study.cohort.split.tuning]  # else drawn from train
        _check_splits(reading, labels, splits, named, say, findings)


def _check_classes(reading: Labels, known: Sequence[Label], where: str, say: Say) -> None:
    """One class only, or a class that nobody has."""
    if reading.task == "regression":
        if len(set(known)) == 1:
            say("cohort.target", f"{where} holds one value only", "There is nothing to predict")
        return
    counts = reading.count(known)
    if reading.task == "binary" and YES not in counts:
        say(
            "cohort.target.positive",
            f"{where} never holds a positive value",
            "Compare it with the values in the column",
        )
    elif reading.task == "binary" and NO not in counts:
        say("cohort.target.positive", f"{where} holds positive values only", "There must be others, to tell them from")
    unseen = [name for name in reading.classes if name not in counts]
    if unseen:
        say("cohort.target.classes", f"{where} never holds {', '.join(unseen)}", "Correct the names, or leave them out")
    if reading.task == "multiclass" and len(counts) < 2:
        say("cohort.target", f"{where} holds one class only", "There is nothing to tell apart")


def _check_splits(
    reading: Labels,
    labels: Sequence[Label | None],
    splits: Sequence[str],
    named: Sequence[str],
    say: Say,
    findings: Findings,
) -> None:
    """A split that is empty or holds one class only."""
    for split in named:
        held = [label for label, name in zip(labels, splits, strict=True) if name == split and label is not None]
        if not held:
            say(
                "cohort.split",
                f"no row with a label would be in {split}",
                "Compare its values with those of the column",
            )
            continue
        if reading.task == "regression":
            continue
        counts = reading.count(held)
        if reading.task in {"binary", "multiclass"} and len(counts) < 2:
            say("cohort.split", f"the rows in {split} are of one class only", "Choose another split")
        elif split == HELD_OUT and min(counts.values(), default=0) < FEW:
            what = f"a class has only {min(counts.values(), default=0)} rows in {split}"
            findings.mind("cohort.split", what, "Its figures will have wide intervals")


def _check_named(study: Study, seen: Mapping[str, Seen], findings: Findings) -> None:
    """Values of a split that no row has."""
    split = study.cohort.split
    readings: list[tuple[Seen, Any]] = []
    if isinstance(split.by, str):
        source, _, column = split.by.partition(".")
        readings = [(seen[source], column)] if source in seen and column in seen[source].columns else []
    else:
        readings = [(each, split.by) for each in seen.values()] if split.by else []
    if not readings:
        return
    there = {value for each, by in readings for value in each.values(by)}
    say = findings.fail if all(each.complete(by) for each, by in readings) else findings.mind
    for name, wanted in ((HELD_OUT, split.held_out), (TUNING, split.tuning)):
        unseen = [value for value in wanted if value not in there]
        if unseen:
            say(
                f"cohort.split.{name}",
                f"no row has the value {', '.join(unseen)}",
                "Compare it with the values of `by`",
            )


def _splits(study: Study, here: Seen, count: int) -> list[str]:
    """The published split of each row that holds a target; nothing where it is drawn or stands in another source."""
    split, source = study.cohort.split, study.cohort.target.column.partition(".")[0]
    by: Any = split.by
    if isinstance(by, str):
        of, _, by = by.partition(".")
        if of != source or by not in here.columns:
            return []
    elif not isinstance(by, PathValue):
        return []
    values = here.values(by)
    if len(values) != count or not split.held_out:  # drawn at ingest
        return []
    meaning = dict.fromkeys(split.tuning, TUNING) | dict.fromkeys(split.held_out, HELD_OUT)
    return [EXCLUDED if value is None else meaning.get(value, TRAIN) for value in values]
