"""Ingest on a cluster of its own whose object store is small, and watch the memory: run by test_ingest_memory.py.

ingest_memory.py FOLDER WORKSPACE    prints the peak in bytes: proportional set size of all processes together
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path

from medray import runtime
from medray.artifacts import Workspace
from medray.ingest import ingest
from medray.ingest import plan as tasks
from medray.study import Study


def ours(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended
            for child in map(int, children.read_text().split()):
                found += ours(child)
    return found


def memory() -> int:
    """Proportional set size in bytes: what processes share counts once."""
    total = 0
    for pid in ours(os.getpid()):
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += int(next(line for line in lines if line.startswith("Pss:")).split()[1]) << 10
    return total


def main(folder: Path, root: Path) -> None:
    runtime.STORE_BYTES = runtime.MIN_STORE_BYTES
    tasks.GROUP_BYTES = tasks.MIN_GROUP_BYTES
    study = Study.load(folder / "study.yaml")
    done = threading.Event()
    peak = [0]

    def watch() -> None:
        while not done.wait(0.1):
            peak[0] = max(peak[0], memory())

    with runtime.cluster(num_cpus=2):
        watcher = threading.Thread(target=watch)
        watcher.start()
        ingest(study, Workspace.of(study, root))
        done.set()
        watcher.join()
    sys.stdout.write(f"{peak[0]}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
