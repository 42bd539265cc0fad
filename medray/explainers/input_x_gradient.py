"""Input x gradient: how much each value of the input, as it is, moves the prediction, to first order."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from medray.explainers import Explainer

if TYPE_CHECKING:
    from torch import Tensor


class InputXGradient(Explainer):
    """Shrikumar, Greenside, Shcherbina, Kundaje, "Not just a black box", 2016 (arXiv:1605.01713).

    The sign says whether a value raises or lowers the prediction.
    """

    at: ClassVar[Literal["features", "input"]] = "input"

    def attribute(self, value: Tensor, gradient: Tensor) -> Tensor:
        """Of the input's shape."""
        return value * gradient
