"""Models: encoders of one modality each, and what joins them into one network.

An encoder has a trunk, up to its last feature map, and a pool, from there to one vector: an explanation starts between
the two. Networks of our own live in `medray/models/_*.py`, which may import torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from medray.plugins import Kind

if TYPE_CHECKING:
    from medray.models._network import Encoder, Network


class Model(Kind, ABC):
    """What a study trains. The weights are drawn from torch's global generator: seed it before you build."""

    @abstractmethod
    def build(self, inputs: Mapping[str, tuple[int, ...]], num_outputs: int) -> Network:
        """A network with fresh weights.

        Args:
            inputs: shape of one sample of each modality.
            num_outputs: logits: 1 for a binary or regression target, else one a class.
        """


class EncoderModel(Model):
    """A model of one sort of input, alone or inside a fusion."""

    axes: ClassVar[tuple[str, ...]]  # of the samples that it takes, as modalities name them

    @abstractmethod
    def encoder(self, shape: tuple[int, ...]) -> Encoder:
        """An encoder of samples of this shape, with fresh weights."""

    def build(self, inputs: Mapping[str, tuple[int, ...]], num_outputs: int) -> Network:
        """One such encoder for each modality, and one linear layer on top."""
        from medray.models._network import Network

        return Network({name: self.encoder(shape) for name, shape in inputs.items()}, num_outputs)
