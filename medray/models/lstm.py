"""LSTM: a recurrent network for signals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from medray.models import EncoderModel

if TYPE_CHECKING:
    from medray.models._network import Encoder


class Lstm(EncoderModel):
    """Two strided convolutions, a bidirectional LSTM, attention over time.

    Attributes:
        hidden: units each way.
        layers: of the LSTM.
        dropout: before the head, and between layers.
    """

    axes: ClassVar[tuple[str, ...]] = ("samples", "leads")

    hidden: Annotated[int, Field(ge=4, le=1024)] = 64
    layers: Annotated[int, Field(ge=1, le=4)] = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def encoder(self, shape: tuple[int, ...]) -> Encoder:
        """For signals (T, C)."""
        from medray.models._lstm import LstmEncoder

        return LstmEncoder(shape[1], hidden=self.hidden, layers=self.layers, dropout=self.dropout)
