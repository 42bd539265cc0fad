"""Work: what a task does with some buckets of subjects. A task gets a plan and gives JSON; rows never leave it.

survey     what is there, and what its train rows add to the first step of every fit
refit      what they add to the next step
encode     sealed shards
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from medray import errors, inputs
from medray.artifacts.durable import sha256_of
from medray.artifacts.shards import Entry, write_shard
from medray.artifacts.vault import Vault
from medray.batches.join import Plan, Units, join
from medray.errors import DataError, MedrayError
from medray.modalities import Modality, Rows, State
from medray.schema import ASSET, SPLITS, TRAIN

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

ASSET_BYTES = 64 << 20  # of arrays opened at a time
ROWS = 16_384  # of a source without arrays at a time
MARK = "\n"  # between an error's class and its text


@dataclass(frozen=True)
class Work:
    """What every task is sent.

    Attributes:
        plan: what belongs together.
        modalities: by name.
        fitted: states of the steps that are fitted, by modality; while not all are, the next one is asked for.
        classes: in order.
        rows_per_shard: at most.
        vault: of the shards.
    """

    plan: Plan
    modalities: Mapping[str, Modality]
    fitted: Mapping[str, Sequence[State]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    rows_per_shard: int = 0
    vault: Vault | None = None


def survey(work: Work, task: int, buckets: Sequence[int]) -> dict[str, Any]:
    """Counts of the units of some buckets, and their share of each first fit."""
    del task
    units = join(work.plan, buckets)
    labels = work.plan.labels
    of = {split: [units.labels[index] for index in np.flatnonzero(units.split == split)] for split in SPLITS}
    found: dict[str, Any] = {
        "units": {split: len(of[split]) for split in SPLITS},
        "subjects": {split: len(set(units.subject[units.split == split])) for split in SPLITS},
        "present": {name: int((place >= 0).sum()) for name, place in units.places.items()},
        "left_out": dict(units.left_out),
        "contradicted": units.contradicted,
        "crossing": units.crossing,
        "partials": _partials(work, units),
    }
    if labels.task == "regression":
        return {**found, "moments": moments(np.array(of[TRAIN], np.float64))}
    return {**found, "classes": {split: labels.count(of[split]) for split in SPLITS}}


def refit(work: Work, task: int, buckets: Sequence[int]) -> dict[str, Any]:
    """What the train rows of some buckets add to each next step."""
    del task
    return {"partials": _partials(work, join(work.plan, buckets))}


def encode(work: Work, task: int, buckets: Sequence[int]) -> dict[str, Any]:
    """Write the shards of some buckets: each of one split, as many as their rows need, of about equal size."""
    vault = work.vault
    assert vault is not None  # noqa: S101 - `medray.batches` sets it for this sort of work
    units = join(work.plan, buckets)
    states = {name: inputs.joined(work.fitted[name]) for name in work.modalities}
    entries, files = [], {}
    for split in SPLITS:
        those = np.flatnonzero(units.split == split)
        count = -(-len(those) // work.rows_per_shard)
        for number, part in enumerate(np.array_split(those, count) if count else []):
            arrays: dict[str, Array] = {}
            for name, modality in work.modalities.items():
                place = units.places[name][part]
                arrays[f"x.{name}"] = _encoded(work, name, modality, states[name], units, place)
                arrays[f"present.{name}"] = place >= 0
            arrays["y"] = work.plan.labels.encode([units.labels[index] for index in part], work.classes)
            arrays["subject"], arrays["unit"] = _ids(units.subject[part]), _ids(units.unit[part])
            name = f"{split}-{task:05d}-{number:05d}"
            write_shard(vault, name, arrays)
            entries.append(Entry(name=name, split=split, rows=len(part)).model_dump())
            files[name] = sha256_of(vault.folder / name)
    return {"entries": entries, "files": files}


SORTS: dict[str, Callable[[Work, int, Sequence[int]], dict[str, Any]]] = {
    "survey": survey,
    "refit": refit,
    "encode": encode,
}


def run(batch: dict[str, Array], sort: str, work: Work) -> dict[str, Array]:
    """One task of Ray Data, a row of `task` and `buckets`; errors of ours come back as text, Ray would wrap them."""
    results = []
    for task, buckets in zip(batch["task"], batch["buckets"], strict=True):
        try:
            result = SORTS[sort](work, int(task), json.loads(str(buckets)))
        except MedrayError as error:
            result = {"error": f"{type(error).__name__}{MARK}{error}"}
        results.append(json.dumps(result))
    return {"task": batch["task"], "result": np.array(results, dtype=object)}


def opened(result: str) -> dict[str, Any]:
    """What a task gave.

    Raises:
        MedrayError: what it raised.
    """
    found: dict[str, Any] = json.loads(result)
    if "error" in found:
        name, text = found["error"].split(MARK, 1)
        sort: type[MedrayError] = getattr(errors, name, MedrayError)
        again = sort.__new__(sort)  # some are made of parts, which the text has already
        again.args = (text,)
        raise again
    return found


def _partials(work: Work, units: Units) -> dict[str, list[State]]:
    """By modality that has a step left, what the train rows add; a row that several units share counts once."""
    found: dict[str, list[State]] = {}
    train = units.split == TRAIN
    for name, modality in work.modalities.items():
        fitted = work.fitted.get(name, ())
        if len(fitted) == inputs.num_passes(modality):
            continue
        places = np.unique(units.places[name][train])
        with naming(name):
            found[name] = [
                inputs.partial(modality, fitted, rows) for rows, _ in _rows(work.plan, name, units, places[places >= 0])
            ]
    return found


def _encoded(work: Work, name: str, modality: Modality, state: State, units: Units, place: Array) -> Array:
    """(n, *shape) as stored; a row that several units share is encoded once."""
    encoded = inputs.blank(modality, state, len(place))
    places, of = np.unique(place, return_inverse=True)
    first = int((places < 0).sum())  # -1, the absent ones, is at the front
    with naming(name):
        for rows, start in _rows(work.plan, name, units, places[first:]):
            values = inputs.encode(modality, state, rows)
            numbers = of - first - start
            these = np.flatnonzero((numbers >= 0) & (numbers < len(values)))
            encoded[these] = values[numbers[these]]
    return encoded


def _rows(plan: Plan, name: str, units: Units, places: Array) -> Iterator[tuple[Rows, int]]:
    """Rows of a modality's source, as many at a time as fit memory, and the number of the first."""
    given = plan.inputs[name]
    table = units.rows[given.source].take(pa.array(places, pa.int64()))
    names = [f"{given.source}.{column}" for column in given.columns]
    columns = table.select(names).rename_columns(list(given.columns))
    if not given.assets:
        for start in range(0, len(places), ROWS):
            yield Rows(columns.slice(start, ROWS)), start
        return
    assets = table.column(ASSET).to_pylist()
    start, size = 0, 0
    for end, asset in enumerate(assets, start=1):
        size += math.prod(asset["shape"]) * np.dtype(asset["dtype"]).itemsize
        if size >= ASSET_BYTES or end == len(assets):
            loaded: list[Array | None] = [plan.table.load_asset(asset) for asset in assets[start:end]]
            yield Rows(columns.slice(start, end - start), loaded), start
            start, size = end, 0


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Say which modality an error is about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"modalities.{name}: {error}") from error


def moments(values: Array) -> tuple[int, float, float]:
    """Count, mean and sum of squared deviations."""
    mean = float(values.mean()) if len(values) else 0.0
    return len(values), mean, float(((values - mean) ** 2).sum())


def _ids(names: Array) -> Array:
    """Hex digits as 16 bytes each."""
    return np.frombuffer(bytes.fromhex("".join(names)), np.uint8).reshape(len(names), 16)
