"""What all tests share: where data lies, which programs and privileges are there, and a home of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from medray.runtime import Cluster

CHECKOUT = Path(__file__).resolve().parent.parent
# Reasons start with one of these; the closing summary lists them, so that a green run does not hide what it left out.
MISSING = ("no data: ", "no program: ", "no privilege: ")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: `MEDRAY_DATA`, or `shared/data` beside the checkout."""
    named = os.environ.get("MEDRAY_DATA")
    folder = Path(named) if named else CHECKOUT.parent / "shared" / "data"
    if not folder.is_dir():
        if named:
            pytest.fail(f"MEDRAY_DATA names {folder}, which is no folder")
        pytest.skip("no data: no ../shared/data beside the checkout and MEDRAY_DATA is not set")
    return folder.resolve()


@pytest.fixture(scope="session")
def needs_program() -> Callable[[str], str]:
    """`needs_program("strace")` gives its path. A missing one skips the test; under CI it fails it."""

    def path_of(name: str) -> str:
        found = shutil.which(name)
        if found is None:
            if os.environ.get("CI") == "true":
                pytest.fail(f"{name} is not installed; .ci/run must install it")
            pytest.skip(f"{MISSING[1]}{name} is not installed")
        return found

    return path_of


@pytest.fixture(scope="session")
def needs_ptrace(needs_program: Callable[[str], str]) -> str:
    """The path of an strace that may trace; containers often forbid it, which is no fault of the code."""
    strace = needs_program("strace")
    tried = subprocess.run([strace, "--output", os.devnull, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"{MISSING[2]}ptrace is not permitted here ({tried.stderr.strip().splitlines()[-1]})")
    return strace


@pytest.fixture(scope="session", autouse=True)
def own_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's own home, keys, tokens or workspace."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "MEDRAY_WORKSPACE"):
            patch.delenv(name, raising=False)
        patch.setenv("MPLCONFIGDIR", str(home / "matplotlib"))
        yield


@pytest.fixture(scope="session")
def ray_cluster(own_places: None) -> Iterator[Cluster]:
    """One Ray cluster of 2 CPUs for the whole session: each start costs seconds."""
    del own_places
    from medray.runtime import cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with cluster(num_cpus=2) as started:
            yield started


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what was left out because this machine lacks it."""
    reasons = [report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.getreports("skipped")]
    left_out = sorted({reason: reasons.count(reason) for reason in reasons if reason.startswith(MISSING)}.items())
    for reason, count in left_out:
        terminalreporter.write_line(f"left out: {count} test(s), {reason}", yellow=True)
