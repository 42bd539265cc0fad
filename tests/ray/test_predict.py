"""Scores of a split, on a cluster: every unit once, as one process would score it, and on from where it was cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from medray.artifacts import Checkpoint, Shards, Workspace
from medray.batches import locate
from medray.errors import ArtifactError, DataError, IntegrityError
from medray.evaluate import evaluate
from medray.loop.baseline import baseline_scores
from medray.predict import Scores, predict
from medray.predictor import Predictor
from medray.runtime import Cluster
from medray.study import Study
from medray.train import train
from tests.tables import study_of, write_table


class Trained(NamedTuple):
    study: Study
    workspace: Workspace
    shards: Shards
    checkpoint: Checkpoint


def rows_of(count: int = 400) -> dict[str, list[dict[str, Any]]]:
    """Labs whose `crp` is the cause; a third of the subjects is held out."""
    draw = np.random.default_rng(0)
    labs = []
    for number in range(count):
        died = int(draw.random() < 0.5)
        split = ("train", "tuning", "held_out")[number % 3]
        crp = float(draw.normal(20 + 20 * died, 8))
        labs.append({"subject": number, "split": split, "died": died, "crp": crp, "sex": "FM"[number % 2]})
    return {"labs": labs}


@pytest.fixture(scope="module")
def trained(ray_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("predict")
    study = study_of(
        folder,
        sources={"labs": {"kind": "csv", "path": "labs.csv", "subject": "who"}},
        cohort={"target": {"column": "labs.died", "positive": "1"}},
        train={"epochs": 6, "learning_rate": 0.01},
    )
    workspace = Workspace.of(study, folder / "workspace")
    write_table(study, workspace, rows_of())
    checkpoint = train(study, workspace)
    return Trained(study, workspace, locate(study, workspace), checkpoint)


def times(scores: Scores) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in scores.folder.glob("*.parquet")}


def test_every_unit_of_the_split_is_scored_as_one_process_would(trained: Trained) -> None:
    told: list[tuple[str, int, int]] = []
    scores = predict(trained.study, trained.workspace, progress=lambda *each: told.append(each))
    rows = scores.read().to_pylist()
    predictor = Predictor.load(trained.checkpoint.folder)
    expected = {}
    for entry in trained.shards.entries("held_out"):
        shard = trained.shards.read(entry.name)
        arrays, present = {"labs": shard["x.labs"]}, {"labs": shard["present.labs"]}
        own = predictor.predict(arrays, present)
        beside = baseline_scores(trained.checkpoint.baseline(), "binary", predictor.modalities, arrays, present)
        for unit, subject, y, p, q in zip(shard["unit"], shard["subject"], shard["y"], own, beside, strict=True):
            expected[unit.tobytes().hex()] = (subject.tobytes().hex(), y[0], p[0], q[0])
    assert len(rows) == len(expected) == 133
    assert [row["unit"] for row in rows] == sorted(expected)
    for row in rows:
        subject, y, p, q = expected[row["unit"]]
        assert (row["subject_id"], row["split"], row["label.died"]) == (subject, "held_out", y)
        assert row["score.died"] == pytest.approx(p, abs=1e-5)
        assert row["baseline.died"] == pytest.approx(q, abs=1e-5)
    assert told[-1] == ("scoring", 133, 133)
    assert scores.manifest.parents == {"checkpoint": trained.checkpoint.digest, "shards": trained.shards.digest}


def test_scores_are_not_made_twice_and_not_readable_on_disk(trained: Trained) -> None:
    scores = predict(trained.study, trained.workspace)
    before = times(scores)
    assert predict(trained.study, trained.workspace).digest == scores.digest
    assert times(scores) == before
    for path in scores.folder.glob("*.parquet"):
        assert b"PAR1" not in path.read_bytes()
    predict(trained.study, trained.workspace, force=True)
    assert set(times(scores)) == set(before)
    assert all(after > before[name] for name, after in times(scores).items())


def test_a_run_that_was_cut_off_goes_on_with_what_is_missing(trained: Trained) -> None:
    scores = predict(trained.study, trained.workspace)
    whole, before = scores.read(), times(scores)
    (scores.folder / "manifest.json").unlink()
    lost = sorted(before)[0]
    (scores.folder / lost).unlink()
    assert predict(trained.study, trained.workspace).read().equals(whole)
    assert {name for name, time in times(scores).items() if time != before[name]} == {lost}


def test_other_splits_and_other_studies(trained: Trained) -> None:
    train_scores = predict(trained.study, trained.workspace, split="train")
    assert set(train_scores.read().column("split").to_pylist()) == {"train"}
    assert train_scores.digest != predict(trained.study, trained.workspace).digest
    with pytest.raises(DataError, match="no split 'test'"):
        predict(trained.study, trained.workspace, split="test")
    with pytest.raises(ArtifactError, match="Train first"):
        predict(trained.study.override({"seed": 7}), trained.workspace)


def test_a_changed_shard_is_an_error_and_no_score(trained: Trained) -> None:
    path = trained.shards.folder / trained.shards.entries("tuning")[0].name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(IntegrityError):
            predict(trained.study, trained.workspace, split="tuning")
    finally:
        path.write_bytes(whole)
    assert predict(trained.study, trained.workspace, split="tuning").facts.rows == 133


def test_the_report_finds_what_was_planted_and_names_nobody(trained: Trained) -> None:
    found = evaluate(trained.study, trained.workspace)
    assert found.report.main.low is not None
    assert found.report.main.low > 0.85
    assert found.report.certificate.disjoint
    assert found.report.certificate.earlier_looks == 0
    first = found.report.explanations[0]
    assert first.rows[0][0] == "crp"
    assert float(first.rows[0][2]) > 0
    named = predict(trained.study, trained.workspace).read().column("subject_id").to_pylist()
    written = found.paths.json.read_text(encoding="utf-8")
    assert not [name for name in named if name in written]
    assert evaluate(trained.study, trained.workspace).report == found.report


def test_scores_travel_by_reference(trained: Trained, tmp_path: Path) -> None:
    from ray import cloudpickle

    scores = predict(trained.study, trained.workspace)
    sent = cloudpickle.dumps(scores)
    assert trained.workspace.keyring.derive("x") not in sent
    assert len(sent) < 1000
    assert cloudpickle.loads(sent).read().equals(scores.read())
