"""De-identification: pseudonyms, and what is judged of a column by what was counted in it."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medray.governance.deidentify import (
    MAX_SHIFT_DAYS,
    SKETCH,
    Facts,
    Pseudonyms,
    cap_ages,
    is_age,
    names_a_number,
    reason_to_drop,
    shift_dates,
    shifts,
)
from medray.schema import NUMBER, TEXT, TIMESTAMP

ONE = Pseudonyms(b"1" * 32, b"2" * 32)


def test_a_pseudonym_is_of_the_key_and_of_what_it_stands_for() -> None:
    other = Pseudonyms(b"3" * 32, b"2" * 32)
    assert ONE.subject("anna") == ONE.subject("anna")
    assert len(ONE.subject("anna")) == 16
    made = [
        ONE.subject("anna"),
        ONE.subject("bert"),
        ONE.record("anna"),
        ONE.file("labs", "anna"),
        other.subject("anna"),
    ]
    assert len(set(made)) == len(made)


def test_a_pseudonym_is_hmac_sha256() -> None:
    """By the standard's own definition (RFC 2104), not by the library that computes it."""
    import hashlib

    key = (b"1" * 32).ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + b"subject\0anna").digest()
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).digest()
    assert ONE.subject("anna") == outer[:16]


def test_the_source_and_the_path_of_a_file_are_not_run_together() -> None:
    assert ONE.file("a", "b/c") != ONE.file("a/b", "c")


@given(st.binary(min_size=16, max_size=16))
def test_a_shift_is_never_none_and_at_most_a_year(subject_id: bytes) -> None:
    assert 1 <= abs(ONE.shift_days(subject_id)) <= MAX_SHIFT_DAYS


def test_shifts_are_spread_over_the_whole_range() -> None:
    days = {ONE.shift_days(number.to_bytes(16, "big")) for number in range(20_000)}
    assert days == set(range(-MAX_SHIFT_DAYS, MAX_SHIFT_DAYS + 1)) - {0}


def test_dates_move_by_whole_days_and_missing_ones_stay_missing() -> None:
    times = pa.array([0, 86_400_000_000, None], pa.timestamp("us", "UTC"))
    columns = pa.table({"seen": times, "crp": [1.0, 2.0, 3.0]})
    days = shifts(ONE, [b"a" * 16, b"a" * 16, b"b" * 16])
    moved = shift_dates(columns, days)
    first, second, missing = moved.column("seen").cast(pa.int64()).to_pylist()
    assert first == days[0] * 86_400_000_000
    assert second - first == 86_400_000_000
    assert missing is None
    assert moved.column("crp").to_pylist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("age", True), ("PatientAge", True), ("age_at_visit", True), ("AGE", True), ("stage", False), ("image", False),
     ("age_days", False), ("bone_age", False), ("age group", False), ("dosage", False)],
)  # fmt: skip
def test_a_column_of_ages_in_years_is_known_by_its_name(name: str, expected: bool) -> None:
    assert is_age(name) is expected


def test_only_numbers_of_ages_are_capped() -> None:
    columns = cap_ages(pa.table({"age": [88.5, 90.0, None, 130.0], "crp": [99.0] * 4, "age_text": ["99"] * 4}))
    assert columns.column("age").to_pylist() == [88.5, 90.0, None, 90.0]
    assert columns.column("crp").to_pylist() == [99.0] * 4
    assert columns.column("age_text").to_pylist() == ["99"] * 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [("id", True), ("ecg_id", True), ("RowIndex", True), ("", True), ("barcode", True), ("sample no", True),
     ("fluid", False), ("crp", False), ("acid", False), ("sodium", False)],
)  # fmt: skip
def test_a_column_that_numbers_rows_is_known_by_its_name(name: str, expected: bool) -> None:
    assert names_a_number(name) is expected


def facts(values: int, distinct: int, **counts: int) -> Facts:
    return Facts(values=values, sketch=[ONE.value(str(number)) for number in range(distinct)], **counts)


@pytest.mark.parametrize(
    ("column", "kind", "found", "expected"),
    [
        ("ward", TEXT, facts(40, 4), ""),
        ("ward", TEXT, facts(40, 39), "an identifier: every text stands once"),
        ("ward", TEXT, facts(5, 5), ""),  # too few to tell
        ("ward", TEXT, facts(40, 36), ""),
        ("report", TEXT, facts(100, 48, sentences=98), "free text"),
        ("report", TEXT, facts(100, 20, sentences=98), ""),  # categories of several words
        ("report", TEXT, facts(100, 48, sentences=30), ""),
        ("codes", TEXT, facts(100, 100, sentences=90, literals=98), ""),
        ("seen", TEXT, facts(100, 2, times=1), "dates among other text, which cannot be shifted"),
        ("seen", TIMESTAMP, facts(100, 100, times=100), ""),
        ("birth_date", TIMESTAMP, facts(100, 100, times=100), "its name is that of an identifier"),
        ("row_index", NUMBER, facts(100, 100, numbers=100, whole=100), "an identifier: every number stands once"),
        ("row_index", NUMBER, facts(100, 100, numbers=100, whole=99), ""),
        ("platelets", NUMBER, facts(100, 100, numbers=100, whole=100), ""),
    ],
)
def test_a_column_is_judged_by_what_was_counted(column: str, kind: str, found: Facts, expected: str) -> None:
    assert reason_to_drop(column, kind, found, free_text=False, shift_dates=True) == expected


def test_free_text_and_dates_stay_where_the_study_says_so() -> None:
    report = facts(100, 90, sentences=98)
    assert reason_to_drop("report", TEXT, report, free_text=True, shift_dates=True) == ""
    assert reason_to_drop("seen", TEXT, facts(100, 2, times=1), free_text=False, shift_dates=False) == ""


@pytest.mark.parametrize("distinct", [10, SKETCH - 1, 5_000, 100_000])
def test_distinct_values_are_counted_within_a_few_per_cent(distinct: int) -> None:
    """Over parts that overlap, in any order."""
    draw = random.Random(distinct)
    hashes = [draw.getrandbits(64) for _ in range(distinct)]
    total = Facts()
    for start in range(0, distinct, 3_000):
        part = sorted(hashes[max(0, start - 500) : start + 3_000])
        total.add(Facts(sketch=part[:SKETCH]))
    assert total.distinct == pytest.approx(distinct, rel=0.0 if distinct < SKETCH else 0.1)
