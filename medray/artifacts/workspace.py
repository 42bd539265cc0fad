"""Workspace: where the artifacts of studies lie, and how they are named."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from medray.artifacts.checkpoint import Checkpoint
from medray.artifacts.durable import make_folder
from medray.artifacts.shards import Shards
from medray.artifacts.table import Table
from medray.errors import ArtifactError
from medray.governance.crypto import Keyring
from medray.study import Study
from medray.study.digest import essence

Sort = Literal["tables", "shards", "checkpoints", "scores", "reports", "tunings", "models"]

# the fields of `governance` that change rows; the rest decides who may see them, or when a run stops
ROW_FIELDS = ("shift_dates", "free_text", "keep_columns")
# what decides weights, beside the shards; `explain` rides in the checkpoint, and decides what it answers
MODEL_SECTIONS = ("seed", "model", "train", "compute.workers", "compute.threads", "compute.device", "explain")


class Workspace:
    """A folder of artifacts, 0700, on a disk that all nodes share; picklable by reference.

    Layout: `<root>/<sort>/<digest>`, `<root>/keyring`, `<root>/locks`.
    """

    def __init__(self, root: Path, keyring: Keyring) -> None:
        self.root = Path(root)
        self.keyring = keyring

    @classmethod
    def of(cls, study: Study, root: Path | str | None = None) -> Workspace:
        """The workspace of a study: `root`, else `MEDRAY_WORKSPACE`, else `.medray` beside the study file."""
        chosen = root or os.environ.get("MEDRAY_WORKSPACE") or study.folder / ".medray"
        folder = make_folder(Path(chosen).expanduser().resolve())
        return cls(folder, Keyring(folder / "keyring", study.governance.key))

    def folder(self, sort: Sort, digest: str) -> Path:
        """Where the artifact of a sort and digest lies, or will lie."""
        return self.root / sort / digest

    def table(self, study: Study) -> Table:
        """The study's table, whether it was ingested yet or not."""
        return Table(self.folder("tables", table_digest(study)), self.keyring)

    def checkpoint(self, study: Study, shards: Shards) -> Checkpoint:
        """The study's checkpoint on these shards, whether it was trained yet or not."""
        return Checkpoint(self.folder("checkpoints", digest_of(study, MODEL_SECTIONS, {"shards": shards.folder.name})))

    @contextlib.contextmanager
    def lock(self, name: str, timeout_s: float = 600) -> Iterator[None]:
        """Keep other processes from the same work.

        Raises:
            ArtifactError: another process holds the lock for longer than `timeout_s`.
        """
        path = make_folder(self.root / "locks") / f"{name}.lock"
        try:
            with FileLock(path, timeout=timeout_s, mode=0o600):
                yield
        except Timeout as error:
            raise ArtifactError(f"another run of medray has held '{name}' for {timeout_s:g} s. Wait for it.") from error


def table_digest(study: Study) -> str:
    """Sixteen hex digits over what decides a table's rows: never over content or target, so that a table can grow.

    Where several sources have files and the split is by path, the unit tells whose path.
    """
    governance = {name: value for name, value in essence(study.governance).items() if name in ROW_FIELDS}
    several = len(study.sources) > 1 and not isinstance(study.cohort.split.by, str | None)
    split_source = [study.split_source()] if several else []
    return _digest([essence(study.sources), essence(study.cohort.split), governance, *split_source])


def digest_of(study: Study, sections: Sequence[str], parents: Mapping[str, str]) -> str:
    """Sixteen hex digits over the study's sections that a verb reads, and the artifacts that it reads."""
    return _digest([study.digest(*sections), dict(parents)])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
