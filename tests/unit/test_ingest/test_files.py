"""Ingest and its files, in one process: what is new, changed, touched, vanished, broken, and what then changes."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from medray.errors import ArtifactError, DataError
from medray.ingest import Ingested
from tests.hospitals import LABS, brought_in, column, reasons, study_in, write_csv, write_labs

HEADER = "patient,crp,drawn_at,died"


def labs(folder: Path, **options: object) -> Ingested:
    return brought_in(study_in(folder, LABS), folder / "workspace", **options)


def test_every_good_row_is_kept_and_the_bad_one_has_a_reason(tmp_path: Path) -> None:
    write_labs(tmp_path, 500)
    done = labs(tmp_path)
    assert (done.records, done.subjects, done.new_files) == (499, 499, 1)
    assert done.quarantined == {"labs": {"the row does not have the 11 cells of the header": 1}}
    assert reasons(done) == [("labs.csv", 400, "the row does not have the 11 cells of the header")]
    assert sum(done.splits.values()) == 499


def test_the_same_files_change_nothing(tmp_path: Path) -> None:
    write_labs(tmp_path)
    first = labs(tmp_path)
    os.utime(tmp_path / "labs.csv")  # touched, or copied again
    second = labs(tmp_path)
    assert (second.new_files, second.changed_files) == (0, 0)
    assert second.table.head() == first.table.head()
    assert second.records == first.records == 40


def test_a_file_added_later_is_added_alone(tmp_path: Path) -> None:
    write_labs(tmp_path, 30, name="labs_b.csv")
    first = labs(tmp_path)
    before = {part.name for part in first.table.parts("labs")}
    write_labs(tmp_path, 10, seed=1, name="labs_a.csv")
    second = labs(tmp_path)
    assert (second.new_files, second.changed_files, second.records) == (1, 0, 40)
    assert before < {part.name for part in second.table.parts("labs")}
    # of an earlier name, but it came later
    assert column(second, "labs:file_id")[:30] == column(first, "labs:file_id")


def test_a_changed_file_replaces_its_rows(tmp_path: Path) -> None:
    write_csv(tmp_path / "labs_a.csv", HEADER, "p1,1,2024-01-01,0", "p2,2,2024-01-01,1", "p3,oops,2024-01-01,1")
    write_csv(tmp_path / "labs_b.csv", HEADER, *(f"q{n},{n},2024-01-01,0" for n in range(30)))
    assert len(reasons(labs(tmp_path))) == 1
    write_csv(tmp_path / "labs_a.csv", HEADER, "p1,7,2024-01-01,0", "p2,2,2024-01-01,1")
    done = labs(tmp_path)
    assert (done.new_files, done.changed_files, done.records) == (0, 1, 32)
    assert column(done, "labs.crp")[:2] == [7, 2]
    assert not done.quarantined


def test_a_vanished_file_stays_until_it_is_pruned(tmp_path: Path) -> None:
    write_labs(tmp_path, 30, name="labs_a.csv")
    write_labs(tmp_path, 10, seed=1, name="labs_b.csv")
    labs(tmp_path)
    (tmp_path / "labs_b.csv").unlink()
    kept = labs(tmp_path)
    assert (kept.records, kept.vanished_files) == (40, 1)
    pruned = labs(tmp_path, prune=True)
    assert (pruned.records, pruned.vanished_files) == (30, 1)
    assert (labs(tmp_path).records, labs(tmp_path).vanished_files) == (30, 0)


def test_an_older_version_still_has_what_was_replaced(tmp_path: Path) -> None:
    write_csv(tmp_path / "labs.csv", HEADER, "p1,1,2024-01-01,0", "p2,2,2024-01-01,1")
    version = labs(tmp_path).table.version
    write_csv(tmp_path / "labs.csv", HEADER, "p1,9,2024-01-01,0", "p2,2,2024-01-01,1")
    table = labs(tmp_path).table
    assert table.read("labs").column("labs.crp").to_pylist() == [9, 2]
    assert table.at(version).read("labs").column("labs.crp").to_pylist() == [1, 2]


def test_force_reads_every_file_again_and_finds_the_same(tmp_path: Path) -> None:
    write_labs(tmp_path)
    first = labs(tmp_path)
    forced = labs(tmp_path, force=True)
    assert forced.changed_files == 1
    assert forced.table.version > first.table.version
    assert forced.table.rows_digest() == first.table.rows_digest()


def test_a_file_that_breaks_off_is_quarantined_whole(tmp_path: Path) -> None:
    write_labs(tmp_path, 30, name="labs_a.csv")
    whole = gzip.compress((tmp_path / "labs_a.csv").read_bytes())
    (tmp_path / "labs_b.csv.gz").write_bytes(whole[: len(whole) // 2])
    done = brought_in(study_in(tmp_path, LABS, sources__labs__path="labs*"), tmp_path / "workspace")
    assert done.records == 30
    ((path, row, reason),) = reasons(done)
    assert (path, row) == ("labs_b.csv.gz", None)
    assert "not readable" in reason


def test_a_file_whose_path_names_no_subject_is_quarantined(tmp_path: Path) -> None:
    for name in ("p1", "p2", "unnamed"):
        write_csv(tmp_path / f"labs_{name}.csv", "crp,died", "1,0", "2,1")
    changes = {"sources__labs__subject": {"path": "_(p[0-9])"}, "sources__labs__time": None}
    done = brought_in(study_in(tmp_path, LABS, **changes), tmp_path / "workspace")
    assert (done.records, done.subjects) == (4, 2)
    assert reasons(done) == [("labs_unnamed.csv", None, "its path does not match `subject`")]


def test_hidden_files_and_the_workspace_are_no_data(tmp_path: Path) -> None:
    write_labs(tmp_path, 30)
    for folder in (tmp_path / "workspace" / "exported", tmp_path / ".trash"):
        write_csv(folder / "labs.csv", HEADER, "p1,1,2024-01-01,0")
    (tmp_path / "._labs.csv").write_text("of a Mac")
    done = brought_in(study_in(tmp_path, LABS, sources__labs__path="**/*labs.csv"), tmp_path / "workspace")
    assert (done.new_files, done.records) == (1, 30)


def test_a_file_whose_name_is_not_utf8_is_read_too(tmp_path: Path) -> None:
    write_labs(tmp_path, 20)
    (tmp_path / "labs.csv").rename(tmp_path / os.fsdecode(b"labs_M\xfcller.csv"))
    (tmp_path / os.fsdecode(b"labs_\xff.csv")).write_bytes(b"\0")
    study = study_in(tmp_path, LABS, sources__labs__columns={"site": {"path": r"labs_(.*)\.csv"}})
    done = brought_in(study, tmp_path / "workspace")
    assert column(done, "labs.site")[0] == r"M\xfcller"
    assert [path for path, *_ in reasons(done)] == [r"labs_\xff.csv"]
    assert brought_in(study, tmp_path / "workspace").new_files == 0


def test_a_source_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sources\.labs: no file matches 'labs\*\.csv' in"):
        labs(tmp_path)


def test_a_source_of_which_nothing_can_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "labs.csv").write_bytes(b"\0\0\0")
    with pytest.raises(DataError, match=r"sources\.labs: none of its 1 file\(s\) can be read as csv"):
        labs(tmp_path)


def test_too_much_in_the_quarantine_stops_the_run_but_keeps_the_good_rows(tmp_path: Path) -> None:
    rows = [f"p{n},{'x' if n < 3 else n},2024-01-01,0" for n in range(100)]
    write_csv(tmp_path / "labs.csv", HEADER, *rows)
    strict = study_in(tmp_path, LABS, governance__max_quarantined=0.02)
    for _ in range(2):  # also when nothing is left to be read
        with pytest.raises(DataError, match=r"3 of 100 records .*3 x column 'crp' holds .* no number.*\(0\.02\)"):
            brought_in(strict, tmp_path / "workspace")
    done = labs(tmp_path)  # the limit is no part of the table
    assert (done.new_files, done.records) == (0, 97)
    assert [row for _, row, _ in reasons(done)] == [0, 1, 2]


def test_two_runs_at_once_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medray.artifacts import Workspace

    write_labs(tmp_path)
    study = study_in(tmp_path, LABS)
    workspace = Workspace.of(study, tmp_path / "workspace")
    lock = Workspace.lock
    monkeypatch.setattr(Workspace, "lock", lambda self, name: lock(self, name, timeout_s=0.1))
    with (
        lock(workspace, f"table-{workspace.table(study).digest}"),
        pytest.raises(ArtifactError, match="another run of medray"),
    ):
        brought_in(study, tmp_path / "workspace")
