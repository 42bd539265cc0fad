"""Serve: model version -> deployment.

One Ray Serve deployment is both ingress and model: the app of `medray.serve.app`, in every replica, with its batches
put together by Serve. `build` is what the stock `serve deploy` imports, `write_config` writes the file that it takes.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool

from medray import registry, runtime
from medray.artifacts.durable import write_bytes
from medray.artifacts.workspace import Workspace
from medray.errors import ServiceError
from medray.governance.access import Principals
from medray.governance.audit import Audit
from medray.governance.crypto import Keyring
from medray.predictor import Predictor
from medray.runtime import Progress, quiet
from medray.serve.answers import Scored
from medray.serve.app import Sample, Service
from medray.study import Serve, Study

if TYPE_CHECKING:
    from ray.serve import Application
    from starlette.types import ASGIApp

APP = "medray"
READY_S = 300  # a loaded machine takes a minute to start Ray and load torch
MAX_ONGOING, MAX_QUEUED = 100, 200  # of a replica; beyond it Serve answers 503
REQUEST_TIMEOUT_S = 60
DRAIN_S = 20  # requests that are being answered when it is stopped


class Options(BaseModel):
    """What a replica is made from; the `args` of a Serve config file.

    Attributes:
        workspace: folder, on a disk that every node has.
        model: `name:version`, approved.
        key: reference to the installation's secret, as `governance.key`.
        device: `auto`, `cpu` or `cuda`.
        threads: of torch in a replica.
        replicas: processes.
        batch_size, batch_wait_ms, max_body_mb: as `serve:` of a study.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workspace: str
    model: str
    key: str = ""
    device: str = "cpu"
    threads: int = 1
    replicas: int = 1
    batch_size: int = Serve().batch_size
    batch_wait_ms: float = Serve().batch_wait_ms
    max_body_mb: float = Serve().max_body_mb


@dataclass(frozen=True)
class Deployment:
    """A service that answers.

    Attributes:
        url: where.
        model, version: which.
        token_path: the file of the bearer token.
        audit_path: the folder of the audit log.
    """

    url: str
    model: str
    version: int
    token_path: Path
    audit_path: Path
    _stack: contextlib.ExitStack

    def wait(self) -> None:
        """Until this process is asked to stop, by Ctrl-C or SIGTERM; then stop, once the last requests are answered."""
        asked = threading.Event()

        def stop(number: int, frame: FrameType | None) -> None:
            del number, frame
            asked.set()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            asked.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.close()

    def close(self) -> None:
        """Stop the service, and Ray where it was started for it."""
        self._stack.close()

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


class Replica(Service):
    """The service in a replica of Ray Serve."""

    def __init__(self, given: dict[str, Any]) -> None:
        import torch

        options = Options.model_validate(given)
        torch.set_num_threads(options.threads)
        workspace = _workspace(options.workspace, options.key)
        version = registry.find(workspace, options.model, approved_only=True)
        self._options = options
        super().__init__(
            Predictor(registry.checkpoint_of(workspace, version), device=options.device),
            version.name,
            version.version,
            Principals.load(workspace.keyring.token(), workspace.root / "principals.yaml"),
            Audit(_audit_folder(workspace), workspace.keyring.derive("audit")),
            int(options.max_body_mb * (1 << 20)),
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Asked by Serve once the replica is made: batches are put together by Serve from here on."""
        from ray import serve

        async def infer(samples: list[Sample]) -> list[Scored]:
            return await run_in_threadpool(self.infer, samples)

        batched = serve.batch(
            max_batch_size=self._options.batch_size, batch_wait_timeout_s=self._options.batch_wait_ms / 1000
        )
        self.infer_one = batched(infer)
        return self.asgi()


def serve(
    study: Study | None,
    model: str = "",
    workspace: Workspace | None = None,
    *,
    block: bool = True,
    progress: Progress = quiet,
) -> Deployment:
    """Serve an approved model version over HTTP, with a bearer token.

    Args:
        study: whose `serve:` and `compute:` say how; without it, the study that the model was trained for.
        model: `name` for its newest approved version, or `name:version`; the study's name unless given.
        workspace: where the model is; the study's unless given.
        block: serve until this process is asked to stop.
        progress: what is being done.

    Raises:
        AccessError: the version is not approved; the message says how to.
        ArtifactError: there is no such model.
        ServiceError: the port is taken, or the service does not become ready.
    """
    workspace, options, settings = _chosen(study, model, workspace)
    host, port = settings.host, _free_port(settings.host, settings.port)
    progress("starting Ray", 0, 3)
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(runtime.cluster(study.compute if study else None))
        if cluster.num_gpus and (study is None or study.compute.device == "auto"):
            options = options.model_copy(update={"device": "cuda"})
        progress("loading the model", 1, 3)
        _start(options, host, port, stack, cluster.started)
        progress("waiting until it is ready", 2, 3)
        _wait_until_ready(host, port)
        progress("serving", 3, 3)
        name, _, version = options.model.partition(":")
        shown = f"[{host}]" if ":" in host else host
        deployment = Deployment(
            url=f"http://{shown}:{port}",
            model=name,
            version=int(version),
            token_path=workspace.keyring.folder / "token",
            audit_path=_audit_folder(workspace),
            _stack=stack.pop_all(),
        )
    if block:
        deployment.wait()
    return deployment


def build(args: dict[str, Any]) -> Application:
    """The application of `Options`, for `serve deploy` and `serve run medray.serve:build`."""
    from ray import serve

    options = Options.model_validate(args)
    # the class stays plain and is wrapped late: a decorator would hide its type
    ingress = serve.ingress()(Replica)
    return serve.deployment(**_deployment(options))(ingress).bind(options.model_dump())


def write_config(study: Study | None, path: Path, model: str = "", workspace: Workspace | None = None) -> Path:
    """Write the config file that the stock `serve deploy` takes; it names one approved version.

    Raises:
        AccessError: the version is not approved.
        ArtifactError: there is no such model.
    """
    workspace, options, settings = _chosen(study, model, workspace)
    config = {
        "proxy_location": "EveryNode",
        "http_options": _http_options(settings.host, settings.port),
        "logging_config": _LOGGING,
        "applications": [
            {
                "name": APP,
                "route_prefix": "/",
                "import_path": "medray.serve:build",
                "args": options.model_dump(),
                "deployments": [_deployment(options)],
            }
        ],
    }
    write_bytes(Path(path), yaml.safe_dump(config, sort_keys=False).encode())
    return Path(path)


_LOGGING = {"log_level": "WARNING", "enable_access_log": False}  # the audit log has every request


def _deployment(options: Options) -> dict[str, Any]:
    return {
        "name": "Replica",
        "num_replicas": options.replicas,
        "max_ongoing_requests": max(MAX_ONGOING, 2 * options.batch_size),
        "max_queued_requests": MAX_QUEUED,
        "graceful_shutdown_timeout_s": DRAIN_S,
        "health_check_period_s": 5,
        "ray_actor_options": {"num_cpus": options.threads, "num_gpus": int(options.device == "cuda")},
    }


def _http_options(host: str, port: int) -> dict[str, Any]:
    return {"host": host, "port": port, "request_timeout_s": REQUEST_TIMEOUT_S}


def _chosen(study: Study | None, model: str, workspace: Workspace | None) -> tuple[Workspace, Options, Serve]:
    """Where the model is, which version, and how it is served."""
    if workspace is None:
        if study is None:
            raise ServiceError("name a study or a workspace to serve from")
        workspace = Workspace.of(study)
    if not model and study is None:
        raise ServiceError("name a model to serve; `medray models list` shows them")
    version = registry.find(workspace, model or (study.name if study else ""), approved_only=True)
    if study is None:
        checkpoint = registry.checkpoint_of(workspace, version)
        study = Study.parse(checkpoint.facts.study, checkpoint.folder)
        workspace = _workspace(str(workspace.root), study.governance.key)
    settings, compute = study.serve, study.compute
    options = Options(
        workspace=str(workspace.root),
        model=str(version),
        key=workspace.keyring.reference,
        device=compute.device if compute.device != "auto" else "cpu",
        threads=compute.threads or 1,  # of more, a busy machine makes less: replicas use its cores
        replicas=settings.replicas,
        batch_size=settings.batch_size,
        batch_wait_ms=settings.batch_wait_ms,
        max_body_mb=settings.max_body_mb,
    )
    return workspace, options, settings


def _start(options: Options, host: str, port: int, stack: contextlib.ExitStack, own_cluster: bool) -> None:
    from ray import serve
    from ray.serve.context import _disconnect

    if serve.status().proxies:
        raise ServiceError(
            "Ray Serve runs on this cluster already. Add this model to its config (`medray serve STUDY --write FILE` "
            "writes one), or end it: serve shutdown"
        )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if own_cluster:
        # let running requests end; Serve then ends with the cluster, sooner than by its own shutdown and without a
        # message of Ray's that looks like an error. It would take the next cluster of this process for this one.
        stack.callback(_disconnect)
        stack.callback(serve.delete, APP)
    else:
        stack.callback(serve.shutdown)
    serve.start(proxy_location="HeadOnly", http_options=_http_options(host, port), logging_config=_LOGGING)
    try:
        serve.run(build(options.model_dump()), name=APP, route_prefix="/", logging_config=_LOGGING)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise ServiceError(f"no replica could be made: {reason[0]}") from error


def _free_port(host: str, port: int) -> int:
    """The port, or a free one for 0; what may still take it in between shows as not ready."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise ServiceError(
                f"port {port} of {host} cannot be taken ({error.strerror}). `--set serve.port=0` takes a free one."
            ) from error
        return int(tried.getsockname()[1])


def _wait_until_ready(host: str, port: int) -> None:
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound, but asked
    until = time.monotonic() + READY_S
    said = "no answer"
    while time.monotonic() < until:
        connection = http.client.HTTPConnection(reached, port, timeout=10)
        try:
            connection.request("GET", "/healthz/ready")
            answer = connection.getresponse()
            said = answer.read().decode(errors="replace")[:200]
            if answer.status == 200:
                return
        except (OSError, http.client.HTTPException) as error:
            said = type(error).__name__
        finally:
            connection.close()
        time.sleep(0.1)
    raise ServiceError(f"{reached}:{port} is not ready after {READY_S} s ({said}). Ray's logs say why.")


def _workspace(root: str, key: str) -> Workspace:
    return Workspace(Path(root), Keyring(Path(root) / "keyring", key))


def _audit_folder(workspace: Workspace) -> Path:
    return workspace.root / "audit"
