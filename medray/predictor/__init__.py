"""Predictor: a checkpoint -> scores and why. One code for a whole split, one request and a notebook; no Ray.

Trunks of modalities that are explained at their feature map run without a graph, so that the one backward pass starts
there: an explained answer costs about what a plain one does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from medray import inputs, limits, plugins
from medray.artifacts.checkpoint import Checkpoint
from medray.errors import ArtifactError, DataError, ReadError
from medray.explainers import Explainer
from medray.modalities import Modality, Rows
from medray.predictor.attributions import ROWS, attribute
from medray.predictor.forward import Forward
from medray.readers import Reader, evaluate
from medray.schema import canonical
from medray.study import Study

if TYPE_CHECKING:
    import pyarrow as pa

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]

NAMED = 40  # field names that an error message lists


@dataclass(frozen=True)
class Explained:
    """Scores and what they rest on.

    Attributes:
        scores: (n, k), as `Predictor.predict` gives them.
        outputs: (n,): which of the k is explained: the positive class (its logit), the predicted class, the value.
        attributions: (n, ...) by modality: of the input's shape, or of the feature map (n, h, w); zeros where absent.
        explainers: the kind that made them, by modality.
    """

    scores: Array
    outputs: Array
    attributions: dict[str, Array]
    explainers: dict[str, str]


class Predictor:
    """A trained model with all that turns records into its inputs.

    Attributes:
        study: as it was when the model was trained.
        task: binary, multiclass, multilabel or regression.
        classes: names of the k scores; none in regression.
        modalities: the inputs, by name.
        names: what the columns, leads or channels of each input are called.
        shapes: of one sample of each input.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: str = "cpu", fast: bool = False) -> None:
        facts = checkpoint.facts
        self.digest = checkpoint.digest
        self.study = Study.parse(facts.study, checkpoint.folder)
        self.task = facts.task
        self.classes = tuple(facts.classes)
        self.modalities: dict[str, Modality] = dict(self.study.modalities)
        self.states = facts.states
        self.names = {name: list(facts.names[name]) for name in self.modalities}
        self.shapes = {name: tuple(facts.shapes[name]) for name in self.modalities}
        self.num_outputs = inputs.num_outputs(self.task, self.classes)
        self.device = torch.device(device)
        self._columns = facts.columns
        # a regression is trained on standardized values
        regression = self.task == "regression"
        self._scale, self._shift = (facts.label_std, facts.label_mean) if regression else (1.0, 0.0)
        network = self.study.model.build(self.shapes, self.num_outputs)
        try:
            network.load_state_dict(checkpoint.weights())
        except RuntimeError as error:
            raise ArtifactError(f"{checkpoint.folder}: its weights are not those of its study's model") from error
        blank = {name: inputs.blank(modality, self.states[name], 1) for name, modality in self.modalities.items()}
        baselines, _ = inputs.to_tensors(self.modalities, blank, dict.fromkeys(blank, np.ones(1, bool)), self.device)
        at_features = [name for name, explainer in self.explainers().items() if explainer.at == "features"]
        self._forward = Forward(network.to(self.device), baselines, at_features if fast else ())

    @classmethod
    def load(cls, folder: Path | str, *, device: str = "cpu", fast: bool = False) -> Predictor:
        """The predictor of a complete checkpoint, whose files are verified.

        Args:
            folder: of the checkpoint.
            device: `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one.
            fast: trunks that need no graph in bfloat16, where the device computes in it: half the time, and scores
                that differ in the third decimal.

        Raises:
            ArtifactError: there is no complete checkpoint, or it is of another version of medray.
            IntegrityError: a file was changed.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        checkpoint = Checkpoint(Path(folder))
        checkpoint.verify()
        return cls(checkpoint, device=device, fast=fast)

    def randomized(self, seed: int = 0) -> Predictor:
        """The same with the weights that a network starts with: what explains it as well explains nothing.

        The sanity check of Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.study.model.build(self.shapes, self.num_outputs)
        other = copy.copy(self)
        other._forward = Forward(network.to(self.device), self._forward.baselines)
        return other

    # ---- records -> stored arrays

    def rows_from_values(self, modality: str, values: Mapping[str, Any]) -> Rows:
        """One record of a table, from the values of a JSON object; what is not named is missing.

        Raises:
            DataError: names the field that is unknown, of a wrong type or not an input.
        """
        self._known(modality)
        if self.modalities[modality].reads == "assets":
            raise DataError(f"{modality}: this {self.modalities[modality].kind} is sent as a file, not as values")
        kinds = self.fields(modality)
        for field, value in values.items():
            if field not in kinds:
                raise DataError(f"{modality}.{field}: {self._why_not(modality, field)}")
            if not isinstance(value, str | int | float | bool | None):
                found = "an object" if isinstance(value, Mapping) else "a list"
                raise DataError(f"{modality}.{field}: expected a text, a number or null, found {found}")
        return Rows(self._typed(modality, {field: [canonical(value)] for field, value in values.items()}))

    def rows_from_file(self, modality: str, path: Path) -> Rows:
        """The one record of a file, in the format of the modality's source; only what a model may see is kept.

        Raises:
            ReadError: the file cannot be read, or holds none or several records.
            DataError: a column holds the wrong type.
        """
        self._known(modality)
        reader: Reader = self.study.sources[self.study.source_of(modality)]
        limits.check_file(path)
        rows: Rows | None = None
        for records in reader.read(path):
            if records.bad:
                raise ReadError(path, f"row {records.bad[0][0]}: {records.bad[0][1]}")
            if not len(records.rows):
                continue
            if rows is not None or len(records.rows) > 1:
                raise ReadError(path, "holds several records; one prediction takes one")
            written: dict[str, list[str | None]] = {}
            for field in self.fields(modality):
                written[field] = evaluate(reader.columns.get(field, field), records, path.name)
            assets: list[Array | None] | None = None if records.assets is None else list(records.assets)
            rows = Rows(self._typed(modality, written), assets)
        if rows is None:
            raise ReadError(path, "holds no record")
        return rows

    def fields(self, modality: str) -> dict[str, str]:
        """The columns that a record of this modality may give, with their types: `number`, `text`, `time`."""
        source = self.study.source_of(modality)
        never = self.study.never_inputs()
        return {
            field: kind for field, kind in self._columns.get(source, {}).items() if f"{source}.{field}" not in never
        }

    def encode(self, rows: Mapping[str, Rows | None]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Stored arrays (n, *shape) and presence masks (n,) of n samples; a modality without rows is absent.

        Raises:
            DataError: a sample has no modality at all, or the modalities do not have the same number of rows.
        """
        for name in rows:
            self._known(name)
        given = {name: each for name, each in rows.items() if each is not None}
        counts = {len(each) for each in given.values()}
        if len(counts) > 1:
            raise DataError(f"the modalities have different numbers of rows: {', '.join(map(str, sorted(counts)))}")
        count = counts.pop() if counts else 0
        arrays, present = {}, {}
        for name, modality in self.modalities.items():
            if name in given:
                arrays[name] = inputs.encode(modality, self.states[name], given[name])
                present[name] = np.ones(count, bool)
                if modality.reads == "assets":
                    present[name] = np.array([asset is not None for asset in given[name].assets or [None] * count])
            else:
                arrays[name] = inputs.blank(modality, self.states[name], count)
                present[name] = np.zeros(count, bool)
        if not count or not np.logical_or.reduce(list(present.values())).all():
            raise DataError(f"nothing to predict from: give at least one of {', '.join(self.modalities)}")
        return arrays, present

    # ---- stored arrays -> scores and attributions

    def predict(self, arrays: Arrays, present: Arrays) -> Array:
        """Probabilities (n, k), or values (n, 1) in the target's units in regression.

        Args:
            arrays: stored samples (n, *shape) by modality, as `encode` and shards give them.
            present: bool (n,) by modality.
        """
        with torch.no_grad():
            scores = [
                self._scores(self._forward.head(self._forward.features(loaded, masks), masks))
                for loaded, masks in self._batches(arrays, present)
            ]
        return np.concatenate([np.zeros((0, self.num_outputs), np.float32), *scores])

    def without(self, arrays: Arrays, present: Arrays) -> dict[str, Array]:
        """Scores (n, k) as they would be without each modality; NaN where it is absent anyway, or the only one.

        The trunks run once; only the head runs again for each modality.
        """
        found: dict[str, list[Array]] = {
            name: [np.zeros((0, self.num_outputs), np.float32)] for name in self.modalities
        }
        with torch.no_grad():
            for loaded, masks in self._batches(arrays, present):
                features = self._forward.features(loaded, masks)
                for name, mask in masks.items():
                    others = {**masks, name: torch.zeros_like(mask)}
                    scores = self._scores(self._forward.head(features, others))
                    defined = mask & torch.stack(list(others.values())).any(0)
                    found[name].append(np.where(defined.cpu().numpy()[:, None], scores, np.float32(np.nan)))
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def explain(
        self, arrays: Arrays, present: Arrays, *, full: bool = False, output: int | Array | None = None
    ) -> Explained:
        """Scores, and attributions of all modalities by the same forward pass and one backward pass.

        Args:
            arrays: stored samples (n, *shape) by modality, n at least 1.
            present: bool (n,) by modality.
            full: integrated gradients wherever an input is explained, which takes 16 or so more passes.
            output: which of the k outputs is explained, one for all samples or one for each (n,); the highest unless
                given.

        Raises:
            DataError: `output` is none of the k.
        """
        explainers = self.explainers(full=full)
        wanted = None if output is None else self._outputs(output, len(next(iter(arrays.values()))))
        parts = []
        for number, (loaded, masks) in enumerate(self._batches(arrays, present)):
            chosen = None if wanted is None else wanted[number * ROWS : (number + 1) * ROWS]
            parts.append(attribute(self._forward, loaded, masks, explainers, chosen, self._scale))
        return Explained(
            scores=np.concatenate([self._scores(part.logits) for part in parts]),
            outputs=np.concatenate([part.outputs.cpu().numpy() for part in parts]),
            attributions={
                name: np.concatenate([part.attributions[name].cpu().numpy() for part in parts]) for name in explainers
            },
            explainers={name: explainer.kind for name, explainer in explainers.items()},
        )

    def explainers(self, *, full: bool = False) -> dict[str, Explainer]:
        """The explainer of each modality."""
        chosen = self.study.explain.full if full else self.study.explain.fast
        return {name: chosen[name] for name in self.modalities}

    # ---- for people

    def contributions(self, modality: str, attribution: Array) -> list[tuple[str, float]]:
        """What the columns or leads of one sample add to its explained output, the largest first; zeros left out.

        Raises:
            DataError: an attribution that does not tell them apart, such as a map over an image.
        """
        names = self.names[modality]
        if attribution.shape != self.shapes[modality] or attribution.shape[-1] != len(names):
            raise DataError(f"{modality}: this attribution is over places, not over columns or leads")
        sums = attribution.reshape(-1, len(names)).sum(0, dtype=np.float64)
        ranked = sorted(zip(names, sums.tolist(), strict=True), key=lambda pair: -abs(pair[1]))
        return [(name, value) for name, value in ranked if value != 0]

    def overlay(self, modality: str, stored: Array, attribution: Array) -> bytes | None:
        """One stored sample with its attribution, as PNG; None for what is better shown as a list of contributions."""
        return self.modalities[modality].show(stored, attribution, self.states[modality]["modality"])

    # ----

    def _batches(self, arrays: Arrays, present: Arrays) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        count = len(next(iter(arrays.values())))
        for start in range(0, count, ROWS):
            rows = slice(start, start + ROWS)
            some = {name: arrays[name][rows] for name in self.modalities}
            there = {name: present[name][rows] for name in self.modalities}
            yield inputs.to_tensors(self.modalities, some, there, self.device)

    def _scores(self, logits: Tensor) -> Array:
        if self.task == "regression":
            logits = logits * self._scale + self._shift
        elif self.task == "multiclass":
            logits = logits.softmax(1)
        else:
            logits = logits.sigmoid()
        scores: Array = logits.cpu().numpy()
        return scores

    def _outputs(self, output: int | Array, count: int) -> Tensor:
        outputs = np.broadcast_to(np.asarray(output, np.int64), count)
        if ((outputs < 0) | (outputs >= self.num_outputs)).any():
            raise DataError(f"output: expected 0 to {self.num_outputs - 1}")
        return torch.from_numpy(outputs.copy())

    def _typed(self, modality: str, written: Mapping[str, list[str | None]]) -> pa.Table:
        import pyarrow as pa

        kinds = self.fields(modality)
        texts = pa.table({field: pa.array(written.get(field, [None]), pa.string()) for field in kinds})
        columns, wrong = inputs.typed(texts, kinds)
        if wrong:
            raise DataError(f"{modality}: {next(iter(wrong.values()))}")
        return columns

    def _known(self, modality: str) -> None:
        if modality not in self.modalities:
            known = list(self.modalities)
            raise DataError(f"unknown input '{modality}'{plugins.suggest(modality, known)} Known: {', '.join(known)}.")

    def _why_not(self, modality: str, field: str) -> str:
        kinds = self.fields(modality)
        if f"{self.study.source_of(modality)}.{field}" in self.study.never_inputs():
            return "the target, a key, a split or a time is no input"
        known = f" Known: {', '.join(kinds)}." if len(kinds) <= NAMED else ""
        return f"unknown field{plugins.suggest(field, list(kinds))}{known}"
