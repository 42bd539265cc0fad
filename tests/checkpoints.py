"""Small complete checkpoints of untrained networks, with state fitted by the product's own functions."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save

from medray import inputs
from medray.artifacts.checkpoint import WEIGHTS, Checkpoint, CheckpointFacts
from medray.artifacts.durable import sha256_of, write_bytes
from medray.artifacts.manifest import Manifest, write_manifest
from medray.modalities import Rows
from medray.models._network import Network
from medray.study import Study

Array = np.ndarray[Any, Any]

LEADS = "I,II,V1"
SOURCES = {
    "labs": {"kind": "csv", "path": "labs.csv", "subject": "mrn", "time": "drawn_at"},
    "films": {"kind": "csv", "path": "films.csv"},
    "ecg": {"kind": "csv", "path": "ecg.csv", "subject": "mrn"},
}
MODALITIES = {
    "labs": {"kind": "table"},
    "films": {"kind": "image", "size": 32},
    "ecg": {"kind": "signal", "rate_hz": 50, "seconds": 4},
}
ENCODERS = {
    "labs": {"kind": "tabular", "hidden": [16, 8]},
    "films": {"kind": "cnn", "depth": 10, "width": 4},
    "ecg": {"kind": "lstm", "hidden": 8},
}
TARGETS = {
    "binary": {"column": "labs.died", "positive": "1"},
    "multiclass": {"column": "labs.died"},
    "multilabel": {"column": "labs.died", "many": True},
    "regression": {"column": "labs.died", "kind": "regression"},
}
CLASSES = {"binary": ["died"], "multiclass": ["A", "B", "C"], "multilabel": ["A", "B", "C"], "regression": []}
COLUMNS = {
    "labs": {"crp": "number", "sex": "text", "sodium": "number", "taken_at": "time", "died": "number"},
    "ecg": {"sampling_rate_hz": "number", "leads": "text"},
    "films": {},
}


def study(names: Sequence[str], folder: Path, task: str = "binary", **sections: Any) -> Study:
    """A study of some of the three inputs."""
    model = {"kind": "fusion", "encoders": {name: ENCODERS[name] for name in names}} if len(names) > 1 else None
    written: dict[str, Any] = {
        "name": "small",
        "sources": {name: SOURCES[name] for name in dict.fromkeys(["labs", *names])},
        "modalities": {name: MODALITIES[name] for name in names},
        "model": model or ENCODERS[names[0]],
        "cohort": {"target": TARGETS[task]},
        **sections,
    }
    return Study.parse(written, folder)


def rows(name: str, count: int, seed: int = 0) -> Rows:
    """Records of one input, as ingest leaves them."""
    draw = np.random.default_rng([seed, *name.encode()])
    if name == "labs":
        sodium = [None if draw.random() < 0.2 else float(v) for v in draw.normal(139, 3, count)]
        columns = {"crp": draw.normal(20, 9, count), "sex": draw.choice(["F", "M"], count), "sodium": sodium}
        return Rows(pa.table({key: pa.array(values) for key, values in columns.items()}))
    if name == "films":
        films = [draw.integers(0, 256, (40, 32)).astype(np.uint8) for _ in range(count)]
        return Rows(pa.table({}), films)
    signals = [draw.normal(size=(200, 3)).cumsum(0).astype(np.float32) for _ in range(count)]
    return Rows(pa.table({"sampling_rate_hz": pa.array([50.0] * count), "leads": pa.array([LEADS] * count)}), signals)


def write_checkpoint(folder: Path, chosen: Study, task: str = "binary", *, seed: int = 0) -> Checkpoint:
    """A complete checkpoint of a network that was never trained, but whose normalization has seen samples."""
    modalities = dict(chosen.modalities)
    samples = {name: rows(name, 24, seed) for name in modalities}
    states = {name: inputs.fit(modality, lambda n=name: [samples[n]]) for name, modality in modalities.items()}
    shapes = inputs.shapes(modalities, states)
    torch.manual_seed(seed)
    network = chosen.model.build(shapes, inputs.num_outputs(task, CLASSES[task]))
    _settle(network, modalities, states, samples)
    write_bytes(folder / WEIGHTS, save({key: tensor.contiguous() for key, tensor in network.state_dict().items()}))
    facts = CheckpointFacts(
        task=task,
        classes=CLASSES[task],
        shapes={name: list(shape) for name, shape in shapes.items()},
        names={name: modality.names(states[name]["modality"]) for name, modality in modalities.items()},
        states=states,
        columns={name: COLUMNS[name] for name in chosen.sources},
        label_mean=60.0,
        label_std=10.0,
        study=_plain(chosen.written),
    )
    manifest = Manifest(
        sort="checkpoints",
        digest=folder.name,
        facts=facts.model_dump(),
        files={WEIGHTS: sha256_of(folder / WEIGHTS)},
        created=datetime.datetime.now(datetime.UTC),
    )
    write_manifest(folder, manifest)
    return Checkpoint(folder)


def _settle(network: Network, modalities: Mapping[str, Any], states: Any, samples: Mapping[str, Rows]) -> None:
    """Fresh networks answer everything alike: let normalization see the samples, and the rest be far from zero."""
    arrays = {name: inputs.encode(modality, states[name], samples[name]) for name, modality in modalities.items()}
    masks = {name: np.ones(24, bool) for name in modalities}
    with torch.no_grad():
        for missing in network.missing:
            missing.normal_()
        for _ in range(8):
            network(*inputs.to_tensors(modalities, arrays, masks))
        for name, parameter in network.named_parameters():
            if name.startswith("classifier"):
                parameter.normal_(std=0.5)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
