"""Check finds, before anything runs, what would fail an hour later."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from medray.check import Checked, check
from medray.errors import DataError
from medray.study import Study

STUDY: dict[str, Any] = {
    "name": "small",
    "sources": {"labs": {"kind": "csv", "path": "labs*.csv", "subject": "mrn"}},
    "cohort": {"target": {"column": "labs.died", "positive": "1"}},
}
NAME = "Fontaine"  # stands in a cell; nothing may quote it


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = random.Random(1)
    rows = [f"M{index},{NAME},{draw.random():.3f},{index % 2},{'abc'[index % 3]}" for index in range(60)]
    (tmp_path / "labs.csv").write_text("\n".join(["mrn,name,crp,died,part", *rows]) + "\n")
    return tmp_path


def checked(folder: Path, **changes: Any) -> Checked:
    study = Study.parse(STUDY, folder)
    return check(study.override({path.replace("__", "."): value for path, value in changes.items()}))


def failing(found: Checked) -> list[str]:
    return [str(finding) for finding in found.findings if finding.fails]


def test_nothing_is_found_where_nothing_is_wrong(folder: Path) -> None:
    found = checked(folder)
    assert not list(found.findings)
    assert (found.seen["labs"].files, found.seen["labs"].rows, found.seen["labs"].all) == (1, 60, True)
    found.raise_failures()


@pytest.mark.parametrize(
    ("changes", "where", "what"),
    [
        ({"sources__labs__path": "lab.csv"}, "sources.labs.path", "no file below"),
        ({"sources__labs__path": "/labs.csv"}, "sources.labs.path", "not relative"),
        ({"sources__labs__root": "nowhere"}, "sources.labs.root", "is no folder"),
        ({"sources__labs__root": "${MEDRAY_NOWHERE}"}, "sources.labs.root", "MEDRAY_NOWHERE is not set"),
        ({"sources__labs__subject": "mnr"}, "sources.labs.subject", "no column 'mnr'. Did you mean 'mrn'?"),
        ({"sources__labs__time": "drawn_at"}, "sources.labs.time", "no column 'drawn_at'"),
        ({"sources__labs__record": "part"}, "sources.labs.record", "57 of the 60 records looked at have a key"),
        ({"sources__labs__columns": {"site": {"path": "site-(.)"}}}, "sources.labs.columns.site", "fits 0 of 1 files"),
        ({"cohort__target__column": "labs.death"}, "cohort.target.column", "no column 'death'"),
        ({"cohort__target": {"column": "labs.died", "positive": "yes"}}, "cohort.target.positive", "never holds"),
        (
            {"cohort__target": {"column": "labs.died", "positive": [0, 1]}},
            "cohort.target.positive",
            "positive values only",
        ),
        ({"cohort__target": {"column": "labs.name"}}, "cohort.target", "one class only"),
        ({"cohort__target": {"column": "labs.part", "classes": ["a", "d"]}}, "cohort.target.classes", "never holds d"),
        (
            {"cohort__target": {"column": "labs.part", "kind": "regression"}},
            "cohort.target",
            "60 cells are not numbers",
        ),
        (
            {"cohort__target__map": {"file": "codes.csv", "key": "code", "value": "class"}},
            "cohort.target",
            "codes.csv cannot be read",
        ),
        ({"cohort__split": {"by": "labs.part", "held_out": ["d"]}}, "cohort.split.held_out", "no row has the value d"),
        ({"cohort__split": {"by": "labs.prt", "held_out": ["a"]}}, "cohort.split.by", "Did you mean 'part'?"),
        (
            {"cohort__split": {"by": "labs.crp", "held_out": ["0.134"]}},
            "cohort.split",
            "the rows in held_out are of one class only",
        ),
        (
            {"cohort__split": {"by": "labs.part", "held_out": ["a", "b"], "tuning": ["c"]}},
            "cohort.split",
            "no row with a label would be in train",
        ),
        ({"modalities": {"labs": {"columns": ["crp", "sodium"]}}}, "modalities.labs.columns", "no column 'sodium'"),
        ({"modalities": {"labs": {"columns": ["crp", "name"]}}}, "modalities.labs.columns", "dropped as identifying"),
        ({"compute__workers": 1000, "train__batch_size": 1000}, "compute.workers", "do not fit this machine"),
        ({"compute__device": "cuda", "compute__workers": 32}, "compute.device", "need as many GPUs"),
        ({"compute__spill": "/nowhere/at/all"}, "compute.spill", "no folder that can be written to"),
        ({"serve__port": 8265}, "serve.port", "the port of Ray's dashboard"),
        ({"serve__port": 10500}, "serve.port", "one of those that Ray's workers take"),
        ({"governance__key": "env:MEDRAY_NO_KEY"}, "governance.key", "MEDRAY_NO_KEY is not set"),
        ({"governance__key": "file:/nowhere/key"}, "governance.key", "cannot be read"),
    ],
)
def test_what_would_fail_is_one_line_with_its_place(
    folder: Path, changes: dict[str, Any], where: str, what: str
) -> None:
    lines = failing(checked(folder, **changes))
    assert [line for line in lines if line.startswith(f"{where}: ") and what in line], lines
    assert not [line for line in lines if "\n" in line or NAME in line]


def test_a_cluster_that_does_not_answer_is_found(folder: Path) -> None:
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY | {"compute": {"address": "127.0.0.1:1"}}))
    # in a process of its own: in this one, tests may be connected to a cluster, which is then the one to run on
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "medray", "check", str(folder / "study.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert done.returncode == 1
    assert "compute.address: no Ray cluster answers" in done.stderr


def test_all_findings_are_gathered_into_one_error(folder: Path) -> None:
    found = checked(folder, serve__port=8265, sources__labs__subject="mnr", sources__labs__time="drawn_at")
    with pytest.raises(DataError) as error:
        found.raise_failures()
    assert len(str(error.value).splitlines()) == 3


def test_rows_that_cannot_be_read_fail_above_the_allowed_share_only(folder: Path) -> None:
    with (folder / "labs.csv").open("a") as file:
        file.write("M99,x,1,1,a,stray\n" * 3)
    assert "4.8% of the 63 records" in failing(checked(folder))[0]
    allowed = checked(folder, governance__max_quarantined=0.1)
    assert not failing(allowed)
    assert "are quarantined" in str(next(iter(allowed.findings)))


def test_what_was_not_seen_whole_is_only_to_be_minded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(6):
        (folder / f"labs{index}.csv").write_text(f"mrn,name,crp,died,part\nN{index},x,1,0,a\n")
    monkeypatch.setattr("medray.check.sources.FILES", 3)
    found = checked(folder, cohort__target={"column": "labs.died", "positive": "yes"})
    assert not found.seen["labs"].all
    assert not failing(found)
    assert "never holds a positive value" in str(next(iter(found.findings)))


def test_keys_that_do_not_meet_in_the_source_that_knows_the_subject(folder: Path) -> None:
    (folder / "chart.csv").write_text("exam,sex\n" + "".join(f"E{index},F\n" for index in range(60)))
    study = Study.parse(STUDY, folder).override(
        {
            "sources.labs.record": "mrn",
            "sources.chart": {"kind": "csv", "path": "chart.csv", "record": "exam", "subject": {"of": "labs"}},
        }
    )
    (line,) = failing(check(study))
    assert line.startswith("sources.chart.subject: 0 of the 60 record keys looked at are in 'labs'")


def test_a_library_that_is_not_installed_says_which_extra_brings_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medray.readers.csv.Csv.library", "no_such_library")
    monkeypatch.setattr("medray.readers.csv.Csv.extra", "signals")
    lines = failing(checked(folder))
    assert lines == ["sources.labs: no_such_library is not installed. pip install 'medray[signals]'"]


def test_a_workspace_that_cannot_be_written_to_is_found(folder: Path) -> None:
    (folder / "taken").write_text("a file")
    found = check(Study.parse(STUDY, folder), folder / "taken" / "workspace")
    assert "cannot be written to" in failing(found)[0]


def test_nothing_is_written(folder: Path) -> None:
    checked(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["labs.csv"]
