"""A cut-off run goes on from its newest complete step; a finished one gives the weights it kept, or refuses."""

from __future__ import annotations

import datetime
import math
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medray.artifacts.checkpoint import BASELINE, WEIGHTS, Checkpoint, CheckpointFacts, newest_step, save_step
from medray.artifacts.durable import sha256_of
from medray.artifacts.manifest import Manifest, write_manifest
from medray.errors import ArtifactError, IntegrityError

STATE = {"epoch": 2, "best": math.inf, "history": [{"loss": 0.1 + 0.2}], "rest": [1, None, True, "text"]}


def tensors(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "layer.weight": torch.randn(4, 3, generator=draw),
        "layer.bias": torch.randn(4, generator=draw).to(torch.bfloat16),
        "norm.batches": torch.tensor(seed),
        "turned": torch.randn(2, 5, generator=draw).T,  # not contiguous
    }


def same(found: dict[str, torch.Tensor], seed: int) -> bool:
    expected = tensors(seed)
    return set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_run_goes_on_from_its_newest_step_bit_for_bit(tmp_path: Path) -> None:
    assert newest_step(tmp_path / "run") is None
    for step in (10, 20, 30):
        save_step(tmp_path / "run", step, tensors(step), tensors(step + 1), {**STATE, "step": step})
    found = newest_step(tmp_path / "run")
    assert found is not None
    step, weights, optimizer, state = found
    assert step == 30
    assert same(weights, 30)
    assert same(optimizer, 31)
    assert state == {**STATE, "step": 30}


def test_the_newest_two_steps_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_step(tmp_path, step, tensors(step), {}, STATE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def test_a_step_that_was_not_finished_is_passed_over(tmp_path: Path) -> None:
    save_step(tmp_path, 1, tensors(1), {}, STATE)
    save_step(tmp_path, 2, tensors(2), {}, STATE)
    (tmp_path / "step-00000002" / "state.json").unlink()
    found = newest_step(tmp_path)
    assert found is not None
    assert found[0] == 1


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    save_step(tmp_path, 1, tensors(1), {}, STATE)
    save_step(tmp_path, 1, tensors(7), {}, STATE)
    found = newest_step(tmp_path)
    assert found is not None
    assert same(found[1], 7)


def test_a_changed_step_is_named_and_not_trained_on(tmp_path: Path) -> None:
    draw = random.Random(3)
    save_step(tmp_path, 1, tensors(1), tensors(2), STATE)
    for path in sorted((tmp_path / "step-00000001").iterdir()):
        whole = path.read_bytes()
        for _ in range(12):
            index = draw.randrange(len(whole))
            flipped = whole[:index] + bytes([whole[index] ^ 1 << draw.randrange(8)]) + whole[index + 1 :]
            for changed in (flipped, whole[: draw.randrange(1, len(whole))]):
                path.write_bytes(changed)
                with pytest.raises(IntegrityError, match=path.name):
                    newest_step(tmp_path)
        path.write_bytes(whole)
    assert newest_step(tmp_path) is not None


def test_a_run_killed_at_any_moment_has_a_whole_newest_step(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, torch\nfrom medray.artifacts.checkpoint import newest_step, save_step\n"
        "folder = pathlib.Path(sys.argv[1])\nfound = newest_step(folder)\nstep = found[0] if found else 0\n"
        "print('ready', flush=True)\n"
        "while True:\n    step += 1\n    tensor = torch.full((20000,), float(step))\n"
        "    save_step(folder, step, {'w': tensor}, {'m': -tensor}, {'step': step})\n    print(step, flush=True)\n"
    )
    draw = random.Random(5)
    acknowledged = 0
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1 + 0.2 * draw.random())
        process.send_signal(signal.SIGKILL)
        said = process.communicate(timeout=60)[0].split()
        acknowledged = int(said[-1]) if said else acknowledged
        found = newest_step(tmp_path)
        if found is not None:
            step, weights, optimizer, state = found
            assert step == state["step"] >= acknowledged
            assert torch.equal(weights["w"], torch.full((20000,), float(step)))
            assert torch.equal(optimizer["m"], -weights["w"])
    assert acknowledged > 0
    assert len(list(tmp_path.glob("step-*"))) <= 3


@pytest.fixture
def finished(tmp_path: Path) -> Checkpoint:
    folder = tmp_path / "checkpoints" / "abc"
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors(1).items()}, folder / WEIGHTS)
    save_file({"coef": torch.ones(3)}, folder / BASELINE)
    facts = CheckpointFacts(task="binary", classes=["yes"], history=[{"loss": 0.5}], study={"name": "x"})
    files = {name: sha256_of(folder / name) for name in (WEIGHTS, BASELINE)}
    now = datetime.datetime.now(datetime.UTC)
    write_manifest(
        folder, Manifest(sort="checkpoints", digest="abc", facts=facts.model_dump(), files=files, created=now)
    )
    return Checkpoint(folder)


def test_a_finished_run_gives_its_weights_and_facts(finished: Checkpoint) -> None:
    opened = pickle.loads(pickle.dumps(finished))  # noqa: S301
    assert same(opened.weights(), 1)
    assert opened.baseline()["coef"].tolist() == [1, 1, 1]
    assert opened.digest == "abc"
    assert opened.facts.history == [{"loss": 0.5}]
    opened.verify()


def test_weights_that_changed_are_refused(finished: Checkpoint) -> None:
    path = finished.folder / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for read in (finished.weights, finished.verify):
        with pytest.raises(IntegrityError, match=WEIGHTS):
            read()


def test_a_run_that_has_not_ended_is_no_checkpoint(finished: Checkpoint) -> None:
    (finished.folder / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="medray train"):
        Checkpoint(finished.folder).weights()
