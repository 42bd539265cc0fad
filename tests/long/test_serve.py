"""Ray's own `serve deploy` takes the file that is written for it, and a killed replica costs no answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from medray import registry
from medray.artifacts import Workspace
from medray.errors import ServiceError
from medray.governance.audit import Audit
from medray.query import Client
from medray.serve import write_config
from tests.checkpoints import write_checkpoint
from tests.long.test_submit import Head, free_ports, head, ready  # noqa: F401 - fixtures
from tests.served import study
from tests.unit.test_registry import Evaluated

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

LABS = {"crp": 41.5, "sex": "F"}


def approved(folder: Path, **settings: object) -> tuple[Workspace, Path]:
    """A workspace with an approved version, and its study file."""
    chosen = study(folder, "labs", serve=settings)
    workspace = Workspace.of(chosen)
    checkpoint = write_checkpoint(workspace.folder("checkpoints", "abc"), chosen)
    registry.approve(workspace, str(registry.register(workspace, checkpoint, Evaluated())))
    path = folder / "study.yaml"
    path.write_text(json.dumps({"name": "labs", **json.loads(json.dumps(dict(chosen.written), default=dict))}))
    return workspace, path


def replicas(head: Head) -> list[int]:  # noqa: F811
    """Process numbers of this head's replicas."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
            environment = (path / "environ").read_bytes()
        except OSError:
            continue
        if command.startswith(b"ray::ServeReplica") and str(head.folder).encode() in environment:
            found.append(int(path.name))
    return found


def test_serve_deploy_takes_the_config_and_a_killed_replica_costs_no_answer(ready: Head, tmp_path: Path) -> None:  # noqa: F811
    (port,) = free_ports(1)
    workspace, _ = approved(tmp_path, port=port, replicas=2)
    chosen = study(tmp_path, "labs", serve={"port": port, "replicas": 2})
    config = write_config(chosen, tmp_path / "serve.yaml")
    done = ready.run("serve", "deploy", str(config), "--address", ready.address)
    assert done.returncode == 0, done.stdout + done.stderr
    client = Client(f"http://127.0.0.1:{port}", workspace.keyring.token())
    until = time.monotonic() + 180
    while True:
        try:
            if client.predict("labs", {"labs": LABS}) and len(replicas(ready)) == 2:
                break
        except ServiceError:
            assert time.monotonic() < until
        time.sleep(0.5)

    answers: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(client.predict("labs", {"labs": LABS})["probability"]["died"])

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    time.sleep(3)
    os.kill(replicas(ready)[0], signal.SIGKILL)
    time.sleep(8)
    before_stop = len(answers)
    assert all(asker.is_alive() for asker in askers)  # an error would have ended one
    stop.set()
    for asker in askers:
        asker.join()
    assert before_stop > 50
    assert len(set(answers)) == 1
    audit = Audit(workspace.root / "audit", workspace.keyring.derive("audit"))
    assert audit.verify() >= len(answers)
    assert ready.run("serve", "shutdown", "--address", ready.address, "--yes").returncode == 0


@pytest.mark.parametrize("ask", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_asked_to_stop(tmp_path: Path, ask: signal.Signals) -> None:
    workspace, path = approved(tmp_path, port=0)
    command = [sys.executable, "-m", "medray", "serve", str(path), "--set", "serve.port=0", "--json"]
    serving = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert serving.stdout is not None
    try:
        said = json.loads(serving.stdout.readline())
        asking = [sys.executable, "-m", "medray", "query", "labs", f"labs={_values(tmp_path)}", "--url", said["url"]]
        queried = subprocess.run(
            [*asking, "--json", "--workspace", str(workspace.root)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert queried.returncode == 0, queried.stderr
        assert json.loads(queried.stdout)["answer"]["version"] == 1
        serving.send_signal(ask)
        out, err = serving.communicate(timeout=60)
    finally:
        serving.kill()
        serving.wait()
    assert serving.returncode == 0, err
    assert not out
    assert "Traceback" not in err
    with pytest.raises(ServiceError, match="no service answers"):
        Client(said["url"], "x").models()


TWICE = """
import sys
from medray.query import Client
from medray.serve import serve
from medray.study import Study
for _ in range(2):
    with serve(Study.load(sys.argv[1]), block=False) as deployment:
        print(Client(deployment.url, deployment.token_path.read_text()).models()[0]["name"], flush=True)
"""


def test_a_notebook_can_serve_again(tmp_path: Path) -> None:
    _, path = approved(tmp_path, port=0)
    done = subprocess.run(
        [sys.executable, "-c", TWICE, str(path)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.stdout.split() == ["labs", "labs"], done.stderr
    assert not done.stderr


def _values(folder: Path) -> Path:
    path = folder / "labs.json"
    path.write_text(json.dumps(LABS))
    return path
