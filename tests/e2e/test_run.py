"""Breast cancer by the command line, as a newcomer types it: cut off, run, run again, approved, served, asked."""

from __future__ import annotations

import csv
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLE = ROOT / "examples" / "breast-cancer"
MEDRAY = (sys.executable, "-m", "medray")

pytestmark = pytest.mark.timeout(600)  # each command starts Ray by itself, on whatever machine this is


def medray(*arguments: object, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MEDRAY, *map(str, arguments)], capture_output=True, text=True, timeout=timeout_s, check=False
    )


def rays_folders() -> set[str]:
    return {path.name for path in Path(tempfile.gettempdir()).glob("medray-ray-*")}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "workspace"


@pytest.fixture(scope="module")
def stopped(workspace: Path) -> tuple[int, str]:
    """A run that gets Ctrl-C while it trains: its exit status and stderr."""
    before = rays_folders()
    command = [*MEDRAY, "run", str(EXAMPLE / "study.yaml"), "--workspace", str(workspace)]
    shown = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            shown += line
            if "train: epoch" in line:
                process.send_signal(signal.SIGINT)
                break
        shown += process.stderr.read()
    assert rays_folders() <= before, "Ray's folder is left behind"
    return process.returncode, shown


@pytest.fixture(scope="module")
def ran(workspace: Path, stopped: tuple[int, str]) -> subprocess.CompletedProcess[str]:
    """The same command again."""
    del stopped
    return medray("run", EXAMPLE / "study.yaml", "--workspace", workspace)


@pytest.fixture(scope="module")
def again(workspace: Path, ran: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """And once more, for a program."""
    assert ran.returncode == 0, ran.stderr
    done = medray("run", EXAMPLE / "study.yaml", "--workspace", workspace, "--json")
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_ctrl_c_says_that_the_same_command_goes_on(stopped: tuple[int, str]) -> None:
    status, shown = stopped
    assert status == 130
    assert shown.endswith("stopped. What is finished is kept: the same command goes on from there.\n")
    assert "Traceback" not in shown


def test_a_run_says_what_is_done_and_what_is_next(ran: subprocess.CompletedProcess[str]) -> None:
    assert ran.returncode == 0, ran.stderr
    lines = ran.stderr.splitlines()
    for step in ("check, next ingest", "train, next predict", "predict, next evaluate", "evaluate, next register"):
        assert any(step in line for line in lines), ran.stderr
    assert len(lines) < 60


def test_a_run_ends_with_metrics_report_model_and_what_to_do_next(
    ran: subprocess.CompletedProcess[str], workspace: Path
) -> None:
    assert "AUROC " in ran.stdout
    assert "logistic regression" in ran.stdout
    assert "On 120 subjects that it had never seen, the model reaches an AUROC of 0.9" in ran.stdout
    report = Path(next(line.split()[1] for line in ran.stdout.splitlines() if line.startswith("report")))
    assert report.is_relative_to(workspace)
    assert "<html" in report.read_text(encoding="utf-8")
    assert "model    breast-cancer:1 (candidate)" in ran.stdout
    assert f"medray models approve breast-cancer:1 --workspace {workspace}" in ran.stdout


def test_the_same_command_again_makes_nothing_again(again: dict[str, Any], workspace: Path) -> None:
    assert again["model"] == "breast-cancer:1"
    for sort in ("tables", "shards", "checkpoints", "scores", "reports"):
        assert len(list((workspace / sort).iterdir())) == 1
    assert sum(again["steps"].values()) < 5, "and starts no cluster for it"


def test_metrics_have_intervals_and_n_and_a_baseline_beside_them(again: dict[str, Any]) -> None:
    auroc = again["metrics"]["auroc"]
    assert auroc["value"] > 0.97
    assert auroc["low"] < auroc["value"] <= auroc["high"]
    assert auroc["n"] == 120
    assert again["metrics"]["baseline"]["auroc"]["value"] > 0.97


def test_nothing_that_was_ingested_lies_there_in_clear_text(again: dict[str, Any], workspace: Path) -> None:
    del again
    with (EXAMPLE / "wdbc.csv").open() as file:
        cells = [row[name] for row in csv.DictReader(file) for name in ("mean_compactness", "area_error", "worst_area")]
    numbers = {struct.pack("<d", float(cell)) for cell in cells}  # as Arrow has them
    assert workspace.stat().st_mode & 0o777 == 0o700
    for path in workspace.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [number for number in numbers if number in content], path


def test_the_model_is_listed_with_its_main_metric_and_shown_with_its_card(
    again: dict[str, Any], workspace: Path
) -> None:
    listed = medray("models", "list", "--workspace", workspace)
    assert f"AUROC {again['metrics']['auroc']['value']:.3f} (" in listed.stdout
    card = medray("models", "show", "breast-cancer", "--workspace", workspace).stdout
    for said in (
        "Predicts nuclei.diagnosis",
        "mind: ",
        "input    nuclei, table as csv: mean_radius",
        "made of  checkpoint",
    ):
        assert said in card


@pytest.fixture(scope="module")
def service(again: dict[str, Any], workspace: Path) -> Iterator[dict[str, Any]]:
    del again
    refused = medray("serve", "breast-cancer", "--workspace", workspace)
    assert refused.returncode == 1
    assert "`medray models approve breast-cancer:1`" in refused.stderr
    assert medray("models", "approve", "breast-cancer:1", "--workspace", workspace).returncode == 0
    command = [*MEDRAY, "serve", str(EXAMPLE / "study.yaml"), "--set", "serve.port=0", "--json"]
    with subprocess.Popen(
        [*command, "--workspace", str(workspace)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield json.loads(line)
        finally:
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
            assert process.wait(120) == 0, said


def test_a_served_model_answers_with_its_reasons(service: dict[str, Any], workspace: Path, tmp_path: Path) -> None:
    with (EXAMPLE / "wdbc.csv").open() as file:
        rows = list(csv.DictReader(file))
    for diagnosis in ("malignant", "benign"):
        row = next(row for row in rows if row["diagnosis"] == diagnosis)
        values = {name: float(cell) for name, cell in row.items() if name != "diagnosis"}
        (tmp_path / "nuclei.json").write_text(json.dumps(values))
        asked = medray(
            "query",
            "breast-cancer",
            tmp_path / "nuclei.json",
            "--url",
            service["url"],
            "--workspace",
            workspace,
            "--json",
        )
        assert asked.returncode == 0, asked.stderr
        answer = json.loads(asked.stdout)["answer"]
        assert (answer["probability"]["malignant"] > 0.5) == (diagnosis == "malignant")
        assert answer["version"] == 1
        assert answer["attributions"]["nuclei"]["contributions"]


def test_a_question_without_the_token_is_refused(
    service: dict[str, Any], workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nuclei.json").write_text("{}")
    monkeypatch.setitem(os.environ, "MEDRAY_TOKEN", "stranger")
    asked = medray(
        "query", "breast-cancer", tmp_path / "nuclei.json", "--url", service["url"], "--workspace", workspace
    )
    assert asked.returncode == 1
    assert "MEDRAY_TOKEN" in asked.stderr
