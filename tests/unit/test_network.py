"""A network of several modalities, any of which may be missing."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from medray.models._network import Encoder, Network, folded
from medray.models.cnn import Cnn
from medray.models.fusion import Fusion
from medray.models.lstm import Lstm
from medray.models.tabular import Tabular

SHAPES = {"film": (1, 32, 32), "ecg": (96, 3), "labs": (6,)}
FUSION = Fusion(
    encoders={"film": Cnn(width=8, depth=10), "ecg": Lstm(hidden=8), "labs": Tabular(hidden=(16,))},
    hidden=16,
    modality_dropout=0.4,
)


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return FUSION.build(SHAPES, 2)


def batch(count: int, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, *shape, generator=draw) for name, shape in SHAPES.items()}


def masks(**rows: list[int]) -> dict[str, Tensor]:
    return {name: torch.tensor(rows[name], dtype=torch.bool) for name in SHAPES}


ABSENT = masks(film=[1, 1, 0, 0, 1], ecg=[1, 0, 1, 0, 1], labs=[0, 1, 1, 0, 1])


def with_garbage(inputs: Mapping[str, Tensor], present: Mapping[str, Tensor], garbage: float) -> dict[str, Tensor]:
    """The same inputs, with garbage where a sample is absent."""
    changed = {name: value.clone() for name, value in inputs.items()}
    for name, mask in present.items():
        changed[name][~mask] = garbage
    return changed


@pytest.mark.parametrize("garbage", [0.0, 1e30, float("nan"), float("inf")])
def test_what_stands_in_an_absent_input_is_never_looked_at(garbage: float) -> None:
    model = network().eval()
    inputs = batch(5)
    expected = model(inputs, ABSENT)
    found = model(with_garbage(inputs, ABSENT, garbage), ABSENT)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, expected)


def test_no_feature_of_an_absent_input_reaches_the_head() -> None:
    model = network().eval()
    inputs = batch(5)
    features = {name: model.trunk(name, value) for name, value in inputs.items()}
    expected = model.head(features, ABSENT)
    torch.testing.assert_close(model.head(with_garbage(features, ABSENT, float("nan")), ABSENT), expected)


def test_no_gradient_comes_from_garbage() -> None:
    model = network().train()
    model(with_garbage(batch(5), ABSENT, float("nan")), ABSENT).sum().backward()
    assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)


def test_absent_samples_do_not_shift_batch_normalization() -> None:
    inputs = batch(5)
    one, other = network().train(), network().train()
    for model in (one, other):
        model.modality_dropout = 0.0
    one(with_garbage(inputs, ABSENT, 1e6), ABSENT)
    other.encoder("film")(inputs["film"][ABSENT["film"]])
    for key, value in one.encoder("film").state_dict().items():
        torch.testing.assert_close(value, other.encoder("film").state_dict()[key])


@pytest.mark.parametrize(
    "present",
    [
        masks(film=[1, 1, 1], ecg=[1, 1, 1], labs=[1, 1, 1]),
        masks(film=[0, 0, 0], ecg=[1, 1, 1], labs=[1, 1, 1]),
        masks(film=[1, 0, 1], ecg=[0, 0, 0], labs=[0, 0, 0]),
        masks(film=[0, 0, 0], ecg=[0, 0, 0], labs=[0, 0, 0]),
    ],
    ids=["all there", "no film", "films alone", "nothing"],
)
def test_every_parameter_has_a_gradient_in_every_step(present: dict[str, Tensor]) -> None:
    # DistributedDataParallel waits for ever for one that has none
    model = network().train()
    model(batch(3), present).square().sum().backward()
    assert not [name for name, value in model.named_parameters() if value.grad is None]


def test_the_vector_of_a_missing_modality_is_learned() -> None:
    model = network().train()
    model.modality_dropout = 0.0
    model(batch(5), ABSENT).square().sum().backward()
    assert all(vector.grad is not None and vector.grad.abs().sum() > 0 for vector in model.missing)


def test_modality_dropout_takes_some_leaves_one_and_adds_none() -> None:
    model = network().train()
    count = 4000
    draw = torch.Generator().manual_seed(0)
    present = {name: torch.rand(count, generator=draw) < 0.8 for name in SHAPES}
    torch.manual_seed(0)
    kept = model._dropped(present)
    for name in SHAPES:
        assert not (kept[name] & ~present[name]).any()
    there = torch.stack(list(present.values())).sum(0)
    left = torch.stack(list(kept.values())).sum(0)
    assert ((left > 0) == (there > 0)).all()
    full = there == 3
    # 3 present: 0.6 stay, and the 0.4^3 that lost all three get one back
    assert left[full].float().mean() == pytest.approx(3 * 0.6 + 0.4**3, abs=0.06)
    # the one that is left is not always the same
    alone = {name: (kept[name] & (left == 1) & full).sum().item() for name in SHAPES}
    assert min(alone.values()) > 0.7 * max(alone.values())


def test_modality_dropout_is_for_training_and_for_several_modalities() -> None:
    model, inputs = network(), batch(4)
    everything = {name: torch.ones(4, dtype=torch.bool) for name in SHAPES}
    model.eval()
    assert torch.equal(model(inputs, everything), model(inputs, everything))
    torch.manual_seed(0)
    single = Network({"labs": Tabular(hidden=(4,), dropout=0.0).encoder((6,))}, 1, modality_dropout=0.99).train()
    present = {"labs": torch.ones(4, dtype=torch.bool)}
    assert torch.equal(single({"labs": inputs["labs"]}, present), single({"labs": inputs["labs"]}, present))


def test_folding_changes_no_answer_and_leaves_no_normalization() -> None:
    model = network()
    everything = {name: torch.ones(16, dtype=torch.bool) for name in SHAPES}
    model.train()
    for seed in range(5):  # so that normalization has something to fold
        model(batch(16, seed), everything)
    model.eval()
    light = folded(model)
    inputs = batch(16, 9)
    with torch.no_grad():
        assert (light(inputs, everything) - model(inputs, everything)).abs().max() < 1e-5
    assert not [part for part in light.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert not light.training


class _Pair(Encoder):
    width = 2

    def trunk(self, x: Tensor) -> Tensor:
        return x

    def pool(self, features: Tensor) -> Tensor:
        return features


@pytest.mark.parametrize("name", ["values", "keys", "training", "type", "ecg-2", "forward", "m.1"])
def test_a_modality_may_have_any_name(name: str) -> None:
    model = Network({name: _Pair()}, 1)
    assert model({name: torch.ones(1, 2)}, {name: torch.tensor([True])}).shape == (1, 1)
    assert model.encoder(name).width == 2


def test_channels_last_and_plain_inputs_give_one_answer() -> None:
    model = network().eval()
    inputs = batch(4)
    everything = {name: torch.ones(4, dtype=torch.bool) for name in SHAPES}
    strided = {**inputs, "film": inputs["film"].contiguous(memory_format=torch.channels_last)}
    torch.testing.assert_close(model(inputs, everything), model(strided, everything))


@pytest.mark.parametrize(
    ("model", "shape", "width"),
    [
        (Cnn(), (3, 224, 224), 512),
        (Cnn(), (1, 64, 64), 512),
        (Cnn(depth=10, width=16), (1, 16, 16), 128),
        (Lstm(hidden=32, layers=2), (1000, 12), 64),
        (Lstm(), (3, 1), 128),
        (Tabular(hidden=(7, 5)), (30,), 5),
    ],
)
def test_encoders_take_the_sizes_that_come(model: Cnn | Lstm | Tabular, shape: tuple[int, ...], width: int) -> None:
    encoder = model.encoder(shape).eval()
    with torch.no_grad():
        features = encoder.trunk(torch.randn(2, *shape))
        assert encoder.pool(features).shape == (2, width)
    if shape == (3, 224, 224):  # as torchvision's ResNet-18 has it
        assert features.shape == (2, 512, 7, 7)
        assert {"conv1.weight", "layer1.0.conv1.weight", "layer4.1.bn2.bias"} <= set(encoder.state_dict())
        assert sum(value.numel() for value in encoder.parameters()) == 11_176_512
    if shape == (1, 64, 64):  # fine enough to point
        assert features.shape[2:] == (8, 8)
