"""Rows of each modality as ingest leaves them, with what real data have: gaps, other sizes, absent assets."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from medray import plugins
from medray.inputs import count_kinds, kind_of, typed
from medray.modalities import Rows
from medray.synthetic import personas


def images(count: int, seed: int) -> Rows:
    """Films of 8 and 16 bits, gray and in colour, none square; some absent, one with NaN."""
    draw = np.random.default_rng(seed)
    assets: list[Any] = []
    for number in range(count):
        height, width = draw.integers(20, 90, 2)
        shape = (height, width, 3) if number % 4 == 1 else (height, width)
        gray = draw.normal(1000, 300, shape)
        deep = gray.clip(0, 4095).astype(np.uint16) if number % 4 else (gray / 16).clip(0, 255).astype(np.uint8)
        assets.append(None if number % 5 == 4 else gray if number % 7 == 6 else deep)
        if number % 7 == 6 and assets[-1] is not None:
            assets[-1][0, 0] = np.nan
    return Rows(pa.table({"view": ["PA"] * count}), assets)


def signals(count: int, seed: int) -> Rows:
    """Waveforms of two rates, with a gap, a lead less, leads in another order; some absent."""
    draw = np.random.default_rng(seed)
    assets: list[Any] = []
    rates, leads = [], []
    for number in range(count):
        rate = 100.0 if number % 3 else 250.0
        names = ["I", "II", "V5"] if number % 4 else ["V5", "i"]
        wave = np.cumsum(draw.normal(0, 0.1, (int(rate * draw.integers(2, 6)), len(names))), axis=0).astype(np.float32)
        wave[3:7, 0] = np.nan
        assets.append(None if number % 5 == 4 else wave)
        rates.append(rate if number % 2 else None if rate == 100.0 else rate)
        leads.append(",".join(names))
    return Rows(pa.table({"sampling_rate_hz": pa.array(rates, pa.float64()), "leads": leads}), assets)


def tables(count: int, seed: int) -> Rows:
    """Numbers with gaps, categories, a constant, a time, a column that is missing throughout, free text."""
    draw = np.random.default_rng(seed)
    crp = [float(value) if number % 4 else None for number, value in enumerate(draw.gamma(2, 10, count))]
    return Rows(
        pa.table(
            {
                "crp": pa.array(crp, pa.float64()),
                "age": draw.integers(30, 90, count).astype(float),
                "sex": [("F", "M", "f ", None)[choice] for choice in draw.integers(0, 4, count)],
                "ward": ["A"] * count,
                "drawn_at": [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=number) for number in range(count)],
                "never": pa.nulls(count, pa.float64()),
                "note": [f"seen {draw.integers(1 << 40)}" for _ in range(count)],
            }
        )
    )


_ROWS: dict[str, Callable[[int, int], Rows]] = {"image": images, "signal": signals, "table": tables}


def rows_of(kind: str, count: int, seed: int, folder: Path) -> Rows:
    """Rows of a modality: those above, or for a later kind what a reader that feeds it synthesizes and reads."""
    if kind in _ROWS:
        return _ROWS[kind](count, seed)
    readers = [plugins.find("readers", name) for name in plugins.names("readers")]
    feeding = [reader for reader in readers if getattr(reader, "modality", None) == kind]
    assert feeding, f"no reader feeds modality '{kind}': give its rows in tests/rows.py"
    own = folder / f"{kind}-{seed}"
    feeding[0].synthesize(own, personas(count, seed), seed)
    columns: list[pa.Table] = []
    assets: list[Any] = []
    for path in sorted(path for path in own.rglob("*") if path.is_file()):
        for records in feeding[0](path="*").read(path):
            columns.append(records.columns)
            assets += records.assets or []
    joined = pa.concat_tables(columns, promote_options="permissive").slice(0, count)
    kinds = {name: kind_of(count_kinds(joined.column(name))) for name in joined.column_names}
    return Rows(typed(joined, kinds)[0], assets[:count] or None)
