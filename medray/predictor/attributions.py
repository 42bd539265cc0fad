"""Attributions of all modalities from one forward pass and one backward pass; from more, where an explainer asks.

The output that is explained is the logit, or the value in its own units in regression. B batch, S points of a path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from medray.explainers import Explainer
from medray.predictor.forward import Forward

Path = tuple[tuple[float, float], ...]  # (position, weight) between the baseline and the input
POINT: Path = ((1.0, 1.0),)
ROWS = 64  # in one forward pass: more gain nothing on a CPU, and feature maps of large images fill its memory


class Attributed(NamedTuple):
    """Logits (B, k), the explained output (B,), and attributions (B, ...) by modality."""

    logits: Tensor
    outputs: Tensor
    attributions: dict[str, Tensor]


def attribute(
    forward: Forward,
    inputs: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    explainers: Mapping[str, Explainer],
    outputs: Tensor | None = None,
    scale: float = 1.0,
) -> Attributed:
    """Logits, and what the chosen output of each sample rests on.

    Args:
        forward: the network.
        inputs: loaded (B, *shape) by modality.
        present: bool (B,) by modality.
        explainers: by modality.
        outputs: (B,) which output; the highest unless given.
        scale: units of the explained output in one logit.
    """
    paths = {name: tuple(explainer.path()) for name, explainer in explainers.items()}
    there = [name for name in inputs if present[name].any()]
    leaves: dict[str, Tensor] = {}
    with torch.no_grad():
        features = forward.features(inputs, present, [n for n in inputs if not _at_input(n, there, explainers, paths)])
    for name in there:
        if paths[name] == POINT:
            leaf = features[name] if explainers[name].at == "features" else inputs[name]
            leaves[name] = leaf.detach().requires_grad_()
            features[name] = leaves[name] if explainers[name].at == "features" else forward.trunk(name, leaves[name])
    logits = forward.head(features, present)
    chosen = logits.detach().argmax(1) if outputs is None else outputs.to(logits.device)
    gradients = _gradients(logits, chosen, leaves)
    for path in set(paths.values()) - {POINT}:
        along = [name for name in there if paths[name] == path]
        if along:
            gradients |= _averaged(forward, inputs, present, features, explainers, along, path, chosen)
    found = {}
    for name, explainer in explainers.items():
        at_input = explainer.at == "input"
        value = inputs[name] - forward.baselines[name] if at_input else features[name].detach()
        gradient = gradients.get(name)
        found[name] = explainer.attribute(value, torch.zeros_like(value) if gradient is None else gradient * scale)
    return Attributed(logits.detach(), chosen, found)


def _at_input(name: str, there: list[str], explainers: Mapping[str, Explainer], paths: Mapping[str, Path]) -> bool:
    """Whether the trunk runs with a graph, from the input itself."""
    return name in there and explainers[name].at == "input" and paths[name] == POINT


def _gradients(logits: Tensor, outputs: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the chosen output of each sample with respect to each leaf."""
    if not leaves:
        return {}
    total = logits.gather(1, outputs[:, None]).sum()  # samples do not mix, so the sum's gradient is each one's own
    return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))


def _averaged(
    forward: Forward,
    inputs: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    features: Mapping[str, Tensor],
    explainers: Mapping[str, Explainer],
    along: list[str],
    path: Path,
    outputs: Tensor,
) -> dict[str, Tensor]:
    """Gradients averaged along the straight line on which the modalities in `along` move together, others as they are.

    Together: so that the attributions of all of them add up to the difference from the common baseline.
    """
    count = len(outputs)
    ends = {name: inputs[name] if explainers[name].at == "input" else features[name].detach() for name in along}
    starts = {
        name: forward.baselines[name] if explainers[name].at == "input" else torch.zeros_like(ends[name][:1])
        for name in along
    }
    averaged = {name: torch.zeros_like(end) for name, end in ends.items()}
    points = max(1, ROWS // count)
    for first in range(0, len(path), points):
        some = path[first : first + points]
        leaves, moved = {}, {}
        for name, end in ends.items():
            steps = [starts[name] + position * (end - starts[name]) for position, _ in some]
            leaves[name] = torch.cat(steps).requires_grad_()
        for name, feature in features.items():
            if name not in along:
                moved[name] = feature.detach().repeat(len(some), *[1] * (feature.ndim - 1))
            else:
                at_input = explainers[name].at == "input"
                moved[name] = forward.trunk(name, leaves[name]) if at_input else leaves[name]
        masks = {name: mask.repeat(len(some)) for name, mask in present.items()}
        logits = forward.head(moved, masks)
        found = _gradients(logits, outputs.repeat(len(some)), leaves)
        for name, gradient in found.items():
            weights = gradient.new_tensor([weight for _, weight in some])
            averaged[name] += torch.einsum("s,s...->...", weights, gradient.reshape(len(some), *averaged[name].shape))
    return averaged
