"""Doctor names the traps of the machine it runs on, each with its fix."""

from __future__ import annotations

import json
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medray import doctor as module
from medray.cli import app
from medray.doctor import Diagnosis, doctor


def of(name: str, workspace: Path | None = None) -> Diagnosis:
    (found,) = [each for each in doctor(workspace) if each.name == name]
    return found


def test_this_environment_holds_what_medray_pins() -> None:
    assert [of(name).status for name in ("Python", "ray", "torch", "torchvision")] == ["ok"] * 4


def test_whatever_is_not_ok_has_a_fix() -> None:
    assert not [each for each in doctor() if each.status != "ok" and not each.fix]


def test_another_torch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.importlib.metadata.version
    monkeypatch.setattr(module.importlib.metadata, "version", lambda n: "2.9.1+cpu" if n == "torch" else real(n))
    found = of("torch")
    assert found.status == "fail"
    assert found.fix == "pip install 'torch==2.13.0'"


def test_torchvision_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    found = of("torchvision")
    assert (found.status, found.fix) == ("warn", "pip uninstall torchvision")


def test_a_keyring_that_others_can_read_is_found(tmp_path: Path) -> None:
    (tmp_path / "keyring").mkdir(mode=0o700)
    (tmp_path / "keyring" / "secret").write_text("0" * 64)
    (tmp_path / "keyring" / "secret").chmod(0o600)
    assert of("keyring", tmp_path).status == "ok"
    (tmp_path / "keyring" / "secret").chmod(0o640)
    found = of("keyring", tmp_path)
    assert found.status == "fail"
    assert os.system(found.fix) == 0  # noqa: S605 - the fix is what is tested
    assert of("keyring", tmp_path).status == "ok"


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_that_is_taken_is_found(taken_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PORTS", {taken_port: "serve"})
    assert of(f"port {taken_port}").status == "warn"


def test_a_low_limit_of_open_files_is_found() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        assert of("open files").fix.startswith("ulimit -n ")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("OMP_NUM_THREADS", "4096", "threads"),
        ("OMP_NUM_THREADS", "many", "threads"),
        ("RAY_ADDRESS", "10.0.0.1:6379", "RAY_ADDRESS"),
        ("HTTP_PROXY", "http://10.0.0.1:3128", "proxy"),
    ],
)
def test_what_the_environment_says_is_found(
    variable: str, value: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv(variable, value)
    assert of(name).status == "warn"


def test_a_temp_folder_too_deep_for_sockets_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / ("deep" * 20)))
    assert of("temp folder").status == "fail"


def test_the_worst_comes_first_and_is_the_exit_status(tmp_path: Path) -> None:
    (tmp_path / "keyring").mkdir(mode=0o755)
    done = CliRunner().invoke(app, ["doctor", "--workspace", str(tmp_path), "--json"])
    found = json.loads(done.stdout)["found"]
    assert done.exit_code == 1
    assert (found[0]["name"], found[0]["status"]) == ("keyring", "fail")
