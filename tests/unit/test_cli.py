"""The command line: what it prints where, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from medray import plugins
from medray.cli import app, main
from medray.cli.options import workspace_folder, workspace_of
from medray.cli.terminal import Terminal
from medray.errors import DataError, StudyError
from medray.study import Study

STUDY = """
name: small
sources:
  labs: {kind: csv, path: labs.csv}
cohort:
  target: {column: labs.died, positive: "1"}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    rows = "".join(f"{index},{index % 2}\n" for index in range(40))
    (tmp_path / "labs.csv").write_text("crp,died\n" + rows)
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path / "study.yaml"


def medray(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr


def test_json_is_one_object_on_stdout_and_everything_else_on_stderr(study: Path) -> None:
    status, out, err = medray("check", study, "--json")
    facts = json.loads(out)
    assert status == 0
    assert facts["verb"] == "check"
    assert facts["metrics"] == {"failing": 0}
    assert facts["seconds"] >= 0
    assert "labs: 1 files, 40 rows" in err


def test_a_mistake_is_one_line_and_exit_status_1(study: Path) -> None:
    status, out, err = medray("check", study, "--set", "train.epoch=3")
    assert status == 1
    assert out == ""
    assert err == (
        "error study.yaml: train.epoch: unknown key. Did you mean 'epochs'? Known: "
        + ", ".join(type(Study.load(study).train).model_fields)
        + ".\n"
    )


def test_a_mistake_is_an_object_too_under_json(study: Path) -> None:
    status, out, _ = medray("check", study, "--set", "train.epochs=0", "--json")
    assert status == 1
    assert json.loads(out)["error"] == "StudyError"


@pytest.mark.parametrize(
    "arguments", [("check",), ("nonsense",), ("check", "STUDY", "--set", "epochs"), ("check", "STUDY", "--nonsense")]
)
def test_bad_usage_is_exit_status_2(study: Path, arguments: tuple[str, ...]) -> None:
    assert medray(*[study if argument == "STUDY" else argument for argument in arguments])[0] == 2


def test_set_takes_yaml_values(study: Path) -> None:
    status, out, _ = medray("check", study, "--set", "model={kind: tabular, hidden: [8]}", "--json")
    assert status == 0
    assert json.loads(out)["digest"] == Study.load(study, {"model": {"kind": "tabular", "hidden": [8]}}).digest()


class WrappedByRayError(DataError):
    """As Ray hands an error on: the type of its cause, and the worker's traceback as its message."""

    def __init__(self) -> None:
        super().__init__("Traceback of a worker, with its local paths")
        self.traceback_str = "Traceback"
        self.cause = DataError("labs: no row has a label")


def test_an_error_from_a_worker_is_its_one_line_without_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), Terminal():
        raise WrappedByRayError
    assert capsys.readouterr().err == "error labs: no row has a label\n"


def test_what_is_no_mistake_of_the_user_shows_itself() -> None:
    with pytest.raises(ZeroDivisionError), Terminal():
        raise ZeroDivisionError


def test_ctrl_c_says_that_the_same_command_goes_on() -> None:
    code = (
        "import os, signal\nfrom medray.cli.terminal import Terminal\n"
        "with Terminal() as terminal:\n    terminal.progress('epoch', 1, 9)\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "    signal.pause()\n"
    )
    # as a command of its own, through typer, which decides how a process ends
    program = f"import typer\napp = typer.Typer()\n@app.command()\ndef f() -> None:\n    exec({code!r})\napp()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.endswith("stopped. What is finished is kept: the same command goes on from there.\n")
    assert "Traceback" not in done.stderr


def test_progress_without_a_terminal_is_a_line_for_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    for epoch in range(1, 500):
        terminal.progress(f"train: epoch {epoch}", epoch, 500)
    terminal.progress("evaluate", 0, 0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" s  ")[1] for line in lines] == ["train: epoch 1  1 of 500", "evaluate"]


def test_progress_on_a_terminal_is_redrawn_and_leaves_a_line_for_each_step() -> None:
    code = (
        "from medray.cli.terminal import Terminal\nterminal = Terminal()\n"
        "for n in range(5): terminal.progress('sealing rows', n, 4)\nterminal.progress('training', 0, 0)\n"
        "terminal.say('end')"
    )
    primary, secondary = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", code], stderr=secondary, stdout=subprocess.DEVNULL, timeout=60, check=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(secondary)
    shown = os.read(primary, 1 << 16).decode()
    os.close(primary)
    left = [line.rsplit("\r", 1)[-1] for line in shown.split("\r\n")]
    assert any("4 of 4" in line for line in shown.split("\r"))
    assert any("sealing rows" in line and " s" in line for line in left)


def test_the_workspace_is_as_given_else_of_the_environment_else_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert workspace_folder(None, tmp_path) == tmp_path / ".medray"
    monkeypatch.setenv("MEDRAY_WORKSPACE", str(tmp_path / "named"))
    assert workspace_folder(None, tmp_path) == tmp_path / "named"
    assert workspace_folder(tmp_path / "given", tmp_path) == tmp_path / "given"


def test_a_job_refuses_a_workspace_that_would_be_lost(tmp_path: Path) -> None:
    (folder := tmp_path / "_ray_pkg_0123").mkdir()
    (folder / "study.yaml").write_text(STUDY)
    with pytest.raises(StudyError, match="name a workspace"):
        workspace_of(Study.load(folder / "study.yaml"), None)


def test_kinds_tells_fields_defaults_and_meanings_from_the_classes() -> None:
    status, out, _ = medray("kinds", "models", "cnn")
    assert status == 0
    assert "width" in out
    assert "64" in out
    assert "channels of the first" in out
    facts = json.loads(medray("kinds", "--json")[1])["kinds"]
    assert {room: set(kinds) for room, kinds in facts.items()} == {
        room: set(plugins.names(room)) for room in plugins.ROOMS
    }
    assert facts["models"]["cnn"]["fields"]["width"]["default"] == 64
    without = {
        f"{room}.{kind}.{name}"
        for room, kinds in facts.items()
        for kind, told in kinds.items()
        for name, field in told["fields"].items()
        if not field["doc"]
    }
    assert not without


def test_an_unknown_kind_names_the_nearest() -> None:
    status, _, err = medray("kinds", "models", "ltsm")
    assert status == 1
    assert "Did you mean 'lstm'?" in err


def test_models_without_a_workspace_says_how_to_name_one(tmp_path: Path) -> None:
    status, _, err = medray("models", "list", "--workspace", tmp_path / "none")
    assert status == 1
    assert "--workspace" in err


def test_main_is_what_a_job_calls(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["check", str(study), "--json"])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["verb"] == "check"
