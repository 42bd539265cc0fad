"""Network: an encoder for each modality, a learned vector for a missing one, and a head over all of them.

B batch, D width of an encoder's vector, M modalities.
"""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Encoder(nn.Module, ABC):
    """One modality's part of a network; `width` is D."""

    width: int

    @abstractmethod
    def trunk(self, x: Tensor) -> Tensor:
        """To the last feature map: (B, C, h, w) of images, (B, T', D) of signals, (B, D) of tables."""

    @abstractmethod
    def pool(self, features: Tensor) -> Tensor:
        """From the feature map to (B, D)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D)."""
        return self.pool(self.trunk(x))


class Network(nn.Module):
    """Encoders, fused by concatenation.

    A modality that is absent is replaced by its learned vector: what stands in its input is never looked at.
    In training, modality dropout takes present ones away at random, so that every subset is answered well
    (ModDrop: Neverova et al., TPAMI 2016).

    Args:
        encoders: by modality.
        num_outputs: logits.
        hidden: width of the layer that mixes modalities; 0 for a linear head.
        dropout: after the hidden layer.
        modality_dropout: probability that a present modality is taken away; one always stays.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        num_outputs: int,
        *,
        hidden: int = 0,
        dropout: float = 0.0,
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.names = tuple(encoders)
        self.modality_dropout = modality_dropout
        self.encoders = nn.ModuleDict({_key(name): encoder for name, encoder in encoders.items()})
        self.missing = nn.ParameterList(nn.Parameter(torch.zeros(encoder.width)) for encoder in encoders.values())
        width = sum(encoder.width for encoder in encoders.values())
        mix = (nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout)) if hidden else ()
        self.classifier = nn.Sequential(*mix, nn.Linear(hidden or width, num_outputs))

    def encoder(self, name: str) -> Encoder:
        """The encoder of one modality."""
        return cast(Encoder, self.encoders[_key(name)])

    def forward(self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, num_outputs).

        Args:
            inputs: (B, *shape) of each modality; anything where it is absent.
            present: bool (B,) of each modality.
        """
        if self.training and self.modality_dropout and len(self.names) > 1:
            present = self._dropped(present)
        return self._classify({name: self._encode(name, inputs[name], present[name]) for name in self.names}, present)

    def trunk(self, name: str, x: Tensor) -> Tensor:
        """The feature map of one modality."""
        return self.encoder(name).trunk(x)

    def head(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Logits from the feature maps of all modalities."""
        return self._classify({name: self.encoder(name).pool(features[name]) for name in self.names}, present)

    def _classify(self, pooled: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        vectors = [
            # where: the learned vector stays in the graph even when all are present, as DDP requires
            torch.where(present[name][:, None], pooled[name].to(missing.dtype), missing)
            for name, missing in zip(self.names, self.missing, strict=True)
        ]
        return cast(Tensor, self.classifier(torch.cat(vectors, dim=1)))

    def _encode(self, name: str, x: Tensor, present: Tensor) -> Tensor:
        """(B, D); only rows that are present go through the encoder, else they would shift its batch statistics."""
        encoder = self.encoder(name)
        rows = present.nonzero()[:, 0]
        if len(rows) == len(present):
            return cast(Tensor, encoder(x))
        vectors = x.new_zeros((len(present), encoder.width), dtype=self.missing[0].dtype)
        if len(rows):
            return vectors.index_copy(0, rows, encoder(x[rows]).to(vectors.dtype))
        # DDP wants a gradient, here zero, of every parameter in every step
        nothing = sum((parameter.sum() * 0 for parameter in encoder.parameters()), torch.zeros_like(vectors[0, 0]))
        return vectors + nothing

    def _dropped(self, present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        there = torch.stack([present[name] for name in self.names], dim=1)  # (B, M)
        draw = torch.rand(there.shape, device=there.device)
        kept = there & (draw >= self.modality_dropout)
        # where none is left, the one that came nearest to staying
        last = (draw * there).argmax(1, keepdim=True)
        kept |= there & ~kept.any(1, keepdim=True) & torch.zeros_like(there).scatter(1, last, value=True)
        return dict(zip(self.names, kept.unbind(1), strict=True))


def _key(name: str) -> str:
    """A name under which torch keeps a module: no dot, and none of ModuleDict's own, such as `values`."""
    key = name.replace(".", "_")
    return f"{key}_" if hasattr(nn.ModuleDict, key) or key == "training" else key


def folded(module: nn.Module) -> nn.Module:
    """A copy for inference: each batch normalization becomes part of the convolution that is registered before it."""
    module = copy.deepcopy(module).eval()
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv1d | nn.Conv2d) and isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
    return module
