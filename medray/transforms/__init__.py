"""Transforms: preparation steps of a modality, in the order in which the study lists them.

A deterministic one is fitted on the train split and changes rows before they are encoded, in training and in serving.
A random one changes tensors after they are loaded, in training only.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from medray.plugins import Kind

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch

State = dict[str, Any]


class RowsLike(Protocol):
    """Rows of one source: columns, and one array a row where there are arrays."""

    columns: pa.Table
    assets: list[np.ndarray[Any, Any] | None] | None


R = TypeVar("R", bound=RowsLike)


class Transform(Kind, ABC):
    """One step; a deterministic kind gives `partial`, `merge` and `apply`, a random one `augment`."""

    random: ClassVar[bool] = False

    def partial(self, rows: RowsLike) -> State:
        """What some train rows add to the statistics, as JSON."""
        del rows
        return {}

    def merge(self, partials: Sequence[State]) -> State:
        """The fitted state, as JSON; the order of the partials does not matter."""
        del partials
        return {}

    def fit(self, batches: Iterable[RowsLike]) -> State:
        """The state fitted on the train split, in one process."""
        return self.merge([self.partial(rows) for rows in batches])

    def apply(self, rows: R, state: State) -> R:
        """The rows, changed; their number stays."""
        del state
        return rows

    def augment(self, values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Loaded values, changed at random, (B, ...) of the same shape."""
        del generator
        return values
