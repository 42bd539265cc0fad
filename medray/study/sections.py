"""The sections of a study. Their fields are its keys, their docstrings its documentation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from medray.plugins import Config
from medray.readers import PathValue
from medray.schema import FrozenDict, canonical

Task = Literal["binary", "multiclass", "multilabel", "regression"]


def _texts(value: Any) -> Any:
    """One value or a list of them, as canonical texts."""
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(text for text in (canonical(item) for item in items) if text is not None)


Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]
Share = Annotated[float, Field(gt=0, lt=1)]


class ClassMap(Config):
    """Codes to classes by a CSV file: the row whose `key` column is the code gives the `value` column as class."""

    file: str
    key: str
    value: str


class Target(Config):
    """What is predicted.

    Attributes:
        column: `source.column`.
        positive: binary: the value or values that count as positive.
        many: multilabel: a cell is a list, JSON or a Python literal; of a dict the keys count.
        kind: `regression` for a number.
        classes: their names in order; found in the data where not given.
        map: codes to classes by a file; unmapped codes are ignored.
    """

    column: str
    positive: Texts = ()
    many: bool = False
    kind: Literal["classification", "regression"] = "classification"
    classes: Texts = ()
    map: ClassMap | None = None

    @model_validator(mode="after")
    def _one_task(self) -> Target:
        if sum((bool(self.positive), self.many, self.kind == "regression")) > 1:
            raise ValueError("give one of positive, many, kind: regression")
        if "." not in self.column:
            raise ValueError(f"column '{self.column}' must be written source.column")
        return self

    @property
    def task(self) -> Task:
        """Binary, multilabel, regression or multiclass."""
        if self.positive:
            return "binary"
        return "multilabel" if self.many else "regression" if self.kind == "regression" else "multiclass"


class Split(Config):
    """Which subjects train, tune, and are held out. What `by` does not name is train; without a value: excluded.

    Attributes:
        by: a column (`source.column`) or a path that holds a published split.
        held_out, tuning: the values of `by` that mean these splits.
        held_out_share: drawn of all subjects where `held_out` is not named. 20 %: enough for an interval.
        tuning_share: drawn of the remaining subjects where `tuning` is not named.
        seed: of the draw; part of the table, while the study's own seed drives training only.
    """

    by: str | PathValue | None = None
    held_out: Texts = ()
    tuning: Texts = ()
    held_out_share: Share = 0.2
    tuning_share: Share = 0.1
    seed: int = 0


class Cohort(Config):
    """Which units get one prediction each, what is predicted, how subjects are split."""

    unit: str = "subject"
    target: Target
    split: Split = Split()


class Train(Config):
    """How a model is trained. Adam (Kingma and Ba 2015) on the loss that fits the target.

    Attributes:
        epochs: at most; early stopping usually ends sooner.
        patience: epochs without a lower tuning loss before it stops.
        balance: weigh classes by the inverse of their share in train.
        checkpoint_steps: also checkpoint every n steps; 0 = at each epoch's end.
        mix_shards: rows are shuffled within and across this many shards at a time.
    """

    epochs: Annotated[int, Field(ge=1)] = 30
    batch_size: Annotated[int, Field(ge=1)] = 32
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    patience: Annotated[int, Field(ge=1)] = 6
    balance: bool = True
    checkpoint_steps: Annotated[int, Field(ge=0)] = 0
    mix_shards: Annotated[int, Field(ge=1)] = 8


class Compute(Config):
    """Where it runs.

    Attributes:
        workers: training processes; each holds one device.
        threads: of torch in a training process; 0 = the machine's cores shared among the workers.
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
                raise ValueError(
                    f"space.{path}: expected {{log: [low, high]}}, {{range: [low, high]}} or {{choice: []}}"
                )
        return self


class Evaluate(Config):
    """How scores are judged. Intervals are 95 % percentile bootstrap over subjects."""

    threshold: Share = 0.5
    resamples: Annotated[int, Field(ge=100)] = 1000
    seed: int = 0


class Serve(Config):
    """How a model version is served.

    Attributes:
        host: loopback unless you say otherwise; put a TLS proxy before any other address.
        max_body_mb: larger request bodies are refused with 413.
        batch_size, batch_wait_ms: requests that arrive within this time share one forward pass.
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
        if self.key and not re.match(r"(env:\w+|file:/.+)$", self.key):
            raise ValueError("key is a reference, env:NAME or file:/path, never the secret itself")
        return self
