"""What a report says in words: the verdict, what to mind, the certificate, and how numbers are written."""

from __future__ import annotations

import base64
import itertools
import math
import struct
from typing import TYPE_CHECKING

from medray.metrics import Estimate, main_metric

if TYPE_CHECKING:
    from medray.report import Comparison, Explanation, Report

# Fewer events or non-events make a validation unreliable: Collins, Ogundimu and Altman 2016, doi 10.1002/sim.6787.
ENOUGH_EVENTS = 100
MEANINGS = {
    "auroc": ("AUROC", "how often a positive ranks above a negative: 0.5 is chance, 1 perfect"),
    "auprc": ("AUPRC", "mean precision over all thresholds"),
    "accuracy": ("Accuracy", "share of right answers"),
    "balanced_accuracy": ("Balanced accuracy", "mean share of right answers over the classes"),
    "sensitivity": ("Sensitivity", "share of positives that are found"),
    "specificity": ("Specificity", "share of negatives that are left alone"),
    "precision": ("Precision (PPV)", "share of positive answers that are right"),
    "npv": ("NPV", "share of negative answers that are right"),
    "f1": ("F1", "harmonic mean of sensitivity and precision"),
    "brier": ("Brier score", "mean squared error of the probability; lower is better"),
    "rmse": ("RMSE", "root mean squared error; lower is better"),
    "mae": ("MAE", "mean absolute error; lower is better"),
    "r2": ("R²", "share of the variance that is explained; 0 is no better than the mean"),
}
MEANS_OVER_CLASSES = ("auroc", "auprc", "f1")
SPLITS = {"train": "Train", "tuning": "Tuning", "held_out": "Held out"}


def label(metric: str, report: Report) -> str:
    """What a metric is called in a table."""
    name, _, of = metric.partition(".")
    if of:
        return f"{MEANINGS[name][0]}, {of}"
    several = report.measures.task in ("multiclass", "multilabel") and name in MEANS_OVER_CLASSES
    return MEANINGS[name][0] + (", mean over classes" if several else "")


def meaning(metric: str) -> str:
    """What a metric tells; nothing for a single class, whose mean was explained above it."""
    return "" if "." in metric else MEANINGS[metric][1]


def number(value: float, scale: float = 0.5) -> str:
    """Three decimals for values around one; three digits of `scale` for larger ones."""
    decimals = 3 if abs(scale) < 2 else max(0, 2 - math.floor(math.log10(abs(scale))))
    return f"{value:.{decimals}f}".replace("-", "−")


def cell(value: float | str) -> str:
    """A cell of an example's table."""
    return value if isinstance(value, str) else number(value, value if abs(value) >= 100 else 0.5)


def examples(report: Report) -> list[tuple[str, list[Explanation]]]:
    """Explanations under their titles."""
    grouped = itertools.groupby(report.explanations, key=lambda example: example.title)
    return [(title, list(members)) for title, members in grouped]


def is_wide(png: str) -> bool:
    """Whether a PNG in base64 is much wider than high, such as traces over time."""
    width, height = struct.unpack(">II", base64.b64decode(png[:32])[16:24])  # of the IHDR chunk
    return bool(width > 1.5 * height)


def with_interval(estimate: Estimate | None) -> str:
    """`0.951 (0.930 to 0.968)`."""
    if estimate is None or estimate.value is None:
        return "—"
    if estimate.low is None or estimate.high is None:
        return f"{number(estimate.value, estimate.value)} (no interval)"
    low, high = number(estimate.low, estimate.value), number(estimate.high, estimate.value)
    return f"{number(estimate.value, estimate.value)} ({low} to {high})"


def count(n: int, noun: str = "") -> str:
    """`1,234 subjects`, `1 subject`."""
    return f"{n:,} {noun}{'s' if noun and n != 1 else ''}".strip()


def units(report: Report) -> str:
    """`624 units (films) of 582 subjects`, or `114 subjects`."""
    main = report.main
    if report.unit == "subject":
        return count(main.num_subjects, "subject")
    return f"{count(main.n, 'unit')} ({report.unit}) of {count(main.num_subjects, 'subject')}"


def verdict(report: Report) -> str:
    """The main metric, its interval, n, and the comparison with the baseline, in one sentence."""
    main, metric = report.main, main_metric(report.measures.task)
    name = MEANINGS[metric][0]
    reaches = f"a mean {name} over classes" if label(metric, report) != name else f"an {name}"
    unseen = {True: " that it had never seen", False: " some of which it had been trained on", None: ""}
    start = f"On {units(report)}{unseen[report.certificate.disjoint]}, the model"
    if main.value is None:
        return f"{start} cannot be judged: {main.why}."
    value = f"{number(main.value, main.value)} ({interval(main)})"
    return f"{start} reaches {reaches} of {value}{_comparison(report, report.measures.units, metric)}."


def interval(estimate: Estimate) -> str:
    """`95 % interval 0.930 to 0.968`."""
    if estimate.low is None or estimate.high is None or estimate.value is None:
        return f"no interval: {estimate.why}"
    return f"95\u00a0% interval {number(estimate.low, estimate.value)} to {number(estimate.high, estimate.value)}"


def _comparison(report: Report, units: Comparison, metric: str) -> str:
    baseline, difference = units.baseline.get(metric), units.difference
    if baseline is None or baseline.value is None or difference is None or difference.value is None:
        return ""
    scale = baseline.value
    beside = f"{report.baseline} ({number(baseline.value, scale)}"
    if difference.low is None or difference.high is None:
        return f", beside {beside}); too few units to say whether they differ"
    low, high = number(difference.low, scale), number(difference.high, scale)
    beside += f"; difference {number(difference.value, scale)}, 95\u00a0% interval {low} to {high})"
    if difference.low <= 0 <= difference.high:
        return f", not clearly different from {beside}"
    better = (difference.low > 0) != (metric == "rmse")
    return f", {'better' if better else 'worse'} than {beside}"


def cautions(report: Report) -> list[str]:
    """What a careful reader would object to."""
    certificate, measures = report.certificate, report.measures
    found = []
    if certificate.disjoint is None:
        found.append("The scores do not tell whether the model had seen these subjects: then the figures are too good.")
    elif not certificate.disjoint:
        found.append("Some subjects are in more than one split: the figures are too good and must not be used.")
    if certificate.fitted_on not in ("train", ""):
        found.append(f"Statistics of the preparation come from {certificate.fitted_on}, not from train alone.")
    found.extend(certificate.warnings)
    if certificate.earlier_looks:
        looks = count(certificate.earlier_looks, "time")
        found.append(f"This held-out split was evaluated {looks} before: each look that led to a change flatters it.")
    n = report.main.n
    scarce = {name: min(num, n - num) for name, num in measures.num_positive.items()} or {"all": n}
    rarest = min(scarce, key=lambda name: scarce[name])
    if scarce[rarest] < ENOUGH_EVENTS:
        positive = f", {measures.num_positive[rarest]:,} of them {rarest}" if measures.num_positive else ""
        found.append(
            f"{count(n, 'unit')}{positive}: few to judge a model by. At least {ENOUGH_EVENTS} "
            f"{'with and without each finding' if positive else 'units'} are advised (Collins et al. 2016)."
        )
    return found


def notes(report: Report, comparison: Comparison) -> list[str]:
    """Footnotes of a table of metrics: why values or intervals are missing, how many resamples had none."""
    found: dict[str, list[str]] = {}
    for who, estimates in (("", comparison.model), (f" ({report.baseline})", comparison.baseline)):
        for metric, estimate in estimates.items():
            why = estimate.why
            if estimate.num_skipped and estimate.low is not None:
                skipped = f"{estimate.num_skipped:,} of {report.measures.num_resamples:,} resamples had no value"
                why = "; ".join(filter(None, [why, skipped]))
            if why:
                found.setdefault(why, []).append(label(metric, report) + who)
    return [f"{'; '.join(names)}: {why}." for why, names in found.items()]


def certificate(report: Report) -> list[tuple[str, str]]:
    """Question and answer, as an auditor asks."""
    has = report.certificate
    held_out = count(has.subjects.get("held_out", 0), "subject")
    apart = {
        True: f"Yes. The {held_out} of the held-out split are in no other split.",
        False: "No. Some subjects are in more than one split.",
        None: "Not known: this report was made from scores alone.",
    }
    fitted = (
        f"Means, vocabularies and every other statistic come from the {has.fitted_on} split, "
        "none from the held-out split."
        if has.fitted_on
        else "Not known."
    )
    out = "; ".join(f"{count(n)} ({reason})" for reason, n in has.left_out.items() if n)
    looks = f"Yes, {count(has.earlier_looks or 0, 'time')}." if has.earlier_looks else "No, this is the first time."
    rules = {
        "How are subjects told apart?": has.subject_rule,
        "How did subjects come into their splits?": has.split_rule,
    }
    return [
        ("Are the held-out subjects in no other split?", apart[has.disjoint]),
        ("What did the preparation learn from?", fitted),
        *((question, rule) for question, rule in rules.items() if rule),
        ("Was anything left out?", f"Yes: {out}." if out else "No unit was left out."),
        ("Was this held-out split looked at before?", "Not known." if has.earlier_looks is None else looks),
    ]


def share(n: int, of: int) -> str:
    """`48 (34 %)`."""
    return f"{n:,} ({100 * n / of:.0f} %)" if of else f"{n:,}"


def durations(seconds: dict[str, float]) -> dict[str, str]:
    """`2 min 5 s`, by step."""
    return {step: _duration(each) for step, each in seconds.items()}


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 100 else f"{minutes} min {rest} s"
