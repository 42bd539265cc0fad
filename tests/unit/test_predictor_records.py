"""What a predictor is sent: values and files of one record each, read as ingest reads them, nobody named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medray.errors import DataError, ReadError
from medray.modalities import Rows
from medray.predictor import Predictor
from medray.readers.dicom import Dicom
from medray.readers.wfdb import Wfdb
from medray.synthetic import personas
from tests import checkpoints

ALL = ("labs", "films", "ecg")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A predictor of some inputs, each checkpoint written once."""
    folder = tmp_path_factory.mktemp("checkpoints")
    done: dict[str, Predictor] = {}

    def make(names: Sequence[str] = ALL) -> Predictor:
        digest = "-".join(names)
        if digest not in done:
            checkpoints.write_checkpoint(folder / digest, checkpoints.study(names, folder))
            done[digest] = Predictor.load(folder / digest)
        return done[digest]

    return make


def test_films_and_signals_are_sent_in_their_own_formats(made: Any, tmp_path: Path) -> None:
    predictor = made()
    whose = personas(2, seed=0, missing=0)
    Dicom.synthesize(tmp_path / "films", whose, seed=0)
    Wfdb.synthesize(tmp_path / "ecg", whose, seed=0)
    rows = {
        "films": predictor.rows_from_file("films", tmp_path / "films" / "film_0000.dcm"),
        "ecg": predictor.rows_from_file("ecg", tmp_path / "ecg" / "ecg_0000.hea"),
        "labs": predictor.rows_from_values("labs", {"crp": 40}),
    }
    kept = str([each.columns.to_pylist() for each in rows.values()])
    for identifier in (whose[0].mrn, whose[0].name.split("^")[0], whose[0].birth_date):
        assert identifier not in kept
    arrays, present = predictor.encode(rows)
    assert all(mask.all() for mask in present.values())
    explained = predictor.explain(arrays, present)
    assert 0 < explained.scores[0, 0] < 1
    assert all(attribution.any() for attribution in explained.attributions.values())


@pytest.mark.parametrize(("modality", "name"), [("films", "film_0000.dcm"), ("ecg", "ecg_0000.hea")])
def test_a_broken_file_is_one_error_that_names_it(made: Any, tmp_path: Path, modality: str, name: str) -> None:
    {"films": Dicom, "ecg": Wfdb}[modality].synthesize(tmp_path, personas(1, seed=0, missing=0), seed=0)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ReadError, match=name):
        made().rows_from_file(modality, path)


def test_values_of_a_request_become_the_same_input_as_a_row_of_a_file(made: Any, tmp_path: Path) -> None:
    predictor = made(("labs",))
    path = tmp_path / "one.csv"
    path.write_text("mrn,name,crp,sex,sodium,died\nMRN7,Ada,12.5,F,,1\n", encoding="utf-8")
    rows = predictor.rows_from_file("labs", path)
    assert rows.columns.column_names == ["crp", "sex", "sodium", "taken_at"]  # no identifier, no target
    sent = predictor.rows_from_values("labs", {"crp": 12.5, "sex": "F"})
    assert sent.columns.equals(rows.columns)
    text = predictor.rows_from_values("labs", {"crp": "12.5", "sex": " F ", "sodium": None})
    wanted = predictor.predict(*predictor.encode({"labs": rows}))
    for each in (sent, text):
        assert np.array_equal(predictor.predict(*predictor.encode({"labs": each})), wanted)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"crpp": 1}, r"labs\.crpp: unknown field\. Did you mean 'crp'\? Known: crp, sex, sodium, taken_at"),
        ({"died": 1}, r"labs\.died: the target, a key, a split or a time is no input"),
        ({"drawn_at": "2024-01-01"}, r"labs\.drawn_at: the target"),
        ({"crp": "high"}, r"labs: column 'crp' holds something that is no number"),
        ({"crp": [1]}, r"labs\.crp: expected a text, a number or null, found a list"),
        ({"sex": {"a": 1}}, r"labs\.sex: expected a text, a number or null, found an object"),
    ],
)
def test_a_wrong_field_is_named(made: Any, values: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        made(("labs",)).rows_from_values("labs", values)


def test_no_value_is_a_missing_value(made: Any) -> None:
    predictor = made(("labs",))
    for nothing in ({}, {"crp": None}, {"crp": math.nan}, {"crp": ""}):
        assert predictor.rows_from_values("labs", nothing).columns.column("crp").null_count == 1


def test_an_unknown_input_is_named(made: Any) -> None:
    predictor = made()
    with pytest.raises(DataError, match=r"unknown input 'lab'\. Did you mean 'labs'"):
        predictor.rows_from_values("lab", {})
    with pytest.raises(DataError, match="unknown input 'film'"):
        predictor.encode({"film": None})
    with pytest.raises(DataError, match="films: this image is sent as a file"):
        predictor.rows_from_values("films", {"pixel": 1})


def test_one_file_is_one_record(made: Any, tmp_path: Path) -> None:
    predictor = made(("labs",))
    path = tmp_path / "several.csv"
    path.write_text("crp,sex\n1,F\n2,M\n", encoding="utf-8")
    with pytest.raises(ReadError, match="several records"):
        predictor.rows_from_file("labs", path)
    path.write_text("crp,sex\n", encoding="utf-8")
    with pytest.raises(ReadError, match="holds no record"):
        predictor.rows_from_file("labs", path)
    path.write_text("crp,sex\n1,F\n2,M,3\n", encoding="utf-8")
    with pytest.raises(ReadError, match="row 1: the row does not have the 2 cells"):
        predictor.rows_from_file("labs", path)
    with pytest.raises(ReadError, match="not a file"):
        predictor.rows_from_file("labs", tmp_path / "none.csv")


def test_a_sample_without_any_modality_is_refused(made: Any) -> None:
    predictor = made(("films", "ecg"))
    for nothing in ({}, {"films": None}, {"films": Rows(checkpoints.rows("films", 1).columns, [None])}):
        with pytest.raises(DataError, match="give at least one of films, ecg"):
            predictor.encode(nothing)
    with pytest.raises(DataError, match="different numbers of rows"):
        predictor.encode({"films": checkpoints.rows("films", 2), "ecg": checkpoints.rows("ecg", 3)})


def test_absent_modalities_are_marked(made: Any) -> None:
    predictor = made()
    arrays, present = predictor.encode({"labs": checkpoints.rows("labs", 2)})
    assert {name: mask.tolist() for name, mask in present.items()} == {
        "labs": [True, True],
        "films": [False, False],
        "ecg": [False, False],
    }
    assert arrays["films"].shape == (2, 1, 32, 32)
    assert predictor.predict(arrays, present).shape == (2, 1)
