"""Tune: study -> its best study. Optuna's TPE chooses (Bergstra et al., NeurIPS 2011), Ray Tune runs the trials.

All trials learn from the same shards. A trial is as good as the tuning loss of its best epoch: what training itself
stops by. Held-out samples are never opened. Optuna's journal in the tuning's folder is what is known of the trials, so
a search that was cut off goes on: finished trials stay, those under way go on from their last epoch.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medray.artifacts.durable import make_folder, sha256_of, write_bytes
from medray.artifacts.manifest import Manifest, read_manifest, verify_files, write_manifest
from medray.artifacts.shards import Shards
from medray.artifacts.workspace import Workspace, digest_of
from medray.batches import encode, locate
from medray.errors import DataError, StudyError, TrainingError
from medray.metrics import main_metric
from medray.runtime import Cluster, Progress, cluster, quiet
from medray.schema import TUNING
from medray.study import Study, written

# what decides the trials, beside the shards; not how many there are: a search for more goes on from those there are
SECTIONS = ("seed", "model", "train", "compute.threads", "compute.device", "tune.space")
SEARCHED = ("model", "train")
TUNING_FILE, STUDY_FILE, JOURNAL = "tuning.json", "study.yaml", "journal.jsonl"
COMPLETE, FAILED = "complete", "failed"
VERSIONS = ("medray", "numpy", "optuna", "ray", "torch")


@dataclass(frozen=True)
class Trial:
    """One trial of a search.

    Attributes:
        values: by dotted path of the study.
        state: `complete` or `failed`.
        value: tuning loss of the best epoch; None where it failed.
        metric: AUROC or RMSE of the tuning split in that epoch; None where undefined.
        epochs: trained.
        best_epoch: counted from 1.
        seconds: of the process that finished it.
        reason: why it failed.
    """

    values: dict[str, Any]
    state: str
    value: float | None = None
    metric: float | None = None
    epochs: int = 0
    best_epoch: int = 0
    seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Tuning:
    """A search that has ended.

    Attributes:
        best: the study with the best trial's values, and no `tune` section left.
        best_values: by dotted path.
        value: the best trial's objective: tuning loss of its best epoch, lower is better.
        metric: AUROC or RMSE of the tuning split in that epoch; None where undefined. Chosen as the best of many, it
            flatters: the held-out split is what judges.
        metric_name: which.
        trials: in the order in which they began.
        folder: of the artifact.
        path: of the best study as a file, which every command takes from anywhere.
    """

    best: Study
    best_values: dict[str, Any]
    value: float
    metric: float | None
    metric_name: str
    trials: list[Trial] = field(repr=False)
    folder: Path
    path: Path

    @property
    def digest(self) -> str:
        """The artifact's name."""
        return self.folder.name

    def write(self, path: Path) -> None:
        """Write the best study to a file; beside the study it was found for, it has the same table and workspace."""
        write_bytes(path, _written(self, path.resolve().parent).encode())


def tune(
    study: Study, workspace: Workspace | None = None, *, force: bool = False, progress: Progress = quiet
) -> Tuning:
    """Search what the study's `tune` section names, or go on searching; what is complete is not searched again.

    Args:
        study: its seed, model, train, tune and compute decide, beside the samples.
        workspace: `Workspace.of(study)` unless given.
        force: begin again.
        progress: is told trials finished and trials in all, and each epoch's tuning loss.

    Raises:
        StudyError: there is no `tune` section, or it searches what is neither model nor training.
        ArtifactError: the study was not ingested.
        DataError: there is no tuning split, or what `medray.batches.encode` finds wrong.
        TrainingError: every trial failed, or a GPU is asked for where there is none.
        IntegrityError: a shard was changed.
    """
    workspace = workspace or Workspace.of(study)
    trials = _searchable(study)
    digest = digest_of(study, SECTIONS, {"shards": locate(study, workspace).folder.name})
    folder = workspace.folder("tunings", digest)
    with workspace.lock(f"tuning-{digest}"):
        if force:
            shutil.rmtree(folder, ignore_errors=True)
        if _finished(folder) < trials:
            with cluster(study.compute) as machine:
                shards = encode(study, workspace, progress=progress)
                _search(study, shards, folder, machine, progress)
        return _tuning(study, folder)


def _searchable(study: Study) -> int:
    """How many trials are wanted.

    Raises:
        StudyError: there is nothing to search, or what is searched is not the same for all trials.
    """
    if study.tune is None or not study.tune.space:
        raise StudyError(
            f"{study.file}: tune: there is nothing to search. Write, say, "
            "`tune: {space: {train.learning_rate: {log: [0.0001, 0.01]}}}`."
        )
    for path, dimension in study.tune.space.items():
        where = f"{study.file}: tune.space.{path}"
        if path.split(".")[0] not in SEARCHED:
            raise StudyError(
                f"{where}: a search is for values of {' and '.join(SEARCHED)}; all its trials share the samples, the "
                "seed and the machine. Compare such studies one by one."
            )
        ((_, values),) = dimension.items()
        if any(study.override({path: value, "tune": None}).train.balance != study.train.balance for value in values):
            raise StudyError(
                f"{where}: with and without train.balance the tuning loss means something else; decide it before."
            )
    return study.tune.trials


def _finished(folder: Path) -> int:
    manifest = read_manifest(folder)
    return 0 if manifest is None else int(manifest.facts["trials"])


def _search(study: Study, shards: Shards, folder: Path, machine: Cluster, progress: Progress) -> None:
    from medray.tune.search import Job, search

    began = time.monotonic()
    if not shards.entries(TUNING):
        raise DataError(
            f"{study.file}: cohort.split: no unit is in the tuning split, by which trials are compared. Name one."
        )
    make_folder(folder)
    wanted = study.compute.device
    device = "cuda" if wanted == "cuda" or (wanted == "auto" and machine.num_gpus > 0) else "cpu"
    if device == "cuda" and not machine.num_gpus:
        raise TrainingError("compute.device: cuda is asked for, the cluster has no GPU. Set compute.device: cpu.")
    trials = search(Job(study, shards, folder / "trials", device), folder / JOURNAL, machine, progress)
    best = _best(trials)
    if best is None:
        raise TrainingError(
            f"{study.name}: all {len(trials)} trials failed, the first: {trials[0].reason}. Narrow tune.space, or "
            "begin again with --force."
        )
    told = {
        "objective": "tuning loss of the best epoch, lower is better",
        "metric": main_metric(shards.facts.task),
        "best": asdict(best),
        "trials": [asdict(trial) for trial in trials],
    }
    write_bytes(folder / TUNING_FILE, json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False).encode())
    write_manifest(
        folder,
        Manifest(
            sort="tunings",
            digest=folder.name,
            parents={"shards": shards.digest},
            facts={"trials": len(trials), "values": best.values, "value": best.value},
            files={TUNING_FILE: sha256_of(folder / TUNING_FILE)},
            seconds=round(time.monotonic() - began, 3),
            created=datetime.datetime.now(datetime.UTC),
            versions={name: importlib.metadata.version(name) for name in VERSIONS},
        ),
    )


def _best(trials: Sequence[Trial]) -> Trial | None:
    """The trial of the lowest tuning loss; of equals the first."""
    complete = [(trial.value, number) for number, trial in enumerate(trials) if trial.value is not None]
    return trials[min(complete)[1]] if complete else None


def _tuning(study: Study, folder: Path) -> Tuning:
    """The artifact, and the best study as what the person wrote now makes it."""
    manifest = read_manifest(folder)
    assert manifest is not None  # noqa: S101 - written above, under the lock
    verify_files(folder, manifest)
    told = json.loads((folder / TUNING_FILE).read_bytes())
    best = Trial(**told["best"])
    assert best.value is not None  # noqa: S101 - a failed trial is never the best
    tuning = Tuning(
        best=study.override({**best.values, "tune": None}),
        best_values=best.values,
        value=best.value,
        metric=best.metric,
        metric_name=told["metric"],
        trials=[Trial(**trial) for trial in told["trials"]],
        folder=folder,
        path=folder / STUDY_FILE,
    )
    tuning.write(tuning.path)  # no part of what the manifest covers: other sections may have changed since
    return tuning


def _written(tuning: Tuning, folder: Path) -> str:
    """The best study as a file in `folder`."""
    study = tuning.best
    if folder != study.folder.resolve():
        study = study.override(_absolute(study))
    beside = "" if tuning.metric is None else f", {tuning.metric_name} {tuning.metric:.4g}"
    lines = [
        f"The best of {len(tuning.trials)} trials of `medray tune {study.file}`: "
        f"tuning loss {tuning.value:.4g}{beside}.",
        "It is what was written there with what the search found, and without its comments. Found:",
        *(f"  {path}: {json.dumps(value, ensure_ascii=False)}" for path, value in tuning.best_values.items()),
    ]
    return "".join(f"# {line}\n" for line in lines) + written.write(study.written)


def _absolute(study: Study) -> Mapping[str, str]:
    """Changes after which the study means the same files wherever its own file lies."""
    paths = {f"sources.{name}.root": source.root for name, source in study.sources.items()}
    if study.cohort.target.map is not None:
        paths["cohort.target.map.file"] = study.cohort.target.map.file
    return {
        where: str(study.folder.resolve() / path)
        for where, path in paths.items()
        if not path.startswith(("/", "~", "$"))
    }
