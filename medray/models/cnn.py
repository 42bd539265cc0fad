"""CNN: a 2D residual network for images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from medray.models import EncoderModel

if TYPE_CHECKING:
    from medray.models._network import Encoder

SMALL = 128  # pixels: below it the published stem would leave too little of the image


class Cnn(EncoderModel):
    """ResNet (He et al. 2016), by default the published ResNet-18 from 128 pixels on.

    Attributes:
        depth: layers.
        width: channels of the first stage; halving it makes it about four times faster.
        stem: `full` is 7x7 with pooling, `small` 3x3 without; `auto` takes `full` from 128 pixels on.
        last_stride: of the last stage; `auto` keeps the map fine (1) below 128 pixels, so that Grad-CAM can point.
        dropout: before the head.
    """

    axes: ClassVar[tuple[str, ...]] = ("channels", "height", "width")

    depth: Literal[10, 18] = 18
    width: Annotated[int, Field(ge=4, le=256)] = 64
    stem: Literal["auto", "full", "small"] = "auto"
    last_stride: Literal["auto", 1, 2] = "auto"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def encoder(self, shape: tuple[int, ...]) -> Encoder:
        """For images (C, H, W)."""
        from medray.models._resnet import ResNet

        below = min(shape[1:]) < SMALL
        return ResNet(
            shape[0],
            blocks=1 if self.depth == 10 else 2,
            width=self.width,
            small=below if self.stem == "auto" else self.stem == "small",
            last_stride=(1 if below else 2) if self.last_stride == "auto" else self.last_stride,
            dropout=self.dropout,
        )
