"""Memory of an ingest stays flat: several times the object store go through it (P8 of the performance bars)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.hospitals import LABS

SCRIPT = Path(__file__).with_name("ingest_memory.py")
FILE_ROWS = 60_000
FEW, MANY = 6, 30
BAR = 1.2

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def write_files(folder: Path, count: int) -> int:
    """Tables of 12 columns; returns their bytes."""
    draw = np.random.default_rng(0)
    folder.mkdir()
    (folder / "study.yaml").write_text(LABS)
    for number in range(count):
        values = draw.normal(size=(FILE_ROWS, 9)).round(6)
        rows = [
            f"p{number * FILE_ROWS + row},2024-01-{row % 28 + 1:02d},{row % 2}," + ",".join(map(str, line))
            for row, line in enumerate(values.tolist())
        ]
        header = "patient,drawn_at,died," + ",".join(f"x{column}" for column in range(9))
        (folder / f"labs_{number:02d}.csv").write_text("\n".join([header, *rows]))
    return sum(path.stat().st_size for path in folder.glob("*.csv"))


def peak(folder: Path) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    command = [sys.executable, str(SCRIPT), str(folder), str(folder / "workspace")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


def test_five_times_the_data_take_no_more_memory(tmp_path: Path) -> None:
    from medray.runtime import MIN_STORE_BYTES

    few, many = tmp_path / "few", tmp_path / "many"
    write_files(few, FEW)
    assert write_files(many, MANY) > 2 * MIN_STORE_BYTES
    peaks = {name: peak(folder) for name, folder in (("few", few), ("many", many))}
    assert peaks["many"] < BAR * peaks["few"], peaks
