"""Table: one row of numbers and texts -> one vector, by what the train split has shown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from medray.errors import DataError
from medray.modalities import Modality, Rows, State
from medray.schema import NUMBER, TEXT, TIMESTAMP, canonical

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

CATEGORIES = 32  # of a text column at most: rarer values teach a network nothing
KEPT = 1000  # distinct texts that one partial keeps, so that a column of free text stays small
LIMIT = 10.0  # standard deviations


class Table(Modality):
    """Columns of a row.

    A number is standardized; a missing one becomes the train mean, with a column beside it that says so where the train
    split had gaps too. A text becomes one column for each of its 32 most frequent train values; missing is none of
    them. Left out, with its reason in the state: what is constant in train, text of which most values are unique, and
    unless it is named what reads as free text.

    Attributes:
        columns: which; every number and text column that the cohort does not use otherwise, unless given.
    """

    encoder: ClassVar[str] = "tabular"
    explainer: ClassVar[str] = "input_x_gradient"
    storage: ClassVar[Literal["uint8", "float16", "float32"]] = "float32"
    axes: ClassVar[tuple[str, ...]] = ("columns",)
    reads: ClassVar[Literal["assets", "columns"]] = "columns"

    columns: tuple[str, ...] | None = None

    def partial(self, rows: Rows) -> State:
        """For each column: how many are missing, and moments of its numbers or counts of its texts."""
        given = rows.columns.column_names
        chosen = given if self.columns is None else [name for name in self.columns if name in given]
        return {"columns": {name: _summary(rows.columns.column(name)) for name in chosen}}

    def merge(self, partials: Sequence[State]) -> State:
        """`columns` as they are encoded, and `left_out` with the reasons."""
        seen: dict[str, int] = {}  # name -> its first place, so that the order of the partials does not matter
        for partial in partials:
            for place, name in enumerate(partial["columns"]):
                seen[name] = min(place, seen.get(name, place))
        unknown = [name for name in self.columns or () if name not in seen]
        if unknown:
            raise DataError(f"no column {', '.join(unknown)}. Known: {', '.join(sorted(seen)) or 'none'}.")
        columns: list[State] = []
        left_out: dict[str, str] = {}
        for name in sorted(seen, key=lambda name: (seen[name], name)):
            parts = [partial["columns"][name] for partial in partials if name in partial["columns"]]
            column, reason = _fitted(name, parts)
            if column and self.columns is None and _prose(parts):  # a report may name the label
                column, reason = None, "free text"
            if column is None:
                left_out[name] = reason
            else:
                columns.append({"name": name, **column})
        if not columns:
            raise DataError(f"no column is left that a model could learn from: {left_out}")
        return {"columns": columns, "left_out": left_out}

    def shape(self, state: State) -> tuple[int, ...]:
        """(F,)."""
        return (len(self.names(state)),)

    def names(self, state: State) -> list[str]:
        """`age`, `age (missing)`, `sex=F`."""
        names = []
        for column in state["columns"]:
            if column["kind"] == TEXT:
                names += [f"{column['name']}={category}" for category in column["categories"]]
            else:
                names += [column["name"]] * column["varies"] + [f"{column['name']} (missing)"] * column["missing"]
        return names

    def encode(self, rows: Rows, state: State) -> Array:
        """(n, F), cut at 10 standard deviations."""
        given = set(rows.columns.column_names)
        encoded: list[Array] = []
        for column in state["columns"]:
            values = rows.columns.column(column["name"]) if column["name"] in given else None
            if column["kind"] == TEXT:
                texts = [None] * len(rows) if values is None else [canonical(value) for value in values.to_pylist()]
                encoded += [np.array([text == category for text in texts]) for category in column["categories"]]
                continue
            numbers = np.full(len(rows), np.nan) if values is None else _numbers(values, column["name"])
            missing = np.isnan(numbers)
            if column["varies"]:
                scaled = (np.where(missing, column["mean"], numbers) - column["mean"]) / column["std"]
                encoded.append(np.clip(scaled, -LIMIT, LIMIT))
            if column["missing"]:
                encoded.append(missing)
        return np.stack(encoded, axis=1).astype(np.float32)

    def features(self, stored: Array) -> Array:
        """The encoded row itself."""
        return stored.astype(np.float32)


def _summary(column: pa.ChunkedArray) -> State:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_null(kind):
        return {"kind": None, "missing": len(column)}
    if pa.types.is_temporal(kind):
        return {"kind": TIMESTAMP, "missing": column.null_count}
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        values = _numbers(column, "")
        values = values[~np.isnan(values)]
        summary = {"kind": NUMBER, "missing": len(column) - len(values), "count": len(values)}
        if len(values):
            mean = float(values.mean())
            summary |= {"mean": mean, "squares": float(((values - mean) ** 2).sum())}
            summary |= {"low": float(values.min()), "high": float(values.max())}
        return summary
    texts = Counter(text for text in map(canonical, column.to_pylist()) if text is not None)
    kept = sorted(texts.items(), key=lambda item: (-item[1], item[0]))[:KEPT]
    count = sum(texts.values())
    return {
        "kind": TEXT,
        "missing": len(column) - count,
        "count": count,
        "sentences": sum(number for text, number in texts.items() if text.count(" ") > 1),
        "texts": dict(kept),
        "further": len(texts) - len(kept),
    }


def _fitted(name: str, parts: list[State]) -> tuple[State | None, str]:
    """What is encoded of a column, or None and why nothing is."""
    kinds = {part["kind"] for part in parts} - {None}
    if len(kinds) > 1:
        raise DataError(f"column '{name}' holds {' in some rows and '.join(sorted(kinds))} in others")
    missing = sum(part["missing"] for part in parts)
    parts = [part for part in parts if part.get("count")]
    if kinds == {TIMESTAMP}:
        return None, "a time"
    if not parts:
        return None, "missing in every train row"
    count = sum(part["count"] for part in parts)
    if kinds == {TEXT}:
        return _categories(parts, count, missing)
    # count, mean and deviations of the union (Chan, Golub, LeVeque 1979); fsum: any order of the parts gives the same
    mean = math.fsum(part["count"] * part["mean"] for part in parts) / count
    squares = math.fsum(part["squares"] + part["count"] * (part["mean"] - mean) ** 2 for part in parts)
    std = math.sqrt(squares / count)
    varies = min(part["low"] for part in parts) < max(part["high"] for part in parts) and std > 1e-12 * abs(mean)
    if not varies and not missing:
        return None, "constant in train"
    return {"kind": NUMBER, "mean": mean, "std": std if varies else 1.0, "varies": varies, "missing": missing > 0}, ""


def _prose(parts: list[State]) -> bool:
    """Whether a column is free text: mostly three words or more, and more different ones than categories are kept."""
    parts = [part for part in parts if part.get("sentences")]
    count, sentences = (sum(part[key] for part in parts) for key in ("count", "sentences"))
    distinct = len({text for part in parts for text in part["texts"]}) + sum(part["further"] for part in parts)
    return bool(parts) and sentences >= count / 2 and distinct > min(CATEGORIES, count / 2)


def _categories(parts: list[State], count: int, missing: int) -> tuple[State | None, str]:
    texts: Counter[str] = Counter()
    for part in parts:
        texts.update(part["texts"])
    distinct = len(texts) + sum(part["further"] for part in parts)
    if distinct == 1 and not missing:
        return None, "constant in train"
    if distinct > CATEGORIES and distinct > count / 2:
        return None, "free text: most values are unique"
    categories = sorted(texts, key=lambda text: (-texts[text], text))[:CATEGORIES]
    return {"kind": TEXT, "categories": sorted(categories)}, ""


def _numbers(column: pa.ChunkedArray, name: str) -> Array:
    """A column as float64, missing as NaN."""
    import pyarrow as pa

    try:
        values = column.cast(pa.float64()) if not pa.types.is_boolean(column.type) else column.cast(pa.uint8())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"column '{name}' must hold numbers") from error
    numbers: Array = values.to_numpy().astype(np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)
