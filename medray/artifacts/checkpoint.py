"""Checkpoint: weights, the study they were trained for, fitted state, and the steps that a cut-off run goes on from."""

from __future__ import annotations

import datetime
import hashlib
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from medray.artifacts.durable import fsync_folder, make_folder, write_bytes
from medray.artifacts.manifest import Manifest, read_manifest, verify_files, write_manifest
from medray.artifacts.shards import ServingFacts
from medray.errors import ArtifactError, IntegrityError

if TYPE_CHECKING:
    import numpy as np
    import torch

    Tensors = dict[str, torch.Tensor]

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
BASELINE, STUDY = "baseline.safetensors", "study.yaml"
STEPS_KEPT = 2  # the newest, and the one before in case its disk block goes bad


class CheckpointFacts(ServingFacts):
    """What is known of a trained model.

    Attributes:
        history: one mapping of names to numbers an epoch.
        study: what the person wrote, with the study's folder left out.
    """

    history: list[dict[str, float]] = Field(default_factory=list)
    study: dict[str, Any] = Field(default_factory=dict)


class Checkpoint:
    """A trained model in `<workspace>/checkpoints/<digest>`; picklable by reference."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._manifest: Manifest | None = None
        self._facts: CheckpointFacts | None = None

    def __reduce__(self) -> tuple[type[Checkpoint], tuple[Path]]:
        return (Checkpoint, (self.folder,))

    @property
    def manifest(self) -> Manifest:
        """What the artifact is.

        Raises:
            ArtifactError: training has not ended.
            IntegrityError: it was changed.
        """
        if self._manifest is None:
            self._manifest = read_manifest(self.folder)
        if self._manifest is None:
            raise ArtifactError(f"{self.folder}: no complete checkpoint. Train first: `medray train STUDY`")
        return self._manifest

    @property
    def digest(self) -> str:
        """The artifact's name."""
        return self.manifest.digest

    @property
    def facts(self) -> CheckpointFacts:
        """What is known of the model."""
        if self._facts is None:
            self._facts = CheckpointFacts.model_validate(self.manifest.facts)
        return self._facts

    def weights(self) -> Tensors:
        """The best epoch's weights, name to tensor, on the CPU.

        Raises:
            IntegrityError: the file was changed.
        """
        from safetensors.torch import load

        return load(self._bytes(WEIGHTS))

    def baseline(self) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays of the logistic regression beside the model.

        Raises:
            IntegrityError: the file was changed.
        """
        from safetensors.numpy import load

        return load(self._bytes(BASELINE))

    def verify(self) -> None:
        """Hold every file against the manifest.

        Raises:
            IntegrityError: one is missing or was changed.
        """
        verify_files(self.folder, self.manifest)

    def _bytes(self, name: str) -> bytes:
        path = self.folder / name
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise ArtifactError(f"{path}: missing. Train again with --force.") from error
        if hashlib.sha256(data).hexdigest() != self.manifest.files.get(name):
            raise IntegrityError(f"{path}: changed since it was written. Train again with --force.")
        return data


def save_step(
    folder: Path,
    step: int,
    weights: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
) -> None:
    """Keep what a cut-off run goes on from: all of it or, after a crash, nothing. One process at a time.

    Args:
        folder: of the checkpoint.
        step: a number that grows.
        weights: name to tensor; likewise `optimizer`.
        optimizer: what the optimizer holds, flat.
        state: anything else, as JSON.
    """
    from safetensors.torch import save

    for left in make_folder(folder).glob(".step-*"):  # by a run that was killed here
        shutil.rmtree(left, ignore_errors=True)
    final = folder / f"step-{step:08d}"
    temporary = make_folder(folder / f".step-{step:08d}.{secrets.token_hex(4)}")
    try:
        files = {}
        for name, tensors in ((WEIGHTS, weights), (OPTIMIZER, optimizer)):
            data = save({key: tensor.contiguous() for key, tensor in tensors.items()})
            write_bytes(temporary / name, data)
            files[name] = hashlib.sha256(data).hexdigest()
        now = datetime.datetime.now(datetime.UTC)
        kept = Manifest(sort="step", digest=final.name, facts=dict(state), files=files, created=now)
        write_manifest(temporary, kept, STATE)
        if final.exists():  # the same step again, after a resume: equal weights, by exact resume
            _delete(final)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync_folder(folder)
    for old in _steps(folder)[:-STEPS_KEPT]:
        _delete(old)


def newest_step(folder: Path) -> tuple[int, Tensors, Tensors, dict[str, Any]] | None:
    """Step, weights, optimizer and state of the newest complete step; None where there is none.

    Raises:
        IntegrityError: its files were changed. A crash cannot do that: see what did, then delete the step's folder.
    """
    from safetensors.torch import load

    for path in reversed(_steps(folder)):
        manifest = read_manifest(path, STATE)
        if manifest is not None:
            verify_files(path, manifest)
            weights, optimizer = (load((path / name).read_bytes()) for name in (WEIGHTS, OPTIMIZER))
            return int(path.name.removeprefix("step-")), weights, optimizer, manifest.facts
    return None


def _delete(step: Path) -> None:
    """Out of sight first: a crash halfway leaves no step with a file missing."""
    hidden = step.with_name(f".{step.name}.{secrets.token_hex(4)}")
    step.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _steps(folder: Path) -> list[Path]:
    """Complete steps, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8,}", path.name))
