"""Ingest and what it keeps, in one process: types, dates, ages, arrays; and not one identifier in any byte."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medray.artifacts import Workspace
from medray.ingest import Ingested, writing
from medray.ingest import plan as tasks
from medray.schema import NUMBER, TEXT, TIMESTAMP
from tests.hospitals import (
    CHART,
    HOSPITAL,
    LABS,
    brought_in,
    bytes_under,
    column,
    reasons,
    study_in,
    write_csv,
    write_hospital,
    write_labs,
)


def table_of(folder: Path, columns: dict[str, list[Any]], **changes: Any) -> Ingested:
    """Ingest one CSV of these columns, of as many patients as rows; every row is good."""
    count = len(next(iter(columns.values())))
    cells = {"patient": [f"p{number}" for number in range(count)], "died": ["0"] * count, **columns}
    rows = [",".join(f'"{cell}"' for cell in row) for row in zip(*cells.values(), strict=True)]
    write_csv(folder / "labs.csv", ",".join(cells), *rows)
    return brought_in(study_in(folder, LABS, sources__labs__time=None, **changes), folder / "workspace")


def kinds(done: Ingested) -> dict[str, str]:
    description = done.table.describe()
    assert description is not None
    return dict(description.columns["labs"])


def test_a_column_is_what_nearly_all_of_its_cells_are(tmp_path: Path) -> None:
    columns = {
        "crp": [str(n / 7) for n in range(40)],
        "ward": [f"0{n % 4}" for n in range(40)],  # a code: leading zeros would be lost
        "sex": ["F", "M"] * 20,
        "seen": [f"{n % 28 + 1:02d}.03.2024" for n in range(40)],
        "sent": [f"202403{n % 28 + 1:02d}" for n in range(40)],  # a date as DICOM writes it
        "dose": [*(str(n) for n in range(38)), "a lot", ""],
    }
    done = table_of(tmp_path, columns)
    expected = {"crp": NUMBER, "ward": TEXT, "sex": TEXT, "seen": TIMESTAMP, "sent": TIMESTAMP, "dose": NUMBER}
    assert kinds(done) == {"died": NUMBER, **expected}
    assert reasons(done) == [("labs.csv", 38, "column 'dose' holds something that is no number")]
    assert column(done, "labs.dose")[-1] is None
    assert set(column(done, "labs.ward")) == {"00", "01", "02", "03"}


def test_types_are_fixed_at_the_first_ingest(tmp_path: Path) -> None:
    write_csv(tmp_path / "labs_1.csv", "patient,crp,died", "a,1,0", "b,2,1")
    study = study_in(tmp_path, LABS, sources__labs__time=None, governance__max_quarantined=1)
    brought_in(study, tmp_path / "workspace")
    write_csv(tmp_path / "labs_2.csv", "patient,crp,died,new", "c,high,0,1", "d,4,1,2")
    done = brought_in(study, tmp_path / "workspace")
    assert kinds(done) == {"crp": NUMBER, "died": NUMBER}
    assert reasons(done) == [("labs_2.csv", 0, "column 'crp' holds something that is no number")]
    assert done.dropped["labs"]["new"] == "not among the columns that the first ingest fixed"


def test_what_identifies_is_dropped_with_its_reason(tmp_path: Path) -> None:
    columns = {
        "Name": ["Ada", "Bela"] * 20,
        "zip_code": ["12345"] * 40,
        "sample": [f"S{n * 37}" for n in range(40)],
        "ecg_id": [str(n) for n in range(40)],
        "report": [f"a shadow {n} in the left lung" for n in range(40)],
        "comment": [*["none"] * 39, "2024-03-01"],
        "codes": [f"['NORM', {n}]" for n in range(40)],
        "device": ["CS-12 of the ward", "Pulse 3"] * 20,
        "crp": [str(n) for n in range(40)],
    }
    done = table_of(tmp_path, columns)
    assert done.dropped["labs"] == {
        "Name": "its name is that of an identifier",
        "zip_code": "its name is that of an identifier",
        "sample": "an identifier: every text stands once",
        "ecg_id": "an identifier: every number stands once",
        "report": "free text",
        "comment": "dates among other text, which cannot be shifted",
        "patient": "a key, kept as a pseudonym or a shifted time only",
    }
    assert kinds(done) == {"died": NUMBER, "codes": TEXT, "device": TEXT, "crp": NUMBER}


def test_a_study_may_keep_what_looks_like_an_identifier(tmp_path: Path) -> None:
    columns = {"city": ["Ulm", "Bonn"] * 20, "report": [f"a shadow {n} in the left lung" for n in range(40)]}
    done = table_of(tmp_path, columns, governance__keep_columns=["labs.city"], governance__free_text="keep")
    assert set(kinds(done)) == {"died", "city", "report"}


def test_a_dropped_target_is_said_loudly(tmp_path: Path) -> None:
    done = table_of(tmp_path, {"zip": ["1", "2"] * 20}, cohort__target__column="labs.zip")
    assert "it is the study's target: keep it by governance.keep_columns" in done.dropped["labs"]["zip"]


def test_ages_over_89_become_90(tmp_path: Path) -> None:
    done = table_of(tmp_path, {"age": ["45", "89", "90", "97", "300"] * 8, "age_days": ["900"] * 40})
    assert column(done, "labs.age")[:5] == [45, 89, 90, 90, 90]
    assert set(column(done, "labs.age_days")) == {900}


def test_dates_of_a_subject_are_shifted_alike_and_intervals_stay_exact(tmp_path: Path) -> None:
    start = datetime(2024, 1, 1, 7, 30, tzinfo=UTC)
    times = [start + timedelta(days=3 * number) for number in range(4)]
    rows = [f"{patient},{time:%Y-%m-%d %H:%M},{time:%Y-%m-%d},0" for patient in ("a", "b", "c") for time in times]
    write_csv(tmp_path / "labs.csv", "patient,drawn_at,seen,died", *rows)
    done = brought_in(study_in(tmp_path, LABS), tmp_path / "workspace")
    drawn, seen = column(done, "labs:time"), column(done, "labs.seen")
    offsets = [(drawn[number] - times[number % 4]) for number in range(12)]
    assert len({*offsets[:4]}) == len({*offsets[4:8]}) == 1
    assert len({offsets[0], offsets[4], offsets[8]}) > 1
    assert all(offset.seconds == 0 and 1 <= abs(offset.days) <= 365 for offset in offsets)
    assert [moment.date() for moment in drawn] == [moment.date() for moment in seen]

    unshifted = study_in(tmp_path, LABS, governance__shift_dates=False)
    assert column(brought_in(unshifted, tmp_path / "workspace"), "labs:time")[:4] == times


def test_arrays_come_back_as_they_were_read(tmp_path: Path) -> None:
    write_hospital(tmp_path, 4)
    study = study_in(tmp_path, HOSPITAL, governance__max_quarantined=0.5)
    done = brought_in(study, tmp_path / "workspace")
    first = sorted((tmp_path / "films").glob("*.dcm"))
    read = [next(study.sources["films"].read(path)).assets[0] for path in first if path.name != "broken.dcm"]
    stored = [done.table.load_asset(asset) for asset in column(done, "films:asset")]
    assert stored
    for array, original in zip(stored, read, strict=True):
        assert array.dtype == original.dtype
        np.testing.assert_array_equal(array, original)


@pytest.mark.parametrize("size", [1, 200_000, 1 << 30])
def test_the_rows_do_not_depend_on_how_files_are_grouped(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of one file, of some, of all; parts of a few rows. The pseudonyms' key is the same."""
    write_hospital(tmp_path, 6)
    monkeypatch.setattr(tasks, "IN_PROCESS_BYTES", 1 << 30)
    secret = tmp_path / "secret"
    secret.write_text("00" * 32)
    secret.chmod(0o600)
    study = study_in(tmp_path, HOSPITAL, governance__key=f"file:{secret}", governance__max_quarantined=0.5)
    whole = brought_in(study, tmp_path / "whole")
    monkeypatch.setattr(tasks, "MIN_GROUP_BYTES", size)
    monkeypatch.setattr(tasks, "GROUP_BYTES", size)
    monkeypatch.setattr(writing, "PART_ROWS", 2)
    grouped = brought_in(study, tmp_path / "grouped")
    assert grouped.table.rows_digest() == whole.table.rows_digest()
    assert reasons(grouped) == reasons(whole)


def canaries(folder: Path, count: int) -> dict[str, list[bytes]]:
    """What must be nowhere: by class of identifier, in the forms in which the files hold it."""
    made = write_hospital(folder, count)
    return {
        "number": [persona.mrn.encode() for persona in made],
        "name": [name.encode() for persona in made for name in (persona.name, persona.name.replace("^", ", "))],
        "birth date": [text.encode() for p in made for text in (p.birth_date, p.birth_date.replace("-", ""))],
        "path": [b"ecg_00", b"labs.csv", b"films/", b"broken"],
        "address": [b"Harbour Street"],
        "time": [persona.recorded_at.encode() for persona in made],
    }


def test_no_identifier_is_in_any_byte_of_the_workspace(tmp_path: Path) -> None:
    source, root = tmp_path / "source", tmp_path / "workspace"
    planted = canaries(source, 8)
    brought_in(study_in(source, HOSPITAL, governance__max_quarantined=0.5), root)
    files = bytes_under(root)
    found = {
        f"{sort} in {path.relative_to(root)}"
        for path, data in files
        for sort, values in planted.items()
        if any(value in data or value in str(path.relative_to(root)).encode() for value in values)
    }
    assert not found
    assert len(files) > 10


def test_the_canaries_are_in_the_files_that_were_read(tmp_path: Path) -> None:
    """The control: the scan finds every class of them where nothing was sealed."""
    planted = canaries(tmp_path, 8)
    files = bytes_under(tmp_path)
    for sort, values in planted.items():
        assert any(value in data or value in str(path).encode() for path, data in files for value in values), sort


def test_no_error_or_reason_quotes_a_record(tmp_path: Path) -> None:
    write_csv(tmp_path / "chart.csv", "visit,patient,fold,died", "v1,Smith,1,0", "v2,Smith,10,0")
    write_csv(tmp_path / "notes.csv", "visit,tone", "v1,a")
    with pytest.raises(Exception, match="two splits") as error:
        brought_in(study_in(tmp_path, CHART), tmp_path / "workspace")
    assert not re.search(r"Smith|v1|v2", str(error.value))


def test_only_its_owner_can_look_into_the_workspace(tmp_path: Path) -> None:
    write_labs(tmp_path)
    brought_in(study_in(tmp_path, LABS), tmp_path / "workspace")
    assert (tmp_path / "workspace").stat().st_mode & 0o777 == 0o700
    parts = list((tmp_path / "workspace").rglob("part-*"))
    assert {path.stat().st_mode & 0o777 for path in parts} == {0o600}


def test_the_summary_counts_what_the_table_has(tmp_path: Path) -> None:
    write_labs(tmp_path, 50)
    study = study_in(tmp_path, LABS)
    done = brought_in(study, tmp_path / "workspace")
    table = Workspace.of(study, tmp_path / "workspace").table(study)
    assert done.records == table.read("labs").num_rows
    assert done.subjects == len(set(column(done, "labs:subject_id")))
