"""A search on a cluster: what it finds, leaves and never opens. One that is killed: tests/long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medray.artifacts.manifest import read_manifest
from medray.artifacts.workspace import Workspace
from medray.batches import encode
from medray.errors import DataError, IntegrityError, TrainingError
from medray.pipeline import run
from medray.runtime import Cluster
from medray.study import Study
from medray.train import train
from medray.tune import COMPLETE, FAILED, Tuning, tune
from tests.tables import ingested_labs, study_of, write_table

SPACE = {"train.learning_rate": {"log": [1e-4, 1e-1]}, "model.hidden": {"choice": [[4], [8, 8]]}}


def small(folder: Path, space: Any = SPACE, trials: int = 4, **sections: Any) -> tuple[Study, Workspace]:
    tuned = {"space": space, "trials": trials, "concurrent": 2}
    return ingested_labs(folder, train={"epochs": 3, "batch_size": 16}, tune=tuned, **sections)


@pytest.fixture(scope="module")
def tuned(ray_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Workspace, Tuning]:
    study, workspace = small(tmp_path_factory.mktemp("tuned"))
    return study, workspace, tune(study, workspace)


def test_the_best_is_the_trial_of_the_lowest_tuning_loss(tuned: tuple[Study, Workspace, Tuning]) -> None:
    _, _, found = tuned
    assert len(found.trials) == 4
    assert {trial.state for trial in found.trials} == {COMPLETE}
    best = min(found.trials, key=lambda trial: trial.value or 0)
    assert (found.value, found.best_values) == (best.value, best.values)
    assert found.metric_name == "auroc"
    assert found.metric is not None
    assert found.metric > 0.5
    assert all(trial.epochs == 3 and trial.seconds > 0 for trial in found.trials)
    assert len({trial.values["train.learning_rate"] for trial in found.trials}) == 4


def test_the_best_study_trains_to_what_its_trial_reached(tuned: tuple[Study, Workspace, Tuning]) -> None:
    study, workspace, found = tuned
    assert found.best.tune is None
    assert found.best.train.learning_rate == found.best_values["train.learning_rate"]
    assert list(found.best.model.hidden) == found.best_values["model.hidden"]
    one_thread = found.best.override({"compute.threads": 1})  # two trials at a time had one each
    history = train(one_thread, workspace).facts.history
    assert min(epoch["tuning_loss"] for epoch in history) == pytest.approx(found.value, rel=1e-6)
    assert study.tune is not None


def test_the_winner_is_a_study_file_that_says_what_it_is(tuned: tuple[Study, Workspace, Tuning]) -> None:
    study, _, found = tuned
    text = found.path.read_text(encoding="utf-8")
    assert text.startswith("# The best of 4 trials of `medray tune study.yaml`: tuning loss ")
    assert "without its comments" in text
    loaded = Study.load(found.path)
    assert loaded.digest("model", "train", "cohort") == found.best.digest("model", "train", "cohort")
    assert loaded.root("labs") == study.root("labs"), "the same files, from another folder"
    beside = study.folder / "best.yaml"
    found.write(beside)
    assert Study.load(beside).digest() == found.best.digest(), "and the same table, from the same folder"


def test_nothing_is_left_but_the_tuning(tuned: tuple[Study, Workspace, Tuning]) -> None:
    _, _, found = tuned
    names = {path.name for path in found.folder.iterdir()}
    assert names == {"tuning.json", "study.yaml", "journal.jsonl", "manifest.json"}
    assert {path.stat().st_mode & 0o777 for path in found.folder.iterdir()} == {0o600}
    told = json.loads((found.folder / "tuning.json").read_text(encoding="utf-8"))
    assert told["objective"] == "tuning loss of the best epoch, lower is better"
    manifest = read_manifest(found.folder)
    assert manifest is not None
    assert set(manifest.parents) == {"shards"}


def test_what_is_complete_is_not_searched_again_and_more_trials_go_on(
    tuned: tuple[Study, Workspace, Tuning], capfd: pytest.CaptureFixture[str]
) -> None:
    study, workspace, found = tuned
    told: list[tuple[str, int, int]] = []
    again = tune(study, workspace, progress=lambda *line: told.append(line))
    assert (again, told) == (found, [])
    more = tune(study.override({"tune.trials": 5}), workspace, progress=lambda *line: told.append(line))
    assert more.folder == found.folder
    assert more.trials[:4] == found.trials
    assert len(more.trials) == 5
    assert told[0] == ("searching", 4, 5)
    assert told[-1] == ("searching", 5, 5)
    assert capfd.readouterr() == ("", ""), "stdout belongs to the command's result"
    assert any(what.startswith("trial 5 of 5: epoch 3, tuning loss ") for what, _, _ in told)


def test_held_out_samples_are_never_opened(ray_cluster: Cluster, tmp_path: Path) -> None:
    study, workspace = small(tmp_path, trials=1)
    shards = encode(study, workspace)
    for entry in shards.entries("held_out"):
        (shards.folder / entry.name).write_bytes(b"nobody reads this")
    assert len(tune(study, workspace).trials) == 1
    for entry in shards.entries("tuning"):
        (shards.folder / entry.name).write_bytes(b"but this")
    with pytest.raises(IntegrityError):
        tune(study, workspace, force=True)


def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(ray_cluster: Cluster, tmp_path: Path) -> None:
    study, workspace = small(tmp_path, {"train.learning_rate": {"choice": [1e30, 0.01]}}, 5)
    found = tune(study, workspace)
    assert {trial.state for trial in found.trials} == {COMPLETE, FAILED}
    for trial in found.trials:
        failed = trial.values["train.learning_rate"] == 1e30
        assert (trial.state == FAILED, trial.value is None) == (failed, failed)
        assert ("not finite" in trial.reason) == failed
    assert found.best_values == {"train.learning_rate": 0.01}


def test_if_every_trial_fails_it_says_why(ray_cluster: Cluster, tmp_path: Path) -> None:
    study, workspace = small(tmp_path, {"train.learning_rate": {"log": [1e30, 1e31]}}, 2)
    with pytest.raises(TrainingError, match=r"all 2 trials failed, the first: epoch \d+, step \d+: the .* not finite"):
        tune(study, workspace)


def test_without_a_tuning_split_there_is_nothing_to_compare_by(ray_cluster: Cluster, tmp_path: Path) -> None:
    study = study_of(
        tmp_path,
        sources={"labs": {"kind": "csv", "path": "labs.csv", "subject": "who"}},
        cohort={"target": {"column": "labs.died", "positive": "1"}},
        tune={"space": SPACE},
    )
    workspace = Workspace.of(study, tmp_path / "workspace")
    split = ("train", "train", "held_out")
    rows = [{"subject": n, "died": n % 2, "split": split[n % 3], "crp": float(n)} for n in range(60)]
    write_table(study, workspace, {"labs": rows})
    with pytest.raises(DataError, match="no unit is in the tuning split"):
        tune(study, workspace)


def test_a_run_tunes_first_and_trains_the_winner(ray_cluster: Cluster, tmp_path: Path) -> None:
    rows = "".join(f"{index},{index * 7 % 13},{int(index % 3 == 0)}\n" for index in range(120))
    (tmp_path / "labs.csv").write_text("crp,age,died\n" + rows)
    study = Study.parse(
        {
            "name": "tuned",
            "sources": {"labs": {"kind": "csv", "path": "labs.csv"}},
            "cohort": {"target": {"column": "labs.died", "positive": "1"}},
            "train": {"epochs": 2},
            "evaluate": {"resamples": 100},
            "tune": {"space": SPACE, "trials": 2},
        },
        tmp_path,
    )
    done = run(study, Workspace.of(study, tmp_path / "workspace"))
    assert done.tuning is not None
    assert list(done.seconds)[:4] == ["check", "ingest", "tune", "train"]
    assert done.checkpoint.facts.study["train"]["learning_rate"] == done.tuning.best_values["train.learning_rate"]
