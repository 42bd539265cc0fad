"""The demo's judge: a map points where it points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medray.demo import STUDY, write_hospital
from medray.demo.truth import points_at, reach
from medray.study import Study

SPOT, SIZE = (0.40, 0.70, 0.08), 64


def heat(row: float, column: float, side: int = 8) -> np.ndarray:
    """A map whose hill stands at a place given as fractions of the side."""
    places = (np.arange(side) * SIZE / side + 0.5) / SIZE  # where a network's cells look
    return np.exp(-((places[:, None] - row) ** 2 + (places[None] - column) ** 2) / 0.02).astype(np.float32)


@pytest.mark.parametrize("side", [8, 16, 64])
def test_a_hill_on_the_spot_points_at_it(side: int) -> None:
    assert points_at(heat(0.42, 0.68, side), SPOT, SIZE)


@pytest.mark.parametrize(("row", "column"), [(0.40, 0.30), (0.75, 0.70), (0.05, 0.05)])
def test_a_hill_elsewhere_does_not(row: float, column: float) -> None:
    assert not points_at(heat(row, column), SPOT, SIZE)


def test_a_map_without_a_maximum_points_nowhere() -> None:
    assert not points_at(np.zeros((8, 8), np.float32), SPOT, SIZE)


def test_random_points_hit_as_often_as_chance_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(4000):
        single = np.zeros((8, 8), np.float32)
        single[tuple(random.integers(8, size=2))] = 1
        hits += points_at(single, (float(random.uniform(0.3, 0.65)), float(random.uniform(0.25, 0.75)), 0.08), SIZE)
    chance = np.pi * reach(single, SPOT) ** 2
    assert hits / 4000 == pytest.approx(chance, rel=0.15)


def test_the_hospital_is_in_real_formats_and_the_same_seed_writes_the_same(tmp_path: Path) -> None:
    people = write_hospital(tmp_path / "a", subjects=20, seed=3)
    write_hospital(tmp_path / "b", subjects=20, seed=3)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".dcm", ".hea", ".dat", ".csv", ".yaml"}
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    assert sum(path.suffix == ".dcm" for path in files) == sum(person.has_film for person in people)


def test_the_study_that_is_written_loads(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY, encoding="utf-8")
    assert list(Study.load(tmp_path / "study.yaml").modalities) == ["films", "ecg", "labs"]
