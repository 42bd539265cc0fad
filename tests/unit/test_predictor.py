"""The predictor: one pass for score and explanation, in agreement with the network, Captum and what it is sent."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medray import inputs
from medray.errors import ArtifactError, DataError, IntegrityError
from medray.explainers.input_x_gradient import InputXGradient
from medray.explainers.integrated_gradients import IntegratedGradients
from medray.models._network import Network
from medray.models.tabular import Tabular
from medray.predictor import Predictor
from medray.predictor.attributions import attribute
from medray.predictor.forward import Forward
from tests import checkpoints

ALL = ("labs", "films", "ecg")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A predictor of some inputs and a task, each checkpoint written once."""
    folder = tmp_path_factory.mktemp("checkpoints")
    done: dict[str, Predictor] = {}

    def make(names: Sequence[str] = ALL, task: str = "binary", **sections: Any) -> Predictor:
        digest = f"{'-'.join(names)}-{task}-{len(json.dumps(sections))}"
        if digest not in done:
            checkpoints.write_checkpoint(folder / digest, checkpoints.study(names, folder, task, **sections), task)
            done[digest] = Predictor.load(folder / digest)
        return done[digest]

    make.folder = folder  # type: ignore[attr-defined]
    return make


def sample(predictor: Predictor, count: int = 6, seed: int = 1) -> Any:
    return predictor.encode({name: checkpoints.rows(name, count, seed) for name in predictor.modalities})


def plain(predictor: Predictor, folder: Path) -> Network:
    """The network as it was trained: nothing folded, every weight with its gradient."""
    from safetensors.torch import load_file

    network = predictor.study.model.build(predictor.shapes, predictor.num_outputs)
    network.load_state_dict(load_file(folder / predictor.digest / "weights.safetensors"))
    return network.eval()


def logit(scores: Any) -> Any:
    return np.log(scores / (1 - scores))


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression"])
def test_scores_are_those_of_the_network_that_was_trained(made: Any, task: str) -> None:
    predictor = made(task=task)
    arrays, present = sample(predictor, 70)  # more than one pass takes
    with torch.no_grad():
        logits = plain(predictor, made.folder)(*inputs.to_tensors(predictor.modalities, arrays, present))
    wanted = {
        "binary": logits.sigmoid(),
        "multilabel": logits.sigmoid(),
        "multiclass": logits.softmax(1),
        "regression": 60 + 10 * logits,
    }[task].numpy()
    assert np.ptp(wanted, axis=0).max() > 0.05
    np.testing.assert_allclose(predictor.predict(arrays, present), wanted, rtol=1e-3, atol=1e-4)


def test_an_explained_score_is_the_plain_score(made: Any) -> None:
    predictor = made()
    arrays, present = sample(predictor)
    present["ecg"][2] = present["films"][3] = False
    scores = predictor.predict(arrays, present)
    for full in (False, True):
        assert np.array_equal(predictor.explain(arrays, present, full=full).scores, scores)


def test_a_trunk_that_is_explained_at_its_map_keeps_no_graph(made: Any) -> None:
    predictor = made(("films",))
    seen: list[bool] = []
    network = predictor._forward.network
    handle = network.encoder("films").layer1.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    predictor.explain(*sample(predictor))
    handle.remove()
    assert seen == [False]  # one forward pass, without a graph


def test_grad_cam_is_that_of_captum(made: Any) -> None:
    from captum.attr import LayerGradCam

    predictor = made(("films",))
    arrays, present = sample(predictor)
    loaded, masks = inputs.to_tensors(predictor.modalities, arrays, present)
    network = plain(predictor, made.folder)
    forward = lambda x: network({"films": x}, masks)  # noqa: E731
    wanted = LayerGradCam(forward, network.encoder("films").layer4).attribute(
        loaded["films"], target=0, relu_attributions=True
    )
    found = predictor.explain(arrays, present).attributions["films"]
    assert found.max() > 0
    assert np.corrcoef(found.ravel(), wanted.detach().numpy().ravel())[0, 1] > 0.999


def test_integrated_gradients_are_those_of_captum(made: Any) -> None:
    from captum.attr import IntegratedGradients

    predictor = made(("labs", "ecg"))
    arrays, present = sample(predictor)
    loaded, masks = inputs.to_tensors(predictor.modalities, arrays, present)
    network = plain(predictor, made.folder)
    forward = lambda labs, ecg: network(  # noqa: E731
        {"labs": labs, "ecg": ecg}, {name: mask.repeat(len(labs) // len(mask)) for name, mask in masks.items()}
    )
    wanted = IntegratedGradients(forward).attribute((loaded["labs"], loaded["ecg"]), target=0, n_steps=16)
    found = predictor.explain(arrays, present, full=True)
    assert set(found.explainers.values()) == {"integrated_gradients"}
    for name, attribution in zip(("labs", "ecg"), wanted, strict=True):
        np.testing.assert_allclose(found.attributions[name], attribution.detach(), atol=1e-4)


def test_full_attributions_add_up_to_the_difference_from_the_baseline(made: Any) -> None:
    fine = {"kind": "integrated_gradients", "steps": 256}
    predictor = made(("labs", "ecg"), explain={"full": {"labs": fine, "ecg": fine}})
    arrays, present = sample(predictor)
    found = predictor.explain(arrays, present, full=True)
    nothing = {name: inputs.blank(predictor.modalities[name], predictor.states[name], 6) for name in arrays}
    sums = sum(values.reshape(6, -1).sum(1) for values in found.attributions.values())
    difference = logit(found.scores)[:, 0] - logit(predictor.predict(nothing, present))[:, 0]
    np.testing.assert_allclose(sums, difference, atol=0.02 * np.abs(difference).max())


def test_one_pass_over_a_trained_table_says_what_many_passes_say() -> None:
    torch.manual_seed(0)
    network = Tabular().build({"labs": (8,)}, 1)
    x, optimizer = torch.randn(400, 8), torch.optim.Adam(network.parameters(), 3e-3)
    y = (x[:, :1] + x[:, 1:2] * x[:, 2:3] + 0.5 * torch.randn(400, 1) > 0).float()
    there = {"labs": torch.ones(400, dtype=torch.bool)}
    for _ in range(150):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network({"labs": x}, there), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    forward = Forward(network.eval(), {"labs": torch.zeros(1, 8)})
    one, many = (
        attribute(forward, {"labs": x}, there, {"labs": explainer}).attributions["labs"]
        for explainer in (InputXGradient(), IntegratedGradients(steps=64))
    )
    assert np.corrcoef(one.ravel(), many.ravel())[0, 1] > 0.9


def test_the_predicted_class_is_explained_unless_another_is_asked_for(made: Any) -> None:
    predictor = made(("labs",), "multiclass")
    arrays, present = sample(predictor)
    own = predictor.explain(arrays, present)
    assert np.array_equal(own.outputs, own.scores.argmax(1))
    each = [predictor.explain(arrays, present, output=output).attributions["labs"] for output in range(3)]
    chosen = np.stack([each[output][row] for row, output in enumerate(own.outputs)])
    np.testing.assert_allclose(own.attributions["labs"], chosen, rtol=1e-5)
    assert not np.allclose(each[0], each[1])
    with pytest.raises(DataError, match="expected 0 to 2"):
        predictor.explain(arrays, present, output=3)


def test_a_regression_is_explained_in_its_own_units(made: Any) -> None:
    fine = {"kind": "integrated_gradients", "steps": 256}
    predictor = made(("labs",), "regression", explain={"full": {"labs": fine}})
    arrays, present = sample(predictor)
    nothing = {"labs": np.zeros_like(arrays["labs"])}
    found = predictor.explain(arrays, present, full=True)
    difference = found.scores - predictor.predict(nothing, present)
    assert np.abs(difference).max() > 1
    sums = found.attributions["labs"].sum(1)
    np.testing.assert_allclose(sums, difference[:, 0], atol=0.02 * np.abs(difference).max())


def test_what_stands_where_a_modality_is_absent_is_never_looked_at(made: Any) -> None:
    predictor = made()
    arrays, present = sample(predictor)
    for absent in (slice(0, 2), slice(0, 6)):  # of some samples, of all
        masks = {**present, "films": np.ones(6, bool)}
        masks["films"][absent] = False
        other = {**arrays, "films": 255 - arrays["films"]}
        one, two = (predictor.explain(each, masks, full=True) for each in (arrays, other))
        assert np.array_equal(one.scores[absent], two.scores[absent])
        assert one.attributions["films"].shape == (6, 4, 4)
        assert not one.attributions["films"][absent].any()


def test_without_tells_what_each_modality_changes(made: Any) -> None:
    predictor = made()
    arrays, present = sample(predictor)
    present["ecg"][0] = False
    present["films"][1] = present["ecg"][1] = False
    found = predictor.without(arrays, present)
    masks = {**present, "labs": np.zeros(6, bool)}
    np.testing.assert_allclose(found["labs"][2:], predictor.predict(arrays, masks)[2:], rtol=1e-5)
    assert np.isnan(found["ecg"][0]).all()  # was not there
    assert np.isnan(found["labs"][1]).all()  # nothing else was there
    assert np.isfinite(found["films"][0]).all()


def test_the_study_chooses_the_explainer(made: Any) -> None:
    chosen = {"fast": {"ecg": "grad_cam"}, "full": {"films": {"kind": "integrated_gradients", "steps": 4}}}
    predictor = made(explain=chosen)
    arrays, present = sample(predictor)
    quick = predictor.explain(arrays, present)
    assert quick.explainers == {"labs": "input_x_gradient", "films": "grad_cam", "ecg": "grad_cam"}
    found = predictor.explain(arrays, present, full=True)
    assert found.explainers == {"labs": "integrated_gradients", "films": "integrated_gradients", "ecg": "grad_cam"}
    assert {name: values.shape[1:] for name, values in found.attributions.items()} == {
        "labs": predictor.shapes["labs"],
        "films": (1, 32, 32),
        "ecg": (13,),
    }


def test_the_fast_path_answers_nearly_alike(made: Any) -> None:
    predictor = made()
    fast = Predictor.load(made.folder / predictor.digest, fast=True)
    arrays, present = sample(predictor, 12)
    exact, near = predictor.explain(arrays, present), fast.explain(arrays, present)
    np.testing.assert_allclose(near.scores, exact.scores, atol=0.03)
    assert np.array_equal(near.scores, fast.predict(arrays, present))
    maps = (each.attributions["films"].ravel() for each in (exact, near))
    assert np.corrcoef(*maps)[0, 1] > 0.99


# ---- for people


def test_the_overlay_glows_where_the_map_is_high(made: Any) -> None:
    predictor = made(("films",))
    stored = np.full((1, 32, 32), 100, np.uint8)
    heat = np.zeros((4, 4), np.float32)
    heat[1, 2] = 3
    png = predictor.overlay("films", stored, heat)
    assert png is not None
    shown = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    assert shown.shape == (384, 384, 3)
    colour = shown[..., 0] - shown[..., 2]
    row, column = np.unravel_index(colour.argmax(), colour.shape)
    assert abs(row - 102) < 60  # 8 of 32 pixels from the edge: where the brightest cell looks
    assert abs(column - 198) < 60
    assert np.abs(shown[300:, :96] - 100).max() <= 1  # elsewhere the film is as it was
    calm = predictor.overlay("films", stored, np.zeros((4, 4), np.float32))
    assert calm is not None
    assert np.ptp(np.asarray(Image.open(io.BytesIO(calm)))) == 0


def test_signals_have_a_picture_and_tables_a_list(made: Any) -> None:
    predictor = made()
    arrays, present = sample(predictor)
    found = predictor.explain(arrays, present)
    png = predictor.overlay("ecg", arrays["ecg"][0], found.attributions["ecg"][0])
    assert png is not None
    assert Image.open(io.BytesIO(png)).size == (900, 230)
    assert predictor.overlay("labs", arrays["labs"][0], found.attributions["labs"][0]) is None
    listed = predictor.contributions("labs", found.attributions["labs"][0])
    assert {name for name, _ in listed} <= {"crp", "sex=F", "sex=M", "sodium", "sodium (missing)"}
    assert [abs(value) for _, value in listed] == sorted((abs(value) for _, value in listed), reverse=True)
    leads = predictor.contributions("ecg", found.attributions["ecg"][0])
    assert sorted(name for name, _ in leads) == ["I", "II", "V1"]
    assert sum(value for _, value in leads) == pytest.approx(float(found.attributions["ecg"][0].sum()), abs=1e-4)
    with pytest.raises(DataError, match="over places"):
        predictor.contributions("films", found.attributions["films"][0])


# ---- what it is made from


def test_a_changed_or_unfinished_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "abc"
    checkpoints.write_checkpoint(folder, checkpoints.study(("labs",), tmp_path))
    weights = folder / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="changed since it was written"):
        Predictor.load(folder)
    weights.write_bytes(whole)
    assert Predictor.load(folder).digest == "abc"
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="no complete checkpoint"):
        Predictor.load(folder)


def test_a_predictor_needs_no_ray() -> None:
    code = "import sys, medray.predictor; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
