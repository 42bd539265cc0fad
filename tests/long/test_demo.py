"""`medray demo`, as a newcomer runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
MINUTES = 8


def test_the_demo_finds_what_was_planted_in_time(tmp_path: Path) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "medray", "demo", "hospital", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=MINUTES * 60 + 300,
        check=False,
    )
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr[-4000:]
    sys.stderr.write(f"{seconds:.0f} s at a load of {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    assert seconds < MINUTES * 60, f"the load is {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    told = json.loads(done.stdout)

    pointing = told["truth"]["pointing"]
    assert pointing["num"] >= 15
    assert pointing["hits"] >= 0.8 * pointing["num"]
    assert pointing["chance"] < 0.2
    assert pointing["control"] < 0.5 * pointing["hits"]
    assert told["metrics"]["auroc"]["value"] > 0.85
    for name, lost in told["truth"]["lost"].items():
        assert lost["low"] > 0, f"without {name} the AUROC does not fall beyond its interval"

    answer = told["answer"]
    assert set(answer["attributions"]) == {"films", "ecg", "labs"}
    assert (tmp_path / told["overlays"]["films"]).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / told["path"]).is_file()

    # nothing of the hospital's identifiers is anywhere in the workspace, nor was any said
    labs = (tmp_path / "hospital" / "labs.csv").read_text(encoding="utf-8").splitlines()[1:50]
    numbers = [line.split(",")[0].encode() for line in labs]
    stored = [path.read_bytes() for path in (tmp_path / "hospital" / ".medray").rglob("*") if path.is_file()]
    assert len(stored) > 20
    assert not [number for number in numbers for content in stored if number in content]
    assert not [number for number in numbers if number in (done.stdout + done.stderr).encode()]
