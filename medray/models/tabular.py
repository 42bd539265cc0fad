"""Tabular: a multilayer perceptron for tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from medray.models import EncoderModel

if TYPE_CHECKING:
    from medray.models._network import Encoder


class Tabular(EncoderModel):
    """Layers of linear, ReLU, dropout.

    Attributes:
        hidden: width of each layer.
        dropout: after each layer.
    """

    axes: ClassVar[tuple[str, ...]] = ("columns",)

    hidden: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (64, 64)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def encoder(self, shape: tuple[int, ...]) -> Encoder:
        """For tables (F,)."""
        from medray.models._mlp import Mlp

        return Mlp(shape[0], hidden=self.hidden, dropout=self.dropout)
