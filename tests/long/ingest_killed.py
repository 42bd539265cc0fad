"""An ingest that kills itself, or is killed by its parent: run by test_ingest_kills.py.

    ingest_killed.py here FOLDER WORKSPACE POINT [prune]    one file a task, in one process; prints the number of points
    ingest_killed.py ray FOLDER WORKSPACE                   likewise, on a cluster; says "ingest DONE" at each commit

A point is one fsync, killed before it (an even POINT) or after it (an odd one): all that is durable becomes so by an
fsync, and all that is not yet durable may be gone. POINT -1 kills nobody.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from medray.artifacts import Workspace
from medray.ingest import ingest
from medray.ingest import plan as tasks
from medray.runtime import cluster
from medray.study import Study

fsync = os.fsync


def killed_at(point: int) -> dict[str, int]:
    """Have this process die at a point; counts them otherwise."""
    seen = {"points": 0}

    def counted(descriptor: Any) -> None:
        number = seen["points"]
        if number == point:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)
        if number + 1 == point:
            os.kill(os.getpid(), signal.SIGKILL)
        seen["points"] += 2

    os.fsync = counted
    return seen


def study_in(folder: Path) -> Study:
    return Study.load(folder / "study.yaml")


def one_file_a_task() -> None:
    tasks.MIN_GROUP_BYTES = tasks.GROUP_BYTES = 1


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def main(how: str, folder: Path, root: Path, *rest: str) -> None:
    study = study_in(folder)
    one_file_a_task()
    if how == "here":
        tasks.IN_PROCESS_BYTES = 1 << 40
        seen = killed_at(int(rest[0]))
        ingest(study, Workspace.of(study, root), prune="prune" in rest)
        say(seen["points"])
        return
    tasks.IN_PROCESS_BYTES = -1
    with cluster(num_cpus=2):
        ingest(study, Workspace.of(study, root), progress=say)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
