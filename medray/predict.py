"""Predict: a checkpoint and a split's shards -> scores, and the baseline's beside them, one row a unit.

Each shard gives one sealed part, so a run that was cut off goes on with the parts that are missing.
"""

from __future__ import annotations

import datetime
import functools
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from medray.artifacts.checkpoint import WEIGHTS, Checkpoint
from medray.artifacts.durable import sha256_of
from medray.artifacts.manifest import Manifest, read_manifest, write_manifest
from medray.artifacts.shards import Entry, Shards
from medray.artifacts.vault import Vault
from medray.artifacts.workspace import Workspace, digest_of
from medray.batches import locate
from medray.batches.work import MARK, opened
from medray.errors import ArtifactError, DataError, MedrayError
from medray.governance.crypto import Keyring
from medray.loop.baseline import baseline_scores
from medray.metrics import Task
from medray.predictor import Predictor
from medray.runtime import Progress, cluster, quiet, settle, watchdog
from medray.schema import HELD_OUT, SPLIT, SPLITS, SUBJECT_ID
from medray.study import Study

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

UNIT = "unit"
LABEL, SCORE, BASELINE = "label.", "score.", "baseline."
VALUE = "value"  # stands for the class in regression
SUFFIX = ".parquet"
ONE_TASK_ROWS = 4096  # fewer are scored sooner than a second worker process has imported torch
TASKS_PER_CPU = 4  # so that a slow worker holds the others up by a quarter of its share at most


class ScoreFacts(BaseModel):
    """What is known of scores.

    Attributes:
        task: binary, multiclass, multilabel or regression.
        classes: as in the names of the columns.
        split: that was scored.
        rows: units.
    """

    model_config = ConfigDict(frozen=True)

    task: Task
    classes: tuple[str, ...]
    split: str
    rows: int


class Scores:
    """The scores of a split in `<workspace>/scores/<digest>`; picklable by reference."""

    def __init__(self, folder: Path, keyring: Keyring) -> None:
        self.folder = Path(folder)
        self.vault = Vault(folder, keyring)

    def __reduce__(self) -> tuple[type[Scores], tuple[Path, Keyring]]:
        return (Scores, (self.folder, self.vault.keyring))

    @functools.cached_property
    def manifest(self) -> Manifest:
        """What the artifact is.

        Raises:
            ArtifactError: the split was not scored to its end.
        """
        found = read_manifest(self.folder)
        if found is None:
            raise ArtifactError(f"{self.folder}: no complete scores. Score first: `medray predict STUDY`")
        return found

    @property
    def digest(self) -> str:
        """The artifact's name."""
        return self.manifest.digest

    @functools.cached_property
    def facts(self) -> ScoreFacts:
        """What is known of the scores."""
        return ScoreFacts.model_validate(self.manifest.facts)

    def parts(self) -> list[str]:
        """The shards that were scored, in order; each has a part of that name."""
        return sorted(name.removesuffix(SUFFIX) for name in self.manifest.files if name.endswith(SUFFIX))

    def part(self, shard: str) -> pa.Table:
        """The scores of one shard's units, in its order.

        Returns:
            `subject_id`, `unit` (hex), `split`, and float32 `label.<class>`, `score.<class>`, `baseline.<class>` of
            each class; of `value` in regression.

        Raises:
            IntegrityError: the file was changed.
        """
        return pq.read_table(pa.BufferReader(self.vault.read(shard + SUFFIX)))

    def read(self) -> pa.Table:
        """All scores, in the order of their units' names, which tells nothing about them."""
        return pa.concat_tables([self.part(shard) for shard in self.parts()]).sort_by(UNIT)

    def columns(self, prefix: str) -> list[str]:
        """The columns that begin with `label.`, `score.` or `baseline.`, in the order of the classes."""
        return [prefix + name for name in self.facts.classes or (VALUE,)]


def predict(
    study: Study,
    workspace: Workspace | None = None,
    *,
    split: str = HELD_OUT,
    force: bool = False,
    progress: Progress = quiet,
) -> Scores:
    """The scores of a split by the study's trained model; what is there already is not made again.

    Args:
        study: whose checkpoint scores.
        workspace: `Workspace.of(study)` unless given.
        split: train, tuning or held_out.
        force: score again.
        progress: is told units done and units in all.

    Raises:
        ArtifactError: the study was not trained.
        DataError: the split has no unit.
        IntegrityError: a shard or the checkpoint was changed.
    """
    workspace = workspace or Workspace.of(study)
    if split not in SPLITS:
        raise DataError(f"no split '{split}'. Known: {', '.join(SPLITS)}.")
    shards = locate(study, workspace)
    checkpoint = workspace.checkpoint(study, shards)
    parents = {"checkpoint": checkpoint.digest, "shards": shards.digest}
    named = {**parents, "weights": checkpoint.manifest.files[WEIGHTS], "split": split}
    scores = Scores(workspace.folder("scores", digest_of(study, ("cohort",), named)), workspace.keyring)
    with workspace.lock(f"scores-{scores.folder.name}"):
        if force:
            shutil.rmtree(scores.folder, ignore_errors=True)
        if read_manifest(scores.folder) is None:
            _score(study, checkpoint, shards, scores, split, parents, progress)
    return scores


def _score(
    study: Study,
    checkpoint: Checkpoint,
    shards: Shards,
    scores: Scores,
    split: str,
    parents: dict[str, str],
    progress: Progress,
) -> None:
    began = time.monotonic()
    entries = shards.entries(split)
    total = sum(entry.rows for entry in entries)
    if not total:
        raise DataError(f"{study.name}: no unit with a label is in {split}")
    scores.vault.key_for("")  # made before many tasks ask for it at once
    there = {path.name for path in scores.folder.iterdir()}
    left = [entry for entry in entries if entry.name + SUFFIX not in there]
    done = total - sum(entry.rows for entry in left)
    progress("scoring", done, total)
    if left:
        for rows in _scored(checkpoint, shards, scores, split, left, study):
            done += rows
            progress("scoring", done, total)
    complete(Work(checkpoint, shards, scores, split), parents, time.monotonic() - began)


def complete(work: Work, parents: dict[str, str], seconds: float) -> None:
    """Make scores of all whose parts are there complete."""
    entries, facts = work.shards.entries(work.split), work.checkpoint.facts
    rows = sum(entry.rows for entry in entries)
    told = {"task": facts.task, "classes": facts.classes, "split": work.split, "rows": rows}
    names = [entry.name + SUFFIX for entry in entries]
    write_manifest(
        work.scores.folder,
        Manifest(
            sort="scores",
            digest=work.scores.folder.name,
            parents=parents,
            facts=ScoreFacts.model_validate(told).model_dump(),
            files={name: sha256_of(work.scores.folder / name) for name in names},
            seconds=round(seconds, 3),
            created=datetime.datetime.now(datetime.UTC),
        ),
    )


@dataclass(frozen=True)
class Work:
    """What every task is sent; all of it by reference."""

    checkpoint: Checkpoint
    shards: Shards
    scores: Scores
    split: str
    device: str = "cpu"


def _scored(
    checkpoint: Checkpoint, shards: Shards, scores: Scores, split: str, left: Sequence[Entry], study: Study
) -> Iterator[int]:
    """The rows of each shard, as it is done."""
    import ray.data

    with cluster(study.compute) as machine:
        settle(ray.data.DataContext.get_current())
        on_gpu = machine.num_gpus >= 1 and study.compute.device != "cpu"
        work = Work(checkpoint, shards, scores, split, "cuda" if on_gpu else "cpu")
        rows = sum(entry.rows for entry in left)
        blocks = 1 if rows <= ONE_TASK_ROWS else min(len(left), int(TASKS_PER_CPU * machine.num_cpus))
        results = (
            ray.data.from_items([{"shard": entry.name} for entry in left], override_num_blocks=blocks)
            .map_batches(
                cast(Any, run),
                batch_size=1,
                batch_format="numpy",
                fn_kwargs={"work": work},
                num_gpus=1 if on_gpu else None,
            )
            .iter_rows()
        )
        for row in watchdog(results, "scoring"):
            yield int(opened(row["result"])["rows"])


def run(batch: dict[str, Array], work: Work) -> dict[str, Array]:
    """One call of Ray Data; errors of ours come back as text, Ray would wrap them."""
    results = []
    for shard in batch["shard"]:
        try:
            result: dict[str, object] = {"rows": score(str(shard), work)}
        except MedrayError as error:
            result = {"error": f"{type(error).__name__}{MARK}{error}"}
        results.append(json.dumps(result))
    return {"result": np.array(results, dtype=object)}


def score(shard: str, work: Work) -> int:
    """Seal one shard's scores; gives its rows.

    Raises:
        IntegrityError: the shard or the checkpoint was changed.
    """
    arrays = work.shards.read(shard)
    predictor, coefficients = _loaded(work.checkpoint.folder, work.checkpoint.manifest.files[WEIGHTS], work.device)
    samples, present = ({name: arrays[f"{key}.{name}"] for name in predictor.modalities} for key in ("x", "present"))
    scores = predictor.predict(samples, present)
    baseline = baseline_scores(coefficients, predictor.task, predictor.modalities, samples, present)
    columns: dict[str, Any] = {
        SUBJECT_ID: [name.tobytes().hex() for name in arrays["subject"]],
        UNIT: [name.tobytes().hex() for name in arrays["unit"]],
        SPLIT: [work.split] * len(scores),
    }
    for prefix, values in ((LABEL, arrays["y"]), (SCORE, scores), (BASELINE, baseline)):
        for name, column in zip(predictor.classes or (VALUE,), values.T, strict=True):
            columns[prefix + name] = np.ascontiguousarray(column, np.float32)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    work.scores.vault.write(shard + SUFFIX, sink.getvalue().to_pybytes())
    return len(scores)


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, weights: str, device: str) -> tuple[Predictor, dict[str, Array]]:
    """Once a process, as long as the weights stay the same."""
    del weights
    return Predictor.load(folder, device=device), Checkpoint(folder).baseline()
