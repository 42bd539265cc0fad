"""Train: encoded samples -> a checkpoint.

One worker is the training loop inside one Ray task, which Ray starts again where its process dies; several are a
`TorchTrainer`, by gloo on CPUs and nccl on GPUs. Either way the loop writes its own checkpoints and goes on from the
newest, and this process only waits, and passes on the progress that rank 0 writes down.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib.metadata
import json
import math
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from medray.artifacts.checkpoint import BASELINE, STUDY, WEIGHTS, Checkpoint, CheckpointFacts
from medray.artifacts.durable import make_folder, sha256_of, write_bytes
from medray.artifacts.manifest import Manifest, read_manifest, write_manifest
from medray.artifacts.shards import ServingFacts, Shards
from medray.artifacts.workspace import Workspace
from medray.batches import encode, locate
from medray.batches.work import MARK, opened
from medray.errors import MedrayError, TrainingError
from medray.runtime import Cluster, Progress, cluster, quiet
from medray.study import Study

if TYPE_CHECKING:
    from medray.loop import Epoch, Trained
    from medray.modalities import Modality
    from medray.models import Model
    from medray.study import Train

RETRIES = 5  # times that processes may die in one run; running the same command again goes on too
PROGRESS = "progress.jsonl"
POLL_S = 0.3
SAID = ("loss", "tuning_loss", "tuning_auroc", "tuning_rmse")
VERSIONS = ("medray", "numpy", "ray", "torch")


@dataclass(frozen=True)
class Job:
    """What every training process is sent."""

    model: Model
    modalities: Mapping[str, Modality]
    train: Train
    seed: int
    shards: Shards
    folder: Path
    device: str
    threads: int


def train(
    study: Study, workspace: Workspace | None = None, *, force: bool = False, progress: Progress = quiet
) -> Checkpoint:
    """Train the study's model, or go on where a run was cut off; what is complete is not trained again.

    Args:
        study: its seed, model, train, compute and explain decide, beside the samples.
        workspace: `Workspace.of(study)` unless given.
        force: train again, from the start.
        progress: is told steps done and steps at most, each epoch's losses, and the main metric on the tuning split.

    Raises:
        ArtifactError: the study was not ingested.
        DataError: what `medray.batches.encode` finds wrong.
        TrainingError: the loss is not finite, the workers do not fit cluster or shards, or processes keep dying.
        IntegrityError: a shard or a step was changed.
    """
    workspace = workspace or Workspace.of(study)
    checkpoint = workspace.checkpoint(study, locate(study, workspace))
    with workspace.lock(f"checkpoint-{checkpoint.folder.name}"):
        if force:
            shutil.rmtree(checkpoint.folder, ignore_errors=True)
        if read_manifest(checkpoint.folder) is None:
            with cluster(study.compute) as machine:
                shards = encode(study, workspace, progress=progress)
                _train(study, shards, checkpoint.folder, machine, progress)
    return Checkpoint(checkpoint.folder)


def _train(study: Study, shards: Shards, folder: Path, machine: Cluster, progress: Progress) -> None:
    began = time.monotonic()
    make_folder(folder)
    write_bytes(folder / STUDY, study.to_yaml().encode())
    workers, compute = study.compute.workers, study.compute
    device = _device(study, machine)
    job = Job(
        model=study.model,
        modalities=dict(study.modalities),
        train=study.train,
        seed=study.seed,
        shards=shards,
        folder=folder,
        device=device,
        threads=compute.threads,
    )
    progress("starting", 0, 0)
    with _passed_on(folder, study.train.epochs, progress):
        result = _alone(job) if workers == 1 else _together(job, workers, machine)
    facts = CheckpointFacts(
        **{name: getattr(shards.facts, name) for name in ServingFacts.model_fields},
        history=result["history"],
        study=json.loads(json.dumps(study.written)),
    )
    told = {name: result[name] for name in ("best_epoch", "steps", "resumed_at", "warnings")}
    write_manifest(
        folder,
        Manifest(
            sort="checkpoints",
            digest=folder.name,
            parents={"shards": shards.digest},
            facts={**facts.model_dump(), **told},
            files={name: sha256_of(folder / name) for name in (WEIGHTS, BASELINE, STUDY)},
            seconds=round(time.monotonic() - began, 3),
            created=datetime.datetime.now(datetime.UTC),
            versions={name: importlib.metadata.version(name) for name in VERSIONS},
        ),
    )
    for left in folder.iterdir():  # what only a run that is cut off needs
        if left.name not in {WEIGHTS, BASELINE, STUDY, "manifest.json"}:
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def _device(study: Study, machine: Cluster) -> str:
    """`cuda` or `cpu`.

    Raises:
        TrainingError: a GPU is asked for where there is none, or there are too few for the workers.
    """
    workers, wanted = study.compute.workers, study.compute.device
    device = "cuda" if wanted == "cuda" or (wanted == "auto" and machine.num_gpus >= 1) else "cpu"
    if device == "cuda" and machine.num_gpus < workers:
        raise TrainingError(
            f"compute.workers: {workers} workers need a GPU each, the cluster has {machine.num_gpus:g}. "
            "Set fewer workers, or compute.device: cpu."
        )
    return device


# ---- in the training processes


def _alone(job: Job) -> dict[str, Any]:
    """The loop inside one task, started again on the death of its process: 9 CPU s to the first step, not 26."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    task = ray.remote(_train_alone).options(num_cpus=1, num_gpus=int(job.device == "cuda"), max_retries=RETRIES)
    try:
        return opened(ray.get(task.remote(job)))
    except RayTaskError:
        raise  # an error of the program itself
    except RayError as error:
        raise _died(error) from error


def _together(job: Job, workers: int, machine: Cluster) -> dict[str, Any]:
    """The loop in several processes."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    v2: Any = ray.train  # its types are those of V1
    on_gpu = job.device == "cuda"
    # on a small machine the workers share the CPUs that there are; threads are set by the loop
    cpus = min(1.0, math.floor(1000 * machine.num_cpus / workers) / 1000)
    trainer = cast(Any, TorchTrainer)(
        functools.partial(_train_together, job),
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=v2.ScalingConfig(num_workers=workers, use_gpu=on_gpu, resources_per_worker={"CPU": cpus}),
        run_config=v2.RunConfig(
            name=f"run-{secrets.token_hex(4)}",  # a fresh one: Ray would go on from a snapshot of its own
            storage_path=str(job.folder / "ray"),
            failure_config=v2.FailureConfig(max_failures=RETRIES, controller_failure_limit=RETRIES),
            logging_config=v2.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        return opened(trainer.fit().return_value)
    except v2.TrainingFailedError as error:
        raise _died(error) from error


def _died(error: Exception) -> TrainingError:
    return TrainingError(
        f"training processes died {RETRIES + 1} times ({type(error).__name__}); is memory short? The same command goes "
        "on from the last checkpoint."
    )


def _train_alone(job: Job) -> str:
    return _work(job, 0, 1, 1, lambda _: None)


def _train_together(job: Job) -> str:
    import ray.train

    context = ray.train.get_context()
    ranks = context.get_world_rank(), context.get_world_size(), context.get_local_world_size()
    return _work(job, *ranks, lambda epoch: ray.train.report(dict(epoch)))


def _work(job: Job, rank: int, world: int, local_world: int, report: Callable[[Epoch], None]) -> str:
    """The loop in one process; rank 0 leaves weights and baseline. JSON, of an error too: Ray would try it again."""
    # for a cluster that others have started; read when torch is loaded. Threads that spin cost four times the CPU
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from medray.loop import Setup, fit

    note = _notes(job.folder / PROGRESS) if rank == 0 else lambda _: None

    def told(epoch: Epoch) -> None:
        note(dict(epoch))
        report(epoch)

    try:
        trained = fit(
            Setup(job.model, job.modalities, job.train, job.seed),
            job.shards,
            job.folder,
            rank=rank,
            world=world,
            device=job.device,
            threads=job.threads or max(1, len(os.sched_getaffinity(0)) // local_world),
            report=told,
            tick=lambda done, total: note({"done": done, "total": total}),
        )
        if rank == 0:
            _leave(job, trained)
    except MedrayError as error:
        return json.dumps({"error": f"{type(error).__name__}{MARK}{error}"})
    names = ("history", "best_epoch", "steps", "resumed_at", "warnings")
    return json.dumps({name: getattr(trained, name) for name in names})


def _leave(job: Job, trained: Trained) -> None:
    """Weights, and the baseline that they are compared with."""
    import safetensors.numpy
    import safetensors.torch

    from medray.loop.baseline import fit_baseline

    weights = {name: tensor.contiguous() for name, tensor in trained.weights.items()}  # a CNN keeps channels last
    write_bytes(job.folder / WEIGHTS, safetensors.torch.save(weights))
    baseline = fit_baseline(job.shards, job.modalities, job.seed)
    write_bytes(job.folder / BASELINE, safetensors.numpy.save(baseline))


# ---- progress: lines of a file, from rank 0 to the process that waits


def _notes(path: Path) -> Callable[[Mapping[str, float]], None]:
    def note(line: Mapping[str, float]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(line)) + "\n")

    return note


@contextlib.contextmanager
def _passed_on(folder: Path, epochs: int, progress: Progress) -> Iterator[None]:
    """Pass on what rank 0 writes, until the block ends."""
    path, ended = folder / PROGRESS, threading.Event()
    path.unlink(missing_ok=True)  # of a run that was cut off
    reader = threading.Thread(target=_pass_on, args=(path, epochs, progress, ended), name="progress", daemon=True)
    reader.start()
    try:
        yield
    finally:
        ended.set()
        reader.join()


def _pass_on(path: Path, epochs: int, progress: Progress, ended: threading.Event) -> None:
    what, done, total, place = "training", 0, 0, 0
    while True:
        last = ended.wait(POLL_S)
        text = ""
        if path.exists():
            with path.open("rb") as file:
                file.seek(place)
                text = file.read().decode()
        lines = text[: text.rfind("\n") + 1]  # a line may be half written
        place += len(lines.encode())
        for line in map(json.loads, lines.splitlines()):
            if "done" in line:
                done, total = int(line["done"]), int(line["total"])
            else:
                figures = ", ".join(f"{name.replace('_', ' ')} {line[name]:.3f}" for name in SAID if name in line)
                what = f"epoch {line['epoch']:.0f} of {epochs}: {figures}"
            progress(what, done, total)
        if last:
            return
