"""One sample's rows, from cells to tensors; the same in training and in serving."""

from __future__ import annotations

import warnings
from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medray import inputs
from medray.inputs import count_kinds, kind_of, typed
from medray.modalities import Rows
from medray.modalities.image import Image
from medray.modalities.table import Table
from medray.schema import NUMBER, TEXT, TIMESTAMP
from medray.transforms.augment import Augment
from medray.transforms.clip import Clip


def cells(kind: str, *values: object) -> list[object]:
    """What a column of these values holds as one kind; ValueError stands for a wrong cell."""
    columns, wrong = typed(pa.table({"c": pa.chunked_array([values])}), {"c": kind})
    found = columns.column("c").to_pylist()
    assert all(found[row] is None for row in wrong)
    return [ValueError if row in wrong else cell for row, cell in enumerate(found)]


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


# ---- cells


def test_numbers_are_finite_and_have_a_decimal_point() -> None:
    assert cells(NUMBER, "1", "-2.50", "+3", ".5", "5.", " 1e3 ", "007") == [1.0, -2.5, 3.0, 0.5, 5.0, 1000.0, 7.0]
    assert cells(NUMBER, "", "  ", None) == [None, None, None]
    assert cells(NUMBER, "1,5", "0x1F", "1_000", "inf", "1e999", "<5", "5 mg", "True", "\u0661") == [ValueError] * 9


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-01-31", utc(2024, 1, 31)),
        ("2024-01-31T10:11:12.5", utc(2024, 1, 31, 10, 11, 12, 500000)),
        ("2024-01-31 10:11:12.123456789", utc(2024, 1, 31, 10, 11, 12, 123456)),
        ("2024-01-31T10:11:12Z", utc(2024, 1, 31, 10, 11, 12)),
        ("2024-01-31 10:11:12 +02:00", utc(2024, 1, 31, 8, 11, 12)),
        ("2024-01-31T00:30:00-0100", utc(2024, 1, 31, 1, 30)),
        ("20240131", utc(2024, 1, 31)),  # DICOM DA, HL7 v2 DT
        ("20240131101112.5+0100", utc(2024, 1, 31, 9, 11, 12, 500000)),  # DICOM DT, HL7 v2 TS
        ("12/31/2024 1:05 PM", utc(2024, 12, 31, 13, 5)),
        ("1/2/2024", utc(2024, 1, 2)),
        ("12:00 AM 31 Jan 2024", utc(2024, 1, 31)),
        ("2.1.2024 9:05", utc(2024, 1, 2, 9, 5)),
        ("31-12-2024", utc(2024, 12, 31)),
        ("2024/1/2", utc(2024, 1, 2)),
        ("03-Apr-2024", utc(2024, 4, 3)),
        ("Mon, 3 Feb 2020 10:00 UTC", utc(2020, 2, 3, 10)),
        (" 1984-11-09 09:17:34 ", utc(1984, 11, 9, 9, 17, 34)),
    ],
)
def test_a_time_is_read_in_the_usual_ways_of_writing_it(text: str, moment: datetime) -> None:
    assert cells(TIMESTAMP, text) == [moment]
    # beside one that makes the fast way fail, it is read the same
    assert cells(TIMESTAMP, "2024-02-30", text, None) == [ValueError, moment, None]


@pytest.mark.parametrize(
    "text",
    [
        "2024-02-30",
        "2024-13-01",
        "31/12/2024",  # never day first by guess: 1/2/2024 would mean two things in one column
        "12",
        "May",
        "May 2024",
        "2024",
        "10:30",
        "5 Jan 24",  # which century would depend on today
        "3 Feb 2020 10:00 EST",  # which of several zones
        "2024-01-31 25:00",
        "13:05 PM 3 Feb 2020",
        "tomorrow",
        "1.5",
        "1706659200",
    ],
)
def test_a_time_that_is_not_wholly_written_is_wrong_and_never_guessed(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cells(TIMESTAMP, text, "2024-01-31") == [ValueError, utc(2024, 1, 31)]


def test_texts_are_stripped_and_composed() -> None:
    assert cells(TEXT, " a b ", "u\u0308", "", "7") == ["a b", "\u00fc", None, "7"]


def test_what_a_format_has_typed_itself_is_taken() -> None:
    assert cells(NUMBER, 1, 2) == [1.0, 2.0]
    assert cells(NUMBER, True, False, None) == [1.0, 0.0, None]
    assert cells(NUMBER, Decimal("1.25"), None) == [1.25, None]
    assert cells(NUMBER, float("nan"), float("inf"), 1.5) == [None, ValueError, 1.5]
    assert cells(TIMESTAMP, date(2024, 1, 31)) == [utc(2024, 1, 31)]
    assert cells(TIMESTAMP, datetime(2024, 1, 31, 10)) == [utc(2024, 1, 31, 10)]  # noqa: DTZ001
    assert cells(TEXT, 7, None) == ["7", None]
    assert cells(NUMBER, date(2024, 1, 31)) == [ValueError]
    assert cells(TIMESTAMP, 3.5) == [ValueError]
    assert cells(TEXT, [1, 2], None) == [ValueError, None]
    zoned = pa.chunked_array([pa.array([0], pa.timestamp("ns", tz="Europe/Berlin"))])
    assert typed(pa.table({"c": zoned}), {"c": TIMESTAMP})[0].column("c").to_pylist() == [utc(1970, 1, 1)]


def test_columns_come_in_the_wanted_order_and_absent_ones_are_null() -> None:
    columns = pa.table({"b": ["1", "2"], "a": ["x", None], "unwanted": ["3", "4"]})
    found, wrong = typed(columns, {"a": TEXT, "b": NUMBER, "c": TIMESTAMP})
    assert found.schema == pa.schema([("a", pa.string()), ("b", pa.float64()), ("c", pa.timestamp("us", tz="UTC"))])
    assert found.to_pydict() == {"a": ["x", None], "b": [1.0, 2.0], "c": [None, None]}
    assert not wrong


def test_a_wrong_cell_is_told_by_row_and_column_and_never_quoted() -> None:
    columns = pa.table({"age": ["41", "Ada Jansen", "x"], "drawn_at": ["2024-01-31", "secret", "2024-01-31"]})
    found, wrong = typed(columns, {"age": NUMBER, "drawn_at": TIMESTAMP})
    assert wrong == {
        1: "column 'age' holds something that is no number",
        2: "column 'age' holds something that is no number",
    }
    assert found.column("age").to_pylist() == [41.0, None, None]
    assert "Ada" not in str(wrong)


def test_chunks_dictionaries_and_no_rows_are_columns_too() -> None:
    chunked = pa.chunked_array([["1"], [], ["x", None]])
    assert typed(pa.table({"c": chunked}), {"c": NUMBER})[1] == {1: "column 'c' holds something that is no number"}
    encoded = pa.table({"c": chunked.dictionary_encode()})
    assert typed(encoded, {"c": NUMBER})[0].column("c").to_pylist() == [1.0, None, None]
    empty = pa.table({"c": pa.chunked_array([], pa.string())})
    assert [typed(empty, {"c": kind})[0].num_rows for kind in (NUMBER, TEXT, TIMESTAMP)] == [0, 0, 0]
    nothing = pa.table({"c": pa.nulls(2)})
    assert [typed(nothing, {"c": kind})[1] for kind in (NUMBER, TEXT, TIMESTAMP)] == [{}, {}, {}]


@given(st.lists(st.one_of(st.none(), st.text(), st.floats().map(str), st.datetimes().map(str)), max_size=8))
def test_any_text_is_a_cell_of_the_kind_or_wrong(texts: list[str | None]) -> None:
    for kind in (NUMBER, TEXT, TIMESTAMP):
        together = cells(kind, *texts) if texts else []
        alone = [cells(kind, text)[0] if text is not None else None for text in texts]
        assert together == alone


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (["1", "2.5", "", None], NUMBER),
        (["1"] * 19 + ["?"], NUMBER),
        (["1"] * 8 + ["high"] * 2, TEXT),
        (["2024-01-31", "1/2/2024"], TIMESTAMP),
        (["20240131", "20240201"], NUMBER),
        (["a", "b"], TEXT),
        ([None, ""], TEXT),
        ([1, 2], NUMBER),
        ([True, None], NUMBER),
        ([date(2024, 1, 31)], TIMESTAMP),
        ([[1]], TEXT),
    ],
)
def test_what_a_column_holds_is_what_nearly_all_of_its_cells_are(column: list[object], kind: str) -> None:
    assert kind_of(count_kinds(pa.chunked_array([column]))) == kind


# ---- from rows to tensors

LABS = pa.table({"crp": [3.0, 8.0, None, 400.0, 5.0, 7.0], "sex": ["F", "M", "F", "M", None, "F"]})


def test_each_step_is_fitted_on_what_the_steps_before_it_leave() -> None:
    modality = Table(transforms=(Clip(z=1.0), Augment()))
    assert inputs.num_passes(modality) == 2
    state = inputs.fit(modality, lambda: [Rows(LABS.slice(0, 4)), Rows(LABS.slice(4))])
    low, high = state["transforms"][0]["crp"]
    (crp, _) = state["modality"]["columns"]
    assert low < 3.0 < high < 400.0
    assert crp["mean"] == pytest.approx((3 + 8 + high + 5 + 7) / 5)


def test_parts_of_the_rows_fit_the_same_state_as_all_of_them() -> None:
    modality = Table(transforms=(Clip(),))
    whole = inputs.fit(modality, lambda: [Rows(LABS)])
    fitted: list[dict[str, object]] = []
    for _ in range(inputs.num_passes(modality)):
        parts = [inputs.partial(modality, fitted, Rows(LABS.slice(start, 2))) for start in (4, 0, 2)]
        fitted.append(inputs.merge(modality, fitted, parts))
    stored = inputs.encode(modality, inputs.joined(fitted), Rows(LABS))
    np.testing.assert_allclose(stored, inputs.encode(modality, whole, Rows(LABS)), rtol=1e-6)


def test_one_row_alone_is_encoded_as_among_others() -> None:
    modality = Table(transforms=(Clip(),))
    state = inputs.fit(modality, lambda: [Rows(LABS)])
    together = inputs.encode(modality, state, Rows(LABS))
    for row in range(LABS.num_rows):
        np.testing.assert_array_equal(inputs.encode(modality, state, Rows(LABS.slice(row, 1)))[0], together[row])


def test_an_absent_sample_is_blank_and_marked() -> None:
    image = Image(size=16)
    state = {"transforms": [], "modality": {"images": 1, "window": None}}
    arrays = {"film": inputs.blank(image, state, 2)}
    assert arrays["film"].shape == (2, *inputs.shapes({"film": image}, {"film": state})["film"])
    assert arrays["film"].dtype == np.uint8
    tensors, present = inputs.to_tensors({"film": image}, arrays, {"film": np.array([True, False])})
    assert tensors["film"].dtype == torch.float32
    assert present["film"].tolist() == [True, False]


def test_a_read_only_shard_becomes_tensors_that_can_be_written() -> None:
    array = np.zeros((2, 3), np.float32)
    array.flags.writeable = False
    tensors, _ = inputs.to_tensors({"labs": Table()}, {"labs": array}, {"labs": np.ones(2, bool)})
    tensors["labs"] += 1
    assert array.sum() == 0


def test_random_transforms_change_training_only_and_by_their_generator() -> None:
    image = Image(size=16, transforms=(Augment(),))
    loaded = {"film": torch.rand(3, 1, 16, 16)}
    before = loaded["film"].clone()
    draws = [inputs.augment({"film": image}, loaded, torch.Generator().manual_seed(seed))["film"] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(loaded["film"], before)


@pytest.mark.parametrize(
    ("task", "classes", "count"),
    [("binary", ["yes"], 1), ("regression", [], 1), ("multiclass", ["a", "b", "c"], 3), ("multilabel", ["a", "b"], 2)],
)
def test_a_network_has_one_logit_a_class_or_one(task: str, classes: list[str], count: int) -> None:
    assert inputs.num_outputs(task, classes) == count
