"""A service of a small real model, which reads real formats, for tests of what is served and asked."""

from __future__ import annotations

import hashlib
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from medray.governance.access import Principals
from medray.governance.audit import Audit
from medray.predictor import Predictor
from medray.serve.app import Service
from medray.study import Study
from tests.checkpoints import ENCODERS, MODALITIES, TARGETS, write_checkpoint

KEY = bytes(range(32))
SOURCES: dict[str, Any] = {
    "films": {"kind": "dicom", "path": "films/*.dcm"},
    "pictures": {"kind": "image", "path": "pictures/*.png", "subject": {"path": r"(\w+)\.png"}},
    "ecg": {"kind": "wfdb", "path": "ecg/*.hea", "subject": "patient"},
    "labs": {"kind": "csv", "path": "labs.csv", "subject": "patient", "time": "drawn_at"},
}


def study(folder: Path, *names: str, task: str = "binary", pictures: bool = False, **sections: Any) -> Study:
    """A study named after its inputs; `pictures` makes its films PNG files instead of DICOM."""
    sources = {**SOURCES, "films": SOURCES["pictures"]} if pictures else SOURCES
    model = {"kind": "fusion", "encoders": {name: ENCODERS[name] for name in names}} if len(names) > 1 else None
    written = {
        "name": "-".join(names),
        "sources": {name: sources[name] for name in dict.fromkeys(["labs", *names])},
        "modalities": {name: MODALITIES[name] for name in names},
        "model": model or ENCODERS[names[0]],
        "cohort": {"target": TARGETS[task]},
        **sections,
    }
    return Study.parse(written, folder)


TOKEN = "t" * 43


def service(folder: Path, *names: str, file: str = "", task: str = "binary", pictures: bool = False) -> Service:
    """The service of such a model, its audit log in `folder/audit`, bodies up to 1 MB; `file` lists principals."""
    chosen = study(folder, *names, task=task, pictures=pictures)
    (folder / "checkpoint").mkdir(parents=True)
    predictor = Predictor(write_checkpoint(folder / "checkpoint", chosen, task))
    listed = folder / "principals.yaml"
    if file:
        listed.write_text(file)
    return Service(predictor, chosen.name, 3, Principals.load(TOKEN, listed), Audit(folder / "audit", KEY), 1 << 20)


@dataclass(frozen=True)
class Running:
    """A service that answers, a client with the owner's token, and the audit log."""

    service: Service
    client: httpx.Client
    audit: Audit


@contextmanager
def table_service(folder: Path) -> Iterator[Running]:
    """The service of a table's model; further principals are named and have tokens as their roles are called."""
    digests = {role: hashlib.sha256(role.encode()).hexdigest() for role in ("viewer", "clinician", "engineer")}
    lines = [f"{role}-one: {{role: {role}, token_sha256: {digest}}}" for role, digest in digests.items()]
    (folder / "uploads").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder / "uploads"))
        one = service(folder / "labs", "labs", file="\n".join(lines))
        with running(one) as client:
            yield Running(one, client, Audit(folder / "labs" / "audit", KEY))


@contextmanager
def running(service: Service) -> Iterator[httpx.Client]:
    """A client with the owner's token; the service runs on a port of its own, under the server that Serve uses."""
    server = uvicorn.Server(uvicorn.Config(service.asgi(), port=0, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        headers = {"authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False, timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def begun(client: httpx.Client, path: str, **headers: str) -> HTTPConnection:
    """A prediction of which only the headers were sent."""
    connection = HTTPConnection(client.base_url.host, client.base_url.port, timeout=20)
    connection.putrequest("POST", path)
    for header, value in {"authorization": f"Bearer {TOKEN}", **headers}.items():
        connection.putheader(header, value)
    connection.endheaders()
    return connection
