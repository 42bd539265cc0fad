"""The figures of a report as inline SVG: text stays text, lines differ in colour and in dash, every one has words."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from medray.report.words import number

if TYPE_CHECKING:
    from markupsafe import Markup

    from medray.report import Calibration, Cell, Confusion, Curve, Report

# Okabe and Ito: told apart with any colour vision. Yellow is left out: too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
DASHES = ("-", "--", "-.", (0, (1, 1)))
BASELINE = "#6b7280"
INK = "#1f2937"
NAMED_CLASSES = 10  # lines that a legend can name
NUMBERED_CLASSES = 12  # rows of a confusion matrix that leave room for numbers
STYLE: dict[Any, Any] = {  # matplotlib types its settings by a list of their names
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called `$x$`
    "text.usetex": False,
    "font.size": 10,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


class Drawn(NamedTuple):
    """A figure, its caption, and the same in words for who cannot see it."""

    name: str
    title: str
    caption: str
    alt: str
    svg: Markup


class Canvas:
    """Axes while drawing, SVG afterwards."""

    def __init__(self, axes: Any) -> None:
        self.axes = axes
        self.svg: Markup


def draw(report: Report) -> tuple[Drawn, ...]:
    """The figures that fit the task."""
    found = []
    measures = report.measures
    if measures.roc:
        found += [_roc(report), _precision_recall(report)]
    if measures.calibration:
        found.append(_calibration(report))
    if measures.task in ("binary", "multiclass"):
        found += [_confusion(report, each) for each in measures.confusion]
    if measures.agreement:
        found += [_agreement(report, measures.agreement), _residuals(report, measures.residuals)]
    return tuple(found)


def _roc(report: Report) -> Drawn:
    with _canvas("roc") as canvas:
        axes = canvas.axes
        axes.plot([0, 1], [0, 1], color="#9ca3af", linewidth=1, linestyle=":", label="chance")
        _lines(axes, report, report.measures.roc)
        _unit_square(axes, "1 − specificity", "Sensitivity")
        _legend(axes, report, "lower right")
    areas = _areas(report, "auroc")
    return Drawn(
        "roc",
        "ROC curve",
        "Sensitivity against false alarms at every threshold. The dotted line is chance.",
        f"ROC curve, sensitivity against 1 − specificity. Area under the curve: {areas}.",
        canvas.svg,
    )


def _precision_recall(report: Report) -> Drawn:
    measures = report.measures
    with _canvas("pr") as canvas:
        axes = canvas.axes
        if measures.task == "binary":
            prevalence = next(iter(measures.num_positive.values())) / report.main.n
            axes.axhline(prevalence, color="#9ca3af", linewidth=1, linestyle=":", label="chance")
        _lines(axes, report, measures.precision_recall, drawstyle="steps-pre")
        _unit_square(axes, "Recall (sensitivity)", "Precision (PPV)")
        _legend(axes, report, "lower left")
    areas = _areas(report, "auprc")
    return Drawn(
        "pr",
        "Precision and recall",
        "How many alarms are right, as more positives are found."
        + (" The dotted line is chance: the share of positives." if measures.task == "binary" else ""),
        "Precision against recall." + (f" Area under the curve: {areas}." if areas else ""),
        canvas.svg,
    )


def _calibration(report: Report) -> Drawn:
    shown = _shown(report, report.measures.calibration)
    with _canvas("calibration") as canvas:
        axes = canvas.axes
        axes.plot([0, 1], [0, 1], color="#9ca3af", linewidth=1, linestyle=":", label="perfect")
        for index, each in enumerate(shown):
            style = _style(report, each, index)
            xs, ys = [b.mean_score for b in each.bins], [b.observed for b in each.bins]
            axes.plot(xs, ys, **style, marker="o", markersize=4, clip_on=False)
        _unit_square(axes, "Mean predicted probability", "Share that came true")
        _legend(axes, report, "upper left")
    errors = ", ".join(f"{_who(report, each)} {number(each.expected_error)}" for each in shown)
    sizes = [b.n for each in shown for b in each.bins]
    held = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
    return Drawn(
        "calibration",
        "Calibration",
        f"Units in bins of about equal size ({held} each): on the line, what is predicted is what happens. "
        f"Expected calibration error: {errors}.",
        f"Calibration: predicted probability against the share that came true. Expected calibration error: {errors}.",
        canvas.svg,
    )


def _confusion(report: Report, matrix: Confusion) -> Drawn:
    names = matrix.classes
    if report.measures.task == "binary":
        names = (f"not {report.measures.classes[0]}", report.measures.classes[0])
    short = [name if len(name) <= 18 else f"{name[:17]}…" for name in names]
    shares = [[n / max(sum(row), 1) for n in row] for row in matrix.counts]
    with _canvas("confusion") as canvas:
        axes = canvas.axes
        # a mesh and not an image: lines stay sharp in print
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1)
        for i, row in enumerate(matrix.counts if len(names) <= NUMBERED_CLASSES else ()):
            for j, n in enumerate(row):
                ink = "white" if shares[i][j] > 0.55 else INK
                text = f"{n:,}\n{shares[i][j]:.0%}" if len(names) <= 6 else f"{n:,}"
                axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=ink)
        at = [i + 0.5 for i in range(len(names))]
        crowded = max(map(len, short)) * len(names) > 32
        axes.set_xticks(at, short, rotation=35 if crowded else 0, ha="right" if crowded else "center")
        axes.set_yticks(at, short)
        axes.set(xlabel="Predicted", ylabel="Observed")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.invert_yaxis()
        axes.spines[:].set_visible(False)
    rows = "; ".join(
        f"observed {name}: {', '.join(f'{n:,} predicted {said}' for n, said in zip(row, names, strict=True))}"
        for name, row in zip(names, matrix.counts, strict=True)
    )
    rule = f" at a threshold of {report.measures.threshold:g}" if report.measures.task == "binary" else ""
    return Drawn(
        "confusion",
        "Confusion matrix",
        f"Number of units{rule}; percentages are of a row, the units of one observed class.",
        f"Confusion matrix. {rows}." if len(names) <= NUMBERED_CLASSES else "Confusion matrix, shares of each row.",
        canvas.svg,
    )


def _agreement(report: Report, cells: tuple[Cell, ...]) -> Drawn:
    ends = [min(min(each.x, each.y) for each in cells), max(max(each.x, each.y) for each in cells)]
    with _canvas("agreement") as canvas:
        axes = canvas.axes
        axes.plot(ends, ends, color="#9ca3af", linewidth=1, linestyle=":")
        _bubbles(axes, cells)
        axes.set(xlabel="Observed", ylabel="Predicted")
    return Drawn(
        "agreement",
        "Predicted and observed",
        "Units counted in cells; a larger dot is more units. On the dotted line the prediction is right.",
        f"Predicted against observed values of {report.main.n:,} units, from {number(ends[0], ends[1])} to "
        f"{number(ends[1], ends[1])}; the metrics above say how close they are.",
        canvas.svg,
    )


def _residuals(report: Report, cells: tuple[Cell, ...]) -> Drawn:
    with _canvas("residuals") as canvas:
        axes = canvas.axes
        axes.axhline(0, color="#9ca3af", linewidth=1, linestyle=":")
        _bubbles(axes, cells)
        axes.set(xlabel="Predicted", ylabel="Predicted − observed")
    bias = sum(each.n * each.y for each in cells) / sum(each.n for each in cells)
    span = max(abs(each.y) for each in cells)
    return Drawn(
        "residuals",
        "Residuals",
        f"How far predictions are off, over their size; on average by about {number(bias, span)}.",
        f"Residuals against predicted values of {report.main.n:,} units, on average about {number(bias, span)}.",
        canvas.svg,
    )


def _lines(axes: Any, report: Report, curves: tuple[Curve, ...], **style: Any) -> None:
    for index, curve in enumerate(_shown(report, curves)):
        axes.plot(curve.x, curve.y, **_style(report, curve, index), **style)


def _shown(report: Report, found: tuple[Any, ...]) -> list[Any]:
    """The baseline has a line where there is one class: of several classes nobody could tell the lines apart."""
    return [each for each in found if report.measures.task == "binary" or not each.baseline]


def _style(report: Report, of: Curve | Calibration, index: int) -> dict[str, Any]:
    if of.baseline:
        return {"color": BASELINE, "linewidth": 1.5, "linestyle": "--", "label": _who(report, of)}
    if len(report.measures.classes) > NAMED_CLASSES:
        return {"color": COLOURS[0], "linewidth": 1, "alpha": 0.4}
    dash = DASHES[index // len(COLOURS)]
    return {"color": COLOURS[index % len(COLOURS)], "linewidth": 2, "linestyle": dash, "label": _who(report, of)}


def _who(report: Report, of: Curve | Calibration) -> str:
    if report.measures.task == "binary":
        return report.baseline if of.baseline else "model"
    return f"{of.name}, {report.baseline}" if of.baseline else of.name


def _areas(report: Report, metric: str) -> str:
    units = report.measures.units
    pairs = [("model", units.model.get(metric)), (report.baseline, units.baseline.get(metric))]
    pairs += [(name, units.model.get(f"{metric}.{name}")) for name in report.measures.classes]
    return ", ".join(f"{who} {number(each.value)}" for who, each in pairs if each and each.value is not None)


def _bubbles(axes: Any, cells: tuple[Cell, ...]) -> None:
    most = max(each.n for each in cells)
    sizes = [8 + 90 * each.n / most for each in cells]
    axes.scatter([each.x for each in cells], [each.y for each in cells], s=sizes, color=COLOURS[0], alpha=0.6)


def _unit_square(axes: Any, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")


def _legend(axes: Any, report: Report, place: str) -> None:
    if len(report.measures.classes) <= NAMED_CLASSES:
        axes.legend(loc=place)


@contextmanager
def _canvas(name: str) -> Iterator[Canvas]:
    """What to draw on; its `svg` is there when the block ends."""
    import matplotlib as mpl
    from markupsafe import Markup
    from matplotlib.figure import Figure

    with mpl.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # a class name in a script that the measuring font lacks: the browser has a font for it
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(4.6, 4.2), layout="constrained")
        canvas = Canvas(figure.subplots())
        yield canvas
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    canvas.svg = Markup(_inline(out.getvalue(), name))  # noqa: S704 - matplotlib escapes the text it writes


def _inline(svg: str, name: str) -> str:
    """An SVG file as part of a page: no prolog, no namespaces, its identifiers its own."""

    def tag(match: re.Match[str]) -> str:
        found = re.sub(r'\s(?:xmlns(?::\w+)?="[^"]*"|(?:width|height)="[\d.]+pt"|version="[^"]*")', "", match[0])
        return re.sub(r'((?:\s|:)(?:id|href)="#?|url\(#)', rf"\g<1>{name}-", found)

    body = svg[svg.index("<svg") :]
    return re.sub(r"<svg ", '<svg aria-hidden="true" focusable="false" ', re.sub(r"<[^!][^>]*>", tag, body), count=1)
