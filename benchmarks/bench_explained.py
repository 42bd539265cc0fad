"""P6: an explained answer against the plain PyTorch prediction, in CPU time, one thread.

A film of 224 pixels (ResNet-18), and its fusion with an ECG of 10 s and a table; both from stored arrays to numbers.
The plain side is the network as a user of PyTorch writes it, in eval mode under no_grad: it explains nothing. Second
peer: the same with Captum's Grad-CAM. They hold the same weights; it is checked that scores agree and that the maps
correlate with Captum's. Answers take turns; medians over all rounds.
"""

from __future__ import annotations

import datetime
import os
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from captum.attr import LayerGradCam
from measuring import Claim, arguments, cpu_s, finish
from plain import ResNet
from safetensors.torch import save
from torch import nn

from medray import inputs
from medray.artifacts.checkpoint import WEIGHTS, Checkpoint, CheckpointFacts
from medray.artifacts.durable import sha256_of, write_bytes
from medray.artifacts.manifest import Manifest, write_manifest
from medray.predictor import Predictor
from medray.study import Study

LEADS, COLUMNS = 12, 20
SOURCES = {
    "films": {"kind": "image", "path": "films/*.png"},
    "ecg": {"kind": "wfdb", "path": "ecg/*.hea", "subject": "mrn"},
    "labs": {"kind": "csv", "path": "labs.csv", "subject": "mrn"},
}
ENCODERS = {"films": {"kind": "cnn"}, "ecg": {"kind": "lstm"}, "labs": {"kind": "tabular"}}


def study(names: tuple[str, ...], side: int, folder: Path) -> Study:
    kinds = {
        "films": {"kind": "image", "size": side},
        "ecg": {"kind": "signal", "rate_hz": 100, "seconds": 10},
        "labs": {"kind": "table"},
    }
    written = {
        "name": "explained",
        "sources": {name: SOURCES[name] for name in {*names, "labs"}},
        "modalities": {name: kinds[name] for name in names},
        "model": {"kind": "fusion", "encoders": {n: ENCODERS[n] for n in names}} if names[1:] else ENCODERS[names[0]],
        "cohort": {"target": {"column": "labs.died", "positive": "1"}},
    }
    return Study.parse(written, folder)


def samples(names: tuple[str, ...], shapes: dict[str, tuple[int, ...]], count: int) -> tuple[dict, dict]:
    """Stored arrays and presence masks."""
    draw = np.random.default_rng(0)
    arrays = {name: draw.normal(size=(count, *shapes[name])).astype(np.float32) for name in names}
    arrays["films"] = draw.integers(0, 256, (count, *shapes["films"])).astype(np.uint8)
    return arrays, {name: np.ones(count, bool) for name in names}


def write_checkpoint(folder: Path, names: tuple[str, ...], side: int) -> None:
    """A complete checkpoint of a network that was not trained, but whose normalization has seen samples."""
    chosen = study(names, side, folder)
    columns = [
        {"name": f"lab{n}", "kind": "number", "mean": 0, "std": 1, "varies": True, "missing": False}
        for n in range(COLUMNS)
    ]
    fitted = {
        "films": {"images": 24, "window": None},
        "ecg": {"leads": [f"lead{n}" for n in range(LEADS)]},
        "labs": {"columns": columns, "left_out": {}},
    }
    states = {name: {"transforms": [], "modality": fitted[name]} for name in names}
    modalities = dict(chosen.modalities)
    shapes = inputs.shapes(modalities, states)
    torch.manual_seed(0)
    network = chosen.model.build(shapes, 1)
    with torch.no_grad():
        for _ in range(3):
            network(*inputs.to_tensors(modalities, *samples(names, shapes, 8)))
    weights = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    write_bytes(folder / WEIGHTS, save(weights))
    facts = CheckpointFacts(
        task="binary",
        classes=["died"],
        shapes={name: list(shape) for name, shape in shapes.items()},
        names={name: modality.names(fitted[name]) for name, modality in modalities.items()},
        states=states,
        study=dict(chosen.written),
    )
    write_manifest(
        folder,
        Manifest(
            sort="checkpoints", digest=folder.name, facts=facts.model_dump(),
            files={WEIGHTS: sha256_of(folder / WEIGHTS)}, created=datetime.datetime.now(datetime.UTC),
        ),
    )  # fmt: skip


def plain_network(predictor: Predictor, folder: Path) -> nn.Module:
    """The same weights in the network that a user would write: no folding, PyTorch's own memory layout."""
    weights = Checkpoint(folder).weights()
    network = predictor.study.model.build(predictor.shapes, 1)
    network.load_state_dict(weights)
    alone = len(predictor.shapes) == 1
    film = ResNet(num_outputs=1 if alone else 0)
    begin = "encoders.films."
    mine = {key.removeprefix(begin): tensor for key, tensor in weights.items() if key.startswith(begin)}
    if alone:
        mine |= {f"fc.{key}": tensor for key, tensor in network.classifier[-1].state_dict().items()}
    film.load_state_dict(mine)
    if alone:
        return film.eval()
    film.width = network.encoder("films").width
    network.encoders["films"] = film
    return network.eval()


def measured(folder: Path, names: tuple[str, ...], count: int, rounds: int) -> dict[str, list[float]]:
    """CPU ms an answer of each side, in turns; the sides are checked against each other first."""
    ours, fast = Predictor.load(folder), Predictor.load(folder, fast=True)
    network = plain_network(ours, folder)
    modality = ours.modalities["films"]
    arrays, present = samples(names, ours.shapes, count)

    def plain() -> np.ndarray:
        loaded, masks = inputs.to_tensors(ours.modalities, arrays, present)
        with torch.no_grad():
            return (network(loaded, masks) if names[1:] else network(loaded["films"])).sigmoid().numpy()

    def captum() -> np.ndarray:
        plain()
        x = modality.load(torch.from_numpy(arrays["films"]))
        return LayerGradCam(network, network.layer4).attribute(x, target=0, relu_attributions=True).detach().numpy()

    sides = {"plain": plain, "explained": lambda: ours.explain(arrays, present)}
    if not names[1:]:
        sides["captum"] = captum
        if fast._forward._fast:  # elsewhere the CPU does not compute in bfloat16: nothing to measure
            sides["fast"] = lambda: fast.explain(arrays, present)
    explained = ours.explain(arrays, present)
    np.testing.assert_allclose(explained.scores, plain(), atol=1e-4)
    if "captum" in sides:
        maps = explained.attributions["films"].ravel(), captum().ravel()
        assert np.corrcoef(*maps)[0, 1] > 0.99, "another map than Captum's"
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-3, rounds):  # the first three warm up
        for name in sorted(sides, reverse=bool(number % 2)):
            began = cpu_s()
            sides[name]()
            if number >= 0:
                found[name].append(1000 * (cpu_s() - began) / count)
    return found


def main() -> None:
    chosen = arguments(__doc__)
    torch.set_num_threads(1)
    side = 128 if chosen.quick else 224
    rounds = chosen.rounds or (3 if chosen.quick else 60)
    shown, also, facts = [], [], {"threads": 1, "pixels": side}
    with tempfile.TemporaryDirectory(prefix="medray-bench-") as name:
        for names, title, bars in (
            (("films",), "image", {1: 1.05, 8: 1.05}),
            (("films", "ecg", "labs"), "fusion", {1: 1.35, 8: 1.1}),
        ):
            folder = Path(name) / title
            write_checkpoint(folder, names, side)
            for count, bar in bars.items():
                took = measured(folder, names, count, rounds if count == 1 else -(-rounds // 2))
                what, unit = f"{title}, batch {count}", "CPU ms a sample"
                shown.append(Claim(f"{what}: explained / plain", unit, took["explained"], took["plain"], bar))
                if "fast" in took:
                    shown.append(Claim(f"{what}: fast path / plain", unit, took["fast"], took["plain"], 0.5))
                elif title == "image":
                    facts["fast_path"] = "not measured: this CPU does not compute in bfloat16"
                if "captum" in took:
                    also.append(Claim(f"{what}: explained / Captum", unit, took["explained"], took["captum"]))
    finish("explained", shown + also, chosen, **facts)


if __name__ == "__main__":
    main()
