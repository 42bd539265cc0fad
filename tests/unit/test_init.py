"""Init writes a first study that loads, says why at each choice, and passes check."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from medray.check import check
from medray.cli import app
from medray.errors import DataError, StudyError
from medray.init import init
from medray.study import Study


def table(path: Path, header: str, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*([header] if header else []), *rows]) + "\n")


def images(folder: Path, names: list[str]) -> None:
    draw = np.random.default_rng(1)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (20, 20), dtype=np.uint8)).save(folder / name)


def passing(folder: Path, target: str = "") -> tuple[Study, str]:
    """The study that was written, which passes check, and its text."""
    path = init(folder, target=target)
    study = Study.load(path)
    assert not [str(finding) for finding in check(study).findings if finding.fails]
    return study, path.read_text()


def test_a_table_with_subject_time_and_target(tmp_path: Path) -> None:
    rows = [
        f"{index // 2},Fontaine,2024-01-{index % 28 + 1:02d},{index * 7 % 31},{index // 2 % 2}" for index in range(90)
    ]
    table(tmp_path / "labs.csv", "patient_id,name,drawn_at,crp,died", rows)
    study, text = passing(tmp_path)
    assert study.sources["labs"].subject == "patient_id"
    assert study.sources["labs"].time == "drawn_at"
    assert study.cohort.target.positive == ("1",)
    assert "identify: name" in text
    assert "Fontaine" not in text


def test_the_positive_value_is_not_a_word_for_no(tmp_path: Path) -> None:
    table(
        tmp_path / "a.csv", "x,diagnosis", [f"{i * 3 % 7},{'benign' if i % 3 == 0 else 'malignant'}" for i in range(60)]
    )
    assert passing(tmp_path)[0].cohort.target.positive == ("malignant",)


def test_files_with_the_same_columns_and_no_header_are_one_source(tmp_path: Path) -> None:
    draw = random.Random(1)
    for site in ("a", "b"):
        table(tmp_path / f"site.{site}.data", "", [f"{draw.random():.3f},1,1,{i % 3}" for i in range(40)])
    study, _ = passing(tmp_path)
    (source,) = study.sources.values()
    assert (source.path, source.header) == ("*.data", ("c1", "c2", "c3", "c4"))
    assert study.cohort.target.task == "multiclass"


def test_tables_are_joined_by_the_subject_and_others_are_named(tmp_path: Path) -> None:
    table(tmp_path / "chart.csv", "mrn,sex,outcome", [f"M{i},{'FM'[i % 2]},{i % 3 % 2}" for i in range(50)])
    table(tmp_path / "labs.tsv", "mrn\tcrp", [f"M{i}\t{i}" for i in range(50)])
    table(tmp_path / "codes.csv", "code,meaning", ["1,fever", "2,cough"])
    study, text = passing(tmp_path)
    assert set(study.modalities) == {"chart", "labs"}
    assert "whose rows they hold: codes.csv" in text


def test_a_column_that_gives_the_target_away_is_no_input(tmp_path: Path) -> None:
    rows = [f"{i * 7 % 11},{'xy'[i % 2]},{i % 2}" for i in range(60)]
    table(tmp_path / "a.csv", "crp,code,died", rows)
    study, text = passing(tmp_path)
    assert study.modalities["a"].columns == ("crp",)
    assert "no input is code" in text


def test_a_number_of_many_values_is_a_regression(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", "crp,weight", [f"{i % 9},{i * 1.5}" for i in range(60)])
    assert passing(tmp_path, "weight")[0].cohort.target.task == "regression"


def test_a_gzipped_table_is_read(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "labs.csv.gz", "wt") as file:
        file.write("crp,died\n" + "".join(f"{i * 3 % 7},{i % 2}\n" for i in range(40)))
    assert passing(tmp_path)[0].sources["labs"].path == "labs.csv.gz"


def test_names_that_yaml_would_misread_are_quoted(tmp_path: Path) -> None:
    table(
        tmp_path / "2024 labs.csv", "no,true: 1,y", [f"{i * 3 % 7},{i},{'no' if i % 2 else 'yes'}" for i in range(40)]
    )
    study, _ = passing(tmp_path)
    assert list(study.sources) == ["table_2024_labs"]
    assert study.cohort.target.positive == ("yes",)


def test_images_in_folders_by_class(tmp_path: Path) -> None:
    images(tmp_path, [f"{name}/{i}.png" for name in ("healthy", "tumour") for i in range(12)])
    study, text = passing(tmp_path)
    assert study.cohort.target.positive == ("tumour",)
    assert study.cohort.split.by is None
    assert "no file name holds a person's number" in text


def test_image_folders_called_train_and_test_are_the_split(tmp_path: Path) -> None:
    names = [
        f"{split}/{name}/person{10 * number + i}_{part}.jpeg"
        for number, split in enumerate(("train", "val", "test"))
        for name, of in (("NORMAL", range(5)), ("PNEUMONIA", range(5, 10)))
        for i in of
        for part in range(2)
    ]
    images(tmp_path, names)
    study, _ = passing(tmp_path)
    assert (study.cohort.split.held_out, study.cohort.split.tuning) == (("test",), ("val",))
    assert study.cohort.unit == "images"
    assert study.sources["images"].subject.path.startswith("(?i)")


def test_a_study_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", "crp,died", [f"{i * 3 % 7},{i % 2}" for i in range(40)])
    init(tmp_path)
    with pytest.raises(StudyError, match="--force"):
        init(tmp_path)
    init(tmp_path, force=True)


@pytest.mark.parametrize("files", [[], ["scan.png"], ["notes.txt"]])
def test_a_folder_that_holds_neither_says_what_is_looked_for(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match="no table that can be read"):
        init(tmp_path)


def test_a_table_without_a_target_asks_for_it(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", "crp,weight", [f"{i % 9},{i * 1.5}" for i in range(60)])
    with pytest.raises(DataError, match="Give --target COLUMN, one of: crp, weight"):
        init(tmp_path)
    with pytest.raises(DataError, match="Did you mean 'weight'"):
        init(tmp_path, target="wieght")


def test_the_command_writes_and_checks(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", "crp,died", [f"{i * 3 % 7},{i % 2}" for i in range(40)])
    done = CliRunner().invoke(app, ["init", str(tmp_path), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["path"] == str(tmp_path / "study.yaml")
    assert "nothing that would fail" in done.stderr
