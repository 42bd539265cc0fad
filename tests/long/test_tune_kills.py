"""Searches are killed with SIGKILL at seeded points; the same command goes on to the trials of an undisturbed one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from medray.runtime import Cluster
from medray.study import written
from medray.tune import Trial, Tuning, tune
from tests.tables import ingested_labs

pytestmark = pytest.mark.long

TRIALS, EPOCHS = 5, 4
ROOT = Path(__file__).resolve().parent.parent.parent


def killed_at(folder: Path, said: str) -> int:
    """Run the search until it says something, and kill it; how many trials it had finished by then."""
    command = [sys.executable, str(Path(__file__).with_name("tune_killed.py")), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if said in line:
                process.kill()
                return int(line.split("/")[0])
    raise AssertionError(f"it never said '{said}'")


def told(tuning: Tuning) -> list[Trial]:
    return [replace(trial, seconds=0.0) for trial in tuning.trials]


@pytest.mark.timeout(400)
def test_a_killed_search_loses_no_trial_and_counts_none_twice(ray_cluster: Cluster, tmp_path: Path) -> None:
    seed = int(os.environ.get("MEDRAY_SEED", random.SystemRandom().randrange(10_000)))
    print(f"MEDRAY_SEED={seed}")  # noqa: T201 - so that a failure can be repeated
    draw = random.Random(seed)
    space = {"train.learning_rate": {"log": [1e-4, 1e-1]}, "model.dropout": {"range": [0.0, 0.5]}}
    study, workspace = ingested_labs(
        tmp_path,
        model={"kind": "tabular", "hidden": [8]},
        train={"epochs": EPOCHS, "batch_size": 16},
        compute={"threads": 1},
        tune={"space": space, "trials": TRIALS},
    )
    (tmp_path / "study.yaml").write_text(written.write(study.written))
    undisturbed = tune(study, workspace)
    undisturbed.folder.rename(undisturbed.folder.with_name("undisturbed"))

    for trial in sorted(draw.sample(range(2, TRIALS + 1), 2)):
        epoch = draw.randrange(1, EPOCHS + 1)
        finished = killed_at(tmp_path, f"trial {trial} of {TRIALS}: epoch {epoch},")
        print(f"killed in trial {trial} after epoch {epoch}")  # noqa: T201
        assert finished == trial - 1
    goes_on: list[str] = []
    ended = tune(study, workspace, progress=lambda what, done, total: goes_on.append(f"{done}/{total} {what}"))
    assert goes_on[0] == f"{trial - 1}/{TRIALS} searching", "finished trials are not run again"
    assert not any("epoch 1," in line for line in goes_on if f"trial {trial} " in line), "nor the epochs there are"
    assert told(ended) == told(undisturbed)
    assert (ended.value, ended.best_values) == (undisturbed.value, undisturbed.best_values)
