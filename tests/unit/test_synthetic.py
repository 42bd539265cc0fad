"""What personas show is what was planted in them, and nothing simpler."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medray.errors import ReadError
from medray.plugins import find
from medray.synthetic import FILM_SIZE, LATERAL, LEADS, Persona, personas

MADE = personas(120, seed=4)


def contrast(one: Persona) -> float:
    """How much brighter the spot's place is than the ring around it."""
    film = one.film()
    row, column, radius = one.spot
    line = (np.arange(FILM_SIZE) + 0.5) / FILM_SIZE
    distance = np.hypot(line[None] - column, line[:, None] - row)
    return float(
        film[distance < radius / 2].mean() - film[(distance > 1.3 * radius) & (distance < 1.8 * radius)].mean()
    )


def test_half_of_the_personas_die_and_each_cause_tells_a_part_of_it() -> None:
    many = personas(4000, seed=0)
    died = np.array([one.died for one in many])
    assert 0.4 < died.mean() < 0.6
    for cause in ("film_cause", "signal_cause", "table_cause"):
        assert 0.6 < roc_auc_score(died, [getattr(one, cause) for one in many]) < 0.85
    assert len({one.mrn for one in many}) == len(many)
    assert 0.03 < np.mean([not one.has_film for one in many]) < 0.09


def test_a_spot_is_where_it_was_planted() -> None:
    assert roc_auc_score([one.film_cause for one in MADE], [contrast(one) for one in MADE]) > 0.98


def test_a_spot_is_seen_by_its_shape_and_not_by_its_brightness() -> None:
    films = [one.film() for one in MADE]
    planted = [one.film_cause for one in MADE]
    assert roc_auc_score(planted, [film.max() for film in films]) < 0.7
    assert roc_auc_score(planted, [film.mean() for film in films]) < 0.7
    assert roc_auc_score(planted, [np.quantile(film, 0.99) for film in films]) < 0.8
    brightest = [np.unravel_index(film.argmax(), film.shape) for film in films]
    in_marker = [row < 0.15 * FILM_SIZE and column > 0.85 * FILM_SIZE for row, column in brightest]
    assert np.mean(in_marker) > 0.9


def test_a_film_has_12_bits_and_every_chest_is_its_own() -> None:
    films = np.stack([one.film() for one in MADE[:20]])
    assert films.dtype == np.uint16
    assert films.max() <= 4095
    assert films.std(0).mean() > 100
    np.testing.assert_array_equal(films[0], MADE[0].film())
    assert (MADE[0].film(seed=1) != films[0]).any()
    assert MADE[0].film(64).shape == (64, 64)


def test_the_st_segment_is_depressed_in_the_lateral_leads_alone() -> None:
    one = next(one for one in MADE if one.signal_cause)
    difference = one.ecg() - replace(one, signal_cause=0.0).ecg()
    lowest = dict(zip(LEADS, difference.min(0), strict=True))
    assert all(lowest[lead] < -0.05 for lead in LATERAL)
    assert all(lowest[lead] > -0.01 for lead in ("II", "V1", "V2", "V3"))


def test_an_ecg_is_one_of_a_heart() -> None:
    for one in MADE[:10]:
        ecg = one.ecg()
        assert ecg.shape == (1000, 12)
        limbs = dict(zip(LEADS, ecg.T, strict=True))
        noise = 0.4  # of the electrodes: each lead's own
        assert np.abs(limbs["I"] + limbs["III"] - limbs["II"]).max() < noise  # Einthoven
        assert np.abs(limbs["aVR"] + limbs["aVL"] + limbs["aVF"]).max() < noise
        assert 0.5 < np.ptp(ecg[:, LEADS.index("II")]) < 3  # mV
    assert MADE[0].ecg(rate_hz=250).shape == (2500, 12)


def test_a_hospital_of_600_is_written_soon(tmp_path: Path) -> None:
    many = personas(150, seed=1)
    start = time.process_time()
    for kind in ("dicom", "wfdb", "csv"):
        find("readers", kind).synthesize(tmp_path / kind, many, 1)  # type: ignore[attr-defined]
    assert (time.process_time() - start) * 4 < 20


def test_a_few_files_among_many_are_broken(tmp_path: Path) -> None:
    many = [
        replace(one, has_film=number == 199, has_signal=number == 249) for number, one in enumerate(personas(260, 2))
    ]
    for kind, suffix, said in (("dicom", "dcm", "pixel data are cut"), ("wfdb", "hea", "signal file is cut")):
        reader: Any = find("readers", kind)
        reader.synthesize(tmp_path / kind, many, 2)
        (path,) = (tmp_path / kind).glob(f"*.{suffix}")
        with pytest.raises(ReadError, match=said):
            list(reader(path="*").read(path))
