"""Metrics with intervals, as a medical journal asks for them: subjects are resampled, not their units.

Every function takes arrays: `labels` (n, k) of 0 and 1 (k = 1 for binary; one-hot for multiclass; values in
regression), `scores` (n, k) in [0, 1] (predicted values in regression), `subjects` (n,), the k names of the `classes`.
Point estimates and resamples go through the same code: a resample is a row of weights, how often each unit was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medray.errors import EvaluationError

Array = NDArray[np.float64]
Statistic = Callable[[Array], dict[str, Array]]
Task = Literal["binary", "multiclass", "multilabel", "regression"]

CELLS = 2_000_000  # weights held at once: 16 MB, whatever the number of units
UNDEFINED = {
    "auroc": "all units are alike in this class",
    "auprc": "all units are alike in this class",
    "sensitivity": "no unit is positive",
    "specificity": "no unit is negative",
    "precision": "no unit is predicted positive",
    "npv": "no unit is predicted negative",
    "f1": "no unit is positive or predicted positive",
    "r2": "all observed values are equal",
}
ROUNDING = 1e-6  # a float32 softmax ends this far beyond 1


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval.

    Attributes:
        value: the metric; None where it is undefined, `why` says for what reason.
        low: 2.5th percentile over the resamples; None where there is no interval.
        high: 97.5th percentile.
        n: number of units.
        num_subjects: number of subjects that were resampled.
        num_skipped: resamples without a value, such as those with one class only.
        why: why there is no value or no interval, or what to mind in reading it.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    value: float | None
    low: float | None
    high: float | None
    n: int
    num_subjects: int
    num_skipped: int = 0
    why: str = ""


@dataclass(frozen=True)
class CalibrationBin:
    """Units of about the same score: what was predicted on average, what came true, how many they are."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    mean_score: float
    observed: float
    n: int


def main_metric(task: str) -> str:
    """The metric by which two models of a task are compared."""
    return "rmse" if task == "regression" else "auroc"


def main_value(task: str, labels: Array, scores: Array) -> float | None:
    """The main metric alone, without an interval; None where it is undefined."""
    labels, scores = _columns(labels), _columns(scores)
    value = float(_main(task, labels, scores, np.ones((1, len(labels))))[0])
    return value if np.isfinite(value) else None


def summarize(
    task: str,
    labels: Array,
    scores: Array,
    subjects: NDArray[Any],
    classes: tuple[str, ...],
    threshold: float = 0.5,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """All metrics of a task, each with a 95 % percentile interval from resampled subjects.

    With several classes `auroc`, `auprc` and `f1` are means over the classes that have both kinds of units, and
    `auroc.<class>` is one class against the rest (Efron and Tibshirani 1993; Field and Welsh 2007 for clusters).

    Raises:
        EvaluationError: the arrays do not fit the task.
    """
    labels, scores, subjects = _checked(task, labels, scores, subjects, classes)

    def statistic(weights: Array) -> dict[str, Array]:
        return _statistics(task, labels, scores, classes, threshold, weights)

    return _estimates(statistic, subjects, num_resamples, seed, _remarks(task, labels, classes))


def difference(
    task: str,
    labels: Array,
    scores_a: Array,
    scores_b: Array,
    subjects: NDArray[Any],
    classes: tuple[str, ...],
    num_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The main metric of `scores_a` minus that of `scores_b`, both taken on the same resamples (paired).

    Raises:
        EvaluationError: the arrays do not fit the task.
    """
    checked = [_checked(task, labels, scores, subjects, classes) for scores in (scores_a, scores_b)]
    (labels, a, subjects), (_, b, _) = checked
    main = main_metric(task)

    def statistic(weights: Array) -> dict[str, Array]:
        return {main: _main(task, labels, a, weights) - _main(task, labels, b, weights)}

    return _estimates(statistic, subjects, num_resamples, seed, _remarks(task, labels, classes))[main]


def per_subject(labels: Array, scores: Array, subjects: NDArray[Any]) -> tuple[Array, Array, NDArray[Any]]:
    """Labels, mean scores and names of the subjects whose units share the label, one row a subject."""
    labels, scores = _columns(labels), _columns(scores)
    names, first, of_unit = np.unique(np.asarray(subjects), return_index=True, return_inverse=True)
    differs = (labels != labels[first][of_unit]).any(axis=1)
    agree = np.bincount(of_unit, weights=differs, minlength=len(names)) == 0
    sums = [np.bincount(of_unit, weights=column, minlength=len(names)) for column in scores.T]
    means = np.stack(sums, axis=1) / np.bincount(of_unit, minlength=len(names))[:, None]
    return labels[first][agree], means[agree], names[agree]


def confusion(task: str, labels: Array, scores: Array, threshold: float = 0.5) -> NDArray[np.int64]:
    """Counts of units, rows observed, columns predicted: (1, 2, 2) binary, (1, k, k) multiclass, (k, 2, 2) multilabel.

    In a matrix of two the order is negative, positive. A score equal to the threshold is positive.
    """
    labels, scores = _columns(labels), _columns(scores)
    if task == "multiclass":
        pairs = [(labels.argmax(axis=1), scores.argmax(axis=1))]
    else:
        pairs = [(labels[:, j].astype(int), (scores[:, j] >= threshold).astype(int)) for j in range(labels.shape[1])]
    size = labels.shape[1] if task == "multiclass" else 2
    counts = [np.bincount(seen * size + said, minlength=size * size).reshape(size, size) for seen, said in pairs]
    return np.stack(counts).astype(np.int64)


def roc_points(labels: Array, scores: Array, max_points: int = 400) -> tuple[Array, Array]:
    """False positive rate and sensitivity of one class (n,), from (0, 0) to (1, 1), thinned to `max_points`."""
    true, false = _descending(labels, scores)
    x, y = np.append(0, false / max(false[-1], 1)), np.append(0, true / max(true[-1], 1))
    return _thinned(x, y, max_points)


def pr_points(labels: Array, scores: Array, max_points: int = 400) -> tuple[Array, Array]:
    """Recall and precision of one class (n,), from recall 0 to recall 1, thinned to `max_points`."""
    true, false = _descending(labels, scores)
    recall, precision = true / max(true[-1], 1), true / (true + false)
    return _thinned(np.append(0, recall), np.append(precision[0], precision), max_points)


def calibration_bins(labels: Array, scores: Array, num_bins: int = 10) -> tuple[CalibrationBin, ...]:
    """Bins of about equally many units (n,) by score; fewer bins where scores are tied."""
    labels, scores = np.ravel(labels), np.ravel(scores)
    edges = np.unique(np.quantile(scores, np.arange(1, num_bins) / num_bins))
    of_unit = np.searchsorted(edges, scores, side="right")
    found = []
    for index in np.unique(of_unit):
        inside = of_unit == index
        found.append(CalibrationBin(float(scores[inside].mean()), float(labels[inside].mean()), int(inside.sum())))
    return tuple(found)


def expected_calibration_error(bins: tuple[CalibrationBin, ...]) -> float:
    """Mean distance between what was predicted and what came true, weighted by units (Naeini et al. 2015)."""
    total = sum(each.n for each in bins)
    return sum(each.n * abs(each.observed - each.mean_score) for each in bins) / total


# ---- resampling


def _estimates(
    statistic: Statistic, subjects: NDArray[Any], num_resamples: int, seed: int, remarks: dict[str, str]
) -> dict[str, Estimate]:
    names, of_unit = np.unique(subjects, return_inverse=True)
    points = statistic(np.ones((1, len(subjects))))
    parts = [statistic(weights) for weights in _resamples(of_unit, len(names), num_resamples, seed)]
    found = {}
    for metric, point in points.items():
        resampled = np.concatenate([part[metric] for part in parts]) if parts else np.empty(0)
        estimate = _estimate(metric, float(point[0]), resampled, len(subjects), len(names))
        why = "; ".join(filter(None, [remarks.get(metric, ""), estimate.why]))
        found[metric] = replace(estimate, why=why)
    return found


def _resamples(of_unit: NDArray[np.intp], num_subjects: int, num_resamples: int, seed: int) -> Iterator[Array]:
    """Weights (r, n): as many subjects as there are, drawn with replacement, each with all its units."""
    random = np.random.default_rng(seed)
    rows = max(1, CELLS // len(of_unit))
    for start in range(0, num_resamples, rows):
        num_rows = min(rows, num_resamples - start)
        drawn = random.integers(num_subjects, size=(num_rows, num_subjects))
        drawn += np.arange(num_rows)[:, None] * num_subjects
        times = np.bincount(drawn.ravel(), minlength=num_rows * num_subjects).reshape(num_rows, num_subjects)
        yield times[:, of_unit].astype(np.float64)


def _estimate(metric: str, point: float, resampled: Array, n: int, num_subjects: int) -> Estimate:
    if np.isnan(point):
        return Estimate(None, None, None, n, num_subjects, why=UNDEFINED.get(metric.split(".")[0], ""))
    kept = resampled[~np.isnan(resampled)]
    num_skipped = len(resampled) - len(kept)
    if num_subjects < 2 or 2 * len(kept) <= len(resampled):
        few = f"{num_skipped} of {len(resampled)} resamples have no value"
        why = "one subject only" if num_subjects < 2 else few
        return Estimate(point, None, None, n, num_subjects, num_skipped, why)
    low, high = np.percentile(kept, [2.5, 97.5])
    # ten right of ten resample to ten right of ten: that is no certainty
    why = "all resamples agree, so the interval understates the uncertainty" if low == high else ""
    return Estimate(point, float(low), float(high), n, num_subjects, num_skipped, why)


# ---- statistics: every one takes weights (r, n) and gives (r,), NaN where undefined


def _statistics(
    task: str, labels: Array, scores: Array, classes: tuple[str, ...], threshold: float, weights: Array
) -> dict[str, Array]:
    if task == "regression":
        return _of_values(labels[:, 0], scores[:, 0], weights)
    if task == "binary":
        return _of_one_class(labels[:, 0], scores[:, 0], threshold, weights)
    aurocs, auprcs = zip(*(_areas(labels[:, j], scores[:, j], weights) for j in range(len(classes))), strict=True)
    found = {"auroc": _mean_of_defined(labels, aurocs)}
    if task == "multilabel":
        found["auprc"] = _mean_of_defined(labels, auprcs)
        said = (scores >= threshold).astype(np.float64)
    else:
        said = np.eye(len(classes))[scores.argmax(axis=1)]
        right = weights @ (labels * said)  # (r, k)
        recalls = _ratio(right, weights @ labels)
        found["accuracy"] = right.sum(axis=1) / weights.sum(axis=1)
        found["balanced_accuracy"] = recalls[:, labels.any(axis=0)].mean(axis=1)
    counted = (labels + said).any(axis=0)  # a class that nobody has and nobody predicts has no F1
    f1 = _ratio(2 * weights @ (labels * said), weights @ (labels + said))
    found["f1"] = f1[:, counted].mean(axis=1) if counted.any() else np.full(len(weights), np.nan)
    return found | {f"auroc.{name}": auroc for name, auroc in zip(classes, aurocs, strict=True)}


def _of_one_class(labels: Array, scores: Array, threshold: float, weights: Array) -> dict[str, Array]:
    auroc, auprc = _areas(labels, scores, weights)
    said = (scores >= threshold).astype(np.float64)
    cells = np.stack([labels * said, (1 - labels) * said, labels * (1 - said), (1 - labels) * (1 - said)], axis=1)
    tp, fp, fn, tn = (weights @ cells).T
    total = weights.sum(axis=1)
    return {
        "auroc": auroc,
        "auprc": auprc,
        "accuracy": (tp + tn) / total,
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "precision": _ratio(tp, tp + fp),
        "npv": _ratio(tn, tn + fn),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "brier": weights @ (scores - labels) ** 2 / total,
    }


def _of_values(observed: Array, predicted: Array, weights: Array) -> dict[str, Array]:
    total = weights.sum(axis=1)
    errors = weights @ (predicted - observed) ** 2
    centred = observed - observed.mean()  # the difference of two large sums below would lose digits
    spread = weights @ centred**2 - (weights @ centred) ** 2 / total
    spread[spread <= 1e-9 * (centred**2).sum()] = 0  # one value drawn all over: no more than rounding is left
    return {
        "rmse": np.sqrt(errors / total),
        "mae": weights @ np.abs(predicted - observed) / total,
        "r2": 1 - _ratio(errors, spread),
    }


def _main(task: str, labels: Array, scores: Array, weights: Array) -> Array:
    if task == "regression":
        return _of_values(labels[:, 0], scores[:, 0], weights)["rmse"]
    aurocs = [_areas(labels[:, j], scores[:, j], weights)[0] for j in range(labels.shape[1])]
    return _mean_of_defined(labels, tuple(aurocs))


def _areas(labels: Array, scores: Array, weights: Array) -> tuple[Array, Array]:
    """AUROC (Mann-Whitney, ties count half) and AUPRC (average precision); NaN where one class was drawn."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) > 0))  # of each run of equal scores
    drawn = weights[:, order]
    positive = np.add.reduceat(drawn * labels[order], starts, axis=1)  # (r, distinct scores)
    negative = np.add.reduceat(drawn, starts, axis=1) - positive
    num_positive, num_negative = positive.sum(axis=1), negative.sum(axis=1)
    wins = (positive * (np.cumsum(negative, axis=1) - negative / 2)).sum(axis=1)
    auroc = _ratio(wins, num_positive * num_negative)
    true = np.cumsum(positive[:, ::-1], axis=1)
    called = true + np.cumsum(negative[:, ::-1], axis=1)
    precision = np.divide(true, called, out=np.zeros_like(true), where=called > 0)
    auprc = _ratio((positive[:, ::-1] * precision).sum(axis=1), num_positive)
    return auroc, np.where(num_negative > 0, auprc, np.nan)


def _mean_of_defined(labels: Array, values: tuple[Array, ...]) -> Array:
    """Mean over the classes that have positives and negatives among all units: the same classes in every resample."""
    kept = [value for j, value in enumerate(values) if 0 < labels[:, j].sum() < len(labels)]
    return np.stack(kept).mean(axis=0) if kept else np.full(len(values[0]), np.nan)


def _ratio(above: Array, below: Array) -> Array:
    quotient: Array = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
    return quotient


# ---- arrays


def _columns(values: Array) -> Array:
    values = np.asarray(values, dtype=np.float64)
    return values[:, None] if values.ndim == 1 else values


def _checked(
    task: str, labels: Array, scores: Array, subjects: NDArray[Any], classes: tuple[str, ...]
) -> tuple[Array, Array, NDArray[Any]]:
    labels, scores, subjects = _columns(labels), _columns(scores), np.asarray(subjects)
    if task not in get_args(Task):
        raise EvaluationError(f"unknown task '{task}'. Known: {', '.join(get_args(Task))}.")
    if not len(labels):
        raise EvaluationError("no unit to evaluate: the split has no unit with label and score")
    if labels.shape != scores.shape or len(subjects) != len(labels):
        raise EvaluationError(
            f"labels {labels.shape}, scores {scores.shape} and subjects {subjects.shape} do not belong together"
        )
    expected = 1 if task == "regression" else len(classes)
    if labels.shape[1] != expected or (task == "binary" and expected != 1):
        raise EvaluationError(f"a {task} target with {len(classes)} classes, but {labels.shape[1]} columns of labels")
    if not (np.isfinite(labels).all() and np.isfinite(scores).all()):
        raise EvaluationError("labels and scores must be finite; units without label are to be left out before")
    if task != "regression":
        if not np.isin(labels, (0, 1)).all() or (task == "multiclass" and (labels.sum(axis=1) != 1).any()):
            raise EvaluationError("labels must be 0 or 1, in a multiclass target one 1 a unit")
        if scores.min() < -ROUNDING or scores.max() > 1 + ROUNDING:
            raise EvaluationError("scores must be probabilities between 0 and 1")
        scores = scores.clip(0, 1)
    return labels, scores, subjects


def _remarks(task: str, labels: Array, classes: tuple[str, ...]) -> dict[str, str]:
    """Which classes a mean leaves out."""
    alike = [name for name, column in zip(classes, labels.T, strict=False) if np.ptp(column) == 0]
    if task in ("binary", "regression") or not alike:
        return {}
    left_out = f"mean without {', '.join(alike)}: all units are alike there"
    return {"auroc": left_out, "auprc": left_out}


def _descending(labels: Array, scores: Array) -> tuple[Array, Array]:
    """True and false positives (distinct scores,) as the threshold falls."""
    labels, scores = np.ravel(labels).astype(np.float64), np.ravel(scores)
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true = np.cumsum(labels[order])[ends]
    return true, ends + 1 - true


def _thinned(x: Array, y: Array, max_points: int) -> tuple[Array, Array]:
    if len(x) <= max_points:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, max_points).round().astype(int))
    return x[kept], y[kept]
