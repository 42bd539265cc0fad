"""What belongs to a unit: label, records of each modality, and which units are left out. Without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medray.artifacts.workspace import Workspace
from medray.batches import _plan
from medray.batches.join import NO_INPUT, NO_LABEL, OUTSIDE, Units, join
from medray.batches.labels import Labels
from medray.batches.work import opened, run
from medray.errors import DataError, IntegrityError
from medray.study import Study
from tests.tables import day, hexadecimal, study_of, write_table

CSV = {"kind": "csv", "path": "x.csv", "subject": "who"}


def joined(study: Study, folder: Path, sources: dict[str, list[dict[str, Any]]], **options: Any) -> Units:
    workspace = Workspace.of(study, folder / "workspace")
    table = write_table(study, workspace, sources, **options)
    description = table.describe()
    assert description is not None
    return join(_plan(study, table, description, Labels.of(study)), list(range(description.num_buckets)))


def chosen(units: Units, modality: str, column: str) -> dict[str, Any]:
    """By subject, the cell of the row that a modality was given."""
    source = column.split(".")[0]
    cells = units.rows[source].column(column).to_pylist()
    return {
        subject: None if place < 0 else cells[place]
        for subject, place in zip(units.subject.tolist(), units.places[modality].tolist(), strict=True)
    }


def labelled(units: Units) -> dict[str, Any]:
    return dict(zip(units.subject.tolist(), units.labels, strict=True))


def test_a_subject_is_one_unit_with_its_latest_record(tmp_path: Path) -> None:
    study = study_of(
        tmp_path,
        sources={"labs": CSV, "home": CSV},
        modalities={"labs": {"kind": "table", "columns": ["crp"]}},
        cohort={"target": {"column": "home.died", "positive": "1"}},
    )
    units = joined(
        study,
        tmp_path,
        {
            "labs": [
                {"subject": "a", "crp": 2.0, "time": day(2)},
                {"subject": "a", "crp": 1.0, "time": day(1)},
                {"subject": "b", "crp": 7.0},
                {"subject": "c", "crp": 9.0},
            ],
            "home": [{"subject": "a", "died": 1}, {"subject": "b", "died": 0}, {"subject": "b", "died": None}],
        },
    )
    assert labelled(units) == {hexadecimal("a"): "yes", hexadecimal("b"): "no"}
    assert chosen(units, "labs", "labs.crp") == {hexadecimal("a"): 2.0, hexadecimal("b"): 7.0}
    assert units.left_out[NO_LABEL] == 1  # c


@pytest.mark.parametrize(("use", "expected"), [("latest", [None, 1.0, 2.0, 2.0]), ("first", [None, 1.0, 1.0, 1.0])])
def test_a_record_that_came_after_the_unit_is_never_used(
    tmp_path: Path, use: str, expected: list[float | None]
) -> None:
    study = study_of(
        tmp_path,
        sources={"visits": {**CSV, "time": "at"}, "labs": {**CSV, "time": "at"}},
        modalities={"labs": {"kind": "table", "use": use}, "visits": {"kind": "table", "columns": ["age"]}},
        cohort={"unit": "visits", "target": {"column": "visits.died", "positive": "1"}},
    )
    visits = [{"subject": "a", "died": 0, "age": 1.0, "time": day(number), "record": number} for number in (1, 3, 6, 9)]
    labs = [{"subject": "a", "crp": 2.0, "time": day(6)}, {"subject": "a", "crp": 1.0, "time": day(2)}]
    labs.append({"subject": "b", "crp": 5.0, "time": day(0)})
    units = joined(study, tmp_path, {"visits": visits, "labs": labs})
    crp = units.rows["labs"].column("labs.crp").to_pylist()
    found = {
        name: None if place < 0 else crp[place] for name, place in zip(units.unit, units.places["labs"], strict=True)
    }
    assert [found[hexadecimal(number)] for number in (1, 3, 6, 9)] == expected


def test_an_undated_record_counts_as_before_and_an_undated_unit_as_after(tmp_path: Path) -> None:
    study = study_of(
        tmp_path,
        sources={"visits": CSV, "labs": CSV},
        modalities={"labs": {"kind": "table"}, "visits": {"kind": "table", "columns": ["age"]}},
        cohort={"unit": "visits", "target": {"column": "visits.died", "positive": "1"}},
    )
    visits = [{"subject": who, "died": 0, "age": 1.0, "time": when} for who, when in (("a", day(3)), ("b", None))]
    labs = [
        {"subject": "a", "crp": 1.0},
        {"subject": "a", "crp": 2.0, "time": day(5)},
        {"subject": "b", "crp": 3.0},
        {"subject": "b", "crp": 4.0, "time": day(9)},
    ]
    units = joined(study, tmp_path, {"visits": visits, "labs": labs})
    assert chosen(units, "labs", "labs.crp") == {hexadecimal("a"): 1.0, hexadecimal("b"): 4.0}


def test_sources_that_both_name_a_record_are_joined_by_it(tmp_path: Path) -> None:
    keyed = {**CSV, "record": "id"}
    study = study_of(
        tmp_path,
        sources={"scans": keyed, "notes": keyed, "home": CSV},
        modalities={"notes": {"kind": "table"}, "home": {"kind": "table"}, "scans": {"kind": "table"}},
        cohort={"unit": "scans", "target": {"column": "notes.found", "positive": "yes"}},
    )
    units = joined(
        study,
        tmp_path,
        {
            "scans": [{"subject": "a", "record": n, "kv": float(n)} for n in (1, 2, 3)],
            "notes": [
                {"subject": "a", "record": 2, "found": "yes", "words": 20.0},
                {"subject": "a", "record": 1, "found": "no", "words": 10.0},
            ],
            "home": [{"subject": "a", "age": 40.0}],
        },
    )
    assert dict(zip(units.unit.tolist(), units.labels, strict=True)) == {hexadecimal(1): "no", hexadecimal(2): "yes"}
    words = units.rows["notes"].column("notes.words").to_pylist()
    assert [words[place] for place in units.places["notes"]] == [10.0, 20.0]
    assert (units.places["home"] == 0).all()
    assert units.left_out[NO_LABEL] == 1


def test_rows_of_one_unit_that_disagree_are_counted(tmp_path: Path) -> None:
    study = study_of(
        tmp_path, sources={"labs": CSV}, cohort={"target": {"column": "labs.died", "positive": ["1", "2"]}}
    )
    rows = [("a", 1), ("a", 0), ("b", 1), ("b", 2), ("c", 0), ("c", None)]  # 1 and 2 are both positive
    units = joined(study, tmp_path, {"labs": [{"subject": who, "died": cell, "crp": 1.0} for who, cell in rows]})
    assert units.contradicted == 1


def test_units_outside_without_label_or_without_input_are_left_out_and_counted(tmp_path: Path) -> None:
    films = {"kind": "dicom", "path": "*.dcm"}
    study = study_of(
        tmp_path,
        sources={"films": films, "home": CSV},
        modalities={"films": {"kind": "image"}},
        cohort={"target": {"column": "home.died", "positive": "1"}},
    )
    pixels = np.zeros((16, 16), np.uint8)
    units = joined(
        study,
        tmp_path,
        {
            "films": [
                {"subject": "a", "asset": pixels},
                {"subject": "outside", "asset": pixels, "split": "excluded"},
                {"subject": "without label", "asset": pixels},
            ],
            "home": [
                {"subject": "a", "died": 1},
                {"subject": "outside", "died": 1, "split": "excluded"},
                {"subject": "without film", "died": 1},
            ],
        },
    )
    assert units.subject.tolist() == [hexadecimal("a")]
    assert units.left_out == {OUTSIDE: 1, NO_LABEL: 1, NO_INPUT: 1}


def test_a_row_without_its_array_is_absent_and_an_older_one_is_taken(tmp_path: Path) -> None:
    films = {"kind": "dicom", "path": "*.dcm"}
    study = study_of(
        tmp_path,
        sources={"films": films, "home": CSV},
        modalities={"films": {"kind": "image"}},
        cohort={"target": {"column": "home.died", "positive": "1"}},
    )
    rows = [{"subject": "a", "asset": np.zeros((16, 16), np.uint8)}, {"subject": "a", "asset": None}]
    units = joined(study, tmp_path, {"films": rows, "home": [{"subject": "a", "died": 1}]})
    assert units.places["films"].tolist() == [0]


def test_a_subject_in_two_splits_is_counted(tmp_path: Path) -> None:
    study = study_of(tmp_path, sources={"labs": CSV}, cohort={"target": {"column": "labs.died", "positive": "1"}})
    rows = [{"subject": who, "died": 1, "crp": 1.0, "split": split} for who, split in (("a", "train"), ("a", "tuning"))]
    assert joined(study, tmp_path, {"labs": [*rows, {"subject": "b", "died": 0, "crp": 1.0}]}).crossing == 1


# ---- inputs


def plan_of(folder: Path, modalities: dict[str, Any], **options: Any) -> Any:
    study = study_of(
        folder,
        sources={"labs": {**CSV, "time": "at"}},
        modalities=modalities,
        cohort={"target": {"column": "labs.died", "positive": "1"}, "split": {"by": "labs.fold", "held_out": ["9"]}},
    )
    row = {"subject": "a", "died": 1, "fold": 1, "crp": 1.0, "sex": "F", "drawn": day(1), "who": "a", "at": "x"}
    workspace = Workspace.of(study, folder / "workspace")
    table = write_table(study, workspace, {"labs": [row]}, **options)
    description = table.describe()
    assert description is not None
    return _plan(study, table, description, Labels.of(study))


def test_target_split_key_and_time_columns_are_never_inputs(tmp_path: Path) -> None:
    assert plan_of(tmp_path, {"labs": {"kind": "table"}}).inputs["labs"].columns == ("crp", "sex")


def test_a_table_with_columns_sees_just_those(tmp_path: Path) -> None:
    assert plan_of(tmp_path, {"labs": {"kind": "table", "columns": ["sex"]}}).inputs["labs"].columns == ("sex",)


def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"modalities.labs.columns: 'labs' has no column 'cpr'. Did you mean 'crp'\?"):
        plan_of(tmp_path, {"labs": {"kind": "table", "columns": ["cpr"]}})


def test_a_column_that_ingest_dropped_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'labs.city' is not in the table: it identifies a person"):
        plan_of(
            tmp_path,
            {"labs": {"kind": "table", "columns": ["city"]}},
            dropped={"labs": {"city": "it identifies a person"}},
        )


def test_an_image_of_a_source_that_has_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'image' needs images or signals, 'labs' holds columns only"):
        plan_of(tmp_path, {"labs": {"kind": "image"}})


# ---- labels


def read(target: dict[str, Any], cells: list[Any], folder: Path) -> tuple[list[str], list[Any]]:
    """Classes, and the row of y of each cell, None where it is unlabelled."""
    study = study_of(folder, sources={"chart": CSV}, cohort={"target": {"column": "chart.found", **target}})
    labels = Labels.of(study)
    found = labels.read(cells)
    classes = labels.name_classes(labels.count([label for label in found if label is not None]))
    return classes, [None if label is None else labels.encode([label], classes)[0].tolist() for label in found]


@pytest.mark.parametrize(
    ("target", "cells", "classes", "rows"),
    [
        ({"positive": "1"}, [1.0, 0.0, None, 2.0], ["found"], [[1], [0], None, [0]]),
        ({"positive": "PNEUMONIA"}, ["PNEUMONIA", "NORMAL"], ["PNEUMONIA"], [[1], [0]]),
        ({"positive": [1, 2]}, ["2", "3"], ["found"], [[1], [0]]),
        ({"positive": "true"}, [True, "False"], ["found"], [[1], [0]]),
        ({}, ["b", "a", None, "b"], ["a", "b"], [[0, 1], [1, 0], None, [0, 1]]),
        ({}, [10.0, 9.0], ["9", "10"], [[0, 1], [1, 0]]),
        ({}, ["yes", "no"], ["no", "yes"], [[0, 1], [1, 0]]),
        ({"classes": ["b", "a"]}, ["a", "c"], ["b", "a"], [[0, 1], None]),
        ({"many": True}, ['["x", "y"]', "{'y': 80.0, 'z': 0}", "x", None], ["x", "y", "z"],
         [[1, 1, 0], [0, 1, 1], [1, 0, 0], None]),
        ({"many": True, "classes": ["x"]}, ["['x', 'y']", "['y']", "[]"], ["x"], [[1], [0], [0]]),
        ({"kind": "regression"}, ["1.5", 2, None, float("nan")], [], [[1.5], [2], None, None]),
    ],
)  # fmt: skip
def test_a_cell_means_what_the_target_says(
    tmp_path: Path, target: dict[str, Any], cells: list[Any], classes: list[str], rows: list[Any]
) -> None:
    assert read(target, cells, tmp_path) == (classes, rows)


def test_codes_are_classes_by_a_file_and_none_left_is_unlabelled(tmp_path: Path) -> None:
    (tmp_path / "codes.csv").write_text(",class\nNDT,STTC\nIMI,MI\nSR,\n", encoding="utf-8")
    target = {"many": True, "map": {"file": "codes.csv", "key": "", "value": "class"}}
    cells = ["{'NDT': 100.0, 'SR': 0.0}", "{'SR': 0.0}", "{'IMI': 50, 'NDT': 1, 'ABC': 1}"]
    assert read(target, cells, tmp_path) == (["MI", "STTC"], [[0, 1], None, [1, 1]])


def test_a_file_of_codes_without_the_column_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "codes.csv").write_text("code,class\nNDT,STTC\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"codes.csv has no column 'clas'. Did you mean 'class'\?"):
        read({"many": True, "map": {"file": "codes.csv", "key": "code", "value": "clas"}}, ["x"], tmp_path)


def test_words_in_a_number_to_predict_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cohort.target chart.found: 2 cells are not numbers"):
        read({"kind": "regression"}, ["1.5", "high", "low"], tmp_path)


def test_a_cell_made_to_break_the_reader_is_one_name(tmp_path: Path) -> None:
    deep = "[" * 100_000
    assert read({"many": True}, [deep], tmp_path)[0] == [deep]


# ---- tasks


def test_an_error_of_a_task_is_raised_as_it_was() -> None:
    again = [DataError("no signal in the train split"), IntegrityError("pack-1: changed")]
    for error in again:
        with pytest.raises(type(error), match=str(error)):
            opened(json.dumps({"error": f"{type(error).__name__}\n{error}"}))


def test_a_task_gives_errors_of_the_data_as_text(tmp_path: Path) -> None:
    from medray.batches.work import Work

    study = study_of(tmp_path, sources={"labs": CSV}, cohort={"target": {"column": "labs.age", "kind": "regression"}})
    workspace = Workspace.of(study, tmp_path / "workspace")
    table = write_table(study, workspace, {"labs": [{"subject": "a", "age": "old", "crp": 1.0}]})
    description = table.describe()
    assert description is not None
    work = Work(_plan(study, table, description, Labels.of(study)), dict(study.modalities))
    batch = {"task": np.array([0]), "buckets": np.array([json.dumps(list(range(8)))])}
    with pytest.raises(DataError, match="1 cells are not numbers"):
        opened(run(batch, "survey", work)["result"][0])
