"""The loop in three processes by gloo, without Ray: equal weights on every rank, exact resume, one error for all."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.samples import write_shards

pytestmark = pytest.mark.long

WORLD = 3
RANK = """
import hashlib, json, os, sys, warnings
from pathlib import Path

import torch.distributed as distributed

warnings.simplefilter("error")
sys.path.insert(0, sys.argv[1])
from medray import loop
from medray.artifacts.shards import Shards
from medray.errors import TrainingError
from medray.governance.crypto import Keyring
from tests.samples import setup

folder, name, rank, world, options = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6]
options = json.loads(options)
cut = options.pop("cut", None)
distributed.init_process_group("gloo", rank=rank, world_size=world)
take = loop._Loop._take
if cut:
    def cut_off(self, batch):
        if self.total == cut:
            os._exit(9)
        return take(self, batch)
    loop._Loop._take = cut_off
shards = Shards(folder / "shards", Keyring(folder / "keyring"))
try:
    trained = loop.fit(setup(films=True, **options), shards, folder / name, rank=rank, world=world)
except TrainingError as error:
    print(json.dumps({"error": str(error)}))
    sys.exit(0)
content = b"".join(tensor.numpy().tobytes() for _, tensor in sorted(trained.weights.items()))
print(json.dumps({
    "weights": hashlib.sha256(content).hexdigest(),
    "losses": [[epoch["loss"], epoch["tuning_loss"], epoch["tuning_auroc"]] for epoch in trained.history],
    "steps": trained.steps,
    "resumed_at": trained.resumed_at,
}))
distributed.destroy_process_group()
"""


def ranks(folder: Path, name: str, **options: Any) -> list[dict[str, Any]]:
    """What each rank says; nothing where it was cut off."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).resolve().parents[2]
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PATH": os.environ["PATH"],
    }
    told = json.dumps({"epochs": 3, "batch_size": 18, "checkpoint_steps": 3, **options})
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(root), str(folder), name, str(rank), str(WORLD), told],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(WORLD)
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in started]
    for process, (_, wrong) in zip(started, said, strict=True):
        assert process.returncode == 0 or "cut" in options, wrong[-2000:]
    return [json.loads(out) for out, _ in said if out]


def test_ranks_agree_and_a_run_cut_anywhere_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", splits=(("train", 220), ("tuning", 50)), films=True, absent=0.2)
    undisturbed = ranks(tmp_path, "undisturbed")
    assert len(undisturbed) == WORLD
    assert undisturbed[0] == undisturbed[1] == undisturbed[2]
    for cut in (8, undisturbed[0]["steps"] - 2):
        assert not ranks(tmp_path, f"cut-{cut}", cut=cut)
        resumed = ranks(tmp_path, f"cut-{cut}")
        assert cut - 3 <= resumed[0]["resumed_at"] <= cut
        for told in resumed:
            assert (told["weights"], told["losses"]) == (undisturbed[0]["weights"], undisturbed[0]["losses"])


def test_a_loss_that_is_not_finite_stops_every_rank_with_the_same_words(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", task="regression", splits=(("train", 220), ("tuning", 50)), films=True)
    told = ranks(tmp_path, "diverged", learning_rate=1e18)
    assert len({line["error"] for line in told}) == 1
    assert len(told) == WORLD
    assert "not finite" in told[0]["error"]
