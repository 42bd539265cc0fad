"""What every file of `medray/models/` must show."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from medray import plugins
from medray.models import EncoderModel, Model
from medray.models._network import Network
from medray.models.fusion import Fusion

KINDS = sorted(plugins.names("models"))
SHAPES = {("channels", "height", "width"): (1, 32, 32), ("samples", "leads"): (96, 3), ("columns",): (6,)}
SMALL = {"cnn": {"width": 8, "depth": 10}, "lstm": {"hidden": 8}, "tabular": {"hidden": (16,)}}


def encoder(name: str) -> EncoderModel:
    return plugins.resolve("models", {"kind": name, **SMALL.get(name, {})})


def small(name: str) -> tuple[Model, dict[str, tuple[int, ...]]]:
    """A kind, small enough for a test, and the inputs it takes: a fusion takes one of each encoder."""
    if name == "fusion":
        chosen = {f"m-{kind}": encoder(kind) for kind in KINDS if kind != "fusion"}
        shapes = {modality: SHAPES[model.axes] for modality, model in chosen.items()}
        return Fusion(encoders=chosen, hidden=16, modality_dropout=0.2), shapes
    model = encoder(name)
    return model, {"values": SHAPES[model.axes]}


def built(name: str, num_outputs: int = 2, seed: int = 0) -> tuple[Network, dict[str, tuple[int, ...]]]:
    model, shapes = small(name)
    torch.manual_seed(seed)
    return model.build(shapes, num_outputs), shapes


def batch(shapes: Mapping[str, tuple[int, ...]], count: int, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, *shape, generator=draw) for name, shape in shapes.items()}


def all_present(shapes: Mapping[str, tuple[int, ...]], count: int) -> dict[str, Tensor]:
    return {name: torch.ones(count, dtype=torch.bool) for name in shapes}


@pytest.fixture(params=KINDS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("count", [1, 5])
def test_forward_and_backward(name: str, num_outputs: int, count: int) -> None:
    network, shapes = built(name, num_outputs)
    logits = network(batch(shapes, count), all_present(shapes, count))
    assert logits.shape == (count, num_outputs)
    assert torch.isfinite(logits).all()
    logits.square().sum().backward()
    assert not [key for key, value in network.named_parameters() if value.grad is None]
    assert all(torch.isfinite(value.grad).all() for value in network.parameters() if value.grad is not None)


def test_every_subset_of_modalities_is_answered(name: str) -> None:
    network, shapes = built(name)
    network.eval()
    inputs = batch(shapes, 3)
    answers = []
    for there in itertools.product([True, False], repeat=len(shapes)):
        present = {key: torch.full((3,), flag) for key, flag in zip(shapes, there, strict=True)}
        answers.append(network(inputs, present))
    assert all(torch.isfinite(answer).all() for answer in answers)
    for one, other in itertools.combinations(answers, 2):  # what is missing makes a difference
        assert not torch.allclose(one, other)
    assert torch.equal(answers[-1][0], answers[-1][1])  # with nothing there, all samples are alike


def test_the_state_dict_round_trips_through_safetensors(name: str) -> None:
    network, shapes = built(name)
    inputs, present = batch(shapes, 8), all_present(shapes, 8)
    network(inputs, present)  # moves what normalization has seen
    again, _ = built(name, seed=1)
    again.load_state_dict(load(save({key: value.contiguous() for key, value in network.state_dict().items()})))
    network.eval()
    again.eval()
    assert torch.equal(network(inputs, present), again(inputs, present))


def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    (one, _), (other, _), (third, _) = built(name), built(name), built(name, seed=1)
    weights = one.state_dict()
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in weights.items())
    assert any(not torch.equal(value, third.state_dict()[key]) for key, value in weights.items())


def test_it_learns_sixteen_examples(name: str) -> None:
    network, shapes = built(name, num_outputs=1)
    inputs, present = batch(shapes, 16), all_present(shapes, 16)
    labels = torch.arange(16).remainder(2).float()[:, None]
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for step in range(150):
        torch.manual_seed(step)
        network.train()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(inputs, present), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        assert ((network(inputs, present) > 0).float() == labels).float().mean() == 1


def test_trunk_and_pool_and_head_are_the_whole_network(name: str) -> None:
    network, shapes = built(name)
    network.eval()
    inputs, present = batch(shapes, 4), all_present(shapes, 4)
    features = {key: network.trunk(key, value) for key, value in inputs.items()}
    torch.testing.assert_close(network.head(features, present), network(inputs, present))
    for key in shapes:
        part = network.encoder(key)
        pooled = part.pool(features[key])
        assert pooled.shape == (4, part.width)


def test_an_answer_does_not_depend_on_who_else_is_asked_about(name: str) -> None:
    network, shapes = built(name)
    network.eval()
    inputs, present = batch(shapes, 4), all_present(shapes, 4)
    first = network({key: value[:1] for key, value in inputs.items()}, all_present(shapes, 1))
    torch.testing.assert_close(network(inputs, present)[:1], first, rtol=1e-4, atol=1e-5)
