"""Labels: what the cells of a target mean, and how they stand in the shards."""

from __future__ import annotations

import ast
import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medray import plugins
from medray.errors import DataError
from medray.schema import canonical
from medray.study import Study

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

MAX_LIST = 1 << 20  # characters of a cell that is read as a list
YES, NO = "yes", "no"  # of a binary target

Label = str | float | frozenset[str]  # one class, a number, or several classes


@dataclass(frozen=True)
class Labels:
    """How a target is read; sent to every task.

    Attributes:
        column: `source.column`.
        task: binary, multiclass, multilabel or regression.
        positive: binary: the values that count as positive.
        classes: that the study names; empty: as they are found.
        codes: code -> class; None: a value is its own class.
    """

    column: str
    task: str
    positive: frozenset[str] = frozenset()
    classes: tuple[str, ...] = ()
    codes: Mapping[str, str] | None = None

    @classmethod
    def of(cls, study: Study) -> Labels:
        """As the study says.

        Raises:
            DataError: the file of codes is missing or lacks a column.
        """
        target = study.cohort.target
        return cls(target.column, target.task, frozenset(target.positive), target.classes, _codes(study))

    def read(self, cells: Iterable[object]) -> list[Label | None]:
        """The label of each cell; None where there is none.

        Raises:
            DataError: a regression's target holds something else than numbers; says how many.
        """
        if self.task == "regression":
            return _numbers(cells, self.column)
        known: dict[object, Label | None] = {}  # a column has few values
        return [known[cell] if cell in known else known.setdefault(cell, self._one(cell)) for cell in cells]

    def _one(self, cell: object) -> Label | None:
        text = canonical(cell)
        if text is None:
            return None
        names = _listed(text) if self.task == "multilabel" else frozenset({text})
        if self.codes is not None:
            names = frozenset(self.codes[name] for name in names if name in self.codes)
            if not names:
                return None
        if self.task == "binary":
            return YES if names & self.positive else NO
        if self.classes:
            names &= frozenset(self.classes)
        if self.task == "multilabel":
            return names
        return next(iter(names), None)

    def name_classes(self, found: Iterable[str]) -> list[str]:
        """The classes in the order of a network's outputs, of those that were found; empty in regression."""
        if self.task == "regression":
            return []
        if self.task == "binary":
            word = next(iter(self.positive))
            # "PNEUMONIA" says what is predicted, "1" or "true" does not: then the column does
            plain = len(self.positive) > 1 or word.lower() in {"true", "yes", "y", "t"} or _is_number(word)
            return [self.column.partition(".")[2] if plain else word]
        return list(self.classes) or sorted(found, key=lambda name: (not _is_number(name), _value(name), name))

    def encode(self, labels: Sequence[Label], classes: Sequence[str]) -> Array:
        """(n, k) float32: 1 for each class that a unit has; values in regression."""
        if self.task == "regression":
            return np.array(labels, np.float32).reshape(-1, 1)
        if self.task == "binary":
            return np.array([label == YES for label in labels], np.float32).reshape(-1, 1)
        place = {name: number for number, name in enumerate(classes)}
        encoded = np.zeros((len(labels), len(classes)), np.float32)
        for row, label in enumerate(labels):
            for name in [label] if isinstance(label, str) else _set(label):
                encoded[row, place[name]] = 1
        return encoded

    def count(self, labels: Iterable[Label]) -> dict[str, int]:
        """How often each class is there; binary: YES and NO."""
        counts = Counter(name for label in labels for name in ([label] if isinstance(label, str) else _set(label)))
        return dict(sorted(counts.items()))


def _set(label: Label) -> frozenset[str]:
    return label if isinstance(label, frozenset) else frozenset()


def _codes(study: Study) -> dict[str, str] | None:
    """Codes to classes, from the file that the study names."""
    mapping = study.cohort.target.map
    if mapping is None:
        return None
    where = "cohort.target.map"
    path = study.path(mapping.file, f"{where}.file")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            for name in (mapping.key, mapping.value):
                if name not in (known := list(rows.fieldnames or ())):
                    near = plugins.suggest(name, known)
                    raise DataError(f"{study.file}: {where}: {mapping.file} has no column '{name}'{near}")
            pairs = [(canonical(row[mapping.key]), canonical(row[mapping.value])) for row in rows]
    except OSError as error:
        raise DataError(f"{study.file}: {where}.file: {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{study.file}: {where}.file: {path} is not text in UTF-8") from error
    return {code: name for code, name in pairs if code and name}


def _listed(text: str) -> frozenset[str]:
    """The names in a list, JSON or a Python literal; of a dict its keys; a text that is neither is one name."""
    for read in (json.loads, ast.literal_eval) if len(text) <= MAX_LIST else ():
        try:
            value = read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        items = value if isinstance(value, list | tuple | set | frozenset | dict) else [value]
        return frozenset(name for name in map(canonical, items) if name is not None)
    return frozenset({text})


def _numbers(cells: Iterable[object], column: str) -> list[Label | None]:
    labels: list[Label | None] = []
    wrong = 0
    for cell in cells:
        text = canonical(cell)
        if text is not None and not _is_number(text):
            wrong += 1
        value = float("nan") if text is None or not _is_number(text) else float(text)
        labels.append(value if math.isfinite(value) else None)
    if wrong:
        raise DataError(f"cohort.target {column}: {wrong:,} cells are not numbers, as kind: regression needs")
    return labels


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _value(text: str) -> float:
    return float(text) if _is_number(text) else 0.0
