"""Ingest and its keys, in one process: whose record it is, in which split, and what is said where that is not clear."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medray.errors import DataError
from medray.ingest import Ingested
from medray.ingest.keys import choose
from medray.study import Split
from tests.hospitals import CHART, LABS, brought_in, column, reasons, study_in, write_csv, write_labs


def chart(folder: Path, *rows: str, name: str = "chart.csv") -> None:
    """Rows of visit, patient, fold, died."""
    write_csv(folder / name, "visit,patient,fold,died", *rows)


def notes(folder: Path, *rows: str, name: str = "notes.csv") -> None:
    """Rows of visit, tone."""
    write_csv(folder / name, "visit,tone", *rows)


def bring(folder: Path, **changes: Any) -> Ingested:
    return brought_in(study_in(folder, CHART, **changes), folder / "workspace")


def subjects(done: Ingested, source: str) -> list[str]:
    return column(done, f"{source}:subject_id")


def test_a_record_finds_its_subject_in_the_source_that_owns_it(tmp_path: Path) -> None:
    chart(tmp_path, "v1,anna,1,0", "v2,bert,9,1", "v3,anna,1,0")
    notes(tmp_path, "v2,calm", "v3,low")
    done = bring(tmp_path)
    anna, bert, _ = subjects(done, "chart")
    assert subjects(done, "notes") == [bert, anna]
    assert column(done, "notes:split") == ["tuning", "train"]


def test_keys_compare_as_canonical_text(tmp_path: Path) -> None:
    chart(tmp_path, "15709.0,anna,1,0", "15710,bert,9,1")
    notes(tmp_path, "15709,calm", " 15710 ,low")
    done = bring(tmp_path)
    assert subjects(done, "notes") == subjects(done, "chart")
    assert column(done, "notes:record_id") == column(done, "chart:record_id")


def test_a_record_that_nobody_owns_waits_in_the_quarantine(tmp_path: Path) -> None:
    chart(tmp_path, "v1,anna,1,0")
    notes(tmp_path, "v1,calm", "v2,low")
    assert reasons(bring(tmp_path)) == [("notes.csv", 1, "no subject: 'chart' has no record of its key")]
    chart(tmp_path, "v2,bert,10,1", name="chart_2.csv")
    done = bring(tmp_path)
    assert (done.new_files, done.changed_files, done.quarantined) == (1, 1, {})
    assert column(done, "notes:split") == ["train", "held_out"]


def test_a_corrected_owner_moves_the_records_that_ask_it(tmp_path: Path) -> None:
    chart(tmp_path, "v1,anna,1,0", "v2,bert,1,1")
    notes(tmp_path, "v1,calm", name="notes_1.csv")
    notes(tmp_path, "v2,calm", name="notes_2.csv")
    bring(tmp_path)
    chart(tmp_path, "v1,anna,1,0", "v2,anna,1,1")
    done = bring(tmp_path)
    assert done.changed_files == 2  # the chart, and of the notes only those that are concerned
    assert len(set(subjects(done, "notes") + subjects(done, "chart"))) == 1


def test_the_second_of_two_equal_records_is_quarantined(tmp_path: Path) -> None:
    chart(tmp_path, "v1,anna,1,0", "v2,bert,9,1", "v1,carl,1,1")
    notes(tmp_path, "v1,calm", name="notes_1.csv")
    notes(tmp_path, "v2,low", "v1,loud", name="notes_2.csv")
    duplicate = "duplicate: another row has its record key"
    done = bring(tmp_path)
    assert reasons(done) == [("notes_2.csv", 1, duplicate), ("chart.csv", 2, duplicate)]
    assert column(done, "notes.tone") == ["calm", "low"]

    notes(tmp_path, "v7,calm", name="notes_1.csv")  # the first of them goes: the second is good
    done = bring(tmp_path)
    assert [reason for path, _, reason in reasons(done) if path == "notes_2.csv"] == []
    assert sorted(column(done, "notes.tone")) == ["loud", "low"]


def test_without_subject_each_record_is_its_own_and_the_summary_says_so(tmp_path: Path) -> None:
    write_labs(tmp_path, 20)
    done = brought_in(study_in(tmp_path, LABS, sources__labs__subject=None), tmp_path / "workspace")
    assert (done.subjects, done.own_subject) == (20, ["labs"])


def test_a_row_without_key_is_quarantined(tmp_path: Path) -> None:
    chart(tmp_path, "v1,anna,1,0", ",bert,1,0", "v3,,1,0", "v4,anna,1,1", "v5,anna,1,1")
    notes(tmp_path, "v1,calm")
    assert [reason for *_, reason in reasons(bring(tmp_path))] == [
        "no record key: `record` is missing",
        "no subject: `subject` is missing",
    ]


# -- splits


def test_a_published_split_is_followed_and_what_it_leaves_out_is_excluded(tmp_path: Path) -> None:
    chart(tmp_path, "v1,anna,1,0", "v2,bert,9.0,1", "v3,carl,10,1", "v4,dora,,0")
    notes(tmp_path, "v1,a", "v2,b", "v3,a", "v4,b")
    done = bring(tmp_path)
    assert column(done, "notes:split") == ["train", "tuning", "held_out", "excluded"]
    assert done.splits == {"train": 1, "tuning": 1, "held_out": 1, "excluded": 1}


def test_a_subject_in_two_published_splits_is_an_error_with_counts(tmp_path: Path) -> None:
    chart(tmp_path, "v1,anna,1,0", "v2,anna,10,1", "v3,bert,9,1", "v4,bert,1,0", "v5,carl,1,0", "v6,carl,2,0")
    notes(tmp_path, "v1,a")
    with pytest.raises(DataError, match=r"2 subject\(s\) of chart are in two splits by 'fold'"):
        bring(tmp_path)


def test_a_subject_keeps_the_split_of_its_first_ingest(tmp_path: Path) -> None:
    chart(tmp_path, "v1,anna,1,0", "v2,bert,9,1", "v3,carl,,1")
    notes(tmp_path, "v1,a", "v3,b")
    bring(tmp_path)
    chart(tmp_path, "v4,carl,10,0", "v5,bert,9,0", name="chart_2.csv")  # carl was left out before anybody was held out
    notes(tmp_path, "v4,a", "v5,b", name="notes_2.csv")
    done = bring(tmp_path)
    assert Counter(column(done, "notes:split")) == {"train": 1, "excluded": 2, "tuning": 1}
    chart(tmp_path, "v6,anna,10,0", name="chart_3.csv")
    with pytest.raises(DataError, match=r"1 subject\(s\) are in another split by 'fold' than at their first ingest"):
        bring(tmp_path)


def test_a_path_can_hold_the_split(tmp_path: Path) -> None:
    for name, rows in {"train/labs_1": ["a,1"], "test/labs_2": ["b,1", "c,2"], "other/labs_3": ["d,1"]}.items():
        write_csv(tmp_path / f"{name}.csv", "patient,died", *rows)
    changes = {"cohort__split": {"by": {"path": "/(train|test)/"}, "held_out": ["test"], "tuning": ["none"]}}
    study = study_in(tmp_path, LABS, sources__labs__path="*/labs*.csv", sources__labs__time=None, **changes)
    done = brought_in(study, tmp_path / "workspace")
    assert done.splits == {"excluded": 1, "held_out": 2, "train": 1}


def test_two_installations_draw_the_same_split_and_no_common_pseudonym(tmp_path: Path) -> None:
    write_labs(tmp_path, 400)
    one, other = (brought_in(study_in(tmp_path, LABS), tmp_path / name) for name in ("one", "other"))
    assert column(one, "labs:split") == column(other, "labs:split")
    assert not set(subjects(one, "labs")) & set(subjects(other, "labs"))


def test_the_drawn_shares_are_those_asked_for() -> None:
    drawn = Counter(choose(Split(), None, f"patient {number}") for number in range(20_000))
    assert drawn["held_out"] / 20_000 == pytest.approx(0.2, abs=0.01)
    assert drawn["tuning"] / (20_000 - drawn["held_out"]) == pytest.approx(0.1, abs=0.01)


def test_the_seed_of_the_split_draws_another_one() -> None:
    one, other = ([choose(Split(seed=seed), None, str(number)) for number in range(100)] for seed in (0, 1))
    assert one != other


def test_a_draw_fills_up_what_a_published_split_does_not_name() -> None:
    split = Split(by="chart.fold", held_out=("10",))
    assert choose(split, "10", "anna") == "held_out"
    assert choose(split, None, "anna") == "excluded"
    drawn = Counter(choose(split, "1", str(number)) for number in range(10_000))
    assert set(drawn) == {"train", "tuning"}
    assert drawn["tuning"] / 10_000 == pytest.approx(0.1, abs=0.01)


def test_a_split_that_another_source_publishes_is_drawn_by_the_owners_key(tmp_path: Path) -> None:
    """`notes` publish the fold, the chart knows the subject: tuning, which is not named, is drawn as for the chart."""
    rows = [f"v{number},p{number},1,0" for number in range(300)]
    chart(tmp_path, *rows)
    write_csv(tmp_path / "notes.csv", "visit,fold", *(f"v{n},{'10' if n < 100 else '1'}" for n in range(300)))
    split = {"by": "notes.fold", "held_out": ["10"]}
    done = bring(tmp_path, cohort__split=split)
    expected = ["held_out"] * 100 + [
        choose(Split(by="notes.fold", held_out=("10",)), "1", f"p{number}") for number in range(100, 300)
    ]
    assert column(done, "chart:split") == column(done, "notes:split") == expected
    assert "tuning" in expected
