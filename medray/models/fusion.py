"""Fusion: several modalities in one network, any of which may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from medray import plugins
from medray.errors import StudyError
from medray.models import EncoderModel, Model
from medray.schema import FrozenDict

if TYPE_CHECKING:
    from medray.models._network import Network

Share = Annotated[float, Field(ge=0, lt=1)]


class Fusion(Model):
    """An encoder for each modality; their vectors are joined and mixed by one hidden layer.

    Attributes:
        encoders: a model kind for each modality; what its modality names unless given.
        hidden: width of the layer that mixes them; 0 leaves it out.
        dropout: after that layer.
        modality_dropout: how often training takes a modality away, so that every subset is answered well.
    """

    encoders: Annotated[FrozenDict, plugins.mapping_of("models")] = FrozenDict()
    hidden: Annotated[int, Field(ge=0)] = 64
    dropout: Share = 0.1
    modality_dropout: Share = 0.2

    @model_validator(mode="after")
    def _of_encoders(self) -> Fusion:
        wrong = [name for name, model in self.encoders.items() if not isinstance(model, EncoderModel)]
        if wrong:
            raise plugins.KindError(
                [f"encoders.{name}: kind '{self.encoders[name].kind}' encodes no single modality" for name in wrong]
            )
        return self

    def build(self, inputs: Mapping[str, tuple[int, ...]], num_outputs: int) -> Network:
        """A network with one encoder for each modality in `inputs`."""
        from medray.models._network import Network

        without = [name for name in inputs if name not in self.encoders]
        if without:
            raise StudyError(f"model.encoders: no encoder for {', '.join(without)}")
        return Network(
            {name: self.encoders[name].encoder(shape) for name, shape in inputs.items()},
            num_outputs,
            hidden=self.hidden,
            dropout=self.dropout,
            modality_dropout=self.modality_dropout,
        )
