"""Evaluate: scores -> a report with intervals, a certificate of how its split was kept apart, and examples of why.

No Ray: scores lie in the workspace, or in any table of labels and scores (`evaluate_table`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from medray import report as reports
from medray.artifacts import Checkpoint, Manifest, Shards, Workspace, digest_of, read_manifest
from medray.evaluate.evaluation import Evaluation, versions, write
from medray.evaluate.examples import explanations
from medray.evaluate.looks import earlier_looks
from medray.evaluate.tables import evaluate_table
from medray.predict import BASELINE, LABEL, SCORE, Scores, predict
from medray.report import Certificate, Report
from medray.runtime import Progress, quiet
from medray.schema import HELD_OUT, SUBJECT_ID
from medray.study import Study

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["Evaluation", "evaluate", "evaluate_scores", "evaluate_table"]

SECTIONS = ("evaluate",)


def evaluate(
    study: Study, workspace: Workspace | None = None, *, force: bool = False, progress: Progress = quiet
) -> Evaluation:
    """The report of a study's model on the held-out split; what is there already is not made again.

    Args:
        study: whose scores are judged; scored first where they were not.
        workspace: `Workspace.of(study)` unless given.
        force: judge again.
        progress: is told what is being done.

    Raises:
        ArtifactError: the study was not trained.
        EvaluationError: the scores cannot be judged.
        IntegrityError: scores, a shard or the checkpoint was changed.
    """
    workspace = workspace or Workspace.of(study)
    scores = predict(study, workspace, split=HELD_OUT, progress=progress)
    return evaluate_scores(study, workspace, scores, force=force, progress=progress)


def evaluate_scores(
    study: Study, workspace: Workspace, scores: Scores, *, force: bool = False, progress: Progress = quiet
) -> Evaluation:
    """The report of scores that are there.

    Raises:
        EvaluationError: the scores cannot be judged.
        IntegrityError: scores, a shard or the checkpoint was changed.
    """
    folder = workspace.folder("reports", digest_of(study, SECTIONS, {"scores": scores.digest}))
    with workspace.lock(f"reports-{folder.name}"):
        if force or read_manifest(folder) is None:
            return write(_report(study, workspace, scores, folder.name, progress), folder)
    return Evaluation(reports.load(folder), folder)


def _report(study: Study, workspace: Workspace, scores: Scores, digest: str, progress: Progress) -> Report:
    began = time.monotonic()
    shards = Shards(workspace.folder("shards", scores.manifest.parents["shards"]), workspace.keyring)
    checkpoint = Checkpoint(workspace.folder("checkpoints", scores.manifest.parents["checkpoint"]))
    made = {"encode": shards.manifest, "train": checkpoint.manifest, "predict": scores.manifest}
    table = shards.manifest.parents
    looks = earlier_looks(workspace, table["table"], scores.facts.split, digest)
    progress("measuring", 0, 2)
    rows = scores.read()
    measures = reports.measure(
        scores.facts.task,
        _matrix(rows, scores.columns(LABEL)),
        _matrix(rows, scores.columns(SCORE)),
        rows.column(SUBJECT_ID).to_numpy(),
        scores.facts.classes,
        baseline_scores=_matrix(rows, scores.columns(BASELINE)),
        threshold=study.evaluate.threshold,
        num_resamples=study.evaluate.resamples,
        seed=study.evaluate.seed,
    )
    progress("explaining examples", 1, 2)
    shown = explanations(checkpoint, shards, scores, study.evaluate.threshold)
    progress("explaining examples", 2, 2)
    return Report(
        study=study.name,
        target=_target(study),
        unit=study.cohort.unit,
        measures=measures,
        certificate=_certificate(shards, looks),
        parents={
            "table": table["table"],
            "table version": table["version"],
            "shards": shards.digest,
            "checkpoint": checkpoint.digest,
            "scores": scores.digest,
        },
        seconds={**_seconds(made), "evaluate": round(time.monotonic() - began, 3)},
        versions=versions(),
        explanations=shown,
        created=datetime.now(UTC),
    )


def _certificate(shards: Shards, looks: int) -> Certificate:
    facts = shards.facts
    return Certificate(
        subjects=facts.subjects,
        units=facts.units,
        units_per_class=facts.units_per_class,
        disjoint=facts.disjoint,
        left_out=facts.left_out,
        earlier_looks=looks,
        subject_rule=facts.subject_rule,
        split_rule=facts.split_rule,
        warnings=tuple(facts.warnings),
    )


def _target(study: Study) -> str:
    target = study.cohort.target
    return f"whether {target.column} is {' or '.join(target.positive)}" if target.positive else target.column


def _seconds(made: Mapping[str, Manifest]) -> dict[str, float]:
    return {step: manifest.seconds for step, manifest in made.items()}


def _matrix(rows: pa.Table, names: list[str]) -> Array:
    return np.stack([rows.column(name).to_numpy() for name in names], axis=1).astype(np.float64)
