"""Integrated gradients: attributions that add up to the prediction's difference from that of the baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from medray.explainers import Explainer

if TYPE_CHECKING:
    from torch import Tensor


class IntegratedGradients(Explainer):
    """Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks", ICML 2017.

    Attributes:
        steps: points of the Gauss-Legendre rule along the straight line from the baseline to the input. With 16 the sum
            misses the prediction's difference by a few percent, by up to 15 for a deep network of ReLUs; 256 give 1.
    """

    at: ClassVar[Literal["features", "input"]] = "input"
    complete: ClassVar[bool] = True

    steps: Annotated[int, Field(ge=2, le=512)] = 16

    def path(self) -> list[tuple[float, float]]:
        """Nodes and weights of the Gauss-Legendre rule on [0, 1]."""
        import numpy as np

        nodes, weights = np.polynomial.legendre.leggauss(self.steps)
        return [(float(node + 1) / 2, float(weight) / 2) for node, weight in zip(nodes, weights, strict=True)]

    def attribute(self, value: Tensor, gradient: Tensor) -> Tensor:
        """Of the input's shape."""
        return value * gradient
