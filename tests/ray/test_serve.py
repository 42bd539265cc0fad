"""Serve on Ray: one deployment that answers, batches, writes down and ends; and the config file of `serve deploy`."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from medray import registry
from medray.artifacts import Workspace
from medray.errors import AccessError, ArtifactError, DataError, ServiceError
from medray.governance.audit import Audit
from medray.predictor import Predictor
from medray.query import Client
from medray.runtime import Cluster
from medray.serve import Deployment, Options, serve, write_config
from medray.study import Study
from tests.checkpoints import write_checkpoint
from tests.served import study
from tests.unit.test_registry import Evaluated

LABS = {"crp": 41.5, "sex": "F"}
SERVE = {"port": 0, "batch_wait_ms": 200, "max_body_mb": 1}


def registered(workspace: Workspace, chosen: Study, digest: str, seed: int = 0) -> str:
    """A candidate with a report."""
    checkpoint = write_checkpoint(workspace.folder("checkpoints", digest), chosen, seed=seed)
    return str(registry.register(workspace, checkpoint, Evaluated()))


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study(tmp_path_factory.mktemp("study"), "labs", serve=SERVE)


@pytest.fixture(scope="module")
def workspace(chosen: Study) -> Workspace:
    """Two versions: the first is approved, the second is a candidate."""
    place = Workspace.of(chosen)
    registry.approve(place, registered(place, chosen, "first"))
    registered(place, chosen, "second", seed=1)
    return place


@pytest.fixture(scope="module")
def deployment(ray_cluster: Cluster, chosen: Study, workspace: Workspace) -> Iterator[Deployment]:
    del ray_cluster
    with serve(chosen, "", workspace, block=False) as started:
        yield started


@pytest.fixture
def client(deployment: Deployment) -> Client:
    return Client(deployment.url, deployment.token_path.read_text())


def test_the_newest_approved_version_answers(client: Client, deployment: Deployment, workspace: Workspace) -> None:
    assert (deployment.model, deployment.version) == ("labs", 1)
    assert deployment.url.startswith("http://127.0.0.1:")
    predictor = Predictor(registry.checkpoint_of(workspace, registry.find(workspace, "labs:1")))
    expected = predictor.predict(*predictor.encode({"labs": predictor.rows_from_values("labs", LABS)}))
    answer = client.predict("labs", {"labs": LABS})
    assert answer["version"] == 1
    assert answer["probability"]["died"] == pytest.approx(float(expected[0, 0]), rel=1e-3)
    assert answer["attributions"]["labs"]["contributions"]


def test_the_token_is_its_owners_alone(deployment: Deployment) -> None:
    assert deployment.token_path.stat().st_mode & 0o777 == 0o600
    assert len(deployment.token_path.read_text()) >= 43
    with pytest.raises(AccessError):
        Client(deployment.url, "x" * 43).models()


def test_of_eight_at_once_only_the_bad_one_fails_and_the_others_share_a_pass(client: Client) -> None:
    inputs: list[dict[str, Any]] = [{"labs": {"crp": 10 + number}} for number in range(8)]
    inputs[5] = {"labs": {"crp": "high"}}
    alone = [client.predict("labs", given)["probability"] for given in inputs if given is not inputs[5]]

    def ask(given: dict[str, Any]) -> dict[str, float] | str:
        try:
            return dict(client.predict("labs", given)["probability"])
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, inputs))
    assert str(together.pop(5)).startswith("labs.crp: ")
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    client_metrics = _metrics(client)
    assert client_metrics["medray_batch_size_sum"] > client_metrics["medray_batch_size_count"]


def test_explanations_of_all_kinds_share_a_batch(client: Client) -> None:
    kinds: list[Any] = ["none", "fast", "full"] * 3
    with ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(lambda kind: client.predict("labs", {"labs": LABS}, explain=kind), kinds))
    explainers = [answer.get("attributions", {}).get("labs", {}).get("explainer") for answer in answers]
    assert explainers == [None, "input_x_gradient", "integrated_gradients"] * 3
    assert len({answer["probability"]["died"] for answer in answers}) == 1


def test_a_body_that_is_too_large_is_refused(client: Client, tmp_path: Path) -> None:
    large = tmp_path / "large.csv"
    large.write_bytes(b"crp,sex\n" + b"1,F\n" * (1 << 20))
    with pytest.raises(DataError, match="the body is over 1 MB"):
        client.predict("labs", {"labs": large})


def test_every_request_is_one_event(client: Client, deployment: Deployment, workspace: Workspace) -> None:
    audit = Audit(deployment.audit_path, workspace.keyring.derive("audit"))
    before = audit.verify()
    request = client.predict("labs", {"labs": LABS})["request"]
    with pytest.raises(DataError):
        client.predict("other", {"labs": LABS})
    assert audit.verify() == before + 2
    allowed, failed = list(audit.events())[before:]
    assert (allowed["request"], allowed["resource"], allowed["principal"]) == (request, "labs:1", "owner")
    assert (failed["outcome"], failed["reason"]) == ("failed", "not found")


def test_a_cluster_serves_one_config_at_a_time(deployment: Deployment, chosen: Study, workspace: Workspace) -> None:
    assert deployment.url
    with pytest.raises(ServiceError, match="runs on this cluster already"):
        serve(chosen, "", workspace, block=False)


def test_only_approved_versions_are_served(chosen: Study, workspace: Workspace, tmp_path: Path) -> None:
    for start in (lambda: serve(chosen, "labs:2", workspace), lambda: write_config(chosen, tmp_path / "x", "labs:2")):
        with pytest.raises(AccessError, match="medray models approve labs:2"):
            start()
    with pytest.raises(ArtifactError, match=r"no model 'lab'\. Did you mean 'labs'"):
        serve(None, "lab", workspace)
    for study_or_none, name in ((None, ""), (None, "labs")):
        with pytest.raises(ServiceError, match="name a"):
            serve(study_or_none, name, workspace if not name else None)


def test_a_port_that_is_taken_is_said_so(chosen: Study, workspace: Workspace) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServiceError, match=rf"port {port} of 127.0.0.1 cannot be taken .*serve\.port=0"):
            serve(chosen.override({"serve.port": port}), "", workspace)


def test_the_config_file_is_that_of_serve_deploy(chosen: Study, workspace: Workspace, tmp_path: Path) -> None:
    changed = chosen.override({"serve.port": 8123, "serve.replicas": 2, "compute.threads": 2})
    path = write_config(changed, tmp_path / "serve.yaml", "labs", workspace)
    config = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    assert (config.http_options.host, config.http_options.port) == ("127.0.0.1", 8123)
    (app,) = config.applications
    assert app.import_path == "medray.serve:build"
    options = Options.model_validate(app.args)
    assert (options.model, options.replicas, options.threads) == ("labs:1", 2, 2)
    assert Path(options.workspace) == workspace.root
    (one,) = app.deployments
    assert (one.name, one.num_replicas, one.ray_actor_options.num_cpus) == ("Replica", 2, 2)


def test_a_service_ends_when_it_is_asked_to(tmp_path: Path) -> None:
    import contextlib

    ended = threading.Event()
    with contextlib.ExitStack() as stack:
        stack.callback(ended.set)
        waiting = Deployment("http://127.0.0.1:1", "labs", 1, tmp_path, tmp_path, stack.pop_all())
    before = signal.getsignal(signal.SIGTERM)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    waiting.wait()
    assert ended.is_set()
    assert signal.getsignal(signal.SIGTERM) is before


def _metrics(client: Client) -> dict[str, float]:
    _, text = client._answer("GET", "/metrics", b"", "")
    lines = [line for line in text.splitlines() if not line.startswith("#") and "_bucket" not in line]
    return {line.split("{")[0]: float(line.split()[-1]) for line in lines}
