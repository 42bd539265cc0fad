"""Baseline: logistic regression (ridge regression for a number) on a short description of each sample.

What a network has to beat. It sees the same train shards: `modality.features` of what is present, standardized; what is
absent is zero, with a column beside it that says so. `train` fits it, `predict` scores with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.artifacts.shards import Shards
from medray.loop.feed import seed_of
from medray.modalities import Modality

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

MAX_ROWS = 20_000  # of the train split: more hardly move a few hundred coefficients, and they must fit one process
STRENGTH = 1.0  # of the penalty on standardized features: scikit-learn's own default
NEVER = -20.0  # log odds of a class that train does not have


def fit_baseline(shards: Shards, modalities: Mapping[str, Modality], seed: int = 0) -> dict[str, Array]:
    """Coefficients as arrays: `mean.<modality>`, `std.<modality>` (d,), `weight` (k, D), `bias` (k,).

    Raises:
        IntegrityError: a shard was changed.
    """
    entries = shards.entries("train")
    drawn: list[dict[str, Array]] = []
    for index in np.random.default_rng(seed_of("baseline", seed)).permutation(len(entries)):
        drawn.append(_described(shards.read(entries[index].name), modalities))
        if sum(len(part["y"]) for part in drawn) >= MAX_ROWS:
            break
    whole = {key: np.concatenate([part[key] for part in drawn]) for key in drawn[0]}
    coefficients: dict[str, Array] = {}
    for name in modalities:
        seen = whole[f"x.{name}"][whole[f"present.{name}"]].astype(np.float64)
        std = seen.std(axis=0) if len(seen) else np.ones(seen.shape[1])
        coefficients[f"mean.{name}"] = seen.mean(axis=0) if len(seen) else np.zeros(seen.shape[1])
        coefficients[f"std.{name}"] = np.where(std > 1e-6, std, 1.0)
    inputs = _standardized(whole, modalities, coefficients)
    coefficients["weight"], coefficients["bias"] = _fitted(shards.facts.task, inputs, whole["y"])
    return {key: np.asarray(values, np.float32) for key, values in coefficients.items()}


def baseline_scores(
    coefficients: Mapping[str, Array],
    task: str,
    modalities: Mapping[str, Modality],
    arrays: Mapping[str, Array],
    present: Mapping[str, Array],
) -> Array:
    """(n, k) probabilities, or values in the target's units.

    Args:
        coefficients: what `fit_baseline` gave.
        task: of the study.
        modalities: by name, in the study's order.
        arrays: stored samples (n, *shape) of each modality; anything where it is absent.
        present: bool (n,) of each modality.
    """
    samples = {f"x.{name}": arrays[name] for name in modalities}
    shard = {**samples, **{f"present.{name}": present[name] for name in modalities}}
    inputs = _standardized(_described(shard, modalities), modalities, coefficients)
    logits: Array = inputs @ coefficients["weight"].T.astype(np.float64) + coefficients["bias"]
    if task == "regression":
        return logits
    if task == "multiclass":
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: Array = exponents / exponents.sum(axis=1, keepdims=True)
        return shares
    probabilities: Array = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    return probabilities


def _described(shard: Mapping[str, Array], modalities: Mapping[str, Modality]) -> dict[str, Array]:
    """A shard with features in the place of samples."""
    features = {f"x.{name}": modality.features(shard[f"x.{name}"]) for name, modality in modalities.items()}
    return {**{key: values for key, values in shard.items() if key == "y" or key.startswith("present.")}, **features}


def _standardized(
    described: Mapping[str, Array], modalities: Mapping[str, Modality], coefficients: Mapping[str, Array]
) -> Array:
    """(n, D): each modality's features, and whether it is present."""
    columns = []
    for name in modalities:
        present = described[f"present.{name}"].astype(bool)[:, None]
        values = (described[f"x.{name}"] - coefficients[f"mean.{name}"]) / coefficients[f"std.{name}"]
        columns += [np.where(present, values, 0.0), present.astype(np.float64)]
    return np.concatenate(columns, axis=1)


def _fitted(task: str, inputs: Array, labels: Array) -> tuple[Array, Array]:
    """Weight (k, D) and bias (k,)."""
    from sklearn.linear_model import Ridge

    if task == "regression":
        ridge = Ridge(alpha=STRENGTH).fit(inputs, labels[:, 0])
        return ridge.coef_[None], np.array([ridge.intercept_])
    weight = np.zeros((labels.shape[1], inputs.shape[1]))
    bias = np.full(labels.shape[1], NEVER)
    if task == "multiclass":
        seen = np.flatnonzero(labels.any(axis=0))
        if len(seen) == 1:
            bias[seen] = 0.0
            return weight, bias
        found = _logistic(inputs, labels.argmax(axis=1))
        # of two classes scikit-learn gives the second one's log odds alone
        weight[seen[-len(found.coef_) :]], bias[seen] = found.coef_, 0.0
        bias[seen[-len(found.coef_) :]] = found.intercept_
        return weight, bias
    for number, column in enumerate(labels.T):
        if column.min() == column.max():
            bias[number] = -NEVER if column[0] else NEVER
            continue
        found = _logistic(inputs, column)
        weight[number], bias[number] = found.coef_[0], found.intercept_[0]
    return weight, bias


def _logistic(inputs: Array, labels: Array) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 500 iterations are good enough to compare with
        return LogisticRegression(C=1 / STRENGTH, max_iter=500).fit(inputs, labels)
