"""Modalities: the records of one source -> arrays of one fixed shape, and their way into a network.

    partial -> merge          statistics of the train split, gathered over many tasks, as JSON
    encode -> store           rows -> (n, *shape), as the shards and the served requests hold them
    load                      stored values -> what a network sees, on its own device

Training and serving go the same way, so a network never sees a value that was not stored and loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from medray import plugins
from medray.plugins import Kind

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch

    Array = np.ndarray[Any, Any]

State = dict[str, Any]


@dataclass
class Rows:
    """Some rows of one source, de-identified.

    Attributes:
        columns: numbers (float64), texts and times, named without their source; missing cells are null.
        assets: one array a row, or None where the row has none.
    """

    columns: pa.Table
    assets: list[Array | None] | None = None

    def __len__(self) -> int:
        """How many rows; a table without columns has forgotten how many."""
        return int(self.columns.num_rows) if self.assets is None else len(self.assets)


class Modality(Kind, ABC):
    """One input of a model.

    Attributes:
        of: the source it reads; the source of its own name unless given.
        use: which record of a subject, where several come before the unit's time.
        transforms: preparation steps, in order; the random ones run in training only.
    """

    encoder: ClassVar[str]  # the model kind that encodes it, where the study does not say
    explainer: ClassVar[str]  # the explainer kind, likewise
    storage: ClassVar[Literal["uint8", "float16", "float32"]]
    axes: ClassVar[tuple[str, ...]]  # of one encoded sample
    reads: ClassVar[Literal["assets", "columns"]] = "assets"  # a record without an asset counts as absent, or is a row

    of: str = ""
    use: Literal["latest", "first"] = "latest"
    transforms: tuple[Annotated[Kind, plugins.of("transforms")], ...] = ()

    @abstractmethod
    def partial(self, rows: Rows) -> State:
        """What some train rows add to the statistics, as JSON."""

    @abstractmethod
    def merge(self, partials: Sequence[State]) -> State:
        """The fitted state, as JSON; the order of the partials does not matter."""

    def fit(self, batches: Iterable[Rows]) -> State:
        """The state fitted on the train split, in one process."""
        return self.merge([self.partial(rows) for rows in batches])

    @abstractmethod
    def shape(self, state: State) -> tuple[int, ...]:
        """Shape of one encoded sample."""

    @abstractmethod
    def names(self, state: State) -> list[str]:
        """What the columns, leads or channels of an encoded sample are called."""

    @abstractmethod
    def encode(self, rows: Rows, state: State) -> Array:
        """Rows as finite float32, shape (n, *shape)."""

    def store(self, encoded: Array) -> Array:
        """Encoded values as they are kept in shards."""
        return encoded.astype(self.storage)

    def load(self, stored: torch.Tensor) -> torch.Tensor:
        """Stored values as float32, as a network sees them, on the device that they are on."""
        return stored.float()

    @abstractmethod
    def features(self, stored: Array) -> Array:
        """A short description of each stored sample, float32 (n, k), for a logistic-regression baseline."""

    def show(self, stored: Array, attribution: Array, state: State) -> bytes | None:
        """One stored sample and what its prediction rests on, as a PNG for people; None where a list says it better.

        Args:
            stored: of `shape`.
            attribution: of the same shape, or over the places of the last feature map.
            state: the fitted one.
        """
        del stored, attribution, state
        return None
