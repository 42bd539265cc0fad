"""What the tasks of one ingest share, and how they are run: in this process where there is little, else by Ray Data."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from medray import errors, runtime
from medray.artifacts.table import Table
from medray.errors import MedrayError
from medray.governance.crypto import Keyring
from medray.governance.deidentify import Pseudonyms
from medray.ingest.files import File
from medray.ingest.keys import Lookup, Source

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

GROUP_BYTES = 64 << 20  # at most, of the files of one task; its block costs Ray Data 25 ms whatever is in it
MIN_GROUP_BYTES = 4 << 20
GROUPS_PER_CPU = 4  # so that the last tasks end together
IN_PROCESS_BYTES = 8 << 20  # below it Ray's worker processes take longer to start than the work takes
SLOWEST_BYTES_PER_S = 256 << 10  # of a reader; below it a task counts as stalled

Task = Callable[["Plan", dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """What every task is sent: kinds, rules and pseudonyms; never a Study, and no identifier.

    Attributes:
        sources: how their records are keyed.
        kinds: source -> column -> what it holds; columns that are not in it are not kept.
        dropped: source -> columns that are left out on purpose.
        owners: source -> record id -> (subject id, code of its split).
        splits: subject id -> code of its split, where a published split is used.
        duplicates: positions of rows whose record key another row has, ascending.
        shift_dates: as in the study's `governance`.
    """

    table: Table
    keyring: Keyring
    sources: Mapping[str, Source]
    kinds: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    dropped: Mapping[str, frozenset[str]] = field(default_factory=dict)
    owners: Mapping[str, Lookup] = field(default_factory=dict)
    splits: Lookup | None = None
    duplicates: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    shift_dates: bool = True

    def pseudonyms(self) -> Pseudonyms:
        """Made in each process; the secret itself is never sent."""
        return Pseudonyms(self.keyring.derive("pseudonym"), self.keyring.derive("date shift"))


def grouped(source: str, files: Sequence[File], target: int, **options: Any) -> list[dict[str, Any]]:
    """Files in groups of about `target` bytes, as tasks take them."""
    groups: list[list[File]] = []
    weight = target
    for file in files:
        if weight >= target:
            groups.append([])
            weight = 0
        groups[-1].append(file)
        weight += file.weight
    return [
        {
            "source": source,
            "files": [[file.number, file.path, file.file_id] for file in group],
            "weight": sum(file.weight for file in group),
            **options,
        }
        for group in groups
    ]


def group_target(files: Sequence[File], num_cpus: float) -> int:
    """Bytes of one group."""
    share = int(sum(file.weight for file in files) / max(1.0, GROUPS_PER_CPU * num_cpus))
    return max(MIN_GROUP_BYTES, min(GROUP_BYTES, share))


def in_process(files: Sequence[File]) -> bool:
    """Whether these files are too few to be worth a cluster."""
    return sum(file.weight for file in files) <= IN_PROCESS_BYTES


def run(task: Task, plan: Plan, groups: Sequence[dict[str, Any]], what: str, *, here: bool) -> Iterator[dict[str, Any]]:
    """The result of each group, as it is ready; in this process one after the other, or by Ray Data.

    Args:
        task: a function of a module; takes the plan and a group, gives JSON.
        plan: is sent once.
        groups: from `grouped`.
        what: is being done, for messages.
        here: in this process.

    Raises:
        MedrayError: what a task raised.
        ComputeError: nothing came for too long.
    """
    if here or not groups:
        for group in groups:
            yield task(plan, group)
        return
    import ray
    import ray.data

    runtime.settle(ray.data.DataContext.get_current())
    shared = ray.put(plan)

    def work(batch: dict[str, Any]) -> dict[str, list[str]]:
        try:
            result = task(ray.get(shared), json.loads(batch["group"][0]))
        except MedrayError as error:  # Ray Data would wrap it, and log it
            result = {"error": [type(error).__name__, str(error)]}
        return {"result": [json.dumps(result)]}

    items = [{"group": json.dumps(group)} for group in groups]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(work, batch_size=1, num_cpus=1)
    patience = max(runtime.STALLED_S, max(group["weight"] for group in groups) / SLOWEST_BYTES_PER_S)
    for row in runtime.watchdog(dataset.iter_rows(), what, patience):
        result = json.loads(row["result"])
        if "error" in result:
            raise _raised(*result["error"])
        yield result


def to_text(array: Array) -> str:
    """An array's bytes, to be sent in JSON."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def from_text(text: str, dtype: Any) -> Array:
    """The reverse."""
    return np.frombuffer(base64.b64decode(text), dtype)


def _raised(name: str, message: str) -> MedrayError:
    """An error as the task raised it."""
    kind = getattr(errors, name, MedrayError)
    error: MedrayError = kind.__new__(kind, message)
    return error
