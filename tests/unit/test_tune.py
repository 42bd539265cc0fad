"""What may be searched, what is drawn, and what a journal that was cut off leaves. Searches: tests/ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from medray.artifacts.workspace import Workspace
from medray.errors import StudyError
from medray.study import Study
from medray.tune import Trial, Tuning, tune
from medray.tune.search import Asking, decoded, distribution, trials_of
from tests.tables import study_of

SECTIONS: dict[str, Any] = {
    "sources": {"labs": {"kind": "csv", "path": "labs.csv", "root": "data", "subject": "who"}},
    "cohort": {"target": {"column": "labs.died", "positive": "1"}},
}
SPACE = {
    "train.learning_rate": {"log": [1e-4, 1e-2]},
    "train.batch_size": {"log": [8, 64]},
    "train.patience": {"range": [2, 9]},
    "model": {"choice": ["tabular", {"kind": "tabular", "hidden": [4]}]},
}


def searched(folder: Path, space: Any = SPACE, **tune: Any) -> Study:
    return study_of(folder, **SECTIONS, tune={"space": space, **tune})


@pytest.mark.parametrize(
    ("path", "dimension", "said"),
    [
        ("modalities.labs.columns", {"choice": [["a"], ["b"]]}, "a search is for values of model and train"),
        ("cohort.split.seed", {"range": [0, 9]}, "a search is for values of model and train"),
        ("seed", {"range": [0, 9]}, "all its trials share the samples, the seed and the machine"),
        ("compute.workers", {"range": [1, 2]}, "a search is for values of model and train"),
        ("train.balance", {"choice": [True, False]}, "the tuning loss means something else"),
        ("train", {"choice": [{"epochs": 3}, {"balance": False}]}, "the tuning loss means something else"),
    ],
)
def test_what_trials_cannot_share_is_refused_before_anything_runs(
    tmp_path: Path, path: str, dimension: Any, said: str
) -> None:
    study = searched(tmp_path, {path: dimension})
    with pytest.raises(StudyError, match=rf"^study.yaml: tune\.space\.{path}: .*{said}") as caught:
        tune(study, Workspace.of(study, tmp_path / "workspace"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tuned", [{}, {"tune": {"space": {}}}])
def test_a_study_without_a_space_says_what_to_write(tmp_path: Path, tuned: dict[str, Any]) -> None:
    study = study_of(tmp_path, **SECTIONS, **tuned)
    with pytest.raises(StudyError, match=r"nothing to search\. Write, say, `tune: \{space: ") as caught:
        tune(study, Workspace.of(study, tmp_path / "workspace"))
    example = str(caught.value).split("`")[1]
    assert study_of(tmp_path, **SECTIONS, tune={"space": {"train.learning_rate": {"log": [0.0001, 0.01]}}}).tune
    assert "{log: [0.0001, 0.01]}" in example


def asking(study: Study, journal: Path) -> Asking:
    return Asking(study, trials_of(journal), lambda *_: None)


def values_of(asked: dict[str, Any] | None) -> dict[str, Any]:
    assert asked is not None
    values: dict[str, Any] = asked["values"]
    return values


def done(value: float) -> dict[str, Any]:
    return {"facts": json.dumps({"state": "complete", "value": value, "epochs": 1})}


def test_what_is_drawn_lies_within_the_space_and_makes_a_study(tmp_path: Path) -> None:
    study = searched(tmp_path)
    search = asking(study, tmp_path / "journal.jsonl")
    for number in range(12):
        values = values_of(search.suggest(str(number)))
        assert 1e-4 <= values["train.learning_rate"] <= 1e-2
        assert isinstance(values["train.batch_size"], int)
        assert isinstance(values["train.patience"], int)
        assert values["model"] in SPACE["model"]["choice"]
        tried = study.override({**values, "tune": None})
        assert tried.train.batch_size == values["train.batch_size"]
        search.on_trial_complete(str(number), done(values["train.learning_rate"]))


def test_a_choice_may_be_a_list_a_mapping_or_nothing() -> None:
    space = {"x": {"choice": [[1, 2], {"kind": "cnn"}, None, 0.5]}}
    drawn = distribution(space["x"])
    assert [decoded({"x": choice}, space)["x"] for choice in drawn.choices] == space["x"]["choice"]  # type: ignore[attr-defined]


def drawn(study: Study, journal: Path, count: int) -> list[dict[str, Any]]:
    search = asking(study, journal)
    found = []
    for number in range(count):
        found.append(values_of(search.suggest(str(number))))
        search.on_trial_complete(str(number), done(1 / (1 + number)))
    return found


def test_the_same_seed_draws_the_same_and_another_seed_does_not(tmp_path: Path) -> None:
    study = searched(tmp_path)
    first, again = (drawn(study, tmp_path / name, 4) for name in ("one", "two"))
    assert first == again
    assert drawn(study.override({"seed": 1}), tmp_path / "three", 4) != first


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_a_journal_that_was_cut_off_goes_on_with_the_trial_that_was_under_way(tmp_path: Path, cut: int) -> None:
    study, journal = searched(tmp_path), tmp_path / "journal.jsonl"
    undisturbed = drawn(study, tmp_path / "undisturbed", 4)
    search = asking(study, journal)
    for number in range(2):
        assert values_of(search.suggest(str(number))) == undisturbed[number]
        search.on_trial_complete(str(number), done(1 / (1 + number)))
    assert values_of(search.suggest("2")) == undisturbed[2]  # and then it is killed
    data = journal.read_bytes()
    journal.write_bytes(data[: len(data) - cut])
    (tmp_path / "journal.jsonl.lock").symlink_to(journal)  # while it wrote
    again = asking(study, journal)
    assert again.finished == 2
    values = values_of(again.suggest("2"))
    if cut:  # the last value had not been written yet: it is drawn anew
        assert values.pop("model") in SPACE["model"]["choice"]
    assert values.items() <= undisturbed[2].items()
    assert len(values) == len(SPACE) - bool(cut)
    again.on_trial_complete("2", done(1 / 3))
    again.suggest("3")
    states = [trial.state for trial in again.study.get_trials()]
    assert states == [TrialState.COMPLETE] * 3 + [TrialState.RUNNING]


def test_a_trial_whose_process_died_has_failed_and_says_so(tmp_path: Path) -> None:
    search = asking(searched(tmp_path), tmp_path / "journal.jsonl")
    search.suggest("0")
    search.on_trial_complete("0", None, error=True)
    assert [(trial.state, trial.value) for trial in search.trials()] == [("failed", None)]
    assert "its process died" in search.trials()[0].reason


def test_what_any_trial_would_meet_ends_the_search_and_counts_none(tmp_path: Path) -> None:
    search = asking(searched(tmp_path), tmp_path / "journal.jsonl")
    search.suggest("0")
    search.on_trial_complete("0", {"facts": json.dumps({"error": "IntegrityError\nshard 3: changed"})})
    assert search.trials() == []
    assert search.suggest("1") == search.FINISHED


def test_a_written_study_means_the_same_files_from_any_folder(tmp_path: Path) -> None:
    study = searched(tmp_path / "here")
    (tmp_path / "here").mkdir()
    values = {"train.epochs": 3}
    best = study.override({**values, "tune": None})
    found = Tuning(best, values, 0.5, None, "auroc", [Trial(values, "complete", 0.5)], tmp_path / "0", tmp_path / "0")
    found.write(tmp_path / "here" / "best.yaml")
    found.write(tmp_path / "there" / "best.yaml")
    here, there = (Study.load(tmp_path / name / "best.yaml") for name in ("here", "there"))
    assert here.sources["labs"].root == "data"
    assert here.root("labs") == there.root("labs") == study.root("labs")
    assert here.digest() == best.digest()
    named = best.override({"sources.labs.root": "${DATA}/labs"})
    Tuning(named, values, 0.5, None, "auroc", [], tmp_path, tmp_path).write(tmp_path / "there" / "best.yaml")
    assert Study.load(tmp_path / "there" / "best.yaml").sources["labs"].root == "${DATA}/labs"
