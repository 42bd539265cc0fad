"""Metrics agree with scikit-learn, and their intervals mean what they say."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from medray import metrics
from medray.errors import EvaluationError

CLASSES = ("cyst", "nodule", "tumour")


def binary(n: int = 200, seed: int = 0, shift: float = 1.2) -> tuple[Any, Any, Any]:
    """Labels, scores with many ties, one subject a unit."""
    draw = np.random.default_rng(seed)
    labels = (draw.random(n) < 0.4).astype(float)
    logits = draw.normal(size=n) + shift * labels - 0.6
    return labels[:, None], (1 / (1 + np.exp(-logits))).round(2)[:, None], np.arange(n).astype(str)


def several(task: str, n: int = 150, seed: int = 1) -> tuple[Any, Any, Any]:
    draw = np.random.default_rng(seed)
    if task == "multiclass":
        labels = np.eye(3)[draw.integers(3, size=n)]
        scores = np.exp(draw.normal(size=(n, 3)) + labels)
        scores /= scores.sum(axis=1, keepdims=True)
    else:
        labels = (draw.random((n, 3)) < (0.2, 0.4, 0.6)).astype(float)
        scores = 1 / (1 + np.exp(-draw.normal(size=(n, 3)) - 1.5 * labels + 1))
    return labels, scores, np.arange(n).astype(str)


def values(estimates: dict[str, metrics.Estimate]) -> dict[str, float | None]:
    return {name: estimate.value for name, estimate in estimates.items()}


def test_binary_metrics_are_those_of_scikit_learn() -> None:
    labels, scores, subjects = binary()
    y, p = labels[:, 0], scores[:, 0]
    said = p >= 0.4
    expected = {
        "auroc": sk.roc_auc_score(y, p),
        "auprc": sk.average_precision_score(y, p),
        "accuracy": sk.accuracy_score(y, said),
        "sensitivity": sk.recall_score(y, said),
        "specificity": sk.recall_score(y, said, pos_label=0),
        "precision": sk.precision_score(y, said),
        "npv": sk.precision_score(y, said, pos_label=0),
        "f1": sk.f1_score(y, said),
        "brier": sk.brier_score_loss(y, p),
    }
    found = metrics.summarize("binary", labels, scores, subjects, ("tumour",), threshold=0.4, num_resamples=50)
    assert values(found) == pytest.approx(expected)
    assert all(each.n == each.num_subjects == 200 for each in found.values())
    assert all(each.low < each.value < each.high for each in found.values())  # type: ignore[operator]


def test_a_weighted_resample_is_the_same_as_repeating_its_units() -> None:
    labels, scores, _ = binary(60)
    times = np.random.default_rng(3).integers(0, 4, size=60)
    weighted = metrics._statistics("binary", labels, scores, ("tumour",), 0.5, times[None].astype(float))
    y, p = np.repeat(labels[:, 0], times), np.repeat(scores[:, 0], times)
    assert weighted["auroc"][0] == pytest.approx(sk.roc_auc_score(y, p))
    assert weighted["auprc"][0] == pytest.approx(sk.average_precision_score(y, p))
    assert weighted["f1"][0] == pytest.approx(sk.f1_score(y, p >= 0.5))
    assert weighted["brier"][0] == pytest.approx(sk.brier_score_loss(y, p))


def test_multiclass_metrics_are_those_of_scikit_learn() -> None:
    labels, scores, subjects = several("multiclass")
    y, said = labels.argmax(axis=1), scores.argmax(axis=1)
    found = values(metrics.summarize("multiclass", labels, scores, subjects, CLASSES, num_resamples=20))
    single = {f"auroc.{name}": sk.roc_auc_score(labels[:, j], scores[:, j]) for j, name in enumerate(CLASSES)}
    assert found == pytest.approx(
        {
            "auroc": sk.roc_auc_score(y, scores, multi_class="ovr"),
            "accuracy": sk.accuracy_score(y, said),
            "balanced_accuracy": sk.balanced_accuracy_score(y, said),
            "f1": sk.f1_score(y, said, average="macro"),
            **single,
        }
    )


def test_multilabel_metrics_are_those_of_scikit_learn() -> None:
    labels, scores, subjects = several("multilabel")
    found = values(metrics.summarize("multilabel", labels, scores, subjects, CLASSES, num_resamples=20))
    single = {f"auroc.{name}": sk.roc_auc_score(labels[:, j], scores[:, j]) for j, name in enumerate(CLASSES)}
    assert found == pytest.approx(
        {
            "auroc": sk.roc_auc_score(labels, scores),
            "auprc": sk.average_precision_score(labels, scores),
            "f1": sk.f1_score(labels, scores >= 0.5, average="macro"),
            **single,
        }
    )


def test_regression_metrics_are_those_of_scikit_learn() -> None:
    draw = np.random.default_rng(5)
    observed = draw.normal(60, 12, size=(80, 1))
    predicted = observed + draw.normal(2, 6, size=(80, 1))
    found = metrics.summarize("regression", observed, predicted, np.arange(80).astype(str), ("age",), num_resamples=50)
    assert values(found) == pytest.approx(
        {
            "rmse": sk.root_mean_squared_error(observed, predicted),
            "mae": sk.mean_absolute_error(observed, predicted),
            "r2": sk.r2_score(observed, predicted),
        }
    )


def test_the_interval_covers_the_true_auroc_as_often_as_it_says() -> None:
    from scipy.stats import norm

    shift, true = 1.2, norm.cdf(1.2 / np.sqrt(2))
    covered = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        labels = np.repeat([1.0, 0.0], [40, 60])[:, None]
        scores = 1 / (1 + np.exp(-draw.normal(size=(100, 1)) - shift * labels))
        found = metrics.summarize("binary", labels, scores, np.arange(100), ("x",), num_resamples=400, seed=seed)
        low, high = found["auroc"].low, found["auroc"].high
        assert low is not None
        assert high is not None
        covered += low <= true <= high
    assert 180 <= covered <= 196


def test_copies_of_a_subjects_units_do_not_narrow_the_interval() -> None:
    labels, scores, subjects = binary(60)
    copies = [np.repeat(each, 8, axis=0) for each in (labels, scores, subjects)]
    one = metrics.summarize("binary", labels, scores, subjects, ("x",))["auroc"]
    clustered = metrics.summarize("binary", *copies, ("x",))["auroc"]
    naive = metrics.summarize("binary", copies[0], copies[1], np.arange(480), ("x",))["auroc"]
    assert (clustered.n, clustered.num_subjects) == (480, 60)
    assert (clustered.value, clustered.low, clustered.high) == pytest.approx((one.value, one.low, one.high))

    def width(each: metrics.Estimate) -> float:
        return each.high - each.low  # type: ignore[operator]

    assert width(clustered) > 2 * width(naive)


def test_the_paired_difference_is_narrower_than_either_interval() -> None:
    labels, scores, subjects = binary(200)
    noise = np.random.default_rng(8).normal(0, 0.05, size=scores.shape)
    other = (scores + noise).clip(0, 1)
    found = metrics.difference("binary", labels, scores, other, subjects, ("x",))
    each = [metrics.summarize("binary", labels, s, subjects, ("x",))["auroc"] for s in (scores, other)]
    assert found.value == pytest.approx(each[0].value - each[1].value)  # type: ignore[operator]
    assert found.high - found.low < 0.5 * (each[0].high - each[0].low)  # type: ignore[operator]
    same = metrics.difference("binary", labels, scores, scores, subjects, ("x",))
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_the_difference_in_regression_is_that_of_rmse() -> None:
    draw = np.random.default_rng(2)
    observed = draw.normal(size=(90, 1))
    good, bad = (observed + draw.normal(0, s, size=(90, 1)) for s in (0.3, 0.9))
    found = metrics.difference("regression", observed, good, bad, np.arange(90), ("y",))
    assert found.value is not None
    assert found.high is not None
    assert found.value < found.high < 0


def test_the_same_seed_gives_the_same_interval_in_any_order_of_rows() -> None:
    labels, scores, subjects = binary(80)
    order = np.random.default_rng(1).permutation(80)
    first = metrics.summarize("binary", labels, scores, subjects, ("x",), seed=4)
    again = metrics.summarize("binary", labels[order], scores[order], subjects[order], ("x",), seed=4)
    other = metrics.summarize("binary", labels, scores, subjects, ("x",), seed=5)
    for name in ("auroc", "auprc", "brier"):
        assert dataclasses.astuple(first[name]) == pytest.approx(dataclasses.astuple(again[name]))
    assert first["auroc"].low != other["auroc"].low


def test_700_units_and_1000_resamples_take_less_than_3_cpu_seconds() -> None:
    labels, scores, subjects = binary(700)
    start = time.process_time()
    metrics.summarize("binary", labels, scores, subjects, ("x",))
    assert time.process_time() - start < 3


def test_many_units_are_resampled_in_pieces_that_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, scores, subjects = binary(100)
    whole = metrics.summarize("binary", labels, scores, subjects, ("x",), num_resamples=200)
    monkeypatch.setattr(metrics, "CELLS", 700)  # seven resamples at once
    pieces = metrics.summarize("binary", labels, scores, subjects, ("x",), num_resamples=200)
    assert {name: dataclasses.astuple(each) for name, each in pieces.items()} == {
        name: pytest.approx(dataclasses.astuple(each)) for name, each in whole.items()
    }


def test_one_class_only_gives_no_value_and_says_why() -> None:
    _, scores, subjects = binary(20)
    found = metrics.summarize("binary", np.zeros((20, 1)), scores, subjects, ("x",), num_resamples=20)
    for name in ("auroc", "auprc", "sensitivity"):
        assert found[name].value is None
        assert found[name].why
    assert found["specificity"].value is not None
    assert "NaN" not in json.dumps({name: dataclasses.asdict(each) for name, each in found.items()})


def test_resamples_of_one_class_are_skipped_and_counted() -> None:
    labels = np.zeros((30, 1))
    labels[:2] = 1
    scores = np.random.default_rng(0).random((30, 1))
    found = metrics.summarize("binary", labels, scores, np.arange(30), ("x",))["auroc"]
    share = (28 / 30) ** 30  # no positive drawn
    assert found.num_skipped / 1000 == pytest.approx(share, abs=0.04)
    assert found.low is not None
    one = metrics.summarize("binary", labels, scores, np.array(["a"] * 30), ("x",))["auroc"]
    assert one.value is not None
    assert one.low is None
    assert "one subject" in one.why


def test_a_class_that_nobody_has_is_left_out_of_the_mean_and_named() -> None:
    labels, scores, subjects = several("multilabel")
    labels[:, 1] = 0
    found = metrics.summarize("multilabel", labels, scores, subjects, CLASSES, num_resamples=50)
    kept = [found[f"auroc.{name}"].value for name in ("cyst", "tumour")]
    assert found["auroc"].value == pytest.approx(np.mean(kept))  # type: ignore[arg-type]
    assert "nodule" in found["auroc"].why
    assert found["auroc.nodule"].value is None


def test_a_perfect_score_is_not_called_certain() -> None:
    labels = np.array([[0.0], [1.0]] * 10)
    found = metrics.summarize("binary", labels, labels, np.arange(20), ("x",))["auroc"]
    assert (found.value, found.low, found.high) == (1, 1, 1)
    assert "understates" in found.why


def test_per_subject_takes_the_mean_over_units_that_share_the_label() -> None:
    labels = np.array([1, 1, 0, 1, 0])
    scores = np.array([0.2, 0.6, 0.1, 0.9, 0.3])
    found = metrics.per_subject(labels, scores, np.array(["a", "a", "b", "c", "c"]))  # c: labels differ
    assert found[0].tolist() == [[1], [0]]
    assert found[1] == pytest.approx(np.array([[0.4], [0.1]]))
    assert found[2].tolist() == ["a", "b"]


def test_confusion_counts_are_those_of_scikit_learn() -> None:
    labels, scores, _ = binary()
    found = metrics.confusion("binary", labels, scores)
    assert found.tolist() == [sk.confusion_matrix(labels, scores >= 0.5).tolist()]
    labels, scores, _ = several("multiclass")
    expected = sk.confusion_matrix(labels.argmax(axis=1), scores.argmax(axis=1))
    assert metrics.confusion("multiclass", labels, scores).tolist() == [expected.tolist()]
    labels, scores, _ = several("multilabel")
    expected = sk.multilabel_confusion_matrix(labels, scores >= 0.5)
    assert metrics.confusion("multilabel", labels, scores).tolist() == expected.tolist()


def test_curves_are_those_of_scikit_learn() -> None:
    labels, scores, _ = binary()
    fpr, tpr, _ = sk.roc_curve(labels[:, 0], scores[:, 0], drop_intermediate=False)
    assert np.array(metrics.roc_points(labels, scores)) == pytest.approx(np.array([fpr, tpr]))
    precision, recall, _ = sk.precision_recall_curve(labels[:, 0], scores[:, 0])
    found = np.array(metrics.pr_points(labels, scores))[:, 1:]  # ours starts at recall 0, theirs ends there
    assert found == pytest.approx(np.array([recall[:-1], precision[:-1]])[:, ::-1])


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    labels, scores = np.tile([1.0, 0.0], 1000), np.random.default_rng(0).random(2000)
    x, y = metrics.roc_points(labels, scores, max_points=50)
    assert len(x) == len(y) == 50
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(y, x) == pytest.approx(sk.roc_auc_score(labels, scores), abs=0.01)


def test_calibrated_scores_have_a_small_calibration_error() -> None:
    draw = np.random.default_rng(0)
    scores = draw.random(20_000)
    labels = (draw.random(20_000) < scores).astype(float)
    bins = metrics.calibration_bins(labels, scores)
    assert [each.n for each in bins] == pytest.approx([2000] * 10, abs=1)
    assert metrics.expected_calibration_error(bins) < 0.02
    assert metrics.expected_calibration_error(metrics.calibration_bins(labels, scores**3)) > 0.2


def test_tied_scores_share_a_bin() -> None:
    bins = metrics.calibration_bins(np.array([0, 1, 1, 0]), np.array([0.3, 0.3, 0.3, 0.3]))
    assert bins == (metrics.CalibrationBin(pytest.approx(0.3), 0.5, 4),)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "ranking"}, "Known: binary"),
        ({"labels": np.full((20, 1), np.nan)}, "finite"),
        ({"labels": np.full((20, 1), 2.0)}, "0 or 1"),
        ({"scores": np.full((20, 1), 1.5)}, "between 0 and 1"),
        ({"subjects": np.arange(3)}, "belong together"),
        ({"classes": ("a", "b")}, "2 classes"),
        ({"labels": np.empty((0, 1)), "scores": np.empty((0, 1)), "subjects": np.empty(0)}, "no unit"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(change: dict[str, Any], said: str) -> None:
    labels, scores, subjects = binary(20)
    given = {"task": "binary", "labels": labels, "scores": scores, "subjects": subjects, "classes": ("x",)}
    with pytest.raises(EvaluationError, match=said):
        metrics.summarize(**(given | change))
