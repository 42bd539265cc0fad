"""Small complete checkpoints, shards and scores of untrained networks, made by the product's own functions."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.numpy import save as save_arrays
from safetensors.torch import save

from medray import inputs
from medray.artifacts import Workspace
from medray.artifacts.checkpoint import BASELINE, WEIGHTS, Checkpoint, CheckpointFacts
from medray.artifacts.durable import sha256_of, write_bytes
from medray.artifacts.manifest import Manifest, write_manifest
from medray.artifacts.shards import Entry, ShardFacts, Shards, write_shard
from medray.governance.crypto import Keyring
from medray.loop.baseline import fit_baseline
from medray.modalities import Rows
from medray.models._network import Network
from medray.predict import Scores, Work, complete, score
from medray.study import Study

Array = np.ndarray[Any, Any]

LEADS = "I,II,V1"
SOURCES = {
    "labs": {"kind": "csv", "path": "labs.csv", "subject": "mrn", "time": "drawn_at"},
    "films": {"kind": "dicom", "path": "films/*.dcm"},
    "ecg": {"kind": "wfdb", "path": "ecg/*.hea", "subject": "mrn"},
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


def write_checkpoint(
    folder: Path,
    chosen: Study,
    task: str = "binary",
    *,
    seed: int = 0,
    baseline: Mapping[str, Array] | None = None,
    parents: Mapping[str, str] | None = None,
) -> Checkpoint:
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
    files = {WEIGHTS: sha256_of(folder / WEIGHTS)}
    if baseline is not None:
        write_bytes(folder / BASELINE, save_arrays(dict(baseline)))
        files[BASELINE] = sha256_of(folder / BASELINE)
    manifest = Manifest(
        sort="checkpoints",
        digest=folder.name,
        parents=dict(parents or {}),
        facts=facts.model_dump(),
        files=files,
        seconds=3.0,
        created=datetime.datetime.now(datetime.UTC),
    )
    write_manifest(folder, manifest)
    return Checkpoint(folder)


def write_shards(folder: Path, keyring: Keyring, chosen: Study, task: str, seed: int = 0) -> Shards:
    """Shards of 24 units each, two to a subject; labels follow the table's first column."""
    modalities = dict(chosen.modalities)
    states = {name: inputs.fit(modality, lambda n=name: [rows(n, 24, seed)]) for name, modality in modalities.items()}
    shards = Shards(folder, keyring)
    draw = np.random.default_rng(seed)
    entries = []
    for number, split in enumerate(["train", "train", "tuning", "held_out", "held_out"]):
        arrays: dict[str, Array] = {}
        for name, modality in modalities.items():
            arrays[f"x.{name}"] = inputs.encode(modality, states[name], rows(name, 24, seed + number))
            arrays[f"present.{name}"] = draw.random(24) > 0.1 * (name != "labs")
        cause = next(iter(arrays.values())).reshape(24, -1)[:, 0].astype(np.float64)
        arrays["y"] = _labels(task, cause + draw.normal(0, 0.5, 24))
        arrays["unit"] = draw.integers(0, 256, (24, 16)).astype(np.uint8)
        arrays["subject"] = np.repeat(arrays["unit"][::2], 2, axis=0)
        entries.append(Entry(name=f"{split}-{number}", split=split, rows=24))
        write_shard(shards.vault, entries[-1].name, arrays)
    facts = ShardFacts(
        task=task,
        classes=CLASSES[task],
        entries=entries,
        units={"train": 48, "tuning": 24, "held_out": 48},
        subjects={"train": 24, "tuning": 12, "held_out": 24},
        left_out={"no label": 3},
        subject_rule="labs: column mrn",
        split_rule="20% of subjects held_out, drawn",
    )
    manifest = Manifest(
        sort="shards",
        digest=folder.name,
        parents={"table": "7ab1e", "version": "0"},
        facts=facts.model_dump(),
        seconds=2.0,
        created=datetime.datetime.now(datetime.UTC),
    )
    write_manifest(folder, manifest)
    return shards


def write_scores(workspace: Workspace, chosen: Study, task: str = "binary", seed: int = 0) -> Scores:
    """The held-out scores of an untrained network, with a fitted baseline; all artifacts that they came from."""
    shards = write_shards(workspace.folder("shards", "5a4d"), workspace.keyring, chosen, task)
    checkpoint = write_checkpoint(
        workspace.folder("checkpoints", f"c{seed}"),
        chosen,
        task,
        seed=seed,
        baseline=fit_baseline(shards, dict(chosen.modalities)),
        parents={"shards": shards.digest},
    )
    scores = Scores(workspace.folder("scores", f"5c0{seed}"), workspace.keyring)
    work = Work(checkpoint, shards, scores, "held_out")
    for entry in shards.entries("held_out"):
        score(entry.name, work)
    complete(work, {"checkpoint": checkpoint.digest, "shards": shards.digest}, seconds=1.0)
    return scores


def _labels(task: str, cause: Array) -> Array:
    if task == "regression":
        return (60 + 10 * cause[:, None]).astype(np.float32)
    if task == "binary":
        return (cause[:, None] > 0).astype(np.float32)
    classes = np.digitize(cause, [-0.5, 0.5])
    if task == "multilabel":
        return np.stack([classes == 0, classes > 0, classes == 2], axis=1).astype(np.float32)
    return np.eye(3, dtype=np.float32)[classes]


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
