"""The shipped studies: each loads, and passes check where its data are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from medray.check import check
from medray.study import Study

ROOT = Path(__file__).resolve().parent.parent
STUDIES = sorted(path.relative_to(ROOT / "examples").as_posix() for path in (ROOT / "examples").rglob("*.yaml"))
FIVE = {"breast-cancer", "heart-disease", "chest-xray", "ecg-superclass", "ct-contrast"}


def load(name: str) -> Study:
    return Study.load(ROOT / "examples" / name)


def test_the_five_examples_are_there_with_a_page_each() -> None:
    assert {Path(name).parts[0] for name in STUDIES} >= FIVE
    for example in FIVE:
        text = (ROOT / "examples" / example / "README.md").read_text(encoding="utf-8")
        assert len([line for line in text.splitlines() if line]) <= 7
        assert f"medray run examples/{example}/study.yaml" in text
        assert "CC BY" in text


@pytest.mark.parametrize("name", STUDIES)
def test_a_shipped_study_loads(name: str) -> None:
    study = load(name)
    assert study.digest() == Study.parse(json.loads(study.model_dump_json(exclude_none=True)), study.folder).digest()


def test_breast_cancer_passes_check_anywhere() -> None:
    found = check(load("breast-cancer/study.yaml"))
    assert not [str(finding) for finding in found.findings if finding.fails]
    assert found.seen["nuclei"].rows == 569


def test_breast_cancer_is_the_table_that_scikit_learn_ships() -> None:
    """The README says so: the same cells, the label in words."""
    import sklearn

    theirs = (Path(sklearn.__file__).parent / "datasets" / "data" / "breast_cancer.csv").read_text().splitlines()[1:]
    ours = (ROOT / "examples" / "breast-cancer" / "wdbc.csv").read_text().splitlines()[1:]
    words = {"malignant": "0", "benign": "1"}
    again = [",".join([*line.split(",")[:-1], words[line.split(",")[-1]]]) for line in ours]
    assert hashlib.sha256("\n".join(again).encode()).digest() == hashlib.sha256("\n".join(theirs).encode()).digest()


@pytest.mark.parametrize("name", [name for name in STUDIES if not name.startswith("breast-cancer")])
def test_a_shipped_study_passes_check_where_its_data_are(
    name: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDRAY_DATA", str(shared_data))
    found = check(load(name))
    assert not [str(finding) for finding in found.findings if finding.fails]


def test_the_age_can_be_predicted_too(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRAY_DATA", str(shared_data))
    study = load("ct-contrast/study.yaml").override({"cohort.target": {"column": "overview.Age", "kind": "regression"}})
    assert not [str(finding) for finding in check(study).findings if finding.fails]
