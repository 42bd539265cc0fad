"""Evaluation: a report from sealed scores or from anybody's table, with examples, and every look counted."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medray import metrics, registry
from medray.artifacts import Checkpoint, Workspace, read_manifest
from medray.errors import EvaluationError, IntegrityError, ReadError
from medray.evaluate import Evaluation, evaluate_scores, evaluate_table
from medray.evaluate.looks import earlier_looks
from medray.governance.crypto import Keyring
from tests import checkpoints

ALL = ("labs", "films", "ecg")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "medray", Keyring(tmp_path / "medray" / "keyring"))


def evaluated(
    workspace: Workspace, task: str = "binary", names: Any = ALL, seed: int = 0, **sections: Any
) -> Evaluation:
    study = checkpoints.study(ALL, workspace.root, task, evaluate={"resamples": 100, **sections})
    return evaluate_scores(study, workspace, checkpoints.write_scores(workspace, study, task, seed))


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression"])
def test_a_report_is_made_of_sealed_scores(workspace: Workspace, task: str) -> None:
    found = evaluated(workspace, task)
    scores = checkpoints.Scores(workspace.folder("scores", "5c00"), workspace.keyring)
    rows = scores.read()
    assert rows.column("unit").to_pylist() == sorted(rows.column("unit").to_pylist())
    labels, answers = (
        np.stack([rows.column(name).to_numpy() for name in scores.columns(prefix)], axis=1)
        for prefix in ("label.", "score.")
    )
    main = found.report.main
    assert main.value == pytest.approx(metrics.main_value(task, labels, answers))
    assert (main.n, main.num_subjects) == (48, 24)
    assert set(found.report.measures.units.baseline) == set(found.report.measures.units.model)
    assert found.report.certificate.left_out == {"no label": 3}
    assert found.report.seconds.keys() == {"encode", "train", "predict", "evaluate"}
    assert found.report.parents == {
        "table": "7ab1e",
        "table version": "0",
        "shards": "5a4d",
        "checkpoint": "c0",
        "scores": "5c00",
    }
    assert found.paths.html.is_file()


def test_nobody_is_named_in_a_report(workspace: Workspace) -> None:
    found = evaluated(workspace)
    scores = checkpoints.Scores(workspace.folder("scores", "5c00"), workspace.keyring).read()
    named = {*scores.column("unit").to_pylist(), *scores.column("subject_id").to_pylist()}
    for path in found.paths:
        assert not named & set(re.findall(r"[0-9a-f]{32}", path.read_text(encoding="utf-8")))


def test_examples_show_every_modality_that_the_unit_has(workspace: Workspace) -> None:
    found = evaluated(workspace, seed=3, threshold=0.2)
    titles = [example.title for example in found.report.explanations]
    assert titles[0].startswith("Example 1: score 0.")
    assert titles[0].endswith("for died, rightly")
    assert any(title.endswith("a false alarm") for title in titles)
    first = [example for example in found.report.explanations if example.title == titles[0]]
    assert [example.caption.split(".")[0] for example in first] == list(ALL)  # the fullest of the best is shown
    listed, film, ecg = first
    assert {row[0] for row in listed.rows} <= {"crp", "sex=F", "sex=M", "sodium", "sodium (missing)"}
    assert "Score without it: 0." in film.caption
    for picture in (film, ecg):
        assert base64.b64decode(picture.image).startswith(b"\x89PNG")
    page = found.paths.html.read_text(encoding="utf-8")
    assert page.count(film.image) == 1
    assert f"<h3>{titles[0]}</h3>" in page


def test_a_complete_report_is_returned_and_is_no_new_look(workspace: Workspace) -> None:
    first = evaluated(workspace)
    again = evaluated(workspace)
    assert again.report == first.report  # with the same time of making
    other = evaluated(workspace, seed=1)
    assert (first.report.certificate.earlier_looks, other.report.certificate.earlier_looks) == (0, 1)
    (first.folder / "manifest.json").unlink()  # cut off before it was complete
    redone = evaluated(workspace)
    assert redone.report.created > first.report.created
    assert redone.report.certificate.earlier_looks == 0
    assert evaluated(workspace, threshold=0.4).report.certificate.earlier_looks == 2  # another threshold is a look
    assert "2 times before" in evaluated(workspace, threshold=0.4).paths.html.read_text(encoding="utf-8")


def test_looks_are_counted_by_table_and_split(workspace: Workspace) -> None:
    assert [earlier_looks(workspace, "t", "held_out", report) for report in "abcab"] == [0, 1, 2, 0, 1]
    assert earlier_looks(workspace, "t", "tuning", "z") == 0
    assert earlier_looks(workspace, "u", "held_out", "z") == 0
    (workspace.root / "looks" / "t-held_out.json").write_text("[{", encoding="utf-8")
    with pytest.raises(IntegrityError, match="damaged"):
        earlier_looks(workspace, "t", "held_out", "d")


def test_changed_scores_are_not_judged(workspace: Workspace) -> None:
    study = checkpoints.study(ALL, workspace.root)
    scores = checkpoints.write_scores(workspace, study)
    part = next(scores.folder.glob("*.parquet"))
    sealed = bytearray(part.read_bytes())
    assert b"PAR1" not in sealed
    sealed[len(sealed) // 2] ^= 1
    part.write_bytes(sealed)
    with pytest.raises(IntegrityError):
        evaluate_scores(study, workspace, scores)
    assert read_manifest(workspace.root / "reports") is None


def test_what_was_found_goes_onto_the_card_of_the_model(workspace: Workspace) -> None:
    found = evaluated(workspace)
    checkpoint = Checkpoint(workspace.folder("checkpoints", "c0"))
    version = registry.register(workspace, checkpoint, found)
    assert version.report == found.digest
    assert version.card.verdict == found.report.verdict
    assert version.card.metrics["auroc"] == found.report.main
    assert version.card.limits[-1].startswith("Evaluated on subjects from the places and years of the training data")
    assert version.lineage == {
        "table": "7ab1e",
        "table version": "0",
        "shards": "5a4d",
        "checkpoint": "c0",
        "scores": "5c00",
        "report": found.digest,
    }
    assert registry.approve(workspace, "small").stage == "approved"


# ---- anybody's table


def table(path: Path, **columns: Any) -> Path:
    rows = [",".join(columns), *(",".join(map(str, cells)) for cells in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def answers(n: int = 60) -> tuple[Any, Any, Any]:
    draw = np.random.default_rng(0)
    died = (draw.random(n) < 0.5).astype(int)
    p = 1 / (1 + np.exp(-draw.normal(2 * died - 1)))
    return died, p, [f"s{row // 2}" for row in range(n)]


def test_any_table_of_labels_and_scores_can_be_judged(tmp_path: Path) -> None:
    died, p, subject = answers()
    path = table(tmp_path / "scores.csv", id=subject, died=died, p=p, q=p[::-1])
    found = evaluate_table(path, label="died", score="p", subject="id", baseline="q", folder=tmp_path / "out")
    assert found.report.main.value == pytest.approx(metrics.main_value("binary", died[:, None], p[:, None]))
    assert (found.report.main.n, found.report.main.num_subjects) == (60, 30)
    assert found.report.measures.units.difference is not None
    page = found.paths.html.read_text(encoding="utf-8")
    assert "never seen" not in page  # it cannot know
    assert "do not tell whether the model had seen these subjects" in page
    assert "Not known: this report was made from scores alone." in page
    pq.write_table(pa.table({"id": subject, "died": died, "p": p}), tmp_path / "scores.parquet")
    same = evaluate_table(
        tmp_path / "scores.parquet", label="died", score="p", subject="id", folder=tmp_path / "parquet"
    )
    assert same.report.main == found.report.main


def test_rows_that_lack_something_are_left_out_and_counted(tmp_path: Path) -> None:
    died, p, subject = (list(values) for values in answers())
    died[0], p[1], subject[2] = "", "NA", ""
    path = table(tmp_path / "scores.csv", id=subject, died=died, p=p)
    found = evaluate_table(path, label="died", score="p", subject="id", folder=tmp_path / "out").report
    assert found.certificate.left_out == {"no label": 1, "no score": 1, "no subject": 1}
    assert found.main.n == 57


def test_the_positive_labels_can_be_named(tmp_path: Path) -> None:
    died, p, _ = answers()
    path = table(tmp_path / "scores.csv", outcome=np.where(died, "dead", "alive"), p=p)
    with pytest.raises(EvaluationError, match="column 'outcome' holds other labels than 0 and 1"):
        evaluate_table(path, label="outcome", score="p", folder=tmp_path / "out")
    found = evaluate_table(path, label="outcome", score="p", positive="dead", folder=tmp_path / "out").report
    assert found.measures.num_positive == {"outcome": int(died.sum())}
    assert "No column names the subject" in found.certificate.warnings[0]


def test_other_tasks_are_told_by_their_columns(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    shares = draw.dirichlet([1, 1, 1], 60)
    columns = {f"score.{name}": shares[:, index] for index, name in enumerate("ABC")}
    path = table(tmp_path / "classes.csv", kind=draw.choice(list("ABC"), 60), **columns)
    several = evaluate_table(path, label="kind", score=list(columns), folder=tmp_path / "a").report.measures
    assert (several.task, several.classes) == ("multiclass", ("A", "B", "C"))
    both = {"a": draw.integers(0, 2, 60), "b": draw.integers(0, 2, 60), "pa": draw.random(60), "pb": draw.random(60)}
    path = table(tmp_path / "labels.csv", **both)
    many = evaluate_table(path, label=["a", "b"], score=["pa", "pb"], folder=tmp_path / "b").report.measures
    assert (many.task, many.classes) == ("multilabel", ("a", "b"))
    age = draw.normal(60, 10, 60)
    path = table(tmp_path / "ages.csv", age=age, said=age + draw.normal(size=60))
    value = evaluate_table(path, label="age", score="said", task="regression", folder=tmp_path / "c").report
    assert value.main.value == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"label": "dead", "score": "p"}, r"no column 'dead'.*Known: died, p, note\."),
        ({"label": "died", "score": "q"}, r"no column 'q'"),
        ({"label": "died", "score": "note"}, r"row 0: column 'note' holds something that is no number"),
        ({"label": ["died", "p"], "score": "p"}, r"2 label and 1 score columns do not fit"),
        ({"label": "note", "score": ["died", "p"]}, r"column 'note': 2 labels are none of the score columns' names"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_name(tmp_path: Path, given: Any, said: str) -> None:
    path = table(tmp_path / "scores.csv", died=[0, 1], p=[0.2, 0.7], note=["x", "y"])
    with pytest.raises(EvaluationError, match=said):
        evaluate_table(path, folder=tmp_path / "out", **given)


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scores.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ReadError, match="not readable as Parquet"):
        evaluate_table(tmp_path / "scores.parquet", label="a", score="b", folder=tmp_path / "out")
    (tmp_path / "scores.csv").write_text("a,b\n1,0.5\n0,0.2,9\n", encoding="utf-8")
    with pytest.raises(ReadError, match="row 1"):
        evaluate_table(tmp_path / "scores.csv", label="a", score="b", folder=tmp_path / "out")


def test_judging_needs_no_ray() -> None:
    code = "import sys, medray.evaluate; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_a_report_is_for_machines_too(workspace: Workspace) -> None:
    found = evaluated(workspace)
    said = json.loads(found.paths.json.read_text(encoding="utf-8"))
    assert said["measures"]["units"]["model"]["auroc"].keys() >= {"value", "low", "high", "n", "num_subjects"}
    assert said["certificate"]["disjoint"] is True
    assert {"medray", "torch", "python"} <= said["versions"].keys()
