"""Ingest that was killed at any point, and the same command again, leaves what an undisturbed run leaves.

About 30 seeded points of a first ingest and of one with changed, added and vanished files, in one process; three on a
cluster. Every point with MEDRAY_FULL=1.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medray.artifacts import Workspace
from medray.artifacts.table import Table
from medray.ingest import files, ingest
from medray.ingest import plan as tasks
from medray.runtime import Cluster
from tests.hospitals import HOSPITAL, study_in, write_csv, write_hospital

SCRIPT = Path(__file__).with_name("ingest_killed.py")
FULL = bool(os.environ.get("MEDRAY_FULL"))
POINTS = 14  # of each of the two runs
SEED = random.SystemRandom().randrange(1 << 32)

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600 if FULL else 600)]


@dataclass
class Run:
    """One ingest to be killed: the files as it finds them, the workspace as it finds it, and what it should leave."""

    folder: Path
    before: Path
    expected: tuple[str, list[tuple[Any, ...]], int]
    points: int
    prune: bool


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}


def command(how: str, folder: Path, root: Path, *rest: object) -> list[str]:
    return [sys.executable, str(SCRIPT), how, str(folder), str(root), *map(str, rest)]


def table_in(folder: Path, root: Path) -> Table:
    study = study_in(folder, (folder / "study.yaml").read_text())
    return Workspace.of(study, root).table(study)


def left(folder: Path, root: Path) -> tuple[str, list[tuple[Any, ...]], int]:
    """Digest of the rows; quarantine; number of files in the index."""
    table = table_in(folder, root)
    quarantine = table.quarantine()
    names = ("of", "path", "row", "reason")
    return (
        table.rows_digest(),
        list(zip(*(quarantine.column(name).to_pylist() for name in names), strict=True)),
        table.files().num_rows,
    )


def orphans(folder: Path, root: Path) -> set[str]:
    """Files of rows and arrays that no version names."""
    table = table_in(folder, root)
    named = {
        name
        for version in range(table.version + 1)
        for part in table.at(version).parts()
        for name in (part.name, *part.packs)
    }
    return {path.name for path in table.folder.iterdir() if path.name.startswith(("part-", "pack-"))} - named


def undisturbed(folder: Path, root: Path, *, prune: bool) -> int:
    """Ingest; returns how many points there were."""
    done = subprocess.run(
        command("here", folder, root, -1, *["prune"] * prune),
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A hospital that is ingested for the first time."""
    base = tmp_path_factory.mktemp("first")
    write_hospital(base / "source", 6)
    (base / "secret").write_text("00" * 32)
    (base / "secret").chmod(0o600)
    study = HOSPITAL.replace("max_quarantined: 0.2", f"max_quarantined: 0.5, key: 'file:{base}/secret'")
    (base / "source" / "study.yaml").write_text(study)
    points = undisturbed(base / "source", base / "done", prune=False)
    (base / "empty").mkdir()
    return Run(base / "source", base / "empty", left(base / "source", base / "done"), points, prune=False)


@pytest.fixture(scope="module")
def second(first: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same hospital with a film more, an ECG less and another table, over the table of the first ingest."""
    base = tmp_path_factory.mktemp("second")
    shutil.copytree(first.folder, base / "source")
    shutil.copytree(first.folder.parent / "done", base / "done")
    shutil.copytree(first.folder.parent / "done", base / "before")
    films = sorted((base / "source" / "films").glob("film*.dcm")) or sorted((base / "source" / "films").glob("*.dcm"))
    shutil.copy(films[0], base / "source" / "films" / "a_new_one.dcm")
    sorted((base / "source" / "ecg").glob("*_*.hea"))[0].unlink()
    header, *rows = (base / "source" / "labs.csv").read_text().splitlines()
    write_csv(base / "source" / "labs.csv", header, *rows[1:], rows[0].replace(",M,", ",F,"))
    points = undisturbed(base / "source", base / "done", prune=True)
    return Run(base / "source", base / "before", left(base / "source", base / "done"), points, prune=True)


def killed(run: Run, root: Path, point: int) -> None:
    done = subprocess.run(
        command("here", run.folder, root, point, *["prune"] * run.prune),
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]


def again(run: Run, root: Path) -> None:
    """The same command, in this process."""
    study = study_in(run.folder, (run.folder / "study.yaml").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "IN_PROCESS_BYTES", 1 << 40)
        patch.setattr(tasks, "MIN_GROUP_BYTES", 1)
        patch.setattr(tasks, "GROUP_BYTES", 1)
        ingest(study, Workspace.of(study, root), prune=run.prune)


def drawn(run: Run, count: int) -> list[int]:
    """Points to be killed at, the first and the last among them."""
    every = range(run.points)
    return list(every) if FULL else sorted({0, run.points - 1, *random.Random(SEED).sample(every, count)})


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_run_that_was_killed_goes_on_to_the_same_table(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run: Run = request.getfixturevalue(which)
    points = drawn(run, POINTS)
    with_orphans = 0
    for point in points:
        root = tmp_path / str(point)
        shutil.copytree(run.before, root)
        killed(run, root, point)
        if table_in(run.folder, root).version >= 0:
            with_orphans += bool(orphans(run.folder, root))
        again(run, root)
        assert left(run.folder, root) == run.expected, f"seed {SEED}, point {point}"
        assert not orphans(run.folder, root), f"seed {SEED}, point {point}"
        assert table_in(run.folder, root).purge() == 0
        shutil.rmtree(root)
    assert with_orphans  # else nothing was there to be purged


def test_a_run_that_is_killed_three_times_goes_on_too(first: Run, tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    draw = random.Random(SEED + 1)
    for _ in range(3):
        killed(first, root, draw.randrange(first.points // 3))
    again(first, root)
    assert left(first.folder, root) == first.expected, f"seed {SEED}"
    assert not orphans(first.folder, root)


# -- controls: without what makes it safe, the checks above see it


def middle(run: Run, root: Path, seen: Callable[[], bool]) -> None:
    """Kill runs at later and later points until `seen`."""
    for point in range(run.points // 3, run.points, 3):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(run.before, root)
        killed(run, root, point)
        if seen():
            return
    raise AssertionError("no point shows it")


def test_without_purge_orphans_stay(first: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "workspace"
    middle(first, root, lambda: bool(orphans(first.folder, root)))
    monkeypatch.setattr(Table, "purge", lambda self: 0)
    again(first, root)
    assert orphans(first.folder, root)


def test_without_the_index_rows_come_in_twice(first: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "workspace"
    middle(first, root, lambda: table_in(first.folder, root).files().num_rows > 2)
    monkeypatch.setattr(files, "index", lambda table: {})
    again(first, root)
    assert left(first.folder, root)[0] != first.expected[0]


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_that_comes_between_is_the_last_because_numbers_are_durable(
    durable: bool, first: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "workspace"
    middle(first, root, lambda: 2 < table_in(first.folder, root).files().num_rows < 8)
    if not durable:
        monkeypatch.setattr(files, "_numbers", lambda table: {})
    between = first.folder / "ecg" / "a_first.hea"  # of the names, not of those that were on their way in
    between.write_text("nothing of a header")
    try:
        again(first, root)
    finally:
        between.unlink()
    arrived = table_in(first.folder, root).files().column("path").to_pylist()
    assert (arrived[-1] == "ecg/a_first.hea") is durable


# -- on a cluster


def descendants(pid: int) -> dict[int, str]:
    """The command lines of the processes that a process has started, and those that they have."""
    found: dict[int, str] = {}
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended
            for child in map(int, children.read_text().split()):
                found[child] = Path(f"/proc/{child}/cmdline").read_text()
                found |= descendants(child)
    return found


@pytest.mark.parametrize("commits", [1, 4, 9])
def test_a_driver_that_is_killed_on_a_cluster_goes_on_to_the_same_table(
    commits: int, first: Run, tmp_path: Path
) -> None:
    root = tmp_path / "workspace"
    with subprocess.Popen(
        command("ray", first.folder, root),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        seen = 0
        for line in process.stdout:
            seen += line.startswith("ingest")
            if seen == commits:
                process.kill()
                break
    assert seen == commits
    time.sleep(3)  # workers notice that their driver died; until then they may write
    again(first, root)
    assert left(first.folder, root) == first.expected
    assert not orphans(first.folder, root)


def test_a_worker_that_is_killed_costs_nothing(
    first: Run, ray_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray tries its task again; what it had written is purged at the end of the run."""
    root = tmp_path / "workspace"
    killed_pids: list[int] = []

    def kill_a_worker(what: str, done: int, total: int) -> None:
        if what == "ingest" and len(killed_pids) < 3:
            # not an agent: the node dies with it
            workers = [
                pid for pid, command in descendants(os.getpid()).items() if command.startswith("ray::MapBatches")
            ]
            if workers:
                killed_pids.append(workers[0])
                os.kill(workers[0], signal.SIGKILL)

    monkeypatch.setattr(tasks, "IN_PROCESS_BYTES", -1)
    monkeypatch.setattr(tasks, "MIN_GROUP_BYTES", 1)
    monkeypatch.setattr(tasks, "GROUP_BYTES", 1)
    study = study_in(first.folder, (first.folder / "study.yaml").read_text())
    ingest(study, Workspace.of(study, root), progress=kill_a_worker)
    assert killed_pids
    assert left(first.folder, root) == first.expected
    assert not orphans(first.folder, root)
