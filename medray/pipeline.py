"""Run: ingest -> tune -> train -> predict -> evaluate -> register, from raw files to a model version with its report.

A study without a `tune` section is trained as it is written.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from medray.artifacts import Checkpoint, Workspace
from medray.check import check
from medray.evaluate import Evaluation, evaluate
from medray.ingest import Ingested, ingest
from medray.predict import Scores, predict
from medray.registry import ModelVersion, register
from medray.runtime import Progress, one_cluster, quiet
from medray.study import Study
from medray.train import train
from medray.tune import Tuning, tune


@dataclass(frozen=True)
class RunResult:
    """What a run leaves: one artifact a step.

    Attributes:
        tuning: None where the study has no `tune` section; else its best study is what the later steps are about.
        seconds: wall time of each step, by its name; near zero where the artifact was there.
    """

    ingested: Ingested
    tuning: Tuning | None
    checkpoint: Checkpoint
    scores: Scores
    evaluation: Evaluation
    version: ModelVersion
    seconds: dict[str, float]


def run(
    study: Study, workspace: Workspace | None = None, *, force: bool = False, progress: Progress = quiet
) -> RunResult:
    """Take a study from raw files to a registered model version; what is complete is not done again.

    Args:
        study: what to do.
        workspace: where artifacts are kept; `Workspace.of(study)` unless given.
        force: do every step again.
        progress: is told what is done, what is next, and how far it is.

    Raises:
        MedrayError: what `check` finds, before anything runs; else what the failing step says.
    """
    workspace = workspace or Workspace.of(study)
    searches = ["tune"] if study.tune else []
    steps = _Steps(progress, "check", "ingest", *searches, "train", "predict", "evaluate", "register")
    check(study, workspace.root, progress=steps.next()).raise_failures()
    with one_cluster():  # none is started where everything is complete
        ingested = ingest(study, workspace, force=force, progress=steps.next())
        tuning = tune(study, workspace, force=force, progress=steps.next()) if study.tune else None
        best = tuning.best if tuning else study
        checkpoint = train(best, workspace, force=force, progress=steps.next())
        scores = predict(best, workspace, force=force, progress=steps.next())
        evaluation = evaluate(best, workspace, force=force, progress=steps.next())
        steps.next()
        version = register(workspace, checkpoint, evaluation)
    return RunResult(ingested, tuning, checkpoint, scores, evaluation, version, steps.end())


class _Steps:
    """Says which step is under way and what is next, and takes its time."""

    def __init__(self, progress: Progress, *names: str) -> None:
        self.progress, self.names = progress, names
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()

    def next(self) -> Progress:
        """Begin the next step; gives its progress, which names it."""
        self._stop()
        number = len(self.seconds)
        name, rest = self.names[number], self.names[number + 1 :]
        self.seconds[name] = 0.0
        self._started = time.monotonic()
        label = f"{number + 1}/{len(self.names)} {name}"
        self.progress(f"{label}{', next ' + rest[0] if rest else ''}", 0, 0)
        return lambda what, done, total: self.progress(f"{label}: {what}", done, total)

    def end(self) -> dict[str, float]:
        """Seconds of each step."""
        self._stop()
        return self.seconds

    def _stop(self) -> None:
        if self.seconds:
            self.seconds[list(self.seconds)[-1]] = round(time.monotonic() - self._started, 3)
