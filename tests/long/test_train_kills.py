"""Training processes are killed with SIGKILL at seeded points; the run ends by itself as if nothing had happened."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from medray.artifacts.checkpoint import Checkpoint
from medray.artifacts.workspace import Workspace
from medray.runtime import Cluster
from medray.study import Study
from medray.train import train
from tests.tables import ingested_labs

pytestmark = pytest.mark.long

FULL = bool(os.environ.get("MEDRAY_FULL"))
INTERVAL = 20  # steps between checkpoints
TITLES = {1: "ray::_train_alone", 2: "ray::RayTrainWorker"}  # how Ray calls a training process


def study_for(folder: Path, workers: int) -> tuple[Study, Workspace]:
    train = {"epochs": 8, "batch_size": 16, "patience": 99, "checkpoint_steps": INTERVAL}
    model = {"kind": "tabular", "hidden": [256, 256, 256], "dropout": 0.3}  # slow enough to be hit
    return ingested_labs(folder, 3000, model=model, train=train, compute={"workers": workers, "threads": 1})


def training_processes(workers: int) -> list[int]:
    """Those that this process has started; other people's clusters may run here too."""
    found, children = [], [os.getpid()]
    processes = {int(path.name): path for path in Path("/proc").iterdir() if path.name.isdigit()}
    parents: dict[int, list[int]] = {}
    for pid, path in processes.items():
        try:
            parents.setdefault(int((path / "stat").read_text().rsplit(")", 1)[1].split()[1]), []).append(pid)
        except (OSError, IndexError):
            continue
    while children:
        pid = children.pop()
        children += parents.get(pid, [])
        try:
            title = (processes[pid] / "cmdline").read_bytes().decode(errors="replace")
        except (OSError, KeyError):
            continue
        if title.startswith(TITLES[workers]):
            found.append(pid)
    return sorted(found)


def newest(folder: Path) -> int:
    steps = [int(path.name[5:]) for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return max(steps, default=0)


class Killer(threading.Thread):
    """Kills one training process once the steps on disk have passed each of the points."""

    def __init__(self, folder: Path, workers: int, points: list[int], draw: random.Random) -> None:
        super().__init__(daemon=True)
        self.folder, self.workers, self.points, self.draw = folder, workers, points, draw
        self.kills: list[int] = []
        self.ended = threading.Event()

    def run(self) -> None:
        for point in self.points:
            while newest(self.folder) < point and not self.ended.is_set():
                time.sleep(0.002)
            time.sleep(self.draw.random() * 0.1)  # anywhere between two checkpoints, or while one is written
            victims: list[int] = []
            while not victims and not self.ended.is_set():  # between a death and the next start there is none
                victims = training_processes(self.workers)
            if not victims:
                return
            self.kills.append(newest(self.folder))
            os.kill(self.draw.choice(victims), signal.SIGKILL)


def equal(one: Checkpoint, other: Checkpoint) -> bool:
    weights, others = one.weights(), other.weights()
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.timeout(1200 if FULL else 400)
def test_killed_training_ends_by_itself_with_the_weights_of_an_undisturbed_run(
    ray_cluster: Cluster, tmp_path: Path, workers: int
) -> None:
    seed = int(os.environ.get("MEDRAY_SEED", random.SystemRandom().randrange(10_000)))
    print(f"MEDRAY_SEED={seed}")  # noqa: T201 - so that a failure can be repeated
    draw = random.Random(f"{seed} {workers}")
    study, workspace = study_for(tmp_path, workers)
    undisturbed = train(study, workspace)
    steps = undisturbed.manifest.facts["steps"]
    assert steps > 10 * INTERVAL
    kept = tmp_path / "undisturbed" / undisturbed.folder.name
    shutil.copytree(undisturbed.folder, kept)

    runs = {1: 7, 2: 3}[workers] if FULL else {1: 2, 2: 1}[workers]
    kills: list[Any] = []
    for number in range(runs):
        points = sorted(draw.sample(range(INTERVAL, steps - 3 * INTERVAL), 3 if workers == 1 else 2))
        folder = undisturbed.folder
        killer = Killer(folder, workers, points, draw)
        killer.start()
        began = time.monotonic()
        killed = train(study, workspace, force=True)
        killer.ended.set()
        killer.join()
        kills += killer.kills
        seconds = time.monotonic() - began
        print(f"run {number}: killed at steps {killer.kills} of {steps}, {seconds:.0f} s")  # noqa: T201
        assert killer.kills
        # the last process to die had put `kills[-1]` on disk: no more than what came after it was done again
        assert killed.manifest.facts["resumed_at"] >= killer.kills[-1]
        assert equal(killed, Checkpoint(kept))
        losses = [[epoch["loss"] for epoch in one.facts.history] for one in (killed, Checkpoint(kept))]
        assert losses[0] == losses[1]
    assert len(kills) >= runs
