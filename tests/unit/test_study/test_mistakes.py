"""What is said about a study that is wrong: one line a mistake, where it is, with the nearest right word."""

from __future__ import annotations

from pathlib import Path

import pytest

from medray.errors import StudyError
from medray.study import Study
from medray.study.written import read, write
from tests.studies import SMALL, TWO, refused, study_of


def test_mistakes_are_gathered_one_a_line_with_the_nearest_right_word() -> None:
    text = SMALL.replace("positive", "positve") + "model: ltsm\ntrain: {epoch: 3}\nsede: 1\n"
    assert refused(text) == [
        "cohort.target.positve: unknown key. Did you mean 'positive'? "
        "Known: column, kind, positive, many, classes, map.",
        "model: unknown kind 'ltsm'. Did you mean 'lstm'? Known: cnn, fusion, lstm, tabular.",
        "train.epoch: unknown key. Did you mean 'epochs'? Known: epochs, batch_size, learning_rate, schedule, "
        "weight_decay, patience, balance, checkpoint_steps, mix_shards.",
        f"sede: unknown key. Did you mean 'seed'? Known: {', '.join(Study.model_fields)}.",
    ]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            "sources: {labs: {kind: csv, path: a.csv, subjct: p}}",
            "sources.labs.subjct: unknown key. Did you mean 'subj",
        ),
        ("sources: {labs: {kind: csv}}", "sources.labs.path: is missing"),
        ("sources: {labs: {kind: cvs, path: a}}", "sources.labs: unknown kind 'cvs'. Did you mean 'csv'?"),
        ("sources: {labs: {path: a}}", "sources.labs: 'kind:' is missing. Known: csv"),
        ("sources: [csv]", "sources: expected a mapping of names, found tuple"),
        ("sources: {labs: {kind: csv, path: a}, 'a b': {kind: csv, path: b}}", "sources.a b: a name is a letter, then"),
        (
            "sources: {labs: {kind: csv, path: a}, subject: {kind: csv, path: b}}",
            "sources.subject: this name is reserv",
        ),
        ("sources: {labs: {kind: csv, path: a, subject: {of: lasb}}}", "sources.labs.subject: no source 'lasb'"),
        (
            "sources: {labs: {kind: csv, path: a, subject: {path: '(('}}}",
            "sources.labs.subject: not a regular expression",
        ),
        ("modalities: {lab: {}}", "modalities.lab: no source 'lab'. Did you mean 'labs'?"),
        (
            "modalities: {labs: {kind: table, transforms: [{kind: clip, y: 3}]}}",
            "modalities.labs.transforms.0.y: unknown",
        ),
        ("modalities: {labs: {kind: table, use: all}}", "modalities.labs.use: Input should be 'latest' or 'first'"),
        (
            "modalities: {labs: {columns: [age, died]}}",
            "modalities.labs.columns: 'died' is a target, split, key or time",
        ),
        (
            "model: {kind: fusion, encoders: {labs: {kind: tabular, hiden: [3]}}}",
            "model.encoders.labs.hiden: unknown key",
        ),
        (
            "model: {kind: fusion, encoders: {lab: tabular}}",
            "model.encoders.lab: no modality 'lab'. Did you mean 'labs'?",
        ),
        ("model: {kind: fusion, encoders: {labs: fusion}}", "model.encoders.labs: kind 'fusion' encodes no single"),
        ("model: cnn", "model: kind 'cnn' takes (channels, height, width), but modality 'labs' gives (columns)"),
        ("explain: {fast: {labs: integrated_gradients}}", "explain.fast.labs: kind 'integrated_gradients' takes 16"),
        ("explain: {full: {lab: grad_cam}}", "explain.full.lab: no modality 'lab'. Did you mean 'labs'?"),
        ("explain: {labs: grad_cam}", "explain.labs: unknown key. Known: fast, full."),
        ("governance: {key: 5up3rs3cr3t}", "governance: key is a reference, env:NAME or file:/path, never the secret"),
        ("governance: {keep_columns: [zip]}", "governance.keep_columns: 'zip' is not the source.column of any source"),
        (
            "tune: {space: {train.lerning_rate: {log: [0.1, 1]}}}",
            "tune.space: train.lerning_rate: unknown key. Did you",
        ),
        (
            "tune: {space: {train.learning_rate: {log: [0, 1]}}}",
            "tune.space.train.learning_rate: log takes numbers above",
        ),
        (
            "tune: {space: {train.learning_rate: {range: [2, 1]}}}",
            "tune.space.train.learning_rate: range takes [low, high",
        ),
        ("tune: {space: {model.kind: {choice: [tabular, cnn]}}}", "tune.space: model: kind 'cnn' takes (channels, hei"),
        ("tune: {space: {train.balance: {choice: []}}}", "tune.space.train.balance: choice takes a list of values"),
        ("tune: {space: {train.epochs: [1, 2]}}", "tune.space.train.epochs: expected {log: [low, high]}, {range: ["),
        ("sources: {labs: {kind: csv, path: a, subject: {of: labs}}}", "sources.labs.subject: 'labs' does not know"),
        ("modalities: {'a b': {of: labs}}", "modalities.a b: a name is a letter, then letters"),
        ("modalities: {film: {kind: table, of: lasb}}", "modalities.film: no source 'lasb'. Did you mean 'labs'?"),
        ("cohort: {unit: lab, target: {column: labs.y}}", "cohort.unit: no source 'lab'. Did you mean 'labs'?"),
        ("compute: {workers: 3}", "train.batch_size: 32 samples are not shared equally by 3 workers; take a multiple"),
        ("explain: grad_cam", "explain: Input should be"),
        ("explain: {fast: grad_cam}", "explain.fast: expected a mapping of names, found str"),
        ("model: {kind: fusion, encoders: tabular}", "model.encoders: expected a mapping of names, found str"),
        ("model: 3", "model: 'kind:' is missing"),
        ("name: Not This", "name: String should match pattern"),
    ],
)
def test_a_mistake_is_said_where_it_is(written: str, said: str) -> None:
    mistakes = refused(write({**read(SMALL), **read(written)}))
    assert len(mistakes) == 1
    assert mistakes[0].startswith(said)
    assert "5up3rs3cr3t" not in mistakes[0]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("{column: labs.died, positive: 1, many: true}", "give one of positive, many, kind: regression"),
        ("{column: labs.died, positive: 1, classes: [a, b]}", "classes go with"),
        ("{column: labs.died, classes: [a, a]}", "classes holds a class twice"),
        ("{column: labs.died, classes: [a]}", "one class leaves nothing to tell apart"),
        ("{column: died}", "must be written source.column"),
        ("{column: lab.died}", "no source 'lab'. Did you mean 'labs'?"),
        ("{column: labs.died, positive: ['']}", "an empty value stands for no label"),
    ],
)
def test_a_target_that_says_two_things_is_refused(target: str, said: str) -> None:
    (mistake,) = refused(write({**read(SMALL), "cohort": {"target": read(target)}}))
    assert mistake.startswith("cohort.target")
    assert said in mistake


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("{held_out: [test]}", "held_out and tuning name values of `by:`, which is not given"),
        ("{by: labs.fold, held_out: [1, 2], tuning: '2'}", "'2' cannot mean both held_out and tuning"),
        ("{by: {paht: x}}", "expected a column, written source.column, or {path: regex}"),
        ("{by: fold}", "must be written source.column"),
        ("{by: ward.fold}", "no source 'ward'"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(split: str, said: str) -> None:
    cohort = {**read(SMALL)["cohort"], "split": read(split)}
    (mistake,) = refused(write({**read(SMALL), "cohort": cohort}))
    assert mistake.startswith("cohort.split")
    assert said in mistake


def test_a_subject_is_found_in_a_source_that_knows_it() -> None:
    assert study_of(TWO).keyed("wards", "subject")
    assert refused(TWO, "sources.labs.subject={of: wards}") == [
        "sources.labs.subject: 'wards' does not know the subject itself; name the source that does",
        "sources.wards.subject: 'labs' does not know the subject itself; name the source that does",
    ]
    assert refused(TWO, "sources.labs.record=null") == [
        "sources.wards.subject: 'wards' and 'labs' must both name their `record` to be joined"
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [", "not YAML: line 1: "),
        ("- a\n- b", "expected a mapping with name, sources and cohort"),
        ("", "expected a mapping"),
        (SMALL + "name: again\n", "not YAML: line 7: 'name' is written twice"),
        (SMALL + "train: !!python/object:os.system {}\n", "not YAML: line 7: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_study_is_refused_with_its_path(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StudyError, match=r"mine\.yaml: ") as error:
        Study.load(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"none\.yaml: cannot be read \(No such file or directory\)"):
        Study.load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: Düsseldorf".encode("latin-1"))
    with pytest.raises(StudyError, match=r"latin\.yaml: not text in UTF-8"):
        Study.load(tmp_path / "latin.yaml")
