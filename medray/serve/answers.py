"""Answers: scores and attributions of one sample -> what a person or a program reads.

Numbers are rounded to four digits, maps and curves to what a screen shows.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medray.modalities import Rows

if TYPE_CHECKING:
    from medray.predictor import Predictor

    Array = np.ndarray[Any, Any]

MAX_MAP = 64  # places a side of a map
MAX_STEPS = 50  # of time
MAX_CONTRIBUTIONS = 200


@dataclass(frozen=True)
class Scored:
    """What the network has made of one sample.

    Attributes:
        scores: (k,).
        output: which of the k is explained; None where nothing is.
        attributions: (...) by modality.
        explainers: by modality.
        without: scores (k,) without each modality; NaN where there are none.
    """

    scores: Array
    output: int | None = None
    attributions: Mapping[str, Array] = field(default_factory=dict)
    explainers: Mapping[str, str] = field(default_factory=dict)
    without: Mapping[str, Array] = field(default_factory=dict)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Contribution(_Part):
    """What one column of a table adds to the explained output: positive speaks for it."""

    name: str
    value: float | str | bool | None = Field(description="as it was sent; whether it is so for `sex=F` and `(missing)`")
    contribution: float


class Lead(_Part):
    """What one lead adds to the explained output, in all and along `seconds`."""

    name: str
    contribution: float
    over_time: list[float]


class Attribution(_Part):
    """What of one modality the answer rests on: one of three forms."""

    explainer: str
    map: list[list[float]] | None = Field(None, description="images: h x w, from the top left")
    overlay: str | None = Field(None, description="images: PNG with the map laid over it, base64")
    contributions: list[Contribution] | None = Field(None, description="tables: the largest first")
    seconds: list[float] | None = Field(None, description="signals: where each step of time begins")
    over_time: list[float] | None = Field(None, description="signals: all leads together")
    leads: list[Lead] | None = Field(None, description="signals: the largest first")


class Answer(_Part):
    """One answer."""

    model_config = ConfigDict(frozen=True, serialize_by_alias=True, validate_by_name=True)

    model: str
    version: int
    request: str = Field(description="the id under which the audit log has this request")
    probability: dict[str, float] | None = Field(None, description="of each class")
    value: float | None = Field(None, description="regression: in the target's units")
    predicted: str | list[str] | None = Field(
        None, alias="class", description="the class; a list where several may hold at once"
    )
    threshold: float | None = Field(None, description="the probability from which on a class is predicted")
    missing: list[str] = Field([], description="modalities that were not sent")
    explained: str | None = Field(None, description="the class whose score the attributions explain")
    attributions: dict[str, Attribution] | None = None
    without: dict[str, dict[str, float] | float] | None = Field(
        None, description="the answer as it would be without each modality"
    )


def answer(
    predictor: Predictor, name: str, version: int, request: str, rows: Mapping[str, Rows], sample: Any, scored: Scored
) -> Answer:
    """The answer to one request.

    Args:
        predictor: of the model version.
        name: of the model.
        version: of the model.
        request: its id.
        rows: one row of each modality that was sent.
        sample: stored arrays (1, *shape) by modality.
        scored: what came out.
    """
    given: dict[str, Any] = {"model": name, "version": version, "request": request}
    given["missing"] = [modality for modality in predictor.modalities if modality not in rows]
    threshold = predictor.study.evaluate.threshold
    shown = _scores(predictor, scored.scores)
    if predictor.task == "regression":
        given["value"] = shown
    else:
        given |= {"probability": shown, "class": _predicted(predictor, scored.scores, threshold)}
        if predictor.task != "multiclass":
            given["threshold"] = threshold
    if scored.output is not None:
        given["explained"] = (
            predictor.classes[scored.output] if predictor.classes else predictor.study.cohort.target.column
        )
        given["attributions"] = {
            modality: _attribution(predictor, modality, rows[modality], sample[modality][0], scored)
            for modality in predictor.modalities
            if modality in rows
        }
    without = {modality: scores for modality, scores in scored.without.items() if np.isfinite(scores).all()}
    if without:
        given["without"] = {modality: _scores(predictor, scores) for modality, scores in without.items()}
    return Answer.model_validate(given)


def _scores(predictor: Predictor, scores: Array) -> dict[str, float] | float:
    if not np.isfinite(scores).all():
        raise ArithmeticError("a score is not finite")
    if predictor.task == "regression":
        return _rounded(scores[0])
    return {name: _rounded(score) for name, score in zip(predictor.classes, scores, strict=True)}


def _predicted(predictor: Predictor, scores: Array, threshold: float) -> str | list[str]:
    above = [name for name, score in zip(predictor.classes, scores, strict=True) if score >= threshold]
    if predictor.task == "multilabel":
        return above
    if predictor.task == "multiclass":
        return predictor.classes[int(scores.argmax())]
    return above[0] if above else f"not {predictor.classes[0]}"


def _attribution(predictor: Predictor, modality: str, rows: Rows, stored: Array, scored: Scored) -> Attribution:
    values = scored.attributions[modality].astype(np.float64)
    shown: dict[str, Any] = {"explainer": scored.explainers[modality]}
    match len(predictor.shapes[modality]):
        case 1:
            shown["contributions"] = _contributions(predictor.names[modality], values, rows, stored)
        case 2:
            shown |= _signal(predictor, modality, values)
        case _:
            # of the input's shape (C, H, W): channels add up
            plane = values.sum(0) if values.ndim == 3 else values
            shown["map"] = [[_rounded(value) for value in row] for row in _coarse(_coarse(plane, MAX_MAP).T, MAX_MAP).T]
            overlay = predictor.overlay(modality, stored, scored.attributions[modality])
            shown["overlay"] = base64.b64encode(overlay).decode() if overlay is not None else None
    return Attribution(**shown)


def _contributions(names: list[str], values: Array, rows: Rows, stored: Array) -> list[Contribution]:
    sent = {name: rows.columns.column(name)[0].as_py() for name in rows.columns.column_names}
    order = np.argsort(-np.abs(values), kind="stable")[:MAX_CONTRIBUTIONS]
    return [
        Contribution(
            name=names[place],
            value=sent[names[place]] if names[place] in sent else bool(stored[place]),
            contribution=_rounded(values[place]),
        )
        for place in order
    ]


def _signal(predictor: Predictor, modality: str, values: Array) -> dict[str, Any]:
    """Of the input's shape (T, C), or of a feature map over time (T',)."""
    length = predictor.shapes[modality][0]
    rate_hz = float(getattr(predictor.modalities[modality], "rate_hz", 1.0))
    by_lead = _coarse(values if values.ndim == 2 else values[:, None], MAX_STEPS, sums=True)
    row_s = length / rate_hz / len(values)
    shown: dict[str, Any] = {
        "seconds": [_rounded(start * row_s) for start in _starts(len(values), MAX_STEPS)],
        "over_time": [_rounded(value) for value in by_lead.sum(1)],
    }
    if values.ndim == 2:
        leads = [
            Lead(name=name, contribution=_rounded(curve.sum()), over_time=[_rounded(value) for value in curve])
            for name, curve in zip(predictor.names[modality], by_lead.T, strict=True)
        ]
        shown["leads"] = sorted(leads, key=lambda lead: -abs(lead.contribution))
    return shown


def _starts(count: int, most: int) -> Array:
    """Where `most` equal pieces of `count` rows begin, or fewer; the last one may be shorter."""
    return np.arange(0, count, -(-count // most))


def _coarse(values: Array, most: int, *, sums: bool = False) -> Array:
    """At most `most` rows: means, or sums, of neighbouring ones."""
    starts = _starts(len(values), most)
    total: Array = np.add.reduceat(values, starts, axis=0)
    return total if sums else total / np.diff([*starts, len(values)])[:, None]


def _rounded(value: Any) -> float:
    return float(f"{float(value):.4g}") + 0.0  # no minus zero
