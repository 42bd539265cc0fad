"""Signal: a waveform of several leads -> one rate, one length, one order of leads, each lead standardized."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from medray.errors import DataError
from medray.modalities import Modality, Rows, State

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

RATE, LEADS = "sampling_rate_hz", "leads"  # the columns that say what an asset's rows and columns are
LIMIT = 20.0  # standard deviations: beyond it is a loose electrode
QUANTILES = (0.05, 0.25, 0.75, 0.95)
SMOOTH_S = 0.08  # attributions are shown as means over this time: about one QRS complex
LOWERS, NEITHER, RAISES = "#4393c3", "#ffffff", "#e6735c"


class Signal(Modality):
    """Waveforms such as an ECG; assets are (T, C) in physical units.

    Leads are matched by name to those of most train records; one that is missing is flat. A gap (NaN) is bridged by a
    straight line. Longer records give their middle, shorter ones are padded on both sides.

    Attributes:
        rate_hz: samples a second; records of another rate are resampled.
        seconds: length.
    """

    encoder: ClassVar[str] = "lstm"
    explainer: ClassVar[str] = "input_x_gradient"
    storage: ClassVar[Literal["uint8", "float16", "float32"]] = "float16"
    axes: ClassVar[tuple[str, ...]] = ("samples", "leads")

    rate_hz: Annotated[float, Field(gt=0)] = 100.0
    seconds: Annotated[float, Field(gt=0)] = 10.0

    def partial(self, rows: Rows) -> State:
        """How often each layout of leads occurs; count, mean and sum of squared deviations of each lead."""
        layouts: Counter[str] = Counter()
        parts: dict[str, list[tuple[int, float, float]]] = {}
        for asset, _, leads in _records(rows):
            layouts[",".join(leads)] += 1
            for column, lead in enumerate(leads):
                values = asset[:, column].astype(np.float64)
                parts.setdefault(lead, []).append(_moments(values[np.isfinite(values)]))
        return {"layouts": dict(sorted(layouts.items())), "leads": {lead: _sum(parts[lead]) for lead in sorted(parts)}}

    def merge(self, partials: Sequence[State]) -> State:
        """`leads` in the order of most records, with their `mean` and `std`."""
        layouts: Counter[str] = Counter()
        for partial in partials:
            layouts.update(partial["layouts"])
        if not layouts:
            raise DataError("no signal in the train split")
        leads = min(layouts, key=lambda layout: (-layouts[layout], layout)).split(",")
        mean, std = [], []
        for lead in leads:
            count, centre, squares = _sum([partial["leads"][lead] for partial in partials if lead in partial["leads"]])
            spread = math.sqrt(squares / count) if count else 0.0
            mean.append(centre)
            std.append(spread if spread > 1e-9 else 1.0)  # a flat lead stays flat
        return {"leads": leads, "mean": mean, "std": std, "records": sum(layouts.values())}

    def shape(self, state: State) -> tuple[int, ...]:
        """(T, C)."""
        return (max(1, round(self.rate_hz * self.seconds)), len(state["leads"]))

    def names(self, state: State) -> list[str]:
        """The leads."""
        return list(state["leads"])

    def encode(self, rows: Rows, state: State) -> Array:
        """(n, T, C), standardized by the train split's means and deviations, cut at 20 of them."""
        length, _ = shape = self.shape(state)
        mean, std = np.array(state["mean"], np.float32), np.array(state["std"], np.float32)
        wanted = {lead.casefold(): index for index, lead in enumerate(state["leads"])}
        encoded = np.zeros((len(rows), *shape), np.float32)
        assets = iter(_records(rows))
        for index, present in enumerate(asset is not None for asset in rows.assets or []):
            if not present:
                continue
            asset, rate_hz, leads = next(assets)
            pairs = [(wanted[name.casefold()], own) for own, name in enumerate(leads) if name.casefold() in wanted]
            if not pairs:
                raise DataError(f"the signal has none of the leads {', '.join(state['leads'])}")
            targets, own = [list(side) for side in zip(*pairs, strict=True)]
            raw = _centre(asset[:, own].astype(np.float32), max(1, round(self.seconds * (rate_hz or self.rate_hz))))
            values = (_bridged(raw, mean[targets]) - mean[targets]) / std[targets]
            values = _centre(_resampled(values, rate_hz or self.rate_hz, self.rate_hz), length)
            start = (length - len(values)) // 2
            encoded[index, start : start + len(values), targets] = values.T
        return np.clip(encoded, -LIMIT, LIMIT, out=encoded)

    def features(self, stored: Array) -> Array:
        """Ten numbers a lead: mean, deviation, extremes, four quantiles, roughness, skewness."""
        values = stored.astype(np.float32)
        mean, std = values.mean(1), values.std(1)
        skewness = ((values - mean[:, None]) ** 3).mean(1) / np.maximum(std, 1e-3) ** 3
        roughness = np.abs(np.diff(values, axis=1)).mean(1) if values.shape[1] > 1 else np.zeros_like(mean)
        quantiles = np.quantile(values, QUANTILES, axis=1)
        columns = [mean, std, values.min(1), values.max(1), *quantiles, roughness, np.clip(skewness, -LIMIT, LIMIT)]
        return np.concatenate(columns, axis=1).astype(np.float32)

    def show(self, stored: Array, attribution: Array, state: State) -> bytes:
        """All leads below each other; red is where the signal raises the prediction, blue where it lowers it."""
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.figure import Figure

        traces = stored.astype(np.float32).T  # (C, T)
        places = attribution.astype(np.float32).T.reshape(-1, len(attribution))  # of the leads, or of all together
        width = max(1, round(SMOOTH_S * len(attribution) / self.seconds))
        places = np.stack([np.convolve(place, np.full(width, 1 / width), "same") for place in places])
        middles = (np.arange(len(attribution)) + 0.5) * len(stored) / len(attribution)
        places = np.stack([np.interp(np.arange(len(stored)), middles, place) for place in places])
        top = max(float(np.quantile(np.abs(places), 0.995)), 1e-12)
        figure = Figure(figsize=(9, 0.8 + 0.5 * len(traces)), dpi=100, layout="constrained")
        axes = figure.add_subplot()
        colours = LinearSegmentedColormap.from_list("raises and lowers", [LOWERS, NEITHER, RAISES])
        extent = (0, self.seconds, len(traces) - 0.5, -0.5)
        axes.imshow(places, colours, vmin=-top, vmax=top, extent=extent, aspect="auto", interpolation="nearest")
        times = np.arange(traces.shape[1]) / self.rate_hz
        height = max(float(np.quantile(np.abs(traces), 0.998)), 1e-6)
        for row, trace in enumerate(traces):
            axes.plot(times, row - np.clip(0.48 * trace / height, -0.6, 0.6), color="#111827", linewidth=0.8)
        axes.set_yticks(range(len(traces)), state["leads"])
        axes.set_ylim(len(traces) - 0.4, -0.6)
        axes.set_xlabel("seconds")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
        file = io.BytesIO()
        figure.savefig(file, format="png")
        return file.getvalue()


def _records(rows: Rows) -> list[tuple[Array, float | None, list[str]]]:
    """(asset, rate in Hz, names of its leads) of the rows that have an asset."""
    assets = rows.assets or []
    rates, leads = (
        rows.columns.column(name).to_pylist() if name in rows.columns.column_names else [None] * len(assets)
        for name in (RATE, LEADS)
    )
    records = []
    for asset, rate_hz, written in zip(assets, rates, leads, strict=True):
        if asset is None:
            continue
        if asset.ndim != 2 or 0 in asset.shape:
            raise DataError(f"a signal has shape (samples, leads), not {asset.shape}")
        names = [name.strip() for name in str(written).split(",")] if written else _numbers(asset.shape[1])
        if len(names) != asset.shape[1]:
            raise DataError(f"'{LEADS}' names {len(names)} leads, the signal has {asset.shape[1]}")
        rate = float(rate_hz) if rate_hz is not None else None
        if rate is not None and not 0 < rate < 1e6:
            raise DataError(f"'{RATE}' is not between 0 and 1,000,000")
        records.append((asset, rate, names))
    return records


def _numbers(count: int) -> list[str]:
    return [str(number + 1) for number in range(count)]


def _moments(values: Array) -> tuple[int, float, float]:
    if not len(values):
        return (0, 0.0, 0.0)
    mean = float(values.mean())
    return (len(values), mean, float(((values - mean) ** 2).sum()))


def _sum(parts: Sequence[Sequence[float]]) -> tuple[int, float, float]:
    """Count, mean and squared deviations of the union (Chan, Golub, LeVeque 1979); fsum: any order gives the same."""
    count = sum(int(part[0]) for part in parts)
    mean = math.fsum(part[0] * part[1] for part in parts) / max(1, count)
    return (count, mean, math.fsum([part[2] + part[0] * (part[1] - mean) ** 2 for part in parts]))


def _bridged(values: Array, mean: Array) -> Array:
    """Gaps as straight lines between their ends; a lead without any sample as its mean."""
    good = np.isfinite(values)
    if good.all():
        return values
    times = np.arange(len(values))
    bridged = np.empty_like(values)
    for lead in range(values.shape[1]):
        known = good[:, lead]
        bridged[:, lead] = np.interp(times, times[known], values[known, lead]) if known.any() else mean[lead]
    return bridged


def _resampled(values: Array, rate_hz: float, target_hz: float) -> Array:
    if abs(rate_hz - target_hz) < 1e-9 * target_hz or len(values) < 2:  # one sample has no trend
        return values
    from scipy import signal

    ratio = Fraction(target_hz / rate_hz).limit_denominator(1000)
    # line: the record goes on along its own trend; zeros beyond its ends would ring
    resampled = signal.resample_poly(values, max(1, ratio.numerator), ratio.denominator, axis=0, padtype="line")
    return np.asarray(resampled, np.float32)


def _centre(values: Array, length: int) -> Array:
    start = max(0, (len(values) - length) // 2)
    return values[start : start + length]
