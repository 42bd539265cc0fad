"""A digest names what decides a result, and moves with nothing else."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from pydantic import create_model

from medray.models.cnn import Cnn
from medray.models.fusion import Fusion
from medray.models.tabular import Tabular
from medray.plugins import Config
from medray.readers.csv import Csv
from medray.study import Compute, Governance, Study, Train
from medray.study.digest import essence
from tests.studies import SMALL, TWO, study_of


def test_a_hyperparameter_of_any_kind_at_any_depth_is_in_the_digest() -> None:
    study = study_of(TWO, "modalities.labs.transforms=[clip]")
    digests = {study.digest("sources", "modalities", "model")}
    for change in (
        {"model.hidden": 8},
        {"model.encoders.wards.hidden": [8]},
        {"modalities.labs.transforms.0.z": 3.0},
        {"modalities.labs.columns": ["age"]},
        {"sources.labs.delimiter": ";"},
        {"sources.labs.record": ["visit", {"row": True}]},
    ):
        digests.add(study.override(change).digest("sources", "modalities", "model"))
    assert len(digests) == 7


def test_a_kinds_fields_are_in_the_dump_of_a_field_typed_as_its_base() -> None:
    # pydantic drops them without polymorphic_serialization, silently
    study = study_of(TWO, "model.encoders.wards.hidden=[8]")
    assert study.model_dump()["model"]["encoders"]["wards"]["hidden"] == (8,)
    assert '"hidden":[8]' in study.model_dump_json()
    assert study.model_dump()["modalities"]["labs"]["columns"] is None


def test_what_is_written_as_its_default_changes_no_digest() -> None:
    written = study_of(SMALL, "train.epochs=30", "model={kind: tabular, dropout: 0.1}", "modalities.labs.kind=table")
    assert written.digest() == study_of(SMALL).digest()


def test_a_field_or_section_added_later_with_its_default_changes_no_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = essence(Train(epochs=3))
    later = create_model("Later", __base__=Train, warmup=(int, 0))
    assert essence(later(epochs=3)) == before
    assert essence(later(epochs=3, warmup=5)) != before
    digest = study_of(SMALL).digest()
    larger = create_model("Larger", __base__=Study, federate=(Compute, Compute()))
    assert larger.parse(study_of(SMALL).written, study_of(SMALL).folder).digest(*larger.model_fields) == digest


@pytest.mark.parametrize(("kind", "change"), [(Csv, {}), (Tabular, {}), (Csv, {"path": "other.csv"})])
def test_a_raised_version_of_a_kind_changes_the_digest(
    monkeypatch: pytest.MonkeyPatch, kind: Any, change: dict[str, Any]
) -> None:
    study = study_of(SMALL)
    before = study.digest()
    monkeypatch.setattr(kind, "version", kind.version + 1)
    assert study.digest() != before


def test_a_version_counts_inside_a_fusion_too(monkeypatch: pytest.MonkeyPatch) -> None:
    before = study_of(TWO).digest("model")
    monkeypatch.setattr(Tabular, "version", 2)
    assert study_of(TWO).digest("model") != before


def test_two_kinds_with_equal_fields_differ() -> None:
    assert essence(Fusion(encoders={"a": Tabular()})) != essence(Fusion(encoders={"a": Cnn()}))


def test_a_digest_covers_the_sections_that_are_asked_for() -> None:
    study = study_of(SMALL, "train.epochs=2")
    assert study.digest("sources", "cohort.split") == study_of(SMALL).digest("sources", "cohort.split")
    assert study.digest("train") != study_of(SMALL).digest("train")
    assert study_of(SMALL, "cohort.split.seed=1").digest("cohort.split") != study.digest("cohort.split")
    kept = study_of(SMALL, "governance.free_text=keep")
    assert kept.digest("governance.free_text") != study.digest("governance.free_text")
    assert kept.digest("governance.shift_dates") == study.digest("governance.shift_dates")


def test_names_order_and_places_change_no_digest() -> None:
    sections = ("sources", "cohort", "modalities", "model")
    study = study_of(TWO)
    turned = dict(reversed(study.written["sources"].items()))
    assert study.override({"sources": turned, "name": "other"}).digest(*sections) == study.digest(*sections)
    assert Study.parse(study.written, study.folder / "elsewhere").digest() == study.digest()


def test_a_secret_is_named_and_never_held() -> None:
    assert Governance(key="env:HOSPITAL_KEY").key == "env:HOSPITAL_KEY"
    assert Governance(key="file:/run/secrets/key").key == "file:/run/secrets/key"
    for secret in ("a" * 64, "env:", "file:relative", "env:NAME "):
        with pytest.raises(ValueError, match="never the secret itself"):
            Governance(key=secret)


class _Outer(Config):
    fixed: ClassVar[int] = 3
    number: float = 1.0


def test_a_whole_number_and_its_float_are_one_value() -> None:
    assert essence(_Outer(number=2)) == essence(_Outer(number=2.0))
