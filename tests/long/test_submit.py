"""Jobs on a cluster that asks for a token: Ray's own command and `medray submit` run the same files of `jobs/`."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent  # `ray` and the `python` of jobs are those of this environment
STUDY = "examples/breast-cancer/study.yaml"
PLANTED = {
    ".env": "MEDRAY_KEY=plant",
    "data/films.dcm": "plant",
    "labs.csv": "plant",
    "examples/breast-cancer/cases.parquet": "plant",
    "examples/breast-cancer/.medray/keyring/secret": "plant",
    "keyring/secret": "plant",
    "signing.key": "plant",
    "service.token": "plant",
}


@dataclass(frozen=True)
class Head:
    """A cluster of one node.

    Attributes:
        folder: Ray's temporary folder.
        environment: of whoever submits to it.
    """

    folder: Path
    address: str
    environment: dict[str, str]

    def run(self, *command: str, cwd: Path = ROOT, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def shipped(self) -> set[str]:
        """Names of all files that jobs have sent so far."""
        folders = self.folder.glob("session_*/runtime_resources/working_dir_files/_ray_pkg_*")
        return {
            path.relative_to(folder).as_posix() for folder in folders for path in folder.rglob("*") if path.is_file()
        }


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="mr-", dir="/tmp"))  # sockets: their paths must stay short
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    gcs, dashboard, agent, client, metrics = free_ports(5)
    first = 21000 + 200 * secrets.randbelow(40)  # workers' ports; neither Ray's own nor those that the system draws
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MEDRAY_"))}
    environment = {
        **kept,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    command = [
        *("ray", "start", "--head", "--block", "--num-cpus=2", "--num-gpus=0", "--disable-usage-stats"),
        *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        *(f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}", f"--temp-dir={folder}"),
        *(f"--min-worker-port={first}", f"--max-worker-port={first + 199}", "--object-store-memory=200000000"),
    ]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield Head(folder, environment["RAY_API_SERVER_ADDRESS"], environment)
        finally:
            process.terminate()
            process.wait(60)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def ready(head: Head) -> Head:
    """The head, once its job server answers."""
    until = time.monotonic() + 120
    while (done := head.run("ray", "job", "list", timeout_s=60)).returncode != 0:
        assert time.monotonic() < until, done.stderr + (head.folder / "head.log").read_text()
        time.sleep(1)
    return head


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder as a user has it, with files in it that may not leave it."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / ".gitignore", folder)
    shutil.copytree(ROOT / "jobs", folder / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "examples" / "breast-cancer", folder / "examples" / "breast-cancer")
    for name, text in PLANTED.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_rays_own_command_runs_ingest_train_and_evaluate_and_sends_no_secret(
    ready: Head, checkout: Path, tmp_path: Path
) -> None:
    variables = json.dumps({"env_vars": {"MEDRAY_WORKSPACE": str(tmp_path / "workspace")}})
    (checkout / "environment.yaml").write_text(
        (checkout / "jobs" / "runtime_env.yaml").read_text() + f"env_vars: {json.loads(variables)['env_vars']}\n"
    )
    facts = {}
    for verb in ("ingest", "train", "evaluate"):
        done = ready.run(
            *("ray", "job", "submit", "--working-dir", ".", "--runtime-env", "environment.yaml"),
            *("--", "python", f"jobs/{verb}.py", STUDY, "--set", "train.epochs=5", "--json"),
            cwd=checkout,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        facts[verb] = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"verb"'))
    assert facts["ingest"]["metrics"]["records"] == 569
    assert facts["evaluate"]["metrics"]["auroc"]["value"] > 0.95
    assert Path(facts["evaluate"]["path"]).is_file()
    shipped = ready.shipped()
    assert {"jobs/train.py", STUDY, "examples/breast-cancer/wdbc.csv"} <= shipped
    assert not shipped & set(PLANTED)
    assert not [name for name in shipped if "keyring" in name or ".medray" in name]


def test_medray_submit_waits_for_the_same_artifacts_and_sends_the_job_alone(
    ready: Head, checkout: Path, tmp_path: Path
) -> None:
    before = ready.shipped()
    for verb in ("ingest", "train"):
        done = ready.run(
            *("medray", "submit", verb, STUDY, "--set", "train.epochs=2", "--workspace", str(tmp_path / "workspace")),
            *("--follow" if verb == "train" else "--wait", "--json"),
            cwd=checkout,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["status"] == "SUCCEEDED"
    assert '"verb": "train"' in done.stderr  # the job's log
    assert (tmp_path / "workspace" / "checkpoints").is_dir()
    assert ready.shipped() - before <= {"jobs/ingest.py", "jobs/train.py"}


def test_a_study_whose_data_lie_elsewhere_is_sent(ready: Head, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    shutil.copy(ROOT / "examples" / "breast-cancer" / "wdbc.csv", tmp_path)
    text = (ROOT / STUDY).read_text().replace("kind: csv", f"kind: csv\n    root: {tmp_path}")
    (tmp_path / "study" / "elsewhere.yaml").write_text(text)
    done = ready.run(
        *("medray", "submit", "ingest", str(tmp_path / "study" / "elsewhere.yaml"), "--wait", "--json"),
        *("--workspace", str(tmp_path / "workspace")),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "elsewhere.yaml" in ready.shipped()


def test_a_job_that_fails_is_exit_status_1(ready: Head, tmp_path: Path) -> None:
    done = ready.run(
        *("medray", "submit", "train", STUDY, "--follow", "--workspace", str(tmp_path / "empty")),
    )
    assert done.returncode == 1
    assert "no table yet" in done.stderr


def test_the_wrong_token_is_one_line(ready: Head, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(secrets.token_hex(32))
    environment = {**ready.environment, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    stranger = Head(ready.folder, ready.address, environment)
    done = stranger.run("medray", "submit", "ingest", STUDY)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "token" in done.stderr


def test_no_cluster_is_one_line() -> None:
    environment = {**os.environ, "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}
    done = Head(Path(), "", environment).run(str(BIN / "medray"), "submit", "ingest", STUDY)
    assert done.returncode == 1
    assert done.stderr.startswith("error no job server answers at http://127.0.0.1:1")
