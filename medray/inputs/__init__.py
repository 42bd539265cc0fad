"""Inputs: one sample's rows -> stored arrays -> tensors; the same functions for shards, scoring and serving.

The fitted state of a modality is `{"transforms": [one state a transform], "modality": its own}`. Each step is fitted on
what the steps before it leave, so `n` deterministic transforms need `n + 1` passes over the train split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medray.inputs.cells import count_kinds, kind_of, typed
from medray.modalities import Modality, Rows, State

if TYPE_CHECKING:
    import numpy as np
    import torch

    Array = np.ndarray[Any, Any]

__all__ = [
    "augment",
    "blank",
    "count_kinds",
    "encode",
    "fit",
    "joined",
    "kind_of",
    "merge",
    "num_outputs",
    "num_passes",
    "partial",
    "shapes",
    "to_tensors",
    "typed",
]


def num_passes(modality: Modality) -> int:
    """Passes over the train split that fitting takes."""
    return len(_deterministic(modality)) + 1


def partial(modality: Modality, fitted: Sequence[State], rows: Rows) -> State:
    """What some train rows add to the next unfitted step, after `fitted` steps."""
    transforms = _deterministic(modality)
    for transform, state in zip(transforms, fitted, strict=False):
        rows = transform.apply(rows, state)
    step = transforms[len(fitted)] if len(fitted) < len(transforms) else modality
    found: State = step.partial(rows)
    return found


def merge(modality: Modality, fitted: Sequence[State], partials: Sequence[State]) -> State:
    """The state of the next unfitted step."""
    transforms = _deterministic(modality)
    step = transforms[len(fitted)] if len(fitted) < len(transforms) else modality
    merged: State = step.merge(partials)
    return merged


def joined(fitted: Sequence[State]) -> State:
    """The states of all steps as one, as `encode` takes it."""
    return {"transforms": list(fitted[:-1]), "modality": fitted[-1]}


def fit(modality: Modality, batches: Callable[[], Iterable[Rows]]) -> State:
    """The state of a modality, in one process; `batches()` starts a pass over the train split."""
    fitted: list[State] = []
    for _ in range(num_passes(modality)):
        partials = [partial(modality, fitted, rows) for rows in batches()]
        fitted.append(merge(modality, fitted, partials))
    return joined(fitted)


def encode(modality: Modality, state: State, rows: Rows) -> Array:
    """Rows as they are stored, (n, *shape)."""
    for transform, fitted in zip(_deterministic(modality), state["transforms"], strict=True):
        rows = transform.apply(rows, fitted)
    return modality.store(modality.encode(rows, state["modality"]))


def blank(modality: Modality, state: State, count: int) -> Array:
    """What stands for `count` absent samples."""
    import numpy as np

    return np.zeros((count, *modality.shape(state["modality"])), modality.storage)


def shapes(modalities: Mapping[str, Modality], states: Mapping[str, State]) -> dict[str, tuple[int, ...]]:
    """Shape of one sample of each modality, as a model's `build` takes it."""
    return {name: modality.shape(states[name]["modality"]) for name, modality in modalities.items()}


def num_outputs(task: str, classes: Sequence[str]) -> int:
    """Logits of a network: one for a binary or regression target, else one a class."""
    return 1 if task in {"binary", "regression"} else len(classes)


def to_tensors(
    modalities: Mapping[str, Modality],
    arrays: Mapping[str, Array],
    present: Mapping[str, Array],
    device: torch.device | str = "cpu",
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Stored arrays and presence masks as a network takes them."""
    inputs = {name: modality.load(_tensor(arrays[name], device)) for name, modality in modalities.items()}
    return inputs, {name: _tensor(present[name], device).bool() for name in modalities}


def augment(
    modalities: Mapping[str, Modality], inputs: Mapping[str, torch.Tensor], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Loaded inputs after the random transforms of each modality, in order; for training only."""
    changed = dict(inputs)
    for name, modality in modalities.items():
        for transform in modality.transforms:
            if transform.random:  # type: ignore[attr-defined]  # the room's own base, which modalities do not know
                changed[name] = transform.augment(changed[name], generator)  # type: ignore[attr-defined]
    return changed


def _deterministic(modality: Modality) -> list[Any]:
    return [transform for transform in modality.transforms if not transform.random]  # type: ignore[attr-defined]


def _tensor(array: Array, device: torch.device | str) -> torch.Tensor:
    import numpy as np
    import torch

    array = np.ascontiguousarray(array)
    if not array.flags.writeable:  # a view of a shard's bytes; torch warns of sharing them
        array = array.copy()
    return torch.from_numpy(array).to(device)
