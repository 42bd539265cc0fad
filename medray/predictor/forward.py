"""Forward: a trained network made ready for answers, each trunk run at most once.

B batch, M modalities, k outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from medray.models._network import Network, folded


class Forward:
    """Frozen, batch normalization folded into the convolutions.

    Args:
        network: with its trained weights.
        baselines: by modality, the loaded input (1, ...) that says nothing: black, or the train mean.
        fast: modalities whose trunk runs in bfloat16 where no graph is asked of it, if the device computes in it.
    """

    def __init__(self, network: Network, baselines: Mapping[str, Tensor], fast: Collection[str] = ()) -> None:
        self.network = cast(Network, _frozen(folded(network)))
        self.baselines = dict(baselines)
        self._blank: dict[str, Tensor] = {}
        device = next(iter(self.baselines.values())).device
        self._fast = {name: self.network.encoder(name) for name in fast if _computes_bfloat16(device)}
        self._fast = {name: copy.deepcopy(encoder).to(torch.bfloat16) for name, encoder in self._fast.items()}

    def trunk(self, name: str, x: Tensor) -> Tensor:
        """The feature map of one modality, float32."""
        if name in self._fast and not x.requires_grad:
            return self._fast[name].trunk(x.to(torch.bfloat16)).float()
        return self.network.trunk(name, x)

    def blank(self, name: str, count: int) -> Tensor:
        """What stands for the feature maps of `count` absent samples; the network never looks at it."""
        if name not in self._blank:
            with torch.no_grad():
                self._blank[name] = self.network.trunk(name, self.baselines[name])
        return self._blank[name].expand(count, *self._blank[name].shape[1:])

    def features(
        self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor], names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """The feature maps of the modalities in `names`, or all; none is computed that no sample has."""
        chosen = inputs if names is None else names
        return {
            name: self.trunk(name, inputs[name]) if present[name].any() else self.blank(name, len(inputs[name]))
            for name in chosen
        }

    def head(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, k)."""
        return self.network.head(features, present)


def _frozen(module: nn.Module) -> nn.Module:
    """Weights without gradients: a backward pass then only computes those of what is explained."""
    return module.requires_grad_(requires_grad=False)


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether it does so in hardware; elsewhere bfloat16 is emulated, and slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
