"""Ingest on the shared cluster: what it leaves is what one process leaves; what it reads stays in the tasks."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from medray.errors import DataError, StudyError
from medray.ingest import plan as tasks
from medray.runtime import Cluster
from medray.study import Study
from tests.hospitals import CHART, HOSPITAL, brought_in, bytes_under, reasons, study_in, write_csv, write_hospital

pytestmark = pytest.mark.usefixtures("by_ray_data")

COUNT = 10


@pytest.fixture
def by_ray_data(ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little there is."""
    monkeypatch.setattr(tasks, "IN_PROCESS_BYTES", -1)
    monkeypatch.setattr(tasks, "MIN_GROUP_BYTES", 300_000)
    monkeypatch.setattr(tasks, "GROUP_BYTES", 300_000)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Films, ECGs and a table, of which one film and one ECG are broken; the key is the same in every workspace."""
    folder = tmp_path_factory.mktemp("hospital")
    write_hospital(folder, COUNT)
    secret = folder.parent / "secret"
    secret.write_text("00" * 32)
    secret.chmod(0o600)
    return study_in(folder, HOSPITAL, governance__key=f"file:{secret}")


def test_tasks_and_one_process_leave_the_same_table(
    hospital: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int]] = []
    done = brought_in(hospital, tmp_path / "ray", progress=lambda *what: seen.append(what))
    assert Counter(what for what, *_ in seen)["ingest"] > 2
    assert seen[-1] == ("ingest", done.new_files, done.new_files)
    assert {path for path, *_ in reasons(done)} == {"films/broken.dcm", "ecg/broken.hea"}
    assert done.subjects == COUNT

    again = brought_in(hospital, tmp_path / "ray")
    assert (again.new_files, again.table.head()) == (0, done.table.head())

    monkeypatch.setattr(tasks, "IN_PROCESS_BYTES", 1 << 40)
    alone = brought_in(hospital, tmp_path / "alone")
    assert alone.table.rows_digest() == done.table.rows_digest()
    assert reasons(alone) == reasons(done)


def test_no_identifier_is_in_the_workspace_or_in_what_ray_writes(hospital: Study, tmp_path: Path) -> None:
    brought_in(hospital, tmp_path / "workspace")
    planted = [row.split(",")[column] for row in lines(hospital.folder / "labs.csv")[1:] for column in (0, 1, 2)]
    planted += [path.name for path in (hospital.folder / "films").iterdir()]
    session = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent
    written = bytes_under(tmp_path / "workspace", session)
    found = {(path.name, text) for path, data in written for text in planted if text.encode() in data}
    assert not found
    assert len([path for path, _ in written if path.is_relative_to(session)]) > 5


def test_what_a_task_finds_wrong_comes_back_as_it_is(tmp_path: Path) -> None:
    write_csv(tmp_path / "chart.csv", "visit,patient,fold,died", "v1,anna,1,0", "v2,anna,10,1")
    write_csv(tmp_path / "notes.csv", "visit,tone", "v1,a")
    with pytest.raises(DataError, match=r"1 subject\(s\) of chart are in two splits"):
        brought_in(study_in(tmp_path, CHART), tmp_path / "workspace")


def test_a_mistake_that_only_a_task_can_see_is_named(hospital: Study, tmp_path: Path) -> None:
    wrong = hospital.override({"sources.films.subject": "NoSuchKeyword"})
    with pytest.raises(StudyError, match="NoSuchKeyword"):
        brought_in(wrong, tmp_path / "workspace")


def test_owners_and_splits_reach_the_tasks(tmp_path: Path) -> None:
    rows = [f"v{number},p{number // 2},{number // 2 % 10 + 1},0" for number in range(200)]
    write_csv(tmp_path / "chart.csv", "visit,patient,fold,died", *rows)
    for part in range(4):
        write_csv(tmp_path / f"notes_{part}.csv", "visit,tone", *(f"v{number},a" for number in range(part, 200, 4)))
    done = brought_in(study_in(tmp_path, CHART), tmp_path / "workspace")
    columns = ["record_id", "subject_id", "split"]
    chart, notes = (done.table.read(name, columns=columns).sort_by("record_id") for name in ("chart", "notes"))
    assert chart.equals(notes)
    assert done.splits == {"train": 80, "tuning": 10, "held_out": 10}


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
