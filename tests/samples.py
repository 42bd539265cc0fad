"""Encoded samples with a planted cause, as `medray.batches` leaves them, for tests of what comes after it."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np

from medray.artifacts.manifest import Manifest, write_manifest
from medray.artifacts.shards import Entry, ShardFacts, Shards, write_shard
from medray.governance.crypto import Keyring
from medray.loop import Setup
from medray.modalities.image import Image
from medray.modalities.table import Table
from medray.models.cnn import Cnn
from medray.models.fusion import Fusion
from medray.models.tabular import Tabular
from medray.study import Train
from medray.transforms.augment import Augment

COLUMNS = ("crp", "lactate", "sodium")
SIDE = 16  # pixels


def write_shards(
    folder: Path,
    *,
    task: str = "binary",
    splits: tuple[tuple[str, int], ...] = (("train", 120), ("tuning", 40), ("held_out", 40)),
    rows: int = 16,
    films: bool = False,
    prevalence: float = 0.5,
    absent: float = 0.0,
    seed: int = 0,
) -> Shards:
    """Shards of `rows` samples: labs whose first column is the cause, and films with a bright corner where it is."""
    draw = np.random.default_rng(seed)
    shards = Shards(folder, Keyring(folder.parent / "keyring"))
    entries: list[Entry] = []
    classes = {"regression": [], "binary": ["died"]}.get(task, ["A", "B", "C"])
    seen = []
    for split, count in splits:
        for first in range(0, count, rows):
            n = min(rows, count - first)
            cause = (draw.random(n) < prevalence).astype(np.float32)
            labs = draw.normal(size=(n, len(COLUMNS))).astype(np.float32)
            labs[:, 0] += 2 * cause - 1
            arrays: dict[str, Any] = {"x.labs": labs, "present.labs": draw.random(n) >= absent}
            if films:
                pixels = draw.integers(0, 120, (n, 1, SIDE, SIDE)).astype(np.uint8)
                pixels[:, :, :5, :5] += (100 * cause).astype(np.uint8)[:, None, None, None]
                arrays |= {"x.films": pixels, "present.films": draw.random(n) >= absent}
            arrays["y"] = labels = _labels(task, cause, labs)
            arrays["subject"] = arrays["unit"] = draw.integers(0, 256, (n, 16)).astype(np.uint8)
            name = f"{split}-{first:04d}"
            write_shard(shards.vault, name, arrays)
            entries.append(Entry(name=name, split=split, rows=n))
            seen += [labels] if split == "train" else []
    train = np.concatenate(seen)
    columns = [{"name": c, "kind": "number", "mean": 0, "std": 1, "varies": True, "missing": False} for c in COLUMNS]
    facts = ShardFacts(
        task=task,
        classes=classes,
        shapes={"labs": [len(COLUMNS)], **({"films": [1, SIDE, SIDE]} if films else {})},
        states={"labs": {"transforms": [], "modality": {"columns": columns, "left_out": {}}}},
        label_mean=float(train.mean()) if task == "regression" else 0.0,
        label_std=float(train.std()) if task == "regression" else 1.0,
        class_share=dict(zip(classes, train.mean(axis=0).tolist(), strict=True)) if classes else {},
        entries=entries,
        units=dict(splits),
    )
    write_manifest(
        folder,
        Manifest(
            sort="shards",
            digest=folder.name,
            facts=facts.model_dump(),
            created=datetime.datetime.now(datetime.UTC),
        ),
    )
    return shards


def setup(*, films: bool = False, seed: int = 0, **train: Any) -> Setup:
    """A small network for such shards; with films a fusion that uses everything random there is."""
    chosen = Train(**{"epochs": 4, "batch_size": 16, "mix_shards": 3, **train})
    if not films:
        return Setup(Tabular(hidden=(8,), dropout=0.1), {"labs": Table()}, chosen, seed)
    encoders = {"films": Cnn(depth=10, width=4), "labs": Tabular(hidden=(8,), dropout=0.1)}
    modalities = {"films": Image(size=SIDE, transforms=(Augment(),)), "labs": Table()}
    return Setup(Fusion(encoders=encoders, hidden=8, modality_dropout=0.3), modalities, chosen, seed)


def _labels(task: str, cause: Any, labs: Any) -> Any:
    if task == "binary":
        return cause[:, None]
    if task == "regression":
        return (50 + 10 * labs[:, :1]).astype(np.float32)
    if task == "multilabel":
        return np.stack([cause, labs[:, 1] > 0, labs[:, 2] > 1], axis=1).astype(np.float32)
    return np.eye(3, dtype=np.float32)[np.digitize(labs[:, 0], [-1, 1])]
