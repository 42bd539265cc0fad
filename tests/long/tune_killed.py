"""A search that its parent kills: run by test_tune_kills.py.

tune_killed.py FOLDER    the study in FOLDER/study.yaml, on a cluster of its own; says what progress says
"""

from __future__ import annotations

import sys
from pathlib import Path

from medray.artifacts import Workspace
from medray.study import Study
from medray.tune import tune


def say(what: str, done: int, total: int) -> None:
    sys.stdout.write(f"{done}/{total} {what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    study = Study.load(Path(sys.argv[1]) / "study.yaml")
    tune(study, Workspace.of(study, study.folder / "workspace"), progress=say)
