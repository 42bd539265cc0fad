"""Labels and splits: would there be something to learn, and something to judge it by?"""

from __future__ import annotations

import ast
import csv
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medray import plugins
from medray.check.findings import Findings
from medray.errors import StudyError
from medray.readers import PathValue
from medray.schema import EXCLUDED, HELD_OUT, SPLITS, TRAIN, TUNING, canonical
from medray.study import Study, Target

if TYPE_CHECKING:
    from medray.check.sources import Seen

FEW = 10  # units of a class; an interval of fewer says nothing
Say = Callable[[str, str, str], None]
Labels = Sequence[frozenset[str] | None]  # the classes of each row; None where it has no label


def check_labels(study: Study, seen: Mapping[str, Seen], findings: Findings) -> None:
    """What is wrong with the target and the split, as far as they can be seen."""
    source, _, column = study.cohort.target.column.partition(".")
    here = seen.get(source)
    if here is None or column not in here.columns:
        return  # said already
    try:
        labels = _labels(study, here.values(column))
    except StudyError as error:
        findings.fail("cohort.target", str(error).rstrip("."), "Correct the study or the file")
        return
    say = findings.fail if here.complete(column) else findings.mind  # what was not read may have the rest
    looked = "" if here.complete(column) else " looked at"
    labelled = [label for label in labels if label is not None]
    where = f"{study.cohort.target.column}, of {len(labels):,} rows{looked},"
    if not labelled:
        say("cohort.target", f"{where} holds no label", _wanted(study.cohort.target))
        return
    if study.cohort.target.task == "regression":
        return
    counts = Counter(name for label in labelled for name in label)
    _check_classes(study.cohort.target, counts, len(labelled), where, say)
    splits = _splits(study, here, len(labels), findings)
    if splits:
        _check_splits(study, labels, splits, say, findings)


def _wanted(target: Target) -> str:
    return (
        "It should hold numbers" if target.task == "regression" else "Name the column that says what is to be predicted"
    )


def _check_classes(target: Target, counts: Counter[str], num_labelled: int, where: str, say: Say) -> None:
    """One class only, or a class that nobody has."""
    if target.task == "binary":
        if not counts["positive"]:
            say(
                "cohort.target.positive",
                f"{where} never holds a positive value",
                "Compare it with the values in the column",
            )
        elif counts["positive"] == num_labelled:
            say(
                "cohort.target.positive",
                f"{where} holds positive values only",
                "There must be others, to tell them from",
            )
        return
    unseen = [name for name in target.classes if not counts[name]]
    if unseen:
        say("cohort.target.classes", f"{where} never holds {', '.join(unseen)}", "Correct the names, or leave them out")
    if target.task == "multiclass" and len(counts) < 2:
        say("cohort.target", f"{where} holds one class only", "There is nothing to tell apart")


def _check_splits(study: Study, labels: Labels, splits: Sequence[str], say: Say, findings: Findings) -> None:
    """A split that is empty or holds one class only."""
    for split in SPLITS:
        held = [label for label, name in zip(labels, splits, strict=True) if name == split and label is not None]
        if not held:
            say(
                "cohort.split",
                f"no row with a label would be in {split}",
                "Compare its values with those of the column",
            )
            continue
        counts = Counter(name for label in held for name in label)
        if study.cohort.target.task == "binary":
            counts["negative"] = len(held) - counts["positive"]
        several = study.cohort.target.task != "multilabel"
        if several and (min(counts.values()) == 0 or len(counts) < 2):
            say("cohort.split", f"the rows in {split} are of one class only", "Choose another split")
        elif split == HELD_OUT and min(counts.values()) < FEW:
            what = f"a class has only {min(counts.values())} rows in {split}"
            findings.mind("cohort.split", what, "Its figures will have wide intervals")


def _splits(study: Study, here: Seen, count: int, findings: Findings) -> list[str]:
    """The published split of each row that the target is read from; nothing where it is drawn or stands elsewhere."""
    split = study.cohort.split
    source = study.cohort.target.column.partition(".")[0]
    by: Any = split.by
    if isinstance(by, str):
        of, _, by = by.partition(".")
        if of != source or by not in here.columns:
            return []
    elif not isinstance(by, PathValue):
        return []
    values = here.values(by)
    if len(values) != count:
        return []
    say = findings.fail if here.complete(by) else findings.mind
    known = set(values) - {None}
    for name, wanted in (("held_out", split.held_out), ("tuning", split.tuning)):
        unseen = [value for value in wanted if value not in known]
        if unseen:
            say(
                f"cohort.split.{name}",
                f"no row has the value {', '.join(unseen)}",
                "Compare it with the values of `by`",
            )
    meaning = dict.fromkeys(split.tuning, TUNING) | dict.fromkeys(split.held_out, HELD_OUT)
    if not split.held_out or not split.tuning:  # the missing one is drawn: only the other is known before
        return []
    return [EXCLUDED if value is None else meaning.get(value, TRAIN) for value in values]


def _labels(study: Study, cells: Sequence[str | None]) -> Labels:
    """The classes of each cell, as the target reads them."""
    target = study.cohort.target
    classes = _mapped(study)

    def label(cell: str | None) -> frozenset[str] | None:
        if cell is None:
            return None
        if target.task == "regression":
            return frozenset({"number"}) if _is_number(cell) else None
        names = _listed(cell) if target.many else {cell}
        if classes is not None:
            names = {classes[name] for name in names if name in classes}
            if not names:
                return None
        if target.positive:
            return frozenset({"positive"} if names & set(target.positive) else ())
        if target.classes:
            names = names & set(target.classes)
        return frozenset(names)

    return [label(cell) for cell in cells]


def _mapped(study: Study) -> dict[str, str] | None:
    """Codes to classes, from the file that the study names."""
    mapping = study.cohort.target.map
    if mapping is None:
        return None
    path = study.path(mapping.file, "cohort.target.map.file")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for name in (mapping.key, mapping.value):
                if name not in (reader.fieldnames or ()):
                    known = list(reader.fieldnames or ())
                    raise StudyError(f"map: {mapping.file} has no column '{name}'{plugins.suggest(name, known)}")
            pairs = [(canonical(row[mapping.key]), canonical(row[mapping.value])) for row in reader]
    except OSError as error:
        raise StudyError(f"map.file: {path} cannot be read ({error.strerror})") from error
    return {code: name for code, name in pairs if code and name}


def _listed(cell: str) -> set[str]:
    """The names in a list; of a dict its keys. JSON or a Python literal."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        items = value if isinstance(value, list | tuple | set | dict) else [value]
        return {name for name in map(canonical, items) if name is not None}
    return {cell}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
