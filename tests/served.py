"""A small real model of each sort, as `medray train` leaves it, for tests of what is served.

Its weights are random, its fitted state is that of a few personas: every part is real, only nothing was learned.
"""

from __future__ import annotations

import datetime
import hashlib
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
import uvicorn
from safetensors.torch import save

from medray import inputs
from medray.artifacts.checkpoint import WEIGHTS, CheckpointFacts
from medray.artifacts.durable import sha256_of, write_bytes
from medray.artifacts.manifest import Manifest, write_manifest
from medray.governance.access import Principals
from medray.governance.audit import Audit
from medray.modalities import Rows
from medray.predictor import Predictor
from medray.schema import NUMBER, TEXT
from medray.serve.app import Service
from medray.study import Study
from medray.synthetic import LEADS, Persona, personas

KEY = bytes(range(32))
TARGET = {"column": "labs.died", "positive": "1"}
LABS = {"kind": "csv", "path": "labs.csv", "subject": "patient", "time": "drawn_at"}
FILMS = {"kind": "dicom", "path": "films/*.dcm"}
PICTURES = {"kind": "image", "path": "pictures/*.png", "columns": {"finding": {"path": "/(sick|well)"}}}
ECG = {"kind": "wfdb", "path": "ecg/*.hea", "subject": "patient"}
SMALL = {"films": {"kind": "cnn", "depth": 10, "width": 4}, "ecg": {"kind": "lstm", "width": 8}, "labs": "tabular"}

STUDIES: dict[str, dict[str, Any]] = {
    "table": {"name": "table", "sources": {"labs": LABS}, "cohort": {"target": TARGET}},
    "image": {
        "name": "image",
        "sources": {"films": PICTURES},
        "cohort": {"unit": "films", "target": {"column": "films.finding", "positive": "sick"}},
        "modalities": {"films": {"kind": "image", "size": 32}},
        "model": SMALL["films"],
    },
    "fusion": {
        "name": "fusion",
        "sources": {"films": FILMS, "ecg": ECG, "labs": LABS},
        "cohort": {"target": TARGET},
        "modalities": {"films": {"kind": "image", "size": 32}, "ecg": {"kind": "signal"}, "labs": {"kind": "table"}},
        "model": {"kind": "fusion", "encoders": SMALL},
    },
}
COLUMNS = {"labs": {"sex": TEXT, "age": NUMBER, "crp": NUMBER, "lactate": NUMBER, "sodium": NUMBER, "died": NUMBER}}


def checkpoint(folder: Path, sort: str, *, seed: int = 0, **changes: Any) -> Path:
    """A complete checkpoint in `folder` of one of `STUDIES`.

    Args:
        sort: table, image or fusion.
        changes: to the study, such as `cohort`.
    """
    written = {**STUDIES[sort], **changes}
    study = Study.parse(written, folder)
    given = rows(personas(24, seed))
    states = {
        name: inputs.fit(modality, lambda name=name: [given[name]])  # type: ignore[misc]
        for name, modality in study.modalities.items()
    }
    shapes = inputs.shapes(study.modalities, states)
    task = study.cohort.target.task
    classes = {"binary": ["died"], "multiclass": ["home", "ward", "died"], "multilabel": ["fever", "fall"]}.get(
        task, []
    )
    torch.manual_seed(seed)
    network = study.model.build(shapes, inputs.num_outputs(task, classes))
    write_bytes(folder / WEIGHTS, save(network.state_dict()))
    facts = CheckpointFacts(
        task=task,
        classes=classes,
        shapes={name: list(shape) for name, shape in shapes.items()},
        names={name: study.modalities[name].names(states[name]["modality"]) for name in states},
        states=states,
        columns=COLUMNS,
        label_mean=50.0,
        label_std=10.0,
        study=written,
    )
    manifest = Manifest(
        sort="checkpoints",
        digest=folder.name,
        facts=facts.model_dump(),
        files={WEIGHTS: sha256_of(folder / WEIGHTS)},
        created=datetime.datetime.now(datetime.UTC),
    )
    write_manifest(folder, manifest)
    return folder


def rows(people: list[Persona]) -> Mapping[str, Rows]:
    """Their films, ECGs and labs, as training sees them."""
    draw = np.random.default_rng(0)
    rate_hz, leads = pa.array([100.0] * len(people)), pa.array([",".join(LEADS)] * len(people))
    labs = {
        "sex": pa.array([one.sex for one in people]),
        "age": pa.array([float(one.age) for one in people]),
        **{name: pa.array(draw.normal(mean, 3, len(people))) for name, mean in (("crp", 20), ("lactate", 2))},
        "sodium": pa.array([None, *draw.normal(139, 3, len(people) - 1)]),
    }
    return {
        "films": Rows(pa.table({"n": pa.nulls(len(people))}), [one.film(64) for one in people]),
        "ecg": Rows(pa.table({"sampling_rate_hz": rate_hz, "leads": leads}), [one.ecg() for one in people]),
        "labs": Rows(pa.table(labs)),
    }


TOKEN = "t" * 43


def service(folder: Path, sort: str, *, file: str = "", max_body_bytes: int = 1 << 20, **changes: Any) -> Service:
    """The service of such a model, with its audit log in `folder/audit`; `file` lists further principals."""
    (folder / "checkpoint").mkdir(parents=True)
    predictor = Predictor.load(checkpoint(folder / "checkpoint", sort, **changes))
    (folder / "principals.yaml").write_text(file)
    principals = Principals.load(TOKEN, folder / "principals.yaml") if file else Principals.load(TOKEN, folder / "none")
    return Service(predictor, predictor.study.name, 3, principals, Audit(folder / "audit", KEY), max_body_bytes)


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
        one = service(folder / "table", "table", file="\n".join(lines))
        with running(one) as client:
            yield Running(one, client, Audit(folder / "table" / "audit", KEY))


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
