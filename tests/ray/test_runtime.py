"""Ray as medray starts it: whom it lets in, what it leaves behind, what it says when nothing moves."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import ray.data

from medray import runtime
from medray.errors import ComputeError
from medray.runtime import Cluster, cluster, settle, watchdog
from medray.study import Compute

PIECE = 32 << 20  # bytes


def session() -> Path:
    """The folder of the cluster that the tests share."""
    return Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent


def test_a_cluster_inside_a_cluster_is_the_same(ray_cluster: Cluster) -> None:
    with cluster(Compute()) as inner:
        assert inner == replace(ray_cluster, started=False)
    assert ray.is_initialized()
    assert ray_cluster.num_cpus == 2
    assert ray_cluster.small


def test_only_its_owner_can_look_into_the_folder(ray_cluster: Cluster) -> None:
    folder = session()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600


@pytest.mark.long
def test_nobody_gets_in_without_the_token(ray_cluster: Cluster) -> None:
    address = ray.get_runtime_context().gcs_address
    code = f"import ray; ray.init(address={address!r}, logging_level=50); print('in')"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    stranger = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert stranger.returncode != 0
    assert "in" not in stranger.stdout.split()


def test_workers_see_the_settings_of_a_small_machine(ray_cluster: Cluster) -> None:
    settings = ray.get(ray.remote(lambda: dict(os.environ)).remote())
    assert settings["OMP_WAIT_POLICY"] == "passive"
    assert settings["RAY_USAGE_STATS_ENABLED"] == "0"
    context = ray.data.DataContext.get_current().copy()
    settle(context)
    assert not context.use_datasource_v2
    assert context.shuffle_strategy.value == "sort_shuffle_pull_based"
    assert context.target_max_block_size == 16 << 20


def test_settings_of_a_small_machine_are_for_small_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_connected", lambda: Cluster(num_cpus=64, num_gpus=8, small=False))
    context = ray.data.DataContext()
    before = context.use_datasource_v2, context.shuffle_strategy
    settle(context)
    assert (context.use_datasource_v2, context.shuffle_strategy) == before


def test_nothing_is_spilled(ray_cluster: Cluster) -> None:
    """More than the object store holds, and no file holds any of it."""
    store = ray.cluster_resources()["object_store_memory"]
    count = int(store * 1.2) // PIECE
    pieces = [ray.put(np.full(PIECE, number, np.uint8)) for number in range(count)]
    assert [int(ray.get(piece)[-1]) for piece in pieces] == list(range(count))
    assert not [path for path in session().rglob("*") if path.is_file() and path.stat().st_size >= PIECE]


def test_a_stalled_iteration_is_named() -> None:
    def stalls() -> Iterator[int]:
        yield 1
        threading.Event().wait(30)

    watched = watchdog(stalls(), "scoring", 1.0)
    assert next(watched) == 1
    with pytest.raises(ComputeError, match="scoring: no progress for 1 s"):
        next(watched)


def test_a_slow_consumer_is_no_stall() -> None:
    for _ in watchdog(range(3), "scoring", 0.2):
        time.sleep(0.3)


def test_an_error_comes_through_the_watchdog() -> None:
    def breaks() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        list(watchdog(breaks(), "scoring"))


def test_a_node_that_was_lost_is_named() -> None:
    def loses() -> Iterator[int]:
        raise ray.exceptions.LocalRayletDiedError
        yield 1

    with pytest.raises(ComputeError, match=r"scoring: Ray has lost a process or node .* \(LocalRayletDiedError\)"):
        list(watchdog(loses(), "scoring"))


@pytest.mark.parametrize("named", ["compute", "environment"])
def test_an_address_where_nobody_answers_is_named(named: str) -> None:
    address = "127.0.0.1:1"
    code = (
        "from medray.runtime import cluster\nfrom medray.study import Compute\n"
        f"with cluster(Compute(address={address if named == 'compute' else ''!r})): pass"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    if named == "environment":
        environment["RAY_ADDRESS"] = address
    tried = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert f"ComputeError: no Ray cluster answers at {address}" in tried.stderr


ATTACHES = """
import ray
from medray.runtime import cluster
with cluster() as found:
    print("found", found.num_cpus, found.small, found.started)
"""


def test_a_job_joins_the_cluster_that_it_was_sent_to(ray_cluster: Cluster) -> None:
    address = ray.get_runtime_context().gcs_address
    joined = subprocess.run(
        [sys.executable, "-c", ATTACHES],
        env=os.environ | {"RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "found 2.0 True False" in joined.stdout
    assert ray.get(ray.remote(lambda: 1).remote()) == 1  # it has only left, not ended it


def test_a_container_with_little_shared_memory_keeps_objects_in_the_closed_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=64 << 20))
    assert runtime._object_store(tmp_path, small=True)["_plasma_directory"] == str(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=200 << 20))
    assert runtime._object_store(tmp_path, small=True) == {"object_store_memory": 160 << 20}


def test_only_folders_that_nobody_uses_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path("/tmp") / f"m{os.getpid()}"
    short.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    try:
        for name in ("left", "used"):
            (short / f"{runtime.PREFIX}{name}").mkdir()
        used = short / f"{runtime.PREFIX}used"
        with runtime._locked(used / "alive"), runtime._temporary_folder() as folder:
            assert sorted(short.iterdir()) == sorted([used, folder])
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert list(short.iterdir()) == [used]
    finally:
        shutil.rmtree(short)


def test_a_long_name_of_the_temporary_folder_does_not_break_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("a" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with runtime._temporary_folder() as folder:
        assert len(str(folder)) < 40


LEAVES = """
import os, signal, sys
from medray.runtime import cluster
with cluster(num_cpus=1):
    print(os.path.dirname(os.environ["RAY_AUTH_TOKEN_PATH"]), flush=True)
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.long
@pytest.mark.parametrize("how", ["ends", "killed"])
def test_the_folder_is_gone_after_the_run(how: str) -> None:
    """After a kill the next start removes it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}

    def run(how: str) -> tuple[int, Path]:
        done = subprocess.run(
            [sys.executable, "-c", LEAVES, how],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, Path(done.stdout.strip())

    code, folder = run(how)
    assert code == (0 if how == "ends" else -signal.SIGKILL)
    assert folder.exists() is (how == "killed")
    if how == "killed":
        time.sleep(3)  # Ray's processes notice that their driver died
        run("ends")
        assert not folder.exists()


SPILLS = """
import sys
import numpy as np, ray
from medray.runtime import cluster
from medray.study import Compute
with cluster(Compute(spill=sys.argv[1]), num_cpus=1):
    pieces = [ray.put(np.full(32 << 20, number, np.uint8)) for number in range(40)]
    print(int(ray.get(pieces[0])[-1]), int(ray.get(pieces[-1])[-1]))
"""


@pytest.mark.long
def test_a_study_that_names_a_folder_spills_there(tmp_path: Path) -> None:
    """The control of the test above: the same load, spilled."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", SPILLS, str(tmp_path / "spill")]
    found: list[Path] = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            found += [path for path in (tmp_path / "spill").rglob("*") if path.is_file()]
            time.sleep(0.2)
        assert process.stdout is not None
        assert process.stdout.read().split() == ["0", "39"]
    assert found
    assert stat.S_IMODE((tmp_path / "spill").stat().st_mode) == 0o700
