"""A report: what a model can do on subjects it has never seen, and how anyone can tell that it had not seen them.

`measure` takes arrays and gives the figures; `Report` adds the split certificate and provenance; `write` makes
`report.json` and one self-contained `report.html`. Nothing in it belongs to a single subject but the explanation
examples that were chosen for it: curves are thinned, values of a regression are counted in cells.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from medray import metrics
from medray.artifacts.durable import write_bytes
from medray.errors import ArtifactError
from medray.metrics import Array, CalibrationBin, Estimate, Task
from medray.report import words

JSON_NAME, HTML_NAME = "report.json", "report.html"
PNG = b"\x89PNG\r\n\x1a\n"
UNITS_A_BIN = 30  # fewer, and a calibration curve shows chance
NUM_CELLS = 24  # a side of the grid in which values of a regression are counted


class Noun(BaseModel):
    """What a report is made of: frozen, and no key that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Comparison(Noun):
    """Metrics of the model, of the baseline on the same units, and the paired difference of the main metric."""

    model: dict[str, Estimate]
    baseline: dict[str, Estimate] = {}
    difference: Estimate | None = None


class Curve(Noun):
    """One line of a figure: of a class, by the model or by the baseline."""

    name: str
    baseline: bool = False
    x: tuple[float, ...]
    y: tuple[float, ...]


class Calibration(Noun):
    """What was predicted and what came true, for one class."""

    name: str
    baseline: bool = False
    bins: tuple[CalibrationBin, ...]
    expected_error: float


class Confusion(Noun):
    """Counts of units: rows are what was observed, columns what was predicted."""

    name: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


class Cell(Noun):
    """How many units lie near a point."""

    x: float
    y: float
    n: int


class Measures(Noun):
    """All that is computed from labels and scores of one split.

    Attributes:
        units: metrics with one prediction a unit.
        subjects: metrics with one prediction a subject, where subjects have several units.
        num_positive: number of units by class.
        agreement: regression: observed (x) and predicted (y) values.
        residuals: regression: predicted values (x) and how far they are from the observed ones (y).
    """

    task: Task
    classes: tuple[str, ...]
    threshold: float
    num_resamples: int
    seed: int
    units: Comparison
    subjects: Comparison | None = None
    num_positive: dict[str, int] = {}
    roc: tuple[Curve, ...] = ()
    precision_recall: tuple[Curve, ...] = ()
    calibration: tuple[Calibration, ...] = ()
    confusion: tuple[Confusion, ...] = ()
    agreement: tuple[Cell, ...] = ()
    residuals: tuple[Cell, ...] = ()


class Certificate(Noun):
    """How the held-out split was kept apart.

    Attributes:
        subjects: number of subjects by split.
        units: number of units with a label by split.
        units_per_class: number of units by split and class.
        disjoint: whether no subject is in two splits; None where the scores do not tell.
        fitted_on: the split from which every statistic of the preparation comes; empty where the scores do not tell.
        left_out: number of units that take no part, by reason.
        earlier_looks: how often this held-out split was evaluated before; None where nobody counts.
        subject_rule: how subjects are told apart, in words.
        split_rule: how subjects came into their splits, in words.
        warnings: what weakens the separation, such as that each record counts as its own subject.
    """

    subjects: dict[str, int]
    units: dict[str, int]
    units_per_class: dict[str, dict[str, int]] = {}
    disjoint: bool | None
    fitted_on: str = "train"
    left_out: dict[str, int] = {}
    earlier_looks: int | None = Field(0, ge=0)
    subject_rule: str = ""
    split_rule: str = ""
    warnings: tuple[str, ...] = ()


class Explanation(Noun):
    """One example of why: a picture (PNG in base64), a table, or both. Neighbours of the same title belong together."""

    title: str = ""
    caption: str
    image: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str | float, ...], ...] = ()

    @field_validator("image")
    @classmethod
    def _is_png(cls, image: str) -> str:
        if image and not base64.b64decode(image, validate=True).startswith(PNG):
            raise ValueError("not a PNG in base64")
        return image


class Report(Noun):
    """The evaluation of one model on one held-out split.

    Attributes:
        study: its name.
        target: what is predicted, in words.
        unit: what gets one prediction: `subject` or the name of a source.
        measures: metrics, curves and counts.
        baseline: what the model is compared with.
        certificate: how the split was kept apart.
        parents: digests of what this report was made from, by name.
        seconds: wall time of the steps.
        versions: of the libraries.
        explanations: examples.
        created: when, with its time zone.
    """

    study: str
    target: str
    unit: str = "subject"
    measures: Measures
    baseline: str = "logistic regression"
    certificate: Certificate
    parents: dict[str, str] = {}
    seconds: dict[str, float] = {}
    versions: dict[str, str] = {}
    explanations: tuple[Explanation, ...] = ()
    created: AwareDatetime

    @property
    def main(self) -> Estimate:
        """The estimate of the main metric: AUROC, or RMSE in regression."""
        return self.measures.units.model[metrics.main_metric(self.measures.task)]

    @property
    def verdict(self) -> str:
        """One sentence in plain words: the main metric, its interval, n, and the comparison with the baseline."""
        return words.verdict(self)


class Paths(NamedTuple):
    """Where a report was written."""

    json: Path
    html: Path


def measure(
    task: Task,
    labels: Array,
    scores: Array,
    subjects: NDArray[Any],
    classes: tuple[str, ...],
    *,
    baseline_scores: Array | None = None,
    threshold: float = 0.5,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Measures:
    """Everything a report shows of labels (n, k) and scores (n, k); see `medray.metrics` for the arrays.

    Where subjects have several units, the metrics are also given by subject: the mean score over its units, of subjects
    whose units share the label.

    Raises:
        EvaluationError: the arrays do not fit the task.
    """

    def compare(labels: Array, by_scorer: list[Array], subjects: NDArray[Any]) -> Comparison:
        found = [
            metrics.summarize(task, labels, scores, subjects, classes, threshold, num_resamples, seed)
            for scores in by_scorer
        ]
        if len(found) == 1:
            return Comparison(model=found[0])
        model, baseline = by_scorer
        difference = metrics.difference(task, labels, model, baseline, subjects, classes, num_resamples, seed)
        return Comparison(model=found[0], baseline=found[1], difference=difference)

    labels, scores = _columns(labels), _columns(scores)
    by_scorer = [scores] if baseline_scores is None else [scores, _columns(baseline_scores)]
    units = compare(labels, by_scorer, subjects)
    by_subject = None
    if len(np.unique(subjects)) < len(subjects):
        pooled = [metrics.per_subject(labels, each, subjects) for each in by_scorer]
        if len(pooled[0][2]) > 1:
            by_subject = compare(pooled[0][0], [each[1] for each in pooled], pooled[0][2])
    if task == "regression":
        shown = _of_values(labels, scores)
    else:
        shown = _of_classes(task, labels, by_scorer, classes, threshold)
    return Measures(
        task=task,
        classes=classes,
        threshold=threshold,
        num_resamples=num_resamples,
        seed=seed,
        units=units,
        subjects=by_subject,
        **shown,
    )


def write(report: Report, folder: Path) -> Paths:
    """Write `report.html` and then `report.json`: where the latter is, the report is complete."""
    paths = Paths(folder / JSON_NAME, folder / HTML_NAME)
    write_bytes(paths.html, html(report).encode())
    write_bytes(paths.json, report.model_dump_json(indent=1).encode())
    return paths


def load(folder: Path) -> Report:
    """The report that was written into a folder.

    Raises:
        ArtifactError: there is none, or it is not one of this version.
    """
    path = folder / JSON_NAME
    try:
        return Report.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path}: no report here. `medray evaluate STUDY` writes one.") from error
    except ValidationError as error:
        raise ArtifactError(f"{path}: not a report of this version: {error.error_count()} keys differ") from error


def html(report: Report) -> str:
    """One page that needs no network, no script and no other file."""
    import jinja2

    from medray.report import figures

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(report=report, figures=figures.draw(report), words=words)


def _of_classes(
    task: str, labels: Array, by_scorer: list[Array], classes: tuple[str, ...], threshold: float
) -> dict[str, Any]:
    roc, precision_recall, calibration = [], [], []
    num_bins = min(10, max(3, len(labels) // UNITS_A_BIN))
    for scorer, scores in enumerate(by_scorer):
        for j, name in enumerate(classes):
            y, p, of = labels[:, j], scores[:, j], {"name": name, "baseline": scorer == 1}
            if 0 < y.sum() < len(y):
                roc.append(_curve(metrics.roc_points(y, p), of))
                precision_recall.append(_curve(metrics.pr_points(y, p), of))
            bins = metrics.calibration_bins(y, p, num_bins)
            calibration.append(Calibration(**of, bins=bins, expected_error=metrics.expected_calibration_error(bins)))
    matrices = metrics.confusion(task, labels, by_scorer[0], threshold)
    sides = classes if task == "multiclass" else ("negative", "positive")
    names = ("",) if task == "multiclass" else classes
    return {
        "num_positive": {name: int(labels[:, j].sum()) for j, name in enumerate(classes)},
        "roc": tuple(roc),
        "precision_recall": tuple(precision_recall),
        "calibration": tuple(calibration),
        "confusion": tuple(
            Confusion(name=name, classes=sides, counts=tuple(tuple(map(int, row)) for row in counts))
            for name, counts in zip(names, matrices, strict=True)
        ),
    }


def _curve(points: tuple[Array, Array], of: dict[str, Any]) -> Curve:
    x, y = (tuple(float(value) for value in each.round(5)) for each in points)
    return Curve(**of, x=x, y=y)


def _of_values(observed: Array, predicted: Array) -> dict[str, Any]:
    """Counts in cells: exact values would be those of single subjects."""
    residuals = predicted - observed
    ends = [float(min(observed.min(), predicted.min())), float(max(observed.max(), predicted.max()))]
    return {
        "agreement": _cells(observed[:, 0], predicted[:, 0], ends, ends),
        "residuals": _cells(predicted[:, 0], residuals[:, 0], ends, [float(residuals.min()), float(residuals.max())]),
    }


def _cells(x: Array, y: Array, x_ends: list[float], y_ends: list[float]) -> tuple[Cell, ...]:
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=NUM_CELLS, range=[x_ends, y_ends])
    middle_x, middle_y = (edges[:-1] + np.diff(edges) / 2 for edges in (x_edges, y_edges))
    return tuple(
        Cell(x=float(middle_x[i]), y=float(middle_y[j]), n=int(counts[i, j]))
        for i, j in zip(*np.nonzero(counts), strict=True)
    )


def _columns(values: Array) -> Array:
    values = np.asarray(values, dtype=np.float64)
    return values[:, None] if values.ndim == 1 else values
