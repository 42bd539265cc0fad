"""From a table to sealed shards, on a cluster."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medray import inputs
from medray.artifacts.shards import Shards
from medray.artifacts.workspace import Workspace
from medray.batches import encode
from medray.errors import ArtifactError, DataError, IntegrityError
from medray.modalities import Rows
from medray.runtime import Cluster
from medray.study import Study
from tests.tables import hexadecimal, study_of, write_table

SPLITS = ("train", "tuning", "held_out")
SIDE = 20


def fused(folder: Path, **sections: Any) -> Study:
    return study_of(
        folder,
        **{
            "sources": {
                "films": {"kind": "dicom", "path": "*.dcm"},
                "labs": {"kind": "csv", "path": "labs.csv", "subject": "who"},
            },
            "modalities": {
                "films": {"kind": "image", "size": 16},
                "labs": {"kind": "table", "transforms": [{"kind": "clip", "z": 2.0}]},
            },
            "cohort": {"target": {"column": "labs.died", "positive": "1"}},
            **sections,
        },
    )


def rows_of(count: int = 120) -> dict[str, list[dict[str, Any]]]:
    """Films as bright as the subject's number, none of every third subject; labs with held-out outliers."""
    labs, films = [], []
    for number in range(count):
        split = SPLITS[(number // 10) % 3] if number % 40 else "excluded"
        whose = {"subject": number, "split": split}
        crp = 1e6 if split == "held_out" and number % 7 == 0 else float(number % 17)
        labs.append({**whose, "died": number % 2, "crp": crp, "sex": "FM"[number % 2], "site": f"text {number}"})
        if number % 3:
            films.append({**whose, "asset": np.full((SIDE, SIDE), 10 * number, np.uint16)})
    return {"films": films, "labs": labs}


@pytest.fixture(scope="module")
def encoded(ray_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Workspace, Shards]:
    folder = tmp_path_factory.mktemp("fused")
    study = fused(folder)
    workspace = Workspace.of(study, folder / "workspace")
    write_table(study, workspace, rows_of())
    return study, workspace, encode(study, workspace)


def whole(shards: Shards) -> dict[str, np.ndarray[Any, Any]]:
    """All samples, in the order of their subjects; `split` beside them."""
    parts = [{**shards.read(e.name), "split": np.array([e.split] * e.rows)} for e in shards.facts.entries]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.argsort([row.tobytes().hex() for row in joined["unit"]])
    return {key: values[order] for key, values in joined.items()}


def test_every_unit_is_in_one_shard_of_its_split(encoded: tuple[Study, Workspace, Shards]) -> None:
    samples, facts = whole(encoded[2]), encoded[2].facts
    expected = {hexadecimal(row["subject"]): row["split"] for row in rows_of()["labs"] if row["split"] != "excluded"}
    found = {row.tobytes().hex(): split for row, split in zip(samples["subject"], samples["split"], strict=True)}
    assert found == expected
    assert len(samples["y"]) == len(expected) == 117
    assert facts.units == facts.subjects == {split: list(expected.values()).count(split) for split in SPLITS}
    assert facts.left_out == {"outside of every split": 3}
    assert facts.disjoint


def test_labels_and_presence_are_those_of_the_subject(encoded: tuple[Study, Workspace, Shards]) -> None:
    samples = whole(encoded[2])
    of = {hexadecimal(row["subject"]): row for row in rows_of()["labs"]}
    for subject, label, film in zip(samples["subject"], samples["y"], samples["present.films"], strict=True):
        row = of[subject.tobytes().hex()]
        assert label == [row["died"]]
        assert film == (row["subject"] % 3 != 0)
    assert encoded[2].facts.classes == ["died"]
    assert not samples["x.films"][~samples["present.films"]].any()


def test_statistics_are_those_of_the_train_split_in_one_process(encoded: tuple[Study, Workspace, Shards]) -> None:
    study, workspace, shards = encoded
    rows = workspace.table(study).read("labs")
    train = rows.filter([split == "train" for split in rows.column("split").to_pylist()])
    names = {"labs.crp": "crp", "labs.sex": "sex", "labs.site": "site"}
    batch = Rows(train.select(list(names)).rename_columns(list(names.values())))
    state = inputs.fit(study.modalities["labs"], lambda: [batch])
    found = shards.facts.states["labs"]
    assert found["transforms"][0]["crp"] == pytest.approx(state["transforms"][0]["crp"])  # the last bit is of the tasks
    crp, sex = state["modality"]["columns"]
    assert found["modality"]["columns"] == [crp | {key: pytest.approx(crp[key]) for key in ("mean", "std")}, sex]
    assert max(state["transforms"][0]["crp"]) < 100  # the held-out outliers of 1e6 had no part in it
    assert shards.facts.names["labs"] == ["crp", "sex=F", "sex=M"]
    assert state["modality"]["left_out"]["site"].startswith("free text")


def test_samples_are_those_that_serving_would_make(encoded: tuple[Study, Workspace, Shards]) -> None:
    study, _, shards = encoded
    samples = whole(shards)
    for name, modality in study.modalities.items():
        state = shards.facts.states[name]
        assert shards.facts.shapes[name] == list(samples[f"x.{name}"].shape[1:])
        for row in rows_of()[name]:
            mine = [subject.tobytes().hex() == hexadecimal(row["subject"]) for subject in samples["subject"]]
            if not any(mine):
                continue
            of_one = Rows(_columns(row), [row["asset"]] if "asset" in row else None)
            assert np.array_equal(inputs.encode(modality, state, of_one), samples[f"x.{name}"][mine])


def _columns(row: dict[str, Any]) -> Any:
    import pyarrow as pa

    return pa.table({name: [row[name]] for name in ("crp", "sex", "site") if name in row})


def test_shards_are_sealed_and_of_about_equal_size(encoded: tuple[Study, Workspace, Shards]) -> None:
    _, _, shards = encoded
    rows = [entry.rows for entry in shards.entries("train")]
    assert len(rows) >= 4  # of 40 units: enough to mix, and to share between workers
    name = shards.entries("train")[0].name
    stored = (shards.folder / name).read_bytes()
    assert shards.read(name)["subject"].tobytes() not in stored
    changed = Path(shutil.copytree(shards.folder, shards.folder.with_name("0" * 16)))
    (changed / name).write_bytes(stored[:-1] + bytes([stored[-1] ^ 1]))
    with pytest.raises(IntegrityError):
        Shards(changed, shards.vault.keyring).read(name)


def test_what_is_encoded_is_not_encoded_again_unless_forced(encoded: tuple[Study, Workspace, Shards]) -> None:
    study, workspace, shards = encoded
    before = (shards.folder / "manifest.json").read_bytes()
    told: list[str] = []
    again = encode(study, workspace, progress=lambda what, done, total: told.append(what))
    assert again.folder == shards.folder
    assert not told
    trial = study.override({"train.learning_rate": 0.01, "model.hidden": 16, "seed": 5})
    assert encode(trial, workspace).folder == shards.folder  # trials of a search share them
    samples = whole(shards)
    forced = encode(study, workspace, force=True, progress=lambda what, done, total: told.append(what))
    assert {"counting and fitting", "fitting", "encoding"} <= set(told)
    assert (shards.folder / "manifest.json").read_bytes() != before
    redone = whole(Shards(forced.folder, workspace.keyring))
    assert all(np.array_equal(redone[key], samples[key]) for key in samples)


def test_another_content_of_the_table_gives_other_shards(ray_cluster: Cluster, tmp_path: Path) -> None:
    study = fused(tmp_path, modalities={"labs": {"kind": "table"}})
    workspace = Workspace.of(study, tmp_path / "workspace")
    table = write_table(study, workspace, rows_of(60))
    first = encode(study, workspace)
    assert first.facts.units["train"] + first.facts.units["tuning"] + first.facts.units["held_out"] == 58
    table.commit([], [part.name for part in table.parts("labs")][:1])
    with pytest.raises(DataError, match=r"no unit with a label is in train. Units left out: \d+ no label"):
        encode(study, workspace)


def test_several_records_of_a_subject_share_what_belongs_to_it(ray_cluster: Cluster, tmp_path: Path) -> None:
    study = fused(tmp_path, cohort={"unit": "films", "target": {"column": "labs.crp", "kind": "regression"}})
    workspace = Workspace.of(study, tmp_path / "workspace")
    rows = rows_of(30)
    rows["films"] = [{**row, "record": f"{row['subject']} {n}"} for row in rows["films"] for n in range(3)]
    write_table(study, workspace, rows)
    shards = encode(study, workspace)
    samples = whole(shards)
    assert len(samples["y"]) == 3 * sum(shards.facts.subjects.values()) == sum(shards.facts.units.values())
    assert len({unit.tobytes() for unit in samples["unit"]}) == len(samples["y"])
    of = {hexadecimal(row["subject"]): row["crp"] for row in rows["labs"]}
    assert [of[subject.tobytes().hex()] for subject in samples["subject"]] == samples["y"][:, 0].tolist()
    train = samples["y"][samples["split"] == "train"]
    assert np.allclose([shards.facts.label_mean, shards.facts.label_std], [train.mean(), train.std()])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"died": 1}, r"cohort.target labs.died: every unit of the train split is of one class"),
        ({"split": "train"}, r"cohort.split: no unit with a label is in held_out. Units left out: 0 no label"),
        ({"subject": 5}, r"(1 units have rows that disagree|1 subjects have records in two splits)"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    ray_cluster: Cluster, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    study = fused(tmp_path, modalities={"labs": {"kind": "table"}})
    workspace = Workspace.of(study, tmp_path / "workspace")
    write_table(study, workspace, {name: [{**row, **changes} for row in rows] for name, rows in rows_of(60).items()})
    with pytest.raises(DataError, match=message):
        encode(study, workspace)


def test_a_modality_that_train_lacks_is_named(ray_cluster: Cluster, tmp_path: Path) -> None:
    study = fused(tmp_path)
    workspace = Workspace.of(study, tmp_path / "workspace")
    rows = rows_of(60)
    rows["films"] = [row for row in rows["films"] if row["split"] != "train"]
    write_table(study, workspace, rows)
    with pytest.raises(DataError, match=r"modalities.films: no unit of the train split has it"):
        encode(study, workspace)


def test_a_study_that_was_not_ingested_says_what_to_do(tmp_path: Path) -> None:
    study = fused(tmp_path)
    with pytest.raises(ArtifactError, match=r"Ingest first: `medray ingest study.yaml`"):
        encode(study, Workspace.of(study, tmp_path / "workspace"))


def test_the_certificate_says_how_subjects_were_known_and_split(encoded: tuple[Study, Workspace, Shards]) -> None:
    facts = encoded[2].facts
    assert facts.subject_rule == "films: column PatientID; labs: column who"
    assert facts.split_rule.startswith("drawn: 20% of subjects held_out, drawn by a hash of seed 0")
    assert facts.columns["labs"] == {"crp": "number", "sex": "text", "site": "text"}
    assert any(warning.startswith("modalities.labs leaves out site (free text") for warning in facts.warnings)
