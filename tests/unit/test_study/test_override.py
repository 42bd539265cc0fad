"""One way to change a study: dotted paths, checked as if they had been written in the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from medray.errors import StudyError
from medray.study import Study, settings
from medray.study.written import read, write
from tests.studies import SMALL, TWO, refused, study_of

CONTRAST = """
name: contrast
sources:
  labels: {kind: csv, path: overview.csv, record: dicom_name, columns: {id: dicom_name}}
  slices: {kind: csv, path: slices.csv, record: name, subject: {of: labels}}
modalities: {slices: {kind: table}}
cohort:
  unit: slices
  target: {column: labels.Contrast, positive: "true"}
"""


def test_a_setting_is_read_as_yaml() -> None:
    changes = settings(["train.learning_rate=3e-4", "train.balance=false", "cohort.target={column: a.b, many: true}"])
    assert changes == {
        "train.learning_rate": 3e-4,
        "train.balance": False,
        "cohort.target": {"column": "a.b", "many": True},
    }
    assert settings(["sources.labs.path=a=b.csv", "model="]) == {"sources.labs.path": "a=b.csv", "model": None}


@pytest.mark.parametrize("text", ["train.epochs", "=3", "train.epochs=["])
def test_a_setting_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(StudyError, match=r"expected PATH=VALUE|train\.epochs: not YAML"):
        settings([text])


def test_a_change_is_checked_like_the_file() -> None:
    assert study_of(SMALL).override({"train.learning_rate": "3e-4"}).train.learning_rate == 3e-4
    assert refused(SMALL, "train.lerning_rate=1") == [
        "train.lerning_rate: unknown key. Did you mean 'learning_rate'? Known: epochs, batch_size, learning_rate, "
        "schedule, weight_decay, patience, balance, checkpoint_steps, mix_shards."
    ]
    assert refused(SMALL, "name.first=x") == ["name.first: 'name' holds no further keys"]
    assert refused(SMALL, "train.epochs=0") == ["train.epochs: Input should be greater than or equal to 1"]


def test_a_change_leaves_the_study_it_came_from_alone() -> None:
    study = study_of(TWO)
    before = study.to_yaml()
    study.override({"model.encoders.labs.hidden": [8], "cohort.target.positive": ["x"]})
    assert study.to_yaml() == before


def test_changes_add_up_and_none_takes_one_back() -> None:
    study = study_of(SMALL, "train.epochs=3").override({"train.batch_size": 8})
    assert (study.train.epochs, study.train.batch_size) == (3, 8)
    assert study.override({"train.epochs": None}).train.epochs == Study.model_fields["train"].default.epochs


def test_a_new_kind_drops_the_fields_of_the_one_before() -> None:
    study = study_of(SMALL + "model: {kind: tabular, hidden: [8], dropout: 0.5}\n")
    changed = study.override({"model.kind": "fusion"})
    assert changed.model.kind == "fusion"
    assert changed.model.hidden == 64
    assert study.override({"model.kind": "tabular"}).model.hidden == (8,)
    assert study_of(SMALL, "model.hidden=[9]").override({"model.kind": "tabular"}).model.hidden == (9,)


def test_what_every_kind_of_a_room_has_stays_with_a_new_kind() -> None:
    study = study_of(SMALL, "modalities.labs={kind: image, size: 32, use: first}", "model=cnn")
    changed = study.override({"modalities.labs.kind": "table", "model": None})
    assert changed.modalities["labs"].use == "first"
    assert changed.modalities["labs"].kind == "table"


@pytest.mark.parametrize("first", ["kind", "field"])
def test_the_order_of_changes_does_not_matter(first: str) -> None:
    changes = {
        "model.kind": "fusion",
        "model.hidden": 16,
        "model.encoders.labs.hidden": [4],
        "model.encoders.labs.kind": "tabular",
    }
    items = list(changes.items())
    study = study_of(SMALL).override(dict(items if first == "kind" else reversed(items)))
    assert study.model.hidden == 16
    assert study.model.encoders["labs"].hidden == (4,)


def test_what_is_above_is_changed_first() -> None:
    changes = {"modalities.labs.kind": "image", "modalities": {"labs": {"use": "first"}}, "model": "cnn"}
    labs = study_of(SMALL).override(changes).modalities["labs"]
    assert (labs.kind, labs.use) == ("image", "first")


def test_changing_an_implied_modality_keeps_the_others() -> None:
    study = study_of(TWO, "modalities.wards.transforms=[clip]")
    assert list(study.modalities) == ["labs", "wards"]
    assert study.override({"modalities.wards.transforms.0.z": 3}).modalities["wards"].transforms[0].z == 3.0


def test_a_bare_kind_may_be_given_fields() -> None:
    assert study_of(SMALL + "model: tabular\n", "model.dropout=0.3").model.dropout == 0.3


def test_a_list_has_no_item_beyond_its_end() -> None:
    (mistake,) = refused(TWO, "modalities.wards.transforms=[clip]", "modalities.wards.transforms.1.z=3")
    assert mistake == "modalities.wards.transforms.1.z: the list has 1 items, counted from 0; '1' is none of them"


# ---- the target


@pytest.mark.parametrize(
    "changes",
    [
        ("cohort.target={column: labels.Age, kind: regression}",),
        ("cohort.target.kind=regression", "cohort.target.column=labels.Age"),
        ("cohort.target.column=labels.Age", "cohort.target.kind=regression"),
    ],
)
def test_a_yes_or_no_target_becomes_a_number(changes: tuple[str, ...]) -> None:
    study = study_of(CONTRAST, *changes)
    assert study.cohort.target.task == "regression"
    assert study.cohort.target.column == "labels.Age"
    assert study.cohort.target.positive == ()
    assert study.cohort.unit == "slices"


def test_a_target_does_not_become_two_things() -> None:
    assert refused(CONTRAST, "cohort.target.kind=regression", "cohort.target.positive=1") == [
        "cohort.target: give one of positive, many, kind: regression"
    ]
    assert (
        study_of(CONTRAST, "cohort.target.positive=null", "cohort.target.many=true").cohort.target.task == "multilabel"
    )
    assert study_of(CONTRAST, "cohort.target.positive=null").cohort.target.task == "multiclass"


def test_a_changed_study_may_be_written_down(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    study = study_of(TWO, "train.learning_rate=3e-4", "model.encoders.labs.hidden=[8]")
    path.write_text(write(study.written), encoding="utf-8")
    assert Study.load(path).digest() == study.digest()
    assert Study.load(path, {"train.epochs": 2}).train.epochs == 2
    assert read(path.read_text(encoding="utf-8"))["train"] == {"learning_rate": 3e-4}
