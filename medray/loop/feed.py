"""Feed: batches of sealed shards, in an order that is a pure function of seed, epoch and step.

A shard is opened whole. The shards of an epoch are permuted and dealt to the ranks; a rank mixes the rows of a few
shards at a time, its window. No iterator has a state: to go on at a step is to skip that many rows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.artifacts.shards import Entry, Shards
from medray.errors import TrainingError

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

Batch = dict[str, "Array"]  # `x.<modality>`, `present.<modality>`, `y`: as a shard holds them

OPENED_BYTES = 1 << 30  # of opened shards kept in memory, where the machine has four times as much to spare


def seed_of(*parts: int | str) -> int:
    """A seed for each combination of parts, in [0, 2**63)."""
    text = " ".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Opened:
    """Opened shards, of which as many stay in memory as fit a budget; what stays is the same in every epoch.

    Args:
        budget: bytes; a gibibyte, or a quarter of what is free where that is less, unless given.
    """

    def __init__(self, shards: Shards, budget: int | None = None) -> None:
        self.shards = shards
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._left = min(OPENED_BYTES, free // 4) if budget is None else budget
        self._kept: dict[str, Batch] = {}

    def read(self, name: str) -> Batch:
        """One shard, without the names of its subjects; not to be written to."""
        if name in self._kept:
            return self._kept[name]
        arrays = {key: value for key, value in self.shards.read(name).items() if key not in {"subject", "unit"}}
        size = sum(value.nbytes for value in arrays.values())
        if size <= self._left:
            self._left -= size
            self._kept[name] = arrays
        return arrays


class Feed:
    """The train split, as one rank sees it.

    Args:
        opened: the shards.
        batch_size: of all ranks together.
        seed: of the order.
        mix_shards: shards in a window.
        rank: of this process.
        world: processes.

    Raises:
        TrainingError: fewer shards than processes, or a batch that cannot be shared equally.
    """

    def __init__(
        self, opened: Opened, *, batch_size: int, seed: int, mix_shards: int = 8, rank: int = 0, world: int = 1
    ) -> None:
        self.entries = opened.shards.entries("train")
        if len(self.entries) < world:
            raise TrainingError(
                f"{len(self.entries)} train shards cannot feed {world} workers. Lower compute.workers to "
                f"{max(1, len(self.entries))}, or train on more data."
            )
        if batch_size % world:
            raise TrainingError(
                f"a batch of {batch_size} cannot be shared equally by {world} workers. "
                f"Set train.batch_size to {-(-batch_size // world) * world}."
            )
        self.opened = opened
        self.share = batch_size // world
        self.seed, self.mix_shards, self.rank, self.world = seed, mix_shards, rank, world

    def shape(self, epoch: int) -> tuple[int, int]:
        """Steps of an epoch, and rows of a batch on one rank: the same on every rank, as all count every rank's rows.

        Rows that no longer fill a batch on every rank are left to another epoch's order. A rank with less than one
        batch makes the batches smaller.
        """
        rows = [sum(entry.rows for entry in self._dealt(epoch, rank)) for rank in range(self.world)]
        size = min(self.share, *rows)
        return min(rows) // size, size

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on; the arrays may be written to."""
        steps, size = self.shape(epoch)
        left = steps - start
        tail: Batch | None = None
        for window in self._windows(epoch, start * size):
            count, at = len(window["y"]), 0
            if tail is not None:
                at = min(size - len(tail["y"]), count)
                tail = {key: np.concatenate([tail[key], values[:at]]) for key, values in window.items()}
                if len(tail["y"]) == size and left:
                    left -= 1
                    yield tail
                elif len(tail["y"]) < size:
                    continue
            while at + size <= count and left:
                left -= 1
                yield {key: values[at : at + size] for key, values in window.items()}
                at += size
            if not left:
                return
            tail = {key: values[at:] for key, values in window.items()} if at < count else None

    def _dealt(self, epoch: int, rank: int) -> list[Entry]:
        order = np.random.default_rng(seed_of("shards", self.seed, epoch)).permutation(len(self.entries))
        return [self.entries[index] for index in order[rank :: self.world]]

    def _windows(self, epoch: int, skip: int) -> Iterator[Batch]:
        """Mixed windows of this rank from its row `skip` on; the next one is opened while one is used."""
        dealt = self._dealt(epoch, self.rank)
        windows = [dealt[first : first + self.mix_shards] for first in range(0, len(dealt), self.mix_shards)]
        with ThreadPoolExecutor(1) as pool:
            coming: Future[Batch] | None = None
            for number, window in enumerate(windows):
                rows = sum(entry.rows for entry in window)
                if skip >= rows:
                    skip -= rows
                    continue
                order = np.random.default_rng(seed_of("rows", self.seed, epoch, self.rank, number)).permutation(rows)
                ready, coming = coming, pool.submit(self._mixed, window, order, skip)
                skip = 0
                if ready is not None:
                    yield ready.result()
            if coming is not None:
                yield coming.result()

    def _mixed(self, window: Sequence[Entry], order: Array, skip: int) -> Batch:
        """The rows of some shards in `order`, without the first `skip`."""
        place = np.empty(len(order), np.intp)
        place[order] = np.arange(len(order))
        mixed: Batch = {}
        first = 0
        for entry in window:
            shard = self.opened.read(entry.name)
            to = place[first : first + entry.rows]
            for key, values in shard.items():
                if key not in mixed:
                    mixed[key] = np.empty((len(order), *values.shape[1:]), values.dtype)
                mixed[key][to] = values
            first += entry.rows
        return {key: values[skip:] for key, values in mixed.items()} if skip else mixed
