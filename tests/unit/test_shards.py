"""Encoded samples come back as they were written, and only complete, unchanged ones are read."""

from __future__ import annotations

import datetime
import pickle
from pathlib import Path

import numpy as np
import pytest

from medray.artifacts.manifest import Manifest, write_manifest
from medray.artifacts.shards import Entry, ShardFacts, Shards, write_shard
from medray.errors import ArtifactError, IntegrityError
from medray.governance.crypto import Keyring


def samples(seed: int, count: int = 5) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        "x.films": draw.integers(0, 256, (count, 1, 8, 8), np.uint8),
        "x.labs": draw.normal(size=(count, 3)).astype(np.float16),
        "present.films": np.ones(count, bool),
        "present.labs": draw.random(count) < 0.5,
        "y": draw.random((count, 1)).astype(np.float32),
        "subject": draw.integers(0, 256, (count, 16), np.uint8),
        "unit": draw.integers(0, 256, (count, 16), np.uint8),
    }


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    made = Shards(tmp_path / "shards" / "abc", Keyring(tmp_path / "keyring"))
    entries = []
    for number, split in enumerate(["train", "train", "held_out"]):
        name = f"{split}-{number:05d}"
        write_shard(made.vault, name, samples(number))
        entries.append(Entry(name=name, split=split, rows=5))
    facts = ShardFacts(task="binary", classes=["yes"], shapes={"films": [1, 8, 8], "labs": [3]}, entries=entries)
    write_manifest(
        made.folder,
        Manifest(sort="shards", digest="abc", facts=facts.model_dump(), created=datetime.datetime.now(datetime.UTC)),
    )
    return made


def test_samples_come_back_as_they_were_written(shards: Shards) -> None:
    opened = pickle.loads(pickle.dumps(shards))  # noqa: S301
    for number, entry in enumerate(opened.facts.entries):
        found, written = opened.read(entry.name), samples(number)
        assert set(found) == set(written)
        for name, array in written.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


def test_a_split_names_its_shards_in_order(shards: Shards) -> None:
    assert [entry.name for entry in shards.entries("train")] == ["train-00000", "train-00001"]
    assert [entry.name for entry in shards.entries("held_out")] == ["held_out-00002"]
    assert shards.entries("tuning") == []


def test_shards_without_a_manifest_are_not_complete(shards: Shards) -> None:
    (shards.folder / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="no complete shards"):
        _ = Shards(shards.folder, shards.vault.keyring).facts


def test_a_shard_under_another_name_or_from_another_folder_does_not_open(shards: Shards, tmp_path: Path) -> None:
    one, other = shards.folder / "train-00000", shards.folder / "train-00001"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    for name in ("train-00000", "train-00001"):
        with pytest.raises(IntegrityError, match=name):
            shards.read(name)
    elsewhere = Shards(tmp_path / "shards" / "abd", shards.vault.keyring)
    write_shard(elsewhere.vault, "train-00000", samples(0))
    one.write_bytes((elsewhere.folder / "train-00000").read_bytes())
    with pytest.raises(IntegrityError, match="abc/train-00000"):
        shards.read("train-00000")


def test_no_sample_is_in_clear(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "shards" / "abc", Keyring(tmp_path / "keyring"))
    canary = b"JOHN DOE 1950-01-01"
    write_shard(shards.vault, "train-00000", {"x.labs": np.frombuffer(canary * 10, np.uint8)})
    assert all(canary not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
