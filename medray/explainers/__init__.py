"""Explainers: what in an input a prediction rests on, from a value and the gradient of the prediction there.

One forward and one backward pass serve all modalities; kinds that need more say so in `cost`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from medray.plugins import Kind

if TYPE_CHECKING:
    from torch import Tensor


class Explainer(Kind, ABC):
    """How an attribution is made."""

    at: ClassVar[Literal["features", "input"]]  # where value and gradient are taken
    complete: ClassVar[bool] = False  # attributions add up to the prediction's difference from that of the baseline

    @property
    def cost(self) -> int:
        """Forward passes."""
        return len(self.path())

    def path(self) -> list[tuple[float, float]]:
        """(position, weight) of the points between the baseline, 0, and the input, 1, whose gradients are averaged."""
        return [(1.0, 1.0)]

    @abstractmethod
    def attribute(self, value: Tensor, gradient: Tensor) -> Tensor:
        """The attribution.

        Args:
            value: the feature map, or the input's difference from its baseline (black, or the train mean).
            gradient: of the prediction with respect to it, averaged over `path`; of the same shape.
        """
