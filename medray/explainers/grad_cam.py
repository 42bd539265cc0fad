"""Grad-CAM: which places of the last feature map speak for the prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from medray.explainers import Explainer

if TYPE_CHECKING:
    from torch import Tensor


class GradCam(Explainer):
    """Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", ICCV 2017.

    Channels of the feature map, weighed by their mean gradient, summed; what speaks against the prediction is cut.
    """

    at: ClassVar[Literal["features", "input"]] = "features"

    def attribute(self, value: Tensor, gradient: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, h, w) of an image; (B, T', D) -> (B, T') of a signal."""
        if value.ndim == 3:
            return (gradient.mean(1, keepdim=True) * value).sum(2).relu()
        return (gradient.mean((2, 3), keepdim=True) * value).sum(1).relu()
