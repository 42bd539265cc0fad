"""What every file of `medray/explainers/` must show, on a network of every encoder."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from medray import plugins
from medray.explainers import Explainer
from medray.models._network import Network
from tests.contract.test_models import SHAPES, all_present, batch, encoder

EXPLAINERS = sorted(plugins.names("explainers"))
ENCODERS = sorted(name for name in plugins.names("models") if name != "fusion")


def network_of(name: str) -> tuple[Network, Tensor]:
    torch.manual_seed(0)
    model = encoder(name)
    network = model.build({"m": SHAPES[model.axes]}, 1)
    inputs = batch({"m": SHAPES[model.axes]}, 16)
    with torch.no_grad():
        network(inputs, all_present(inputs, 16))  # so that normalization has seen something
    return network.eval(), inputs["m"][:3]


def attribution(explainer: Explainer, network: Network, x: Tensor) -> Tensor:
    """As predictions are explained: gradients along the path, averaged, at the input or at the feature map."""
    present = {"m": torch.ones(len(x), dtype=torch.bool)}
    trunk = network.trunk if explainer.at == "features" else (lambda _, value: value)
    head = network.head if explainer.at == "features" else network.__call__
    total, value = None, None
    for position, weight in explainer.path():
        value = trunk("m", x * position).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(head({"m": value}, present).sum(), value)
        total = gradient * weight if total is None else total + gradient * weight
    at_the_end = trunk("m", x).detach()
    return explainer.attribute(at_the_end, total)


def pairs() -> list[tuple[str, str]]:
    """A feature map has places, which a table has none of."""
    kinds = {name: plugins.resolve("explainers", name) for name in EXPLAINERS}
    return [
        (explainer, model)
        for explainer in EXPLAINERS
        for model in ENCODERS
        if kinds[explainer].at == "input" or len(encoder(model).axes) > 1
    ]


@pytest.fixture(params=pairs(), ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[Explainer, Network, Tensor]:
    explainer, model = request.param
    return plugins.resolve("explainers", explainer), *network_of(model)


def test_an_attribution_has_the_shape_of_what_it_explains(case: tuple[Explainer, Network, Tensor]) -> None:
    explainer, network, x = case
    found = attribution(explainer, network, x)
    if explainer.at == "input":
        assert found.shape == x.shape
    else:  # one number a place of the map: (B, h, w) of (B, C, h, w), (B, T') of (B, T', D)
        features = network.trunk("m", x)
        assert found.shape == (len(x), *(features.shape[2:] if features.ndim == 4 else features.shape[1:2]))
    assert torch.isfinite(found).all()
    assert found.abs().sum() > 0


def test_an_attribution_is_deterministic_and_each_samples_own(case: tuple[Explainer, Network, Tensor]) -> None:
    explainer, network, x = case
    found = attribution(explainer, network, x)
    torch.testing.assert_close(found, attribution(explainer, network, x), rtol=0, atol=0)
    torch.testing.assert_close(found[:1], attribution(explainer, network, x[:1]), rtol=1e-3, atol=1e-5)
    sent: Explainer = pickle.loads(pickle.dumps(explainer))  # noqa: S301
    torch.testing.assert_close(found, attribution(sent, network, x), rtol=0, atol=0)


def test_a_network_that_ignores_its_input_is_explained_by_nothing(case: tuple[Explainer, Network, Tensor]) -> None:
    explainer, network, x = case
    with torch.no_grad():
        network.classifier[-1].weight.zero_()
    assert attribution(explainer, network, x).abs().max() < 1e-6


def test_the_points_of_a_path_are_a_mean_from_baseline_to_input() -> None:
    for name in EXPLAINERS:
        explainer: Explainer = plugins.resolve("explainers", name)
        positions, weights = zip(*explainer.path(), strict=True)
        assert sum(weights) == pytest.approx(1)
        assert all(0 <= position <= 1 for position in positions)
        assert explainer.cost == len(positions)


@pytest.mark.parametrize("model", ENCODERS)
def test_a_complete_attribution_adds_up_to_the_change_of_the_prediction(model: str) -> None:
    network, x = network_of(model)
    present = {"m": torch.ones(len(x), dtype=torch.bool)}
    with torch.no_grad():
        change = (network({"m": x}, present) - network({"m": torch.zeros_like(x)}, present))[:, 0]
    complete = [kind for name in EXPLAINERS if (kind := plugins.resolve("explainers", name)).complete]
    assert complete
    for explainer in complete:
        finer = explainer.model_copy(update={"steps": 256}) if hasattr(explainer, "steps") else explainer
        for tried, tolerance in ((explainer, 0.2), (finer, 0.01)):
            missed = attribution(tried, network, x).flatten(1).sum(1) - change
            assert missed.abs().max() < tolerance * change.abs().max(), (tried, missed)


def test_a_linear_network_is_explained_by_its_weights() -> None:
    torch.manual_seed(0)
    weights = torch.randn(4, requires_grad=False)
    x = torch.randn(2, 4)
    for name in EXPLAINERS:
        explainer: Explainer = plugins.resolve("explainers", name)
        if explainer.at == "input":
            torch.testing.assert_close(explainer.attribute(x, weights.expand_as(x)), x * weights)


def test_grad_cam_points_at_the_place_that_speaks_for_the_prediction() -> None:
    value = torch.zeros(1, 2, 4, 4)
    value[0, 0, 1, 2] = 3.0  # for
    value[0, 1, 3, 3] = 3.0  # against
    gradient = torch.stack([torch.ones(4, 4), -torch.ones(4, 4)])[None]
    grad_cam = plugins.resolve("explainers", "grad_cam")
    found = grad_cam.attribute(value, gradient)
    assert found[0].argmax() == 1 * 4 + 2
    assert found[0, 3, 3] == 0
    over_time = grad_cam.attribute(value.flatten(2).transpose(1, 2), gradient.flatten(2).transpose(1, 2))
    torch.testing.assert_close(over_time, found.flatten(1))
