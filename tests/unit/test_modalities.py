"""What images, signals and tables look like to a network, and what of them is kept or lost on the way."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from medray.errors import DataError
from medray.modalities import Rows
from medray.modalities.image import Image
from medray.modalities.signal import Signal
from medray.modalities.table import Table


def films(*assets: Any) -> Rows:
    return Rows(pa.table({}), list(assets))


def waves(*assets: Any, leads: str | None = "I,II", rate: float | None = 100.0) -> Rows:
    columns = {"sampling_rate_hz": pa.array([rate] * len(assets), pa.float64()), "leads": [leads] * len(assets)}
    return Rows(pa.table(columns), list(assets))


def labs(**columns: Any) -> Rows:
    return Rows(pa.table(columns))


# ---- images


def test_an_8_bit_image_is_taken_as_it_is() -> None:
    image = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32).astype(np.uint8)
    modality = Image(size=32)
    encoded = modality.encode(films(image), modality.fit([films(image)]))
    np.testing.assert_array_equal(np.rint(encoded[0, 0] * 255), image)
    np.testing.assert_array_equal(modality.store(encoded)[0, 0], image)


def test_the_aspect_is_kept_by_black_bars() -> None:
    modality = Image(size=32)
    encoded = modality.encode(films(np.full((20, 80), 200, np.uint8)), {"window": None})[0, 0]
    assert (encoded[12:20] > 0.7).all()
    assert (encoded[:12] == 0).all()
    assert (encoded[20:] == 0).all()


def test_a_deep_image_is_windowed_by_the_train_split_and_not_by_itself() -> None:
    draw = np.random.default_rng(0)
    train = films(*(draw.normal(1000, 100, (64, 64)).astype(np.int16) for _ in range(20)))
    modality = Image(size=64)
    state = modality.fit([train])
    low, high = state["window"]
    assert low == pytest.approx(1000 - 2.576 * 100, rel=0.02)
    assert high == pytest.approx(1000 + 2.576 * 100, rel=0.02)
    dark, bright = modality.encode(films(np.full((64, 64), 900, np.int16), np.full((64, 64), 1100, np.int16)), state)
    assert dark.mean() == pytest.approx(0.31, abs=0.02)
    assert bright.mean() == pytest.approx(0.69, abs=0.02)


def test_the_window_of_negative_and_of_equal_values_is_found() -> None:
    hounsfield = np.concatenate([np.full(500, -1000.0), np.zeros(300), np.full(200, 400.0)]).reshape(40, 25)
    low, high = Image().fit([films(hounsfield)])["window"]
    assert low == pytest.approx(-1000, rel=0.01)
    assert high == pytest.approx(400, rel=0.01)
    constant = films(np.full((32, 32), 7, np.uint16))
    assert np.isfinite(Image().encode(constant, Image().fit([constant]))).all()


def test_colour_becomes_luminance_and_gray_becomes_colour() -> None:
    green = np.zeros((32, 32, 3), np.uint8)
    green[..., 1] = 255
    assert Image(size=32).encode(films(green), {"window": None})[0, 0].mean() == pytest.approx(0.587, abs=0.01)
    gray = np.full((32, 32), 100, np.uint8)
    repeated = Image(size=32, channels=3).encode(films(gray), {"window": None})[0]
    assert (repeated == np.float32(100 / 255)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_pixels_that_are_no_numbers_warn_nobody_and_stay_in_the_picture(value: float) -> None:
    image = np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)
    image[0, 0] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = Image(size=32).fit([films(np.where(np.isfinite(image), image, 0))])
        encoded = Image(size=32).encode(films(image), state)
    assert np.isfinite(encoded).all()
    assert 0 <= encoded.min() < encoded.max() <= 1


@pytest.mark.parametrize("shape", [(4,), (4, 4, 4), (4, 4, 3, 3), (0, 4)])
def test_what_is_no_image_is_refused_by_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"an image has shape \(height, width\)"):
        Image().encode(films(np.zeros(shape, np.uint8)), {"window": None})


# ---- signals


def sine(rate: float, seconds: float, hertz: float = 2.0) -> np.ndarray[Any, Any]:
    times = np.arange(int(rate * seconds)) / rate
    return np.stack([np.sin(2 * np.pi * hertz * times), np.cos(2 * np.pi * hertz * times)], axis=1)


def test_leads_are_matched_by_name_whatever_their_order_and_case() -> None:
    modality = Signal(rate_hz=100, seconds=2)
    wave = sine(100, 2)
    state = modality.fit([waves(wave)])
    expected = modality.encode(waves(wave), state)
    np.testing.assert_allclose(modality.encode(waves(wave[:, ::-1], leads="ii, I"), state), expected, atol=1e-6)


def test_a_missing_lead_is_flat_and_a_further_one_is_left_out() -> None:
    modality = Signal(rate_hz=100, seconds=2)
    wave = sine(100, 2)
    state = modality.fit([waves(wave)])
    encoded = modality.encode(waves(wave, leads="II,V1"), state)[0]
    assert (encoded[:, 0] == 0).all()
    assert encoded[:, 1].std() > 0.9
    with pytest.raises(DataError, match="none of the leads I, II"):
        modality.encode(waves(wave, leads="V1,V2"), state)
    with pytest.raises(DataError, match="names 3 leads, the signal has 2"):
        modality.encode(waves(wave, leads="I,II,V1"), state)


def test_the_leads_are_those_of_most_train_records() -> None:
    rows = [waves(sine(100, 1)), waves(sine(100, 1), leads="II,V5"), waves(sine(100, 1), leads="II,V5")]
    assert Signal().names(Signal().fit(rows)) == ["II", "V5"]
    unnamed = Signal().fit([waves(sine(100, 1), leads=None, rate=None)])
    assert Signal().names(unnamed) == ["1", "2"]


@pytest.mark.parametrize("rate", [50.0, 250.0, 360.0, 128.0, 100.5])
def test_a_record_of_another_rate_is_resampled_to_the_same_wave(rate: float) -> None:
    modality = Signal(rate_hz=100, seconds=4)
    state = {"leads": ["I", "II"], "mean": [0.0, 0.0], "std": [1.0, 1.0]}
    encoded = modality.encode(waves(sine(rate, 4), rate=rate), state)[0]
    inner = slice(20, -20)  # ends are guessed by any resampling
    assert np.abs(encoded[inner] - sine(100, 4)[inner]).max() < 0.05


def test_resampling_does_not_ring_at_the_ends() -> None:
    state = {"leads": ["I", "II"], "mean": [0.0, 0.0], "std": [1.0, 1.0]}
    encoded = Signal(rate_hz=100, seconds=2).encode(waves(np.full((500, 2), 5.0), rate=250.0), state)
    np.testing.assert_allclose(encoded, 5.0, atol=1e-3)


def test_longer_records_give_their_middle_and_shorter_ones_are_padded() -> None:
    state = {"leads": ["I"], "mean": [0.0], "std": [1.0]}
    modality = Signal(rate_hz=10, seconds=1)
    ramp = np.arange(1, 31, dtype=float)[:, None] / 10
    long = modality.encode(waves(ramp, leads="I", rate=10.0), state)[0, :, 0]
    np.testing.assert_allclose(long, ramp[10:20, 0], rtol=1e-6)
    short = modality.encode(waves(ramp[:4], leads="I", rate=10.0), state)[0, :, 0]
    np.testing.assert_allclose(short, [0, 0, 0, 0.1, 0.2, 0.3, 0.4, 0, 0, 0], rtol=1e-6)


def test_a_gap_is_bridged_and_counts_in_no_statistic() -> None:
    wave = np.array([[0.0], [1.0], [np.nan], [np.nan], [4.0], [np.nan]])
    state = Signal().fit([waves(wave, leads="I")])
    assert state["mean"] == [pytest.approx(5 / 3)]
    modality = Signal(rate_hz=100, seconds=0.06)
    raw = {"leads": ["I"], "mean": [0.0], "std": [1.0]}
    np.testing.assert_allclose(modality.encode(waves(wave, leads="I"), raw)[0, :, 0], [0, 1, 2, 3, 4, 4])
    silent = modality.encode(waves(np.full((6, 1), np.nan), leads="I"), state)
    assert (silent == 0).all()


def test_one_sample_of_another_rate_is_a_signal_too() -> None:
    modality = Signal(rate_hz=100, seconds=1)
    state = {"leads": ["I"], "mean": [0.0], "std": [1.0]}
    assert np.isfinite(modality.encode(waves(np.ones((1, 1)), leads="I", rate=250.0), state)).all()


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(DataError, match="'sampling_rate_hz' is not between"):
        Signal().fit([waves(sine(100, 1), rate=rate)])


# ---- tables


def test_numbers_are_standardized_and_gaps_are_told() -> None:
    rows = labs(age=[30.0, 50.0, 70.0], crp=[1.0, None, 3.0])
    modality = Table()
    state = modality.fit([rows])
    assert modality.names(state) == ["age", "crp", "crp (missing)"]
    encoded = modality.encode(labs(age=[50.0, None], crp=[None, 3.0]), state)
    np.testing.assert_allclose(encoded, [[0, 0, 1], [0, 1, 0]], atol=1e-6)


def test_texts_are_one_column_a_category_and_an_unknown_one_is_none_of_them() -> None:
    modality = Table()
    state = modality.fit([labs(sex=["F", "M", "F", None], stage=["I", "I", "II", "I"])])
    assert modality.names(state) == ["sex=F", "sex=M", "stage=I", "stage=II"]
    encoded = modality.encode(labs(sex=[" F ", "X", None], stage=["II", None, "I"]), state)
    np.testing.assert_array_equal(encoded, [[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]])


def test_columns_that_teach_nothing_are_left_out_with_their_reason() -> None:
    count = 50
    rows = labs(
        age=[float(number) for number in range(count)],
        ward=["A"] * count,
        unit=[1.0] * count,
        never=pa.nulls(count, pa.float64()),
        note=[f"seen at bed {number}" for number in range(count)],
        drawn_at=pa.array(range(count), pa.timestamp("us", tz="UTC")),
    )
    state = Table().fit([rows])
    assert Table().names(state) == ["age"]
    assert state["left_out"] == {
        "ward": "constant in train",
        "unit": "constant in train",
        "never": "missing in every train row",
        "note": "free text: most values are unique",
        "drawn_at": "a time",
    }
    with pytest.raises(DataError, match="no column is left"):
        Table().fit([labs(ward=["A", "A"])])


def test_reports_that_repeat_themselves_are_no_input_unless_they_are_named() -> None:
    rows = labs(age=[1.0, 2.0] * 50, report=[f"sinus rhythm number {number % 40}" for number in range(100)])
    assert Table().fit([rows])["left_out"] == {"report": "free text"}
    assert len(Table().names(Table(columns=("report",)).fit([rows]))) == 32


def test_chosen_columns_are_the_only_ones_and_must_be_there() -> None:
    rows = labs(age=[1.0, 2.0], died=["0", "1"])
    assert Table(columns=("age",)).names(Table(columns=("age",)).fit([rows])) == ["age"]
    with pytest.raises(DataError, match=r"no column aeg\. Known: age"):
        Table(columns=("aeg", "age")).fit([rows])


def test_an_outlier_is_cut_and_a_text_among_numbers_refused_without_quoting_it() -> None:
    state = Table().fit([labs(crp=[1.0, 2.0, 3.0])])
    assert Table().encode(labs(crp=[1e12]), state).item() == 10.0
    with pytest.raises(DataError, match="column 'crp' must hold numbers") as error:
        Table().encode(labs(crp=["Ada Jansen"]), state)
    assert "Ada" not in str(error.value)
    with pytest.raises(DataError, match="column 'crp' holds number in some rows and text in others"):
        Table().fit([labs(crp=[1.0]), labs(crp=["high"])])


def test_a_truth_value_is_a_number() -> None:
    state = Table().fit([labs(smoker=[True, False, None])])
    assert Table().names(state) == ["smoker", "smoker (missing)"]
    assert np.isfinite(Table().encode(labs(smoker=[True, None]), state)).all()
