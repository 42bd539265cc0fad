"""Truth: what was planted in the synthetic hospital, held against what a model says and why it says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medray import metrics
from medray.artifacts import Checkpoint, Shards, Workspace
from medray.governance.deidentify import Pseudonyms
from medray.metrics import Estimate
from medray.modalities.image import placed
from medray.predictor import Predictor
from medray.schema import HELD_OUT
from medray.synthetic import Persona

Array = np.ndarray[Any, Any]

FILMS = "films"
FINE = 2  # places a pixel at which a map's maximum is looked for
RESAMPLES = 1000


@dataclass(frozen=True)
class Pointing:
    """How often the maximum of a film's map lies in the planted spot.

    A map is coarse: the maximum counts as inside up to one cell of the map from the spot's edge, and chance is the
    share of the film that this disc takes.

    Attributes:
        hits: maps that point at the spot.
        num: held-out subjects who died and whose film has a spot.
        chance: share of `num` that a random point would hit.
        control: hits of a network of the same shape whose weights are random (Adebayo et al., NeurIPS 2018).
    """

    hits: int
    num: int
    chance: float
    control: int


@dataclass(frozen=True)
class Truth:
    """Whether a model found what was planted.

    Attributes:
        pointing: of the maps of the films.
        auroc: of the held-out split.
        lost: AUROC minus that without each modality, paired, with its interval.
        example: a held-out patient who died, with everything recorded and a spot the map points at.
    """

    pointing: Pointing
    auroc: Estimate
    lost: dict[str, Estimate]
    example: Persona


def judge(workspace: Workspace, shards: Shards, checkpoint: Checkpoint, people: Sequence[Persona]) -> Truth:
    """Hold a model's held-out answers and explanations against what the personas have planted."""
    arrays, present, labels, subjects = _held_out(shards)
    pseudonyms = Pseudonyms(workspace.keyring.derive("pseudonym"), workspace.keyring.derive("date shift"))
    known = {pseudonyms.subject(persona.mrn): persona for persona in people}
    whose = [known[subject.tobytes()] for subject in subjects]
    predictor = Predictor.load(checkpoint.folder)
    maps = predictor.explain(arrays, present, output=0).attributions[FILMS]
    chosen = [i for i, who in enumerate(whose) if who.died and who.film_cause and present[FILMS][i]]
    spots = [whose[i].spot for i in chosen]
    size = predictor.shapes[FILMS][-1]
    hits = [points_at(maps[i], spot, size) for i, spot in zip(chosen, spots, strict=True)]
    random = predictor.randomized().explain(arrays, present, output=0).attributions[FILMS]
    pointing = Pointing(
        hits=sum(hits),
        num=len(chosen),
        chance=float(np.mean([np.pi * reach(maps[0], spot) ** 2 for spot in spots])),
        control=sum(points_at(random[i], spot, size) for i, spot in zip(chosen, spots, strict=True)),
    )
    names = np.array([subject.tobytes().hex() for subject in subjects])
    auroc, lost = _worth(predictor, arrays, present, labels, names)
    whole = np.logical_and.reduce(list(present.values()))
    shown = [i for i, hit in zip(chosen, hits, strict=True) if hit and whole[i]] or chosen
    return Truth(pointing, auroc, lost, whose[shown[0]])


def reach(heat: Array, spot: tuple[float, float, float]) -> float:
    """How far from the spot's centre a maximum counts, as a fraction of the film's side."""
    return float(spot[2] + 1 / min(heat.shape))


def points_at(heat: Array, spot: tuple[float, float, float], size: int) -> bool:
    """Whether the maximum of a map (h, w) over a film of size x size pixels lies in the spot."""
    if not heat.max() > 0:
        return False
    side = FINE * size
    row, column = divmod(int(placed(heat, size, side).argmax()), side)
    distance = np.hypot((row + 0.5) / side - spot[0], (column + 0.5) / side - spot[1])
    return bool(distance <= reach(heat, spot))


def _held_out(shards: Shards) -> tuple[dict[str, Array], dict[str, Array], Array, Array]:
    """Stored arrays, presence, labels (n,) and subjects (n, 16) of the held-out split."""
    parts = [shards.read(entry.name) for entry in shards.entries(HELD_OUT)]
    whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def under(prefix: str) -> dict[str, Array]:
        return {key.removeprefix(prefix): values for key, values in whole.items() if key.startswith(prefix)}

    return under("x."), under("present."), whole["y"][:, 0], whole["subject"]


def _worth(
    predictor: Predictor, arrays: Mapping[str, Array], present: Mapping[str, Array], labels: Array, subjects: Array
) -> tuple[Estimate, dict[str, Estimate]]:
    """The AUROC, and what it loses when each modality is taken away from every subject who has another one."""
    scores = predictor.predict(arrays, present)
    auroc = metrics.summarize("binary", labels, scores, subjects, ("died",), num_resamples=RESAMPLES)["auroc"]
    lost = {}
    for name, without in predictor.without(arrays, present).items():
        masked = np.where(np.isnan(without), scores, without)  # who does not have it, or nothing else, stays as is
        lost[name] = metrics.difference("binary", labels, scores, masked, subjects, ("died",), RESAMPLES)
    return auroc, lost
