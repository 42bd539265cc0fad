"""A model version as it is kept and as people read it: card, signature, lineage, history."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Literal, Protocol

from pydantic import AwareDatetime, BaseModel, ConfigDict, computed_field

from medray.artifacts import Checkpoint
from medray.metrics import Estimate, main_metric
from medray.study import Study

Stage = Literal["candidate", "approved", "retired"]


class Noun(BaseModel):
    """Frozen, and no key that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Findings(Noun):
    """What an evaluation has found, as far as a model's card says it.

    Attributes:
        report: digest.
        verdict: one sentence.
        metrics: of the model on the held-out split, by name.
        baseline: the same of the logistic regression beside it.
        subjects, units: how many, by split.
        left_out: units that took no part, by reason.
        limits: what to mind.
        parents: digests of what was evaluated, by name.
    """

    report: str
    verdict: str
    metrics: dict[str, Estimate]
    baseline: dict[str, Estimate] = {}
    subjects: dict[str, int] = {}
    units: dict[str, int] = {}
    left_out: dict[str, int] = {}
    limits: tuple[str, ...] = ()
    parents: dict[str, str] = {}


class Evaluated(Protocol):
    """What can be registered beside a checkpoint."""

    def findings(self) -> Findings:
        """What it has found."""


class Input(Noun):
    """What a model takes as one modality.

    Attributes:
        kind: of the modality.
        format: of the files in which it is sent, by the reader's name.
        suffix: of such a file.
        shape: of one encoded sample.
        names: what the positions of its last axis are called: encoded columns, leads, channels.
        columns: the fields of a record, with what each holds: number, text or time.
    """

    kind: str
    format: str
    suffix: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    columns: dict[str, str]


class Signature(Noun):
    """What a model takes, any part of which may be missing, and what it gives."""

    inputs: dict[str, Input]
    task: str
    target: str
    classes: tuple[str, ...]


class Card(Noun):
    """What a person should know before using a model (Mitchell et al., "Model cards for model reporting", 2019)."""

    what: str
    verdict: str = "Not evaluated yet."
    metrics: dict[str, Estimate] = {}
    baseline: dict[str, Estimate] = {}
    subjects: dict[str, int] = {}
    units: dict[str, int] = {}
    left_out: dict[str, int] = {}
    limits: tuple[str, ...] = ()


class Event(Noun):
    """What happened to a version: it reached a stage, or it was given a `report`."""

    what: Literal["candidate", "approved", "retired", "report"]
    time: AwareDatetime
    who: str
    note: str = ""


class ModelVersion(Noun):
    """One version of a model.

    Attributes:
        name: of the study.
        version: counted from 1.
        checkpoint: digest.
        weights: SHA-256 of the weights' file.
        report: digest; empty where it was not evaluated.
        created: when it was registered.
        lineage: digests of all that it was made from, by name.
        events: what happened to it, in order.
    """

    name: str
    version: int
    checkpoint: str
    weights: str
    report: str = ""
    created: AwareDatetime
    signature: Signature
    card: Card
    lineage: dict[str, str] = {}
    events: tuple[Event, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def stage(self) -> Stage:
        """Candidate, approved or retired."""
        return [event.what for event in self.events if event.what != "report"][-1]

    def __str__(self) -> str:
        """`mortality:3`."""
        return f"{self.name}:{self.version}"

    def markdown(self) -> str:
        """The card, for people."""
        return _markdown(self)


def signature(study: Study, checkpoint: Checkpoint) -> Signature:
    """What the model of a checkpoint takes and gives."""
    facts, never = checkpoint.facts, study.never_inputs()
    found = {}
    for name, modality in study.modalities.items():
        source = study.source_of(name)
        reader = study.sources[source]
        columns = {
            column: kind for column, kind in facts.columns.get(source, {}).items() if f"{source}.{column}" not in never
        }
        found[name] = Input(
            kind=modality.kind,
            format=reader.kind,
            suffix=PurePosixPath(reader.path).suffix,
            shape=tuple(facts.shapes[name]),
            names=tuple(facts.names[name]),
            columns=columns,
        )
    target = study.cohort.target.column
    return Signature(inputs=found, task=facts.task, target=target, classes=tuple(facts.classes))


def what(study: Study) -> str:
    """What a model is for, in one sentence."""
    inputs = ", ".join(f"{name} ({modality.kind})" for name, modality in study.modalities.items())
    target = study.cohort.target
    return f"Predicts {target.column} ({target.task}) for each {study.cohort.unit} from {inputs}; a {study.model.kind}."


def _markdown(version: ModelVersion) -> str:
    card, signature = version.card, version.signature
    lines = [f"# {version}", "", card.what, "", card.verdict, "", f"Stage: {version.stage}.", ""]
    if card.metrics:
        main = main_metric(signature.task)
        ordered = sorted(card.metrics, key=lambda metric: metric != main)
        lines += ["## Metrics", "", "| metric | model | baseline | n |", "|---|---|---|---|"]
        lines += [
            f"| {metric} | {_figure(card.metrics[metric])} | {_figure(card.baseline.get(metric))} "
            f"| {card.metrics[metric].n:,} |"
            for metric in ordered
        ]
        lines.append("")
    if card.subjects:
        lines += ["## Data", "", "| split | subjects | units |", "|---|---|---|"]
        lines += [f"| {split} | {n:,} | {card.units.get(split, 0):,} |" for split, n in card.subjects.items()]
        lines += ["", *(f"- left out: {n:,} ({reason})" for reason, n in card.left_out.items()), ""]
    lines += [
        "## Inputs",
        "",
        "Any of them may be missing.",
        "",
        "| input | kind | sent as | fields |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {each.kind} | {each.format} {each.suffix} | {_fields(each.columns)} |"
        for name, each in signature.inputs.items()
    ]
    lines += [
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in card.limits or ("Not evaluated: nothing is known.",)),
        "",
    ]
    lines += ["## Made from", "", *(f"- {name} `{digest}`" for name, digest in version.lineage.items()), ""]
    lines += ["## History", "", *_history(version.events)]
    return "\n".join(lines) + "\n"


def _figure(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "—"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def _fields(columns: dict[str, str]) -> str:
    return ", ".join(f"{column} ({kind})" for column, kind in columns.items()).replace("|", "\\|")


def _history(events: Iterable[Event]) -> list[str]:
    return [
        f"- {event.time:%Y-%m-%d %H:%M %Z}: {event.what} by {event.who}{': ' + event.note if event.note else ''}"
        for event in events
    ]
