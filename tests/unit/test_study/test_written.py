"""A study file, from what a person wrote to what it implies, and back."""

from __future__ import annotations

import copy
import json
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from medray import plugins
from medray.errors import StudyError
from medray.study import Study
from medray.study.written import read, write
from tests.studies import NAMES, SMALL, TWO, designed, study_of


def test_images_alone_are_seen_by_a_cnn_and_explained_by_grad_cam() -> None:
    study = designed("chest-xray")
    assert {name: modality.kind for name, modality in study.modalities.items()} == {"films": "image"}
    assert study.model.kind == "cnn"
    assert study.explain.fast["films"].kind == "grad_cam"
    assert study.cohort.target.task == "binary"
    assert study.cohort.split.held_out == ("test",)


def test_a_modality_reads_another_source_by_of() -> None:
    study = designed("ecg-superclass")
    assert study.source_of("person") == "chart"
    assert study.cohort.target.task == "multilabel"
    assert {name: encoder.kind for name, encoder in study.model.encoders.items()} == {
        "ecg": "lstm",
        "person": "tabular",
    }
    assert not study.keyed("ecg", "subject") or study.keyed("chart", "subject")


def test_modalities_and_a_fusion_are_implied_by_the_sources() -> None:
    study = designed("mortality")
    assert {name: modality.kind for name, modality in study.modalities.items()} == {
        "films": "image",
        "ecg": "signal",
        "labs": "table",
    }
    assert study.model.kind == "fusion"
    assert {name: explainer.kind for name, explainer in study.explain.fast.items()} == {
        "films": "grad_cam",
        "ecg": "input_x_gradient",
        "labs": "input_x_gradient",
    }
    assert study.explain.full["labs"].kind == "integrated_gradients"


@pytest.mark.parametrize("name", NAMES)
def test_a_resolved_study_reads_back_as_the_same_study(name: str) -> None:
    study = designed(name)
    again = study_of(study.to_yaml())
    assert again.digest() == study.digest()
    assert again.model_dump() == study.model_dump()


@pytest.mark.parametrize("name", NAMES)
def test_editors_accept_each_study_as_written_and_as_resolved(name: str) -> None:
    study = designed(name)
    schema = Study.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for written in (study.written, read(study.to_yaml())):
        jsonschema.validate(json.loads(json.dumps(written)), schema)


# ---- what YAML means


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("NO", "NO"),  # 1.1: False
        ("yes", "yes"),
        ("on", "on"),
        ("True", True),
        ("3e-4", 3e-4),  # 1.1: a text
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-2.50", -2.5),
        ("7", 7),
        ("007", "007"),  # 1.1: 7, and the key of a subject lost
        ("010", "010"),
        ("1_000", "1_000"),
        ("10:30", "10:30"),  # 1.1: 630
        ("2024-01-31", "2024-01-31"),
        ("1.2.3", "1.2.3"),
        ("~", None),
        ("", None),
        (".inf", float("inf")),
    ],
)
def test_a_plain_word_means_what_it_looks_like(text: str, value: object) -> None:
    assert read(text) == value
    assert type(read(text)) is type(value)
    assert read(write({"key": value})) == {"key": value}


@pytest.mark.parametrize("text", ["3e-4", "007", "true", "null", "~", "", "1.5", "NO", "a: b", "#", "é", "line\nline"])
def test_what_is_written_is_read_back_as_the_same_text(text: str) -> None:
    assert read(write({"key": [text]})) == {"key": [text]}


def test_anchors_and_merged_mappings_are_read() -> None:
    assert read("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}") == {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}


def test_a_key_with_nothing_behind_it_is_not_written() -> None:
    empty = study_of(SMALL + "train:\n  # epochs: 5\nexplain:\nmodalities:\n  labs:\ntune:\n")
    assert empty.digest() == study_of(SMALL).digest()
    assert study_of(SMALL, "cohort.split.by=null").cohort.split.by is None


def test_values_compare_as_canonical_text() -> None:
    study = study_of(SMALL, "cohort.target.positive=[1.0, True, ' x ', 007]")
    assert study.cohort.target.positive == ("1", "true", "x", "007")
    assert study_of(SMALL, "cohort.target.positive=1").digest() == study_of(SMALL).digest()


# ---- what it holds


def test_a_study_is_frozen_all_the_way_down_and_hashable() -> None:
    study = study_of(TWO, "tune.space={train.epochs: {choice: [1, 2]}}", "sources.labs.columns={a: [b, {path: c}]}")
    hash(study)
    assert hash(study) == hash(copy.deepcopy(study))
    encoders = study.model.encoders
    for mapping in (study.sources, study.modalities, encoders, study.explain.fast, study.written, study.tune.space):
        with pytest.raises(TypeError, match="a study is frozen"):
            mapping["labs"] = None
    assert study.tune is not None
    assert isinstance(study.tune.space["train.epochs"]["choice"], tuple)
    with pytest.raises(ValueError, match="frozen"):
        study.train.epochs = 3


def test_a_study_is_pickled_whole() -> None:
    study = study_of(TWO)
    again = pickle.loads(pickle.dumps(study))  # noqa: S301
    assert again.digest() == study.digest()
    assert again.folder == study.folder
    assert again.override({"train.epochs": 2}).train.epochs == 2


def test_a_root_is_relative_to_the_study_or_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert study_of(SMALL).root("labs") == Path("/studies")
    assert study_of(SMALL, "sources.labs.root=../data").root("labs") == Path("/data")
    study = study_of(SMALL, "sources.labs.root='${HOSPITAL}/labs'")
    monkeypatch.setenv("HOSPITAL", "/mnt/hospital")
    assert study.root("labs") == Path("/mnt/hospital/labs")
    monkeypatch.delenv("HOSPITAL")
    with pytest.raises(StudyError, match=r"sources\.labs\.root: environment variable HOSPITAL is not set"):
        study.root("labs")


def test_target_split_keys_and_times_are_never_inputs() -> None:
    study = study_of(SMALL, "cohort.split.by=labs.fold", "sources.labs.record=[visit, {row: true}]")
    assert study.never_inputs() == {"labs.died", "labs.fold", "labs.patient", "labs.visit", "labs.drawn_at"}


def test_no_other_name_makes_an_input_of_the_target() -> None:
    columns = "{end: outcome, outcome: died, ward: {path: '/(w[0-9])/'}, site: {path: '(s[0-9])'}, sex: gender}"
    renamed = study_of(SMALL, f"sources.labs.columns={columns}", "cohort.split.by={path: '/(w[0-9])/'}")
    assert {"labs.outcome", "labs.end", "labs.ward"} <= renamed.never_inputs()
    assert not renamed.never_inputs() & {"labs.site", "labs.sex", "labs.gender"}
    aliased = study_of(SMALL, "sources.labs.columns={y: died, z: died}", "cohort.target.column=labs.y")
    assert {"labs.y", "labs.died", "labs.z"} <= aliased.never_inputs()


# ---- what editors and pages show


def test_editors_underline_what_medray_refuses() -> None:
    validator = jsonschema.Draft202012Validator(Study.json_schema())
    right = read(SMALL)
    assert validator.is_valid(right)
    for wrong in (
        {"train": {"epoch": 3}},
        {"model": "ltsm"},
        {"model": {"kind": "cnn", "widht": 3}},
        {"sources": {"labs": {"kind": "csv"}}},
        {"modalities": {"labs": {"kind": "table", "transforms": [{"kind": "clip", "y": 1}]}}},
        {"sede": 1},
    ):
        assert not validator.is_valid({**right, **wrong}), wrong
    for fine in ({"train": None}, {"model": {"width": 32}}, {"modalities": {"labs": None}}, {"model": "tabular"}):
        assert validator.is_valid({**right, **fine}), fine


def test_editors_show_what_a_field_means() -> None:
    schema = Study.json_schema()
    assert schema["$defs"]["Train"]["properties"]["patience"]["description"].startswith("epochs without a lower")
    assert schema["$defs"]["models.lstm"]["properties"]["hidden"]["description"] == "units each way."
    assert schema["$defs"]["readers.csv"]["properties"]["path"]["description"].startswith("glob of the files")


def configs() -> list[type[plugins.Config]]:
    kinds = [plugins.find(room, name) for room in plugins.ROOMS for name in plugins.names(room)]
    sections = [part for part in plugins.Config.__subclasses__() if part.__module__.startswith("medray.study")]
    return [*kinds, *sections]


@pytest.mark.parametrize("config", configs(), ids=lambda config: config.__qualname__)
def test_every_field_is_described_and_nothing_else(config: type[plugins.Config]) -> None:
    described, fields = set(plugins.described(config)), set(config.model_fields)
    kind = {"kind"} if issubclass(config, plugins.Kind) else set()
    assert fields - kind == described


# ---- what it costs


def python(code: str) -> tuple[str, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_importing_study_takes_little_and_pulls_in_nothing_heavy() -> None:
    heavy = "{'ray', 'torch', 'pyarrow', 'numpy', 'pandas', 'scipy'}"
    loaded, _ = python(f"import sys, medray.study; print(sorted({heavy} & set(sys.modules)))")
    assert loaded.strip() == "[]"
    assert min(python("import medray.study")[1] for _ in range(3)) < 0.35  # CPU seconds: others use this machine too


def test_a_schema_for_editors_needs_no_library_of_any_reader() -> None:
    heavy = "{'ray', 'torch', 'pyarrow', 'pandas', 'scipy', 'pydicom', 'wfdb'}"
    loaded, _ = python(
        f"import sys, medray.study as s; s.Study.json_schema(); print(sorted({heavy} & set(sys.modules)))"
    )
    assert loaded.strip() == "[]"
