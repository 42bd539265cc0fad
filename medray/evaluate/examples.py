"""Examples: a few held-out units that the model found, and what each answer rests on. Nobody is named."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.artifacts import Checkpoint, Shards
from medray.predict import LABEL, SCORE, UNIT, Scores
from medray.predictor import Explained, Predictor
from medray.report import Explanation
from medray.report.words import number

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

MAX_EXAMPLES = 6
BINARY, EACH_CLASS = 2, 1  # examples: of the one class, of each of several
CANDIDATES = 8  # of the best scores: among them those with the most modalities are shown
MAX_ROWS = 8  # of a list of contributions
COLUMNS = ("Column", "As encoded", "Adds")


@dataclass(frozen=True)
class Chosen:
    """A unit, and the output that it is an example of."""

    unit: str
    output: int
    observed: float
    false_alarm: bool = False


def explanations(checkpoint: Checkpoint, shards: Shards, scores: Scores, threshold: float) -> tuple[Explanation, ...]:
    """One picture or list for each modality of each example.

    Args:
        checkpoint: the model.
        shards: that were scored.
        scores: of one split.
        threshold: from which on a score is positive.

    Raises:
        IntegrityError: a shard or the checkpoint was changed.
    """
    table = scores.read()
    groups = list(_groups(table, scores, threshold))
    samples = _samples(shards, scores, {each.unit for group in groups for each in group})
    predictor = Predictor.load(checkpoint.folder)
    shown: list[Explanation] = []
    limit = BINARY if scores.facts.task == "binary" else EACH_CLASS
    examples: list[Chosen] = []
    for group in groups:
        fullest = sorted(group, key=lambda each: -sum(samples[each.unit][1].values()))  # stable: by score among equals
        examples += fullest[: 1 if group[0].false_alarm else limit]
    for count, example in enumerate(examples[:MAX_EXAMPLES], start=1):
        arrays, present = samples[example.unit]
        shown += _explained(predictor, example, count, arrays, present)
    return tuple(shown)


def _groups(table: pa.Table, scores: Scores, threshold: float) -> Iterator[list[Chosen]]:
    """Candidates: the surest right answers for each class; in regression the highest of those that are nearly right."""
    units = table.column(UNIT).to_pylist()
    labels, answers = (
        np.stack([table.column(name).to_numpy() for name in scores.columns(prefix)], axis=1)
        for prefix in (LABEL, SCORE)
    )
    if scores.facts.task == "regression":
        errors = np.abs(answers - labels)[:, 0]
        near = np.flatnonzero(errors <= np.median(errors))
        best = near[np.argsort(-answers[near, 0], kind="stable")][:CANDIDATES]
        yield [Chosen(units[row], 0, float(labels[row, 0])) for row in best]
        return
    several = scores.facts.task == "multiclass"
    said = np.eye(answers.shape[1])[answers.argmax(1)] > 0 if several else answers >= threshold
    for output in range(answers.shape[1]):
        for found, false_alarm in ((labels[:, output] == 1, False), (labels[:, output] == 0, True)):
            if false_alarm and scores.facts.task != "binary":
                continue
            rows = np.flatnonzero(found & said[:, output])
            best = rows[np.argsort(-answers[rows, output], kind="stable")][:CANDIDATES]
            if len(best):
                yield [Chosen(units[row], output, float(labels[row, output]), false_alarm) for row in best]


def _samples(shards: Shards, scores: Scores, wanted: set[str]) -> dict[str, tuple[dict[str, Array], dict[str, bool]]]:
    """Stored arrays (1, *shape) and presence of each unit; only the shards that hold one are opened."""
    found = {}
    for name in scores.parts():
        units = scores.part(name).column(UNIT).to_pylist()
        rows = [row for row, unit in enumerate(units) if unit in wanted]
        shard = shards.read(name) if rows else {}
        for row in rows:
            arrays = {key[2:]: values[row : row + 1] for key, values in shard.items() if key.startswith("x.")}
            found[units[row]] = (arrays, {name: bool(shard[f"present.{name}"][row]) for name in arrays})
    return found


def _explained(
    predictor: Predictor, example: Chosen, count: int, arrays: Mapping[str, Array], present: Mapping[str, bool]
) -> Iterator[Explanation]:
    masks = {name: np.array([there]) for name, there in present.items()}
    explained = predictor.explain(arrays, masks, output=example.output)
    without = predictor.without(arrays, masks)
    title = f"Example {count}: {_answer(predictor, example, explained)}"
    for name in predictor.modalities:
        if not present[name]:
            continue
        attribution = explained.attributions[name][0]
        caption = f"{name}."
        if len(predictor.modalities) > 1 and np.isfinite(without[name]).all():
            caption += f" Score without it: {_number(predictor, without[name][0, example.output])}."
        picture = predictor.overlay(name, arrays[name][0], attribution)
        if picture is not None:
            image = base64.b64encode(picture).decode()
            yield Explanation(title=title, caption=f"{caption} {_legend(explained, name)}", image=image)
            continue
        listed = predictor.contributions(name, attribution)[:MAX_ROWS]
        values = dict(zip(predictor.names[name], arrays[name][0].tolist(), strict=True))
        rows = tuple((column, float(values[column]), added) for column, added in listed)
        yield Explanation(title=title, caption=f"{caption} {_units(predictor)}", columns=COLUMNS, rows=rows)


def _answer(predictor: Predictor, example: Chosen, explained: Explained) -> str:
    score = _number(predictor, explained.scores[0, example.output])
    if predictor.task == "regression":
        return f"predicted {score}, observed {_number(predictor, example.observed)}"
    name = predictor.classes[example.output]
    return f"score {score} for {name}, " + ("a false alarm" if example.false_alarm else "rightly")


def _number(predictor: Predictor, value: float) -> str:
    return number(value, value if predictor.task == "regression" else 0.5)


def _legend(explained: Explained, name: str) -> str:
    if explained.explainers[name] == "grad_cam":
        return "Grad-CAM: what glows speaks for this answer."
    return f"By {explained.explainers[name].replace('_', ' ')}: red raises the score, blue lowers it."


def _units(predictor: Predictor) -> str:
    scale = "the predicted value" if predictor.task == "regression" else "the log odds"
    return f"Numbers are encoded in standard deviations from the train mean; what is added is to {scale}."
