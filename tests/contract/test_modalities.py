"""What every file of `medray/modalities/` must show."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from medray import plugins
from medray.errors import MedrayError
from medray.modalities import Modality, Rows
from medray.models import EncoderModel
from tests.rows import rows_of

KINDS = sorted(plugins.names("modalities"))


@pytest.fixture(params=KINDS)
def modality(request: pytest.FixtureRequest) -> Modality:
    return plugins.resolve("modalities", request.param)


@pytest.fixture
def batches(modality: Modality, tmp_path: Path) -> list[Rows]:
    return [rows_of(modality.kind, count, seed, tmp_path) for seed, count in ((1, 12), (2, 7), (3, 20), (5, 1), (6, 9))]


@pytest.fixture
def rows(modality: Modality, tmp_path: Path) -> Rows:
    """Rows that were not fitted on."""
    return rows_of(modality.kind, 9, 4, tmp_path)


def one(rows: Rows, index: int) -> Rows:
    return Rows(rows.columns.slice(index, 1), None if rows.assets is None else [rows.assets[index]])


def test_its_defaults_exist_and_fit_each_other(modality: Modality) -> None:
    encoder = plugins.resolve("models", type(modality).encoder)
    assert isinstance(encoder, EncoderModel)
    assert encoder.axes == modality.axes
    explainer = plugins.resolve("explainers", type(modality).explainer)
    assert explainer.cost == 1
    assert modality.storage in {"uint8", "float16", "float32"}


def test_encoding_is_float32_finite_and_of_the_announced_shape(
    modality: Modality, batches: list[Rows], rows: Rows
) -> None:
    state = modality.fit(batches)
    encoded = modality.encode(rows, state)
    shape = modality.shape(state)
    assert encoded.shape == (len(rows), *shape)
    assert len(shape) == len(modality.axes)
    assert encoded.dtype == np.float32
    assert np.isfinite(encoded).all()
    assert len(modality.names(state)) in shape
    assert encoded.std() > 0


def test_encoding_is_the_same_each_time_and_for_each_row_alone(
    modality: Modality, batches: list[Rows], rows: Rows
) -> None:
    state = modality.fit(batches)
    encoded = modality.encode(rows, state)
    np.testing.assert_array_equal(encoded, modality.encode(rows, state))
    for index in range(len(rows)):
        np.testing.assert_array_equal(encoded[index], modality.encode(one(rows, index), state)[0])


def test_the_state_survives_json_and_a_process_boundary(modality: Modality, batches: list[Rows], rows: Rows) -> None:
    state = modality.fit(batches)
    again = json.loads(json.dumps(state, allow_nan=False))
    assert again == state
    sent: Modality = pickle.loads(pickle.dumps(modality))  # noqa: S301
    np.testing.assert_array_equal(sent.encode(rows, again), modality.encode(rows, state))


def test_partial_statistics_may_come_in_any_order_and_as_json(modality: Modality, batches: list[Rows]) -> None:
    partials = [json.loads(json.dumps(modality.partial(rows), allow_nan=False)) for rows in batches]
    states = [modality.merge(order) for order in itertools.permutations(partials)]
    assert all(state == states[0] for state in states)


def test_partial_statistics_say_what_all_rows_at_once_say(modality: Modality, batches: list[Rows], rows: Rows) -> None:
    whole = Rows(
        pa.concat_tables([batch.columns for batch in batches], promote_options="permissive"),
        None if batches[0].assets is None else [asset for batch in batches for asset in batch.assets or []],
    )
    together, apart = modality.fit([whole]), modality.fit(batches)
    np.testing.assert_allclose(modality.encode(rows, together), modality.encode(rows, apart), rtol=1e-5, atol=1e-5)


def test_what_is_stored_and_loaded_is_what_was_encoded(modality: Modality, batches: list[Rows], rows: Rows) -> None:
    state = modality.fit(batches)
    stored = modality.store(modality.encode(rows, state))
    assert stored.dtype == modality.storage
    assert stored.shape == (len(rows), *modality.shape(state))
    loaded = modality.load(torch.from_numpy(stored))
    assert loaded.dtype == torch.float32
    assert loaded.shape == stored.shape
    assert torch.isfinite(loaded).all()
    assert loaded.abs().max() < 50  # what a network can start from


def test_the_baseline_sees_a_short_finite_description(modality: Modality, batches: list[Rows], rows: Rows) -> None:
    state = modality.fit(batches)
    stored = modality.store(modality.encode(rows, state))
    features = modality.features(stored)
    assert features.ndim == 2
    assert len(features) == len(rows)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert features.shape[1] <= 512
    np.testing.assert_allclose(features[2:3], modality.features(stored[2:3]), rtol=1e-5, atol=1e-6)


def test_an_explained_sample_is_a_picture_or_is_better_said_in_a_list(
    modality: Modality, batches: list[Rows], rows: Rows
) -> None:
    state = modality.fit(batches)
    stored = modality.store(modality.encode(rows, state))[0]
    places = {3: (5, 5), 2: (7,)}.get(stored.ndim, ())  # of a feature map
    for shape in (stored.shape, places):
        for attribution in (np.random.default_rng(0).normal(size=shape), np.zeros(shape)):
            shown = modality.show(stored, attribution.astype(np.float32), state)
            if shown is not None:
                assert min(Image.open(io.BytesIO(shown)).size) > 50
                assert np.asarray(Image.open(io.BytesIO(shown))).std() > 0


def test_a_sample_whose_cells_are_all_missing_is_still_finite(modality: Modality, batches: list[Rows]) -> None:
    state = modality.fit(batches)
    columns = pa.table(
        {
            name: pa.nulls(2, column.type)
            for name, column in zip(batches[0].columns.column_names, batches[0].columns.columns, strict=True)
        }
    )
    empty = Rows(columns, None if batches[0].assets is None else [None, None])
    assert np.isfinite(modality.encode(empty, state)).all()


def test_a_train_split_with_nothing_to_learn_from_is_a_named_error_or_a_state(modality: Modality) -> None:
    with contextlib.suppress(MedrayError):
        assert modality.shape(modality.merge([]))
