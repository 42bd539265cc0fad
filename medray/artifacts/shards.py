"""Shards: encoded samples of fixed shape in sealed files, which training and scoring open whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from medray.artifacts.manifest import Manifest, read_manifest
from medray.artifacts.vault import Vault
from medray.errors import ArtifactError, IntegrityError
from medray.governance.crypto import Keyring

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


class Entry(BaseModel):
    """One shard: a file's name, the split that all its rows are of, their number."""

    model_config = ConfigDict(frozen=True)

    name: str
    split: str
    rows: int


class ServingFacts(BaseModel):
    """What turns a sample into a network's inputs, and its outputs into an answer.

    Attributes:
        task: binary, multiclass, multilabel or regression.
        classes: in the order of the outputs; empty in regression.
        shapes: of one stored sample, by modality.
        names: what the positions of a modality's vectors are called, by modality.
        states: fitted state, by modality.
        columns: kind of each column (number, text, time), by source.
        label_mean, label_std: regression: of the train split's labels.
        class_share: share of the train split's units that are positive, by class.
    """

    model_config = ConfigDict(extra="allow", ser_json_inf_nan="constants")

    task: str
    classes: list[str] = []
    shapes: dict[str, list[int]] = {}
    names: dict[str, list[str]] = {}
    states: dict[str, dict[str, Any]] = {}
    columns: dict[str, dict[str, str]] = {}
    label_mean: float = 0.0
    label_std: float = 1.0
    class_share: dict[str, float] = {}


class ShardFacts(ServingFacts):
    """What is known of encoded samples.

    Attributes:
        entries: the shards, in order.
        units, subjects: how many, by split.
        units_per_class: by split, then class.
        left_out: units without a sample, by reason.
        disjoint: no subject is in two splits.
        subject_rule, split_rule: in words, for the split certificate.
        warnings: for people.
    """

    entries: list[Entry] = []
    units: dict[str, int] = {}
    subjects: dict[str, int] = {}
    units_per_class: dict[str, dict[str, int]] = {}
    left_out: dict[str, int] = {}
    disjoint: bool = True
    subject_rule: str = ""
    split_rule: str = ""
    warnings: list[str] = []


class Shards:
    """A folder of shards; picklable by reference.

    Raises:
        ArtifactError: from every method, where the folder is not complete.
    """

    def __init__(self, folder: Path, keyring: Keyring) -> None:
        self.folder = Path(folder)
        self.vault = Vault(folder, keyring)
        self._manifest: Manifest | None = None
        self._facts: ShardFacts | None = None

    def __reduce__(self) -> tuple[type[Shards], tuple[Path, Keyring]]:
        return (Shards, (self.folder, self.vault.keyring))

    @property
    def digest(self) -> str:
        """The artifact's name."""
        return self.manifest.digest

    @property
    def manifest(self) -> Manifest:
        """What the artifact is."""
        if self._manifest is None:
            self._manifest = read_manifest(self.folder)
        if self._manifest is None:
            raise ArtifactError(f"{self.folder}: no complete shards. Encode them first: `medray train STUDY`")
        return self._manifest

    @property
    def facts(self) -> ShardFacts:
        """What is known of the samples."""
        if self._facts is None:
            self._facts = ShardFacts.model_validate(self.manifest.facts)
        return self._facts

    def entries(self, split: str) -> list[Entry]:
        """The shards of a split, in order."""
        return [entry for entry in self.facts.entries if entry.split == split]

    def read(self, name: str) -> dict[str, Array]:
        """One shard of n samples.

        Returns:
            `x.<modality>` (n, *shape) as stored, `present.<modality>` (n,) bool, `y` (n, k) float32, `subject` and
            `unit` (n, 16) uint8. The arrays may not be written to.

        Raises:
            IntegrityError: the file was changed, cut or swapped.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            return load(self.vault.read(name))
        except SafetensorError as error:
            raise IntegrityError(f"{self.folder / name}: no arrays inside. Encode again with --force.") from error


def write_shard(vault: Vault, name: str, arrays: Mapping[str, Array]) -> None:
    """Seal arrays into one file, durably."""
    import numpy as np
    from safetensors.numpy import save

    vault.write(name, save({key: np.ascontiguousarray(array) for key, array in arrays.items()}))
