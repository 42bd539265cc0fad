"""Every benchmark runs from a checkout, with tiny sizes: what it measures then is not judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("bench_*.py"))


def test_there_are_benchmarks() -> None:
    assert {"bench_explained", "bench_first_step", "bench_training"} <= set(SCRIPTS)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_runs_and_writes_what_it_found_beside_its_peer(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--results", str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / f"{name.removeprefix('bench_')}.json").read_text())
    judged = [claim for claim in found["claims"] if claim["bar"]]
    assert judged
    for claim in found["claims"]:
        assert claim["what"] in done.stdout
        for side in ("ours", "peer"):
            assert 0 < claim[side]["min"] <= claim[side]["median"] <= claim[side]["max"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_results_that_are_kept_meet_their_bars(name: str) -> None:
    kept = json.loads((FOLDER / "results" / f"{name.removeprefix('bench_')}.json").read_text())
    assert not kept["quick"]
    assert all(claim["met"] for claim in kept["claims"] if claim["bar"])
