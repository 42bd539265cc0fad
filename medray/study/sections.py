"""The sections of a study. Their fields are its keys, their docstrings its documentation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from medray import plugins
from medray.plugins import Config
from medray.readers import PathValue
from medray.schema import FrozenDict, canonical

Task = Literal["binary", "multiclass", "multilabel", "regression"]


def _texts(value: Any) -> tuple[str, ...]:
    """One value or a list of them, as canonical texts."""
    items = value if isinstance(value, list | tuple) else (value,)
    if any(isinstance(item, Mapping | list | tuple) for item in items):
        raise ValueError("expected a value or a list of values")
    texts = tuple(text for text in map(canonical, items) if text is not None)
    if len(texts) < len(items):
        raise ValueError("an empty value stands for no label: leave it out")
    return texts


def _column_or_path(value: Any) -> Any:
    if isinstance(value, str):
        return _column(value)
    if isinstance(value, Mapping) and set(value) == {"path"}:
        return PathValue.model_validate(dict(value))
    if isinstance(value, PathValue):
        return value
    raise ValueError("expected a column, written source.column, or {path: regex}")


def _column(value: str) -> str:
    if not re.fullmatch(r"[^.]+\..+", value):
        raise ValueError(f"column '{value}' must be written source.column")
    return value


Scalar = str | int | float | bool
Texts = Annotated[tuple[str, ...], BeforeValidator(_texts, json_schema_input_type=Scalar | list[Scalar])]
Share = Annotated[float, Field(gt=0, lt=1)]
Explainers = Annotated[FrozenDict, plugins.mapping_of("explainers")]


class ClassMap(Config):
    """Codes to classes by a CSV file: the row whose `key` column is the code gives the `value` column as class.

    Attributes:
        file: relative to the study's folder; `${NAME}` is taken from the environment.
        key: its column of codes.
        value: its column of classes.
    """

    file: str
    key: str
    value: str


class Target(Config):
    """What is predicted: yes or no with `positive`, several classes at a time with `many`, a number, else one class.

    Attributes:
        column: `source.column`.
        kind: `regression` for a number. Setting it drops all but the column.
        positive: the value or values that count as positive.
        many: a cell is a list of classes, JSON or a Python literal; of a dict the keys count, whatever their values.
        classes: their names in order; found in the data unless given.
        map: codes to classes by a file; unmapped codes are ignored; a cell without mapped codes is unlabelled.
    """

    lasting: ClassVar[frozenset[str]] = frozenset({"column"})

    column: Annotated[str, BeforeValidator(lambda value: _column(value) if isinstance(value, str) else value)]
    kind: Literal["classification", "regression"] = "classification"
    positive: Texts = ()
    many: bool = False
    classes: Texts = ()
    map: ClassMap | None = None

    @model_validator(mode="after")
    def _one_task(self) -> Target:
        if sum((bool(self.positive), self.many, self.kind == "regression")) > 1:
            raise ValueError("give one of positive, many, kind: regression")
        if self.classes and (self.positive or self.kind == "regression"):
            raise ValueError("classes go with `many: true` or a target of several classes")
        if self.map and self.kind == "regression":
            raise ValueError("map goes with classes, not with kind: regression")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes holds a class twice")
        if len(self.classes) == 1 and not self.many:
            raise ValueError("one class leaves nothing to tell apart; for a yes-or-no target give `positive:`")
        return self

    @property
    def task(self) -> Task:
        """Binary, multilabel, regression or multiclass."""
        if self.positive:
            return "binary"
        return "multilabel" if self.many else "regression" if self.kind == "regression" else "multiclass"


class Split(Config):
    """Which subjects train, tune and are held out. What `by` does not name is train; without a value: excluded.

    Attributes:
        by: a column (`source.column`) or a path (`{path: regex}`) that holds a published split.
        held_out: the value or values of `by` that mean this split.
        tuning: likewise.
        held_out_share: drawn of all subjects where `held_out` is not named. 20 %: enough for an interval.
        tuning_share: drawn of the remaining subjects where `tuning` is not named.
        seed: of the draw; part of the table, while the study's own seed drives training only.
    """

    by: Annotated[str | PathValue | None, BeforeValidator(_column_or_path, json_schema_input_type=str | PathValue)] = (
        None
    )
    held_out: Texts = ()
    tuning: Texts = ()
    held_out_share: Share = 0.2
    tuning_share: Share = 0.1
    seed: int = 0

    @model_validator(mode="after")
    def _disjoint(self) -> Split:
        if self.by is None and (self.held_out or self.tuning):
            raise ValueError("held_out and tuning name values of `by:`, which is not given")
        both = sorted(set(self.held_out) & set(self.tuning))
        if both:
            raise ValueError(f"'{both[0]}' cannot mean both held_out and tuning")
        return self


class Cohort(Config):
    """Which units get one prediction each, what is predicted, how subjects are split.

    Attributes:
        unit: what gets one prediction: each `subject`, or each record of the source that is named.
        target: what is predicted.
        split: who trains, who is held out.
    """

    unit: str = "subject"
    target: Target
    split: Split = Split()


class Train(Config):
    """How a model is trained: Adam (Kingma and Ba 2015) on the loss that fits the target.

    Attributes:
        epochs: at most; early stopping usually ends sooner.
        batch_size: samples a step, over all workers.
        learning_rate: of Adam. 1e-3: its authors' own.
        weight_decay: decoupled from the gradient (Loshchilov and Hutter 2019).
        patience: epochs without a lower tuning loss before it stops.
        schedule: of the learning rate: `cosine` rises for 5 % of the epochs and falls to zero at the last (Loshchilov
            and Hutter 2017), so that the last epochs settle; `constant` leaves it.
        balance: weigh classes by the inverse of their share in train.
        checkpoint_steps: also checkpoint every n steps; 0: at each epoch's end only.
        mix_shards: rows are shuffled within and across this many shards at a time.
    """

    epochs: Annotated[int, Field(ge=1)] = 30
    batch_size: Annotated[int, Field(ge=1)] = 32
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    patience: Annotated[int, Field(ge=1)] = 6
    balance: bool = True
    checkpoint_steps: Annotated[int, Field(ge=0)] = 0
    mix_shards: Annotated[int, Field(ge=1)] = 8


class Compute(Config):
    """Where it runs.

    Attributes:
        workers: training processes; each holds one device.
        threads: of torch in a training process; 0: the machine's cores shared among the workers.
        device: `auto` takes a GPU where there is one.
        spill: folder for Ray's spilled objects, which are clear text: name one on an encrypted volume, or none spill.
        address: of a running Ray cluster; empty starts one on this machine.
    """

    workers: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    spill: str = ""
    address: str = ""


class Tune(Config):
    """Search with Optuna's TPE over dotted paths of the study.

    Attributes:
        space: dotted path -> `{log: [low, high]}`, `{range: [low, high]}` or `{choice: [...]}`.
        trials: how many.
        concurrent: at a time.
    """

    space: FrozenDict
    trials: Annotated[int, Field(ge=1)] = 20
    concurrent: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _well_formed(self) -> Tune:
        for path, dimension in self.space.items():
            if not isinstance(dimension, Mapping) or set(dimension) not in ({"log"}, {"range"}, {"choice"}):
                expected = "{log: [low, high]}, {range: [low, high]} or {choice: [...]}"
                raise plugins.KindError([f"space.{path}: expected {expected}"])
            ((sort, values),) = dimension.items()
            numbers = isinstance(values, tuple) and all(
                isinstance(value, int | float) and not isinstance(value, bool) for value in values
            )
            if sort == "choice" and not (isinstance(values, tuple) and values):
                raise plugins.KindError([f"space.{path}: choice takes a list of values"])
            if sort != "choice" and not (numbers and len(values) == 2 and values[0] < values[1]):
                raise plugins.KindError([f"space.{path}: {sort} takes [low, high], two numbers"])
            if sort == "log" and values[0] <= 0:
                raise plugins.KindError([f"space.{path}: log takes numbers above 0"])
        return self


class Evaluate(Config):
    """How scores are judged. Intervals are 95 % percentile bootstrap over subjects.

    Attributes:
        threshold: a score from here on counts as positive.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    threshold: Share = 0.5
    resamples: Annotated[int, Field(ge=100)] = 1000
    seed: int = 0


class Explain(Config):
    """What explains a prediction, by modality.

    Attributes:
        fast: in every answer, by one forward and one backward pass for all modalities. Unless given what each modality
            names: Grad-CAM for images, input x gradient for tables and signals.
        full: where a request asks for it, by several passes. Unless given integrated gradients, but for what is
            explained at a feature map.
    """

    fast: Explainers = FrozenDict()
    full: Explainers = FrozenDict()

    @model_validator(mode="after")
    def _one_pass(self) -> Explain:
        for name, explainer in self.fast.items():
            if explainer.cost > 1:
                passes = f"kind '{explainer.kind}' takes {explainer.cost} forward passes"
                raise plugins.KindError([f"fast.{name}: {passes}; name it under explain.full"])
        return self


class Serve(Config):
    """How a model version is served.

    Attributes:
        host: loopback unless you say otherwise; put a TLS proxy before any other address.
        port: of HTTP; 0 takes a free one.
        replicas: processes that answer.
        batch_size: requests that share one forward pass, at most.
        batch_wait_ms: how long a request waits for others to share it with.
        max_body_mb: larger request bodies are refused with 413.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, lt=65536)] = 8000
    replicas: Annotated[int, Field(ge=1)] = 1
    batch_size: Annotated[int, Field(ge=1)] = 8
    batch_wait_ms: Annotated[float, Field(ge=0)] = 5.0
    max_body_mb: Annotated[float, Field(gt=0)] = 64.0


class Governance(Config):
    """What protects people.

    Attributes:
        key: reference to the installation's secret, `env:NAME` or `file:/path`; without it one is made, mode 0600.
        max_quarantined: share of a source's records that may be unreadable before the run stops.
        shift_dates: shift every date of a subject by one secret offset of up to a year; intervals stay exact.
        free_text: `drop` leaves columns of free text out of the table; `keep` seals them as they are.
        keep_columns: `source.column` names kept although they look like identifiers.
    """

    key: str = ""
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.01
    shift_dates: bool = True
    free_text: Literal["drop", "keep"] = "drop"
    keep_columns: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _reference(self) -> Governance:
        if self.key and not re.fullmatch(r"env:\w+|file:/.+", self.key):
            raise ValueError("key is a reference, env:NAME or file:/path, never the secret itself")
        return self
