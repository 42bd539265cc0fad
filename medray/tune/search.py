"""Search: trials that Optuna asks for and Ray Tune runs, each the training loop in one process.

Optuna stands behind Tune's own `Searcher`, not Ray's `OptunaSearch`: that one forgets, when it is started again, which
trials were under way, and rewinds the random state, so that what was tried is tried again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import optuna
import ray.tune
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher

from medray.artifacts.durable import make_folder, write_bytes
from medray.artifacts.shards import Shards
from medray.batches.work import MARK, opened
from medray.errors import MedrayError, StudyError, TrainingError
from medray.loop.feed import seed_of
from medray.metrics import main_metric
from medray.runtime import Cluster, Progress
from medray.study import Study
from medray.study.written import thaw
from medray.tune import COMPLETE, FAILED, Trial

FACTS = "facts"  # the attribute of an Optuna trial that has what `Trial` has
RESULT = "result.json"


@dataclass(frozen=True)
class Job:
    """What every trial is sent."""

    study: Study
    shards: Shards
    folder: Path
    device: str


def search(job: Job, journal: Path, machine: Cluster, progress: Progress) -> list[Trial]:
    """Run the trials that the journal lacks; all of them, in the order in which they began.

    Raises:
        MedrayError: what any trial would meet, such as a shard that was changed.
    """
    asking = Asking(job.study, trials_of(journal), progress)
    if asking.finished < asking.tuned.trials:
        _run(job, asking, machine)
    if asking.stopped:
        opened(asking.stopped)
    for name in (job.folder.name, "ray"):
        shutil.rmtree(journal.with_name(name), ignore_errors=True)
    return asking.trials()


def _run(job: Job, asking: Asking, machine: Cluster) -> None:
    concurrent = min(asking.tuned.concurrent, asking.tuned.trials)

    def share(there: float) -> float:
        return min(1.0, math.floor(1000 * there / concurrent) / 1000)

    resources = {"cpu": share(machine.num_cpus), "gpu": share(machine.num_gpus) if job.device == "cuda" else 0.0}
    ray.tune.Tuner(
        ray.tune.with_resources(functools.partial(_work, job, concurrent), resources),
        tune_config=ray.tune.TuneConfig(
            search_alg=asking,
            num_samples=asking.tuned.trials - asking.finished,
            max_concurrent_trials=concurrent,
            reuse_actors=True,  # a process that has imported torch takes the next trial
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray.tune.RunConfig(
            name=f"search-{time.time_ns()}",
            storage_path=str(job.folder.with_name("ray")),
            verbose=0,
        ),
    ).fit()


class Asking(Searcher):
    """Optuna, as Tune asks it for values and tells it what came of them.

    Args:
        searched: the study, with a `tune` section.
        study: Optuna's, with the trials there are.
        progress: is told about trials.
    """

    def __init__(self, searched: Study, study: optuna.Study, progress: Progress) -> None:
        super().__init__()
        assert searched.tune is not None  # noqa: S101 - the verb has looked
        self.seed, self.tuned, self.study, self.progress = searched.seed, searched.tune, study, progress
        self.space = {path: distribution(dimension) for path, dimension in self.tuned.space.items()}
        self.under_way: dict[str, optuna.Trial] = {}
        self.finished = len(self.trials())
        self.stopped = ""  # by what any trial would meet: the error as JSON
        progress("searching", self.finished, self.tuned.trials)

    def trials(self) -> list[Trial]:
        """Those that are over, in the order in which they began."""
        over = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
        return [Trial(**told.user_attrs[FACTS]) for told in over]

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's values."""
        if self.stopped:
            return cast(dict[str, Any], Searcher.FINISHED)
        # a sampler of its own for each trial: what is drawn depends on the trials before, not on when it was killed
        number = sum(each.state != TrialState.WAITING for each in self.study.get_trials(deepcopy=False))
        self.study.sampler = optuna.samplers.TPESampler(
            seed=seed_of("trial", self.seed, number) % 2**32, constant_liar=self.tuned.concurrent > 1
        )
        asked = self.study.ask(self.space)
        self.under_way[trial_id] = asked
        return {"values": decoded(asked.params, self.tuned.space)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An epoch of a trial has ended."""
        if "epoch" in result:
            number = self.under_way[trial_id].number + 1
            said = f"trial {number} of {self.tuned.trials}: epoch {result['epoch']}, tuning loss {result['loss']:.3f}"
            self.progress(said, self.finished, self.tuned.trials)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial is over; it is durably so once Optuna is told."""
        asked = self.under_way.pop(trial_id)
        facts = None if error or not result else json.loads(result.get(FACTS, "null"))
        if facts is None:
            facts = {"state": FAILED, "reason": "its process died, or the program failed in it; is memory short?"}
        if "error" in facts:
            self.stopped = json.dumps(facts)
            return
        values = decoded(asked.params, self.tuned.space)
        asked.set_user_attr(FACTS, {"values": values, **facts})
        if facts["state"] == COMPLETE:
            self.study.tell(asked, facts["value"])
        else:
            self.study.tell(asked, state=TrialState.FAIL)
        self.finished += 1
        self.progress("searching", self.finished, self.tuned.trials)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it all."""


# ---- values: what Optuna draws, and what a study takes


def distribution(dimension: Mapping[str, Any]) -> BaseDistribution:
    """Optuna's word for `{log: [low, high]}`, `{range: [low, high]}` or `{choice: [...]}`."""
    ((sort, values),) = dimension.items()
    if sort == "choice":  # as JSON: Optuna takes no lists or mappings
        return CategoricalDistribution([json.dumps(thaw(value)) for value in values])
    low, high = values
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=sort == "log")
    return FloatDistribution(low, high, log=sort == "log")


def decoded(params: Mapping[str, Any], space: Mapping[str, Any]) -> dict[str, Any]:
    """What Optuna drew, as `Study.override` takes it."""
    return {path: json.loads(value) if "choice" in space[path] else value for path, value in params.items()}


def trials_of(journal: Path) -> optuna.Study:
    """The trials in Optuna's journal; those under way when its process was killed will be asked for again, first.

    Args:
        journal: its file, made where there is none. The caller keeps others from it.
    """
    for left in journal.parent.glob(f"{journal.name}.lock*"):
        left.unlink()  # Optuna's own lock outlives a killed process
    data = journal.read_bytes() if journal.exists() else b""
    if not data or not data.endswith(b"\n"):  # killed in the middle of a line
        write_bytes(journal, data[: data.rfind(b"\n") + 1])
    storage = JournalStorage(JournalFileBackend(str(journal)))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(storage=storage, study_name="search", load_if_exists=True)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    return study


# ---- in the trial's process


def _work(job: Job, concurrent: int, config: dict[str, Any]) -> None:
    """One trial: the loop, an epoch's end a report, and in the end what came of it."""
    values = config["values"]
    folder = job.folder / hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
    make_folder(folder)
    with FileLock(folder / "lock", mode=0o600):  # of two that drew the same choices the second takes the result
        result = folder / RESULT
        if not result.exists():
            write_bytes(result, json.dumps(_facts(job, values, folder, concurrent)).encode())
            for step in folder.glob("step-*"):  # weights and optimizer: the winner is trained again, equally
                shutil.rmtree(step)
        ray.tune.report({FACTS: result.read_text(encoding="utf-8")})


def _facts(job: Job, values: Mapping[str, Any], folder: Path, concurrent: int) -> dict[str, Any]:
    """What came of a trial; `error` is what any other would meet too."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # see medray.train
    from medray.loop import Epoch, Setup, fit

    began = time.monotonic()

    def told(epoch: Epoch) -> None:
        ray.tune.report({"epoch": int(epoch["epoch"]), "loss": epoch["tuning_loss"]})

    try:
        study = job.study.override({**values, "tune": None})
        trained = fit(
            Setup(study.model, dict(study.modalities), study.train, study.seed),
            job.shards,
            folder,
            device=job.device,
            threads=study.compute.threads or max(1, len(os.sched_getaffinity(0)) // concurrent),
            report=told,
        )
    except (TrainingError, StudyError) as error:
        return {"state": FAILED, "reason": _first_sentence(error), "seconds": round(time.monotonic() - began, 3)}
    except MedrayError as error:
        return {"error": f"{type(error).__name__}{MARK}{error}"}
    best = trained.history[trained.best_epoch - 1]
    facts = {
        "epochs": len(trained.history),
        "best_epoch": trained.best_epoch,
        "seconds": round(time.monotonic() - began, 3),
    }
    if not math.isfinite(best["tuning_loss"]):
        return {**facts, "state": FAILED, "reason": "the tuning loss is not finite"}
    metric = best.get(f"tuning_{main_metric(job.shards.facts.task)}")
    return {**facts, "state": COMPLETE, "value": best["tuning_loss"], "metric": metric}


def _first_sentence(error: MedrayError) -> str:
    return str(error).splitlines()[0].split(". ")[0].rstrip(".")
