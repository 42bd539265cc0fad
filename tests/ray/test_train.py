"""From a table to a checkpoint by one worker, on a cluster. Several workers and killed ones: tests/long."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medray.artifacts.checkpoint import Checkpoint
from medray.artifacts.workspace import Workspace
from medray.batches import locate
from medray.errors import ArtifactError, TrainingError
from medray.inputs import num_outputs, to_tensors
from medray.loop import Setup, fit
from medray.loop.baseline import baseline_scores
from medray.loop.objective import Objective
from medray.metrics import main_value
from medray.runtime import Cluster
from medray.study import Study
from medray.train import train
from tests.tables import ingested_labs, study_of


def small(folder: Path, **train: Any) -> tuple[Study, Workspace]:
    return ingested_labs(folder, train={"epochs": 6, "batch_size": 16, "learning_rate": 0.01, **train})


@pytest.fixture(scope="module")
def trained(ray_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Workspace, Checkpoint]:
    study, workspace = small(tmp_path_factory.mktemp("small"))
    return study, workspace, train(study, workspace)


def held_out(study: Study, workspace: Workspace) -> dict[str, np.ndarray[Any, Any]]:
    shards = locate(study, workspace)
    parts = [shards.read(entry.name) for entry in shards.entries("held_out")]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def test_a_checkpoint_has_all_that_serving_needs(trained: tuple[Study, Workspace, Checkpoint]) -> None:
    study, workspace, checkpoint = trained
    checkpoint.verify()
    facts, shards = checkpoint.facts, locate(study, workspace)
    assert checkpoint.manifest.parents == {"shards": shards.digest}
    assert (facts.task, facts.classes, facts.names) == ("binary", ["died"], {"labs": ["crp", "sex=F", "sex=M"]})
    assert facts.states == shards.facts.states
    again = Study.parse(facts.study, Path("/elsewhere"))
    assert again.digest("model", "modalities", "cohort") == study.digest("model", "modalities", "cohort")
    network = again.model.build({"labs": (3,)}, num_outputs(facts.task, facts.classes))
    network.load_state_dict(checkpoint.weights())
    samples = held_out(study, workspace)
    arrays, present = {"labs": samples["x.labs"]}, {"labs": samples["present.labs"]}
    with torch.inference_mode():
        logits = network.eval()(*to_tensors(again.modalities, arrays, present))
    value = main_value("binary", samples["y"], Objective(facts, balance=False).scores(logits).numpy())
    assert value is not None
    assert value > 0.85
    compared = main_value(
        "binary", samples["y"], baseline_scores(checkpoint.baseline(), facts.task, again.modalities, arrays, present)
    )
    assert compared is not None
    assert compared > 0.85


def test_nothing_is_left_but_the_checkpoint(trained: tuple[Study, Workspace, Checkpoint]) -> None:
    checkpoint = trained[2]
    assert {path.name for path in checkpoint.folder.iterdir()} == {*checkpoint.manifest.files, "manifest.json"}
    assert {path.stat().st_mode & 0o777 for path in checkpoint.folder.iterdir()} == {0o600}


def test_the_weights_are_those_of_the_loop_alone(trained: tuple[Study, Workspace, Checkpoint], tmp_path: Path) -> None:
    study, workspace, checkpoint = trained
    setup = Setup(study.model, dict(study.modalities), study.train, study.seed)
    alone = fit(setup, locate(study, workspace), tmp_path, threads=len(os.sched_getaffinity(0)))
    weights = checkpoint.weights()
    assert weights.keys() == alone.weights.keys()
    assert all(torch.equal(weights[name], alone.weights[name]) for name in weights)


def test_what_is_trained_is_not_trained_again_unless_forced(trained: tuple[Study, Workspace, Checkpoint]) -> None:
    study, workspace, checkpoint = trained
    told: list[str] = []
    again = train(study, workspace, progress=lambda what, done, total: told.append(what))
    assert (again.folder, told) == (checkpoint.folder, [])
    before = checkpoint.manifest
    forced = train(study, workspace, force=True, progress=lambda what, done, total: told.append(what))
    assert "starting" in told
    assert forced.manifest.created > before.created
    assert forced.manifest.files["weights.safetensors"] == before.files["weights.safetensors"]


def test_another_model_is_another_checkpoint_on_the_same_samples(
    trained: tuple[Study, Workspace, Checkpoint],
) -> None:
    study, workspace, checkpoint = trained
    other = study.override({"model.hidden": [4], "train.epochs": 1})
    made = train(other, workspace)
    assert made.folder != checkpoint.folder
    assert made.manifest.parents == checkpoint.manifest.parents


def test_progress_tells_steps_and_each_epochs_losses(ray_cluster: Cluster, tmp_path: Path) -> None:
    study, workspace = small(tmp_path, epochs=3)
    told: list[tuple[str, int, int]] = []
    checkpoint = train(study, workspace, progress=lambda *line: told.append(line))
    whats = [what for what, _, _ in told]
    assert {"counting and fitting", "encoding", "starting"} <= set(whats)
    assert [what.split(":")[0] for what in whats if what.startswith("epoch")] == [f"epoch {n} of 3" for n in (1, 2, 3)]
    last = checkpoint.facts.history[-1]
    assert whats[-1] == (
        f"epoch 3 of 3: loss {last['loss']:.3f}, tuning loss {last['tuning_loss']:.3f}, "
        f"tuning auroc {last['tuning_auroc']:.3f}"
    )


def test_a_run_that_cannot_go_on_says_where_in_one_line(ray_cluster: Cluster, tmp_path: Path) -> None:
    study, workspace = small(tmp_path, learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"^epoch \d+, step \d+: the (loss is|weights are) not finite") as caught:
        train(study, workspace)
    assert "\n" not in str(caught.value)


def test_a_run_that_was_cut_off_goes_on(trained: tuple[Study, Workspace, Checkpoint], tmp_path: Path) -> None:
    study, workspace, _ = trained
    other = study.override({"seed": 1, "train.epochs": 4})
    shards = locate(other, workspace)
    folder = workspace.checkpoint(other, shards).folder

    class Cut(Exception):  # noqa: N818 - it stands for the death of driver and worker
        pass

    def cut(epoch: dict[str, float]) -> None:
        if epoch["epoch"] == 2:
            raise Cut

    setup = Setup(other.model, dict(other.modalities), other.train, other.seed)
    threads = len(os.sched_getaffinity(0))
    with pytest.raises(Cut):
        fit(setup, shards, folder, threads=threads, report=cut)
    told: list[str] = []
    made = train(other, workspace, progress=lambda what, done, total: told.append(what))
    assert [what.split(":")[0] for what in told if what.startswith("epoch")] == ["epoch 3 of 4", "epoch 4 of 4"]
    undisturbed = fit(setup, shards, tmp_path / "undisturbed", threads=threads)
    weights = made.weights()
    assert all(torch.equal(weights[name], undisturbed.weights[name]) for name in weights)


def test_more_gpus_than_there_are_is_refused(ray_cluster: Cluster, tmp_path: Path) -> None:
    if ray_cluster.num_gpus:
        pytest.skip("no privilege: this machine has GPUs")
    study, workspace = small(tmp_path)
    with pytest.raises(TrainingError, match="1 workers need a GPU each, the cluster has 0"):
        train(study.override({"compute.device": "cuda"}), workspace)


def test_a_study_that_was_not_ingested_says_what_to_do(tmp_path: Path) -> None:
    study = study_of(
        tmp_path,
        sources={"labs": {"kind": "csv", "path": "labs.csv", "subject": "who"}},
        cohort={"target": {"column": "labs.died", "positive": "1"}},
    )
    with pytest.raises(ArtifactError, match=r"Ingest first: `medray ingest study.yaml`"):
        train(study, Workspace.of(study, tmp_path / "workspace"))


def test_the_manifest_holds_no_subject(trained: tuple[Study, Workspace, Checkpoint]) -> None:
    study, workspace, checkpoint = trained
    text = json.dumps(json.loads((checkpoint.folder / "manifest.json").read_text(encoding="utf-8")))
    subjects = {row.tobytes().hex() for row in held_out(study, workspace)["subject"]}
    assert not any(subject in text for subject in subjects)
