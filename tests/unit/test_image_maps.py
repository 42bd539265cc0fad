"""A map is laid over the place that its cells look at."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medray.modalities.image import placed
from medray.models.cnn import Cnn


@pytest.mark.parametrize(("size", "stem"), [(64, "small"), (96, "small"), (128, "full"), (224, "full")])
def test_the_maximum_of_a_map_lies_where_the_cell_looks(size: int, stem: str) -> None:
    torch.manual_seed(0)
    encoder = Cnn(depth=10, width=8, stem=stem).encoder((1, size, size)).eval()  # type: ignore[arg-type]
    inputs = torch.randn(1, 1, size, size, requires_grad=True)
    features = encoder.trunk(inputs)
    cell = features.shape[-1] // 2
    # the pixels that move one cell, weighed by how much they do
    weights = np.zeros((size, size))
    for channel in range(features.shape[1]):
        (gradient,) = torch.autograd.grad(features[0, channel, cell, cell], inputs, retain_graph=True)
        weights += gradient[0, 0].numpy() ** 2
    looks_at = [(weights.sum(axis) * (np.arange(size) + 0.5)).sum() / weights.sum() / size for axis in (1, 0)]

    single = np.zeros(features.shape[-2:], np.float32)
    single[cell, cell] = 1
    side = 4 * size
    row, column = divmod(int(placed(single, size, side).argmax()), side)
    stride = 1 / features.shape[-1]
    assert (row + 0.5) / side == pytest.approx(looks_at[0], abs=0.2 * stride)
    assert (column + 0.5) / side == pytest.approx(looks_at[1], abs=0.2 * stride)


def test_a_map_of_pixels_stays_where_it_is() -> None:
    heat = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    assert np.allclose(placed(heat, 32, 32), heat, atol=1e-6)
