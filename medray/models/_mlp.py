"""A multilayer perceptron for tables. B batch, F columns, D width of the last layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from medray.models._network import Encoder


class Mlp(Encoder):
    """Linear layers and ReLU, without normalization between them.

    Behind a layer normalization the scale of a row hardly counts, so the gradient along the row is near zero and input
    x gradient says nothing: on breast cancer it correlated 0.36 with integrated gradients, without one 0.996.
    """

    def __init__(self, columns: int, *, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.width = hidden[-1]
        layers: list[nn.Module] = []
        for inputs, outputs in zip((columns, *hidden), hidden, strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers)

    def trunk(self, x: Tensor) -> Tensor:
        """(B, F) -> (B, D)."""
        return cast(Tensor, self.layers(x))

    def pool(self, features: Tensor) -> Tensor:
        """The features themselves."""
        return features
