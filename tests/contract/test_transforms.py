"""What every file of `medray/transforms/` must show."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from medray import plugins
from medray.modalities import Rows
from medray.transforms import Transform
from tests.rows import rows_of

KINDS = {name: plugins.find("transforms", name) for name in sorted(plugins.names("transforms"))}
FITTED = [name for name, kind in KINDS.items() if not kind.random]
RANDOM = [name for name, kind in KINDS.items() if kind.random]
MODALITIES = sorted(plugins.names("modalities"))
LOADED = {"image": (4, 1, 24, 20), "signal": (4, 60, 3), "table": (4, 7)}


def made(name: str) -> Transform:
    return plugins.resolve("transforms", name)


def assert_same(one: Rows, other: Rows) -> None:
    assert one.columns.equals(other.columns)
    for left, right in zip(one.assets or [], other.assets or [], strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            np.testing.assert_array_equal(left, right)


@pytest.fixture(params=list(itertools.product(FITTED, MODALITIES)), ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Transform, list[Rows], Rows]:
    """A transform, batches of a train split, and rows it was not fitted on."""
    name, modality = request.param
    batches = [rows_of(modality, count, seed, tmp_path) for seed, count in ((1, 12), (2, 7), (3, 20), (5, 1), (6, 9))]
    return made(name), batches, rows_of(modality, 9, 4, tmp_path)


def test_it_keeps_the_rows_their_columns_and_types(case: tuple[Transform, list[Rows], Rows]) -> None:
    transform, batches, rows = case
    changed = transform.apply(rows, transform.fit(batches))
    assert len(changed) == len(rows)
    assert changed.columns.schema == rows.columns.schema
    assert (changed.assets is None) == (rows.assets is None)


def test_it_is_deterministic_and_leaves_its_input_alone(case: tuple[Transform, list[Rows], Rows]) -> None:
    transform, batches, rows = case
    state = transform.fit(batches)
    before = Rows(rows.columns, None if rows.assets is None else [None if a is None else a.copy() for a in rows.assets])
    assert_same(transform.apply(rows, state), transform.apply(rows, state))
    assert_same(rows, before)


def test_a_row_alone_is_changed_as_among_others(case: tuple[Transform, list[Rows], Rows]) -> None:
    transform, batches, rows = case
    state = transform.fit(batches)
    together = transform.apply(rows, state)
    for index in range(len(rows)):
        row = Rows(rows.columns.slice(index, 1), None if rows.assets is None else [rows.assets[index]])
        expected = Rows(together.columns.slice(index, 1), None if together.assets is None else [together.assets[index]])
        assert_same(transform.apply(row, state), expected)


def test_its_state_survives_json_in_any_order(case: tuple[Transform, list[Rows], Rows]) -> None:
    transform, batches, rows = case
    partials = [json.loads(json.dumps(transform.partial(batch), allow_nan=False)) for batch in batches]
    states = [transform.merge(order) for order in itertools.permutations(partials)]
    assert all(json.loads(json.dumps(state, allow_nan=False)) == states[0] for state in states)
    sent: Transform = pickle.loads(pickle.dumps(transform))  # noqa: S301
    assert_same(sent.apply(rows, states[0]), transform.apply(rows, transform.fit(batches)))


def test_it_learns_from_what_it_was_fitted_on_alone(case: tuple[Transform, list[Rows], Rows]) -> None:
    transform, batches, rows = case
    state = transform.fit(batches)
    before = json.dumps(state, sort_keys=True)
    transform.apply(rows, state)
    assert json.dumps(state, sort_keys=True) == before


def test_missing_cells_stay_missing(case: tuple[Transform, list[Rows], Rows]) -> None:
    transform, batches, rows = case
    if transform.kind == "impute":
        pytest.skip("filling them is what it is for")
    changed = transform.apply(rows, transform.fit(batches))
    for name in rows.columns.column_names:
        assert changed.columns.column(name).is_null().equals(rows.columns.column(name).is_null())


def test_nothing_to_fit_on_is_a_state_that_changes_nothing(case: tuple[Transform, list[Rows], Rows]) -> None:
    transform, _, rows = case
    nothing = Rows(rows.columns.slice(0, 0), None if rows.assets is None else [])
    assert_same(transform.apply(rows, transform.fit([nothing])), rows)


# ---- random ones: in training only, on what is loaded


@pytest.fixture(params=list(itertools.product(RANDOM, LOADED)), ids="-".join)
def drawn(request: pytest.FixtureRequest) -> tuple[Transform, torch.Tensor]:
    name, modality = request.param
    return made(name), torch.randn(LOADED[modality], generator=torch.Generator().manual_seed(0))


def augmented(transform: Transform, values: torch.Tensor, seed: int) -> torch.Tensor:
    return transform.augment(values, torch.Generator().manual_seed(seed))


def test_a_draw_is_finite_and_of_the_same_shape(drawn: tuple[Transform, torch.Tensor]) -> None:
    transform, values = drawn
    changed = augmented(transform, values, 1)
    assert changed.shape == values.shape
    assert changed.dtype == values.dtype
    assert torch.isfinite(changed).all()


def test_a_draw_is_its_seeds_alone_and_leaves_its_input_alone(drawn: tuple[Transform, torch.Tensor]) -> None:
    transform, values = drawn
    before = values.clone()
    torch.manual_seed(1)
    first = augmented(transform, values, 1)
    torch.manual_seed(2)
    assert torch.equal(first, augmented(transform, values, 1))
    assert torch.equal(values, before)
    if not torch.equal(first, values):  # it does something to this sort of input
        assert not torch.equal(first, augmented(transform, values, 2))


def test_samples_are_drawn_each_for_itself(drawn: tuple[Transform, torch.Tensor]) -> None:
    transform, values = drawn
    alike = values[:1].expand_as(values).clone()
    changed = augmented(transform, alike, 1)
    if not torch.equal(changed, alike):
        assert not torch.equal(changed[0], changed[1])


def test_a_random_kind_is_no_step_of_fitting(drawn: tuple[Transform, torch.Tensor]) -> None:
    transform, _ = drawn
    rows = Rows(pa.table({"a": [1.0, None]}))
    assert transform.fit([rows]) == {}
    assert transform.apply(rows, {}) is rows


def test_some_kind_changes_each_sort_of_thing_it_says_it_does() -> None:
    augment = made("augment")
    for modality in ("image", "signal"):
        values = torch.randn(LOADED[modality])
        assert not torch.equal(augmented(augment, values, 1), values)
    table = torch.randn(LOADED["table"])
    assert torch.equal(augmented(augment, table, 1), table)
