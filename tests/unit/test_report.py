"""A report says what was measured, keeps to itself who was measured, and needs nothing but its own file."""

from __future__ import annotations

import base64
import io
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from medray import report as reports
from medray.errors import ArtifactError, EvaluationError
from medray.report import Certificate, Explanation, Measures, Report

HOSTILE = '<script>alert("x")</script> & $\\frac{1}$ --> é 肺炎'
CREATED = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


def logistic(values: Any) -> Any:
    return 1 / (1 + np.exp(-values))


def measured(task: Any = "binary", n: int = 240, classes: tuple[str, ...] = ("tumour",), **given: Any) -> Measures:
    """Measures of a good model beside a poor baseline; three units to two subjects."""
    draw = np.random.default_rng(0)
    names = np.array([f"subject-{2 * i // 3:04d}" for i in range(n)])
    k = len(classes) or 1
    if task == "regression":
        labels = draw.normal(60, 10, size=n)[2 * np.arange(n) // 3][:, None]
        good, poor = (labels + draw.normal(0, spread, size=(n, 1)) for spread in (3, 9))
    elif task == "multiclass":
        labels = np.eye(k)[draw.integers(k, size=n)]
        good, poor = (np.exp(draw.normal(size=(n, k)) + shift * labels) for shift in (3, 1))
        good, poor = good / good.sum(axis=1, keepdims=True), poor / poor.sum(axis=1, keepdims=True)
    else:
        labels = (draw.random((n, k)) < 0.45).astype(float)
        good, poor = (logistic(draw.normal(size=(n, k)) + shift * (labels - 0.5)) for shift in (4, 1))
    settings: dict[str, Any] = {"baseline_scores": poor, "num_resamples": 100} | given
    return reports.measure(task, labels, good, names, classes, **settings)


def certified(**changes: Any) -> Certificate:
    given: dict[str, Any] = {
        "subjects": {"train": 900, "tuning": 100, "held_out": 160},
        "units": {"train": 1400, "tuning": 150, "held_out": 240},
        "disjoint": True,
        "left_out": {"no label": 7},
        "subject_rule": "By the column chart.subject.",
    }
    return Certificate(**(given | changes))


def report(measures: Measures | None = None, **changes: Any) -> Report:
    given: dict[str, Any] = {
        "study": "films",
        "target": "a tumour",
        "unit": "films",
        "measures": measures or measured(),
        "certificate": certified(),
        "parents": {"checkpoint": "sha256:0123"},
        "seconds": {"train": 125.0},
        "versions": {"torch": "2.13.0"},
        "created": CREATED,
    }
    return Report(**(given | changes))


class Page(HTMLParser):
    """Tags, attributes and text of a page, and whether its tags close in order."""

    VOID = frozenset({"meta", "img", "br", "link", "path", "use", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open[-1:]:
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


CASES: list[tuple[str, tuple[str, ...]]] = [
    ("binary", ("tumour",)),
    ("multiclass", ("cyst", "nodule", "tumour")),
    ("multilabel", ("cyst", "nodule", "tumour")),
    ("regression", ()),
]


@pytest.mark.parametrize(("task", "classes"), CASES)
def test_a_report_comes_back_as_it_was_written(task: str, classes: tuple[str, ...], tmp_path: Path) -> None:
    before = report(measured(task, classes=classes))
    paths = reports.write(before, tmp_path / "report")
    assert paths.html.exists()
    after = reports.load(tmp_path / "report")
    assert after.model_dump_json() == before.model_dump_json()
    assert after.main == before.main
    assert "NaN" not in paths.json.read_text(encoding="utf-8")


@pytest.mark.parametrize(("task", "classes"), CASES)
def test_the_page_needs_no_other_file_no_network_and_no_script(task: str, classes: tuple[str, ...]) -> None:
    text = reports.html(report(measured(task, classes=classes)))
    page = Page(text)
    assert page.open == []
    assert not re.search(r"https?:", text)
    assert not page.of("script") + page.of("link") + page.of("iframe")
    targets = [
        value for _, given in page.tags for name, value in given.items() if name in {"src", "href", "xlink:href"}
    ]
    assert targets
    assert all(value and value.startswith(("#", "data:image/png;base64,")) for value in targets)
    identifiers = [given["id"] for _, given in page.tags if "id" in given]
    assert len(identifiers) == len(set(identifiers))
    assert {target.removeprefix("#") for target in targets if target and target[0] == "#"} <= set(identifiers)


@pytest.mark.parametrize(("task", "classes"), CASES)
def test_nobody_is_named_in_a_report(task: str, classes: tuple[str, ...], tmp_path: Path) -> None:
    for path in reports.write(report(measured(task, classes=classes)), tmp_path):
        assert not re.search(r"subject-\d", path.read_text(encoding="utf-8"))


def test_values_of_a_regression_are_counted_in_cells() -> None:
    draw = np.random.default_rng(1)
    ages = draw.normal(60, 10, size=(50, 1))
    found = reports.measure("regression", ages, ages + 1, np.arange(50), (), num_resamples=20)
    assert sum(cell.n for cell in found.agreement) == sum(cell.n for cell in found.residuals) == 50
    assert not {cell.x for cell in found.agreement} & {float(age) for age in ages[:, 0]}


@pytest.mark.parametrize(("task", "classes"), CASES)
def test_every_figure_has_words_and_every_table_has_headers(task: str, classes: tuple[str, ...]) -> None:
    page = Page(reports.html(report(measured(task, classes=classes))))
    described = {given["id"] for _, given in page.tags if given.get("id", "")}
    drawn = page.of("svg")
    assert len(page.of("figure")) == len(drawn) >= 2
    assert all(given["aria-hidden"] == "true" for given in drawn)  # the words beside it are read instead
    assert all(given["aria-describedby"] in described for given in page.of("figure"))
    assert len(page.of("caption")) == len(page.of("table")) >= 4
    assert all(given.get("scope") in {"row", "col"} for given in page.of("th"))


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_a_hostile_class_name_is_only_text(task: str) -> None:
    classes = (HOSTILE,) if task == "binary" else (HOSTILE, "cyst", "nodule")
    text = reports.html(report(measured(task, classes=classes), study=HOSTILE, target=HOSTILE))
    page = Page(text)
    assert page.open == []
    assert not page.of("script")
    assert "<script" not in text
    assert page.text.count(HOSTILE) >= 4


def test_the_verdict_says_metric_interval_n_and_the_comparison() -> None:
    found = report()
    main, baseline = found.main, found.measures.units.baseline["auroc"]
    said = found.verdict.replace("\u00a0", " ")
    assert said.startswith(
        "On 240 units (films) of 160 subjects that it had never seen, the model reaches an AUROC of "
    )
    assert f"{main.value:.3f} (95 % interval {main.low:.3f} to {main.high:.3f}), better than logistic" in said
    assert f"logistic regression ({baseline.value:.3f}; difference" in said
    assert found.verdict in Page(reports.html(found)).text


def swapped(measures: Measures) -> Measures:
    """The same two scores, the poor one as the model."""
    units = measures.units
    gain = units.difference
    assert gain is not None
    assert gain.value is not None
    assert gain.low is not None
    assert gain.high is not None
    loss = type(gain)(-gain.value, -gain.high, -gain.low, gain.n, gain.num_subjects)
    turned = units.model_copy(update={"model": units.baseline, "baseline": units.model, "difference": loss})
    return measures.model_copy(update={"units": turned})


@pytest.mark.parametrize(("task", "classes"), CASES)
def test_the_verdict_knows_better_from_worse(task: str, classes: tuple[str, ...]) -> None:
    found = measured(task, classes=classes)
    assert ", better than" in report(found).verdict
    assert ", worse than" in report(swapped(found)).verdict


def test_the_verdict_does_not_call_a_draw_a_win() -> None:
    draw = np.random.default_rng(3)
    labels = (draw.random((80, 1)) < 0.5).astype(float)
    a, b = (logistic(draw.normal(size=(80, 1)) + labels) for _ in range(2))
    found = reports.measure("binary", labels, a, np.arange(80), ("tumour",), baseline_scores=b, num_resamples=200)
    assert "not clearly different from logistic regression" in report(found, unit="subject").verdict
    assert report(found, unit="subject").verdict.startswith("On 80 subjects that")


def test_without_a_value_the_verdict_says_why() -> None:
    scores = np.linspace(0, 1, 20)
    found = reports.measure("binary", np.zeros(20), scores, np.arange(20), ("tumour",), num_resamples=20)
    said = report(found)
    assert "cannot be judged: all units are alike" in said.verdict
    assert said.verdict in Page(reports.html(said)).text


def test_a_broken_split_is_said_first() -> None:
    warning = "Each record counts as its own subject."
    certificate = certified(disjoint=False, earlier_looks=3, warnings=(warning,), fitted_on="train and held_out")
    found = report(certificate=certificate)
    text = Page(reports.html(found)).text
    assert "never seen" not in found.verdict
    before_metrics = text[: text.index("Intervals:")]
    for said in ("more than one split", warning, "3 times before", "come from train and held_out"):
        assert said in before_metrics
    calm = Page(reports.html(report(measured(n=600)))).text
    assert "Please mind" not in calm


def test_few_positives_are_pointed_out() -> None:
    text = Page(reports.html(report(measured(n=60), unit="films"))).text
    assert "few to judge a model by" in text


def test_the_certificate_answers_an_auditor() -> None:
    certificate = certified(units_per_class={"train": {"tumour": 630}, "held_out": {"tumour": 108}})
    text = Page(reports.html(report(certificate=certificate))).text
    for said in (
        "160 subjects of the held-out split are in no other",
        "7 (no label)",
        "108 (45 %)",
        "1,400",
        "first time",
    ):
        assert said in text


def test_subjects_with_several_units_are_also_judged_as_one() -> None:
    found = measured("regression", classes=())
    assert found.subjects is not None
    assert found.subjects.model["rmse"].n == 160
    assert found.subjects.model["rmse"].value < found.units.model["rmse"].value  # type: ignore[operator]
    assert "By subject" in reports.html(report(found))
    single = reports.measure("binary", [0, 1, 0, 1], [0.1, 0.8, 0.2, 0.9], np.arange(4), ("x",), num_resamples=20)  # type: ignore[arg-type]
    assert single.subjects is None


def test_examples_are_shown_with_their_captions() -> None:
    from PIL import Image

    png = io.BytesIO()
    Image.new("L", (4, 4)).save(png, "png")
    shown = Explanation(caption="where it looked", image=base64.b64encode(png.getvalue()).decode())
    table = Explanation(caption="what moved it", columns=("column", "attribution"), rows=(("labs.crp", 0.25),))
    page = Page(reports.html(report(explanations=(shown, table))))
    assert page.of("img")[0]["alt"] == "where it looked"
    assert "labs.crp0.250" in page.text
    with pytest.raises(ValidationError, match="PNG"):
        Explanation(caption="no picture", image=base64.b64encode(b"<svg onload=x>").decode())


def test_many_classes_are_still_drawn() -> None:
    classes = tuple(f"finding {i}" for i in range(14))
    page = Page(reports.html(report(measured("multilabel", classes=classes))))
    assert len(page.of("svg")) == 3
    drawn = reports.html(report(measured("multiclass", classes=classes, baseline_scores=None)))
    assert "Confusion matrix" in drawn


def test_nothing_unknown_is_taken_into_a_report() -> None:
    with pytest.raises(ValidationError):
        report(patients=["x"])
    with pytest.raises(ValidationError):
        report(created=datetime(2026, 1, 2))  # noqa: DTZ001 - a time without a zone is what is refused


def test_a_missing_or_foreign_report_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no report here"):
        reports.load(tmp_path)
    (tmp_path / "report.json").write_text('{"study": "x"}', encoding="utf-8")
    with pytest.raises(ArtifactError, match="not a report of this version"):
        reports.load(tmp_path)


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(EvaluationError):
        reports.measure("binary", np.ones(3), np.ones(4), np.arange(3), ("x",))
