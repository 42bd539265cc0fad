"""Objective: the loss of a task, and from a network's logits to scores.

Classes are weighed by the inverse of their share in train. That shifts what a network learns to answer by the log of
the weights (Elkan, IJCAI 2001): `shift` is what has to be taken off its logits to make them log odds of the cohort
again, so that a probability means what it says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from medray import metrics
from medray.artifacts.shards import ServingFacts

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

RAREST = 0.01  # no class is weighed as if it were rarer: a few samples would be all that counts


class Objective:
    """What training minimizes.

    Args:
        facts: of the shards: task, classes, their shares, mean and deviation of a regression's labels.
        balance: weigh classes by the inverse of their share in train.
        device: of the logits.
    """

    def __init__(self, facts: ServingFacts, *, balance: bool, device: torch.device | str = "cpu") -> None:
        self.task, self.mean, self.std = facts.task, facts.label_mean, facts.label_std
        share = torch.tensor([facts.class_share.get(name, 0.5) for name in facts.classes]).clamp(RAREST, 1 - RAREST)
        if not balance or self.task == "regression":
            self.positive = self.negative = torch.ones(max(1, len(share)))
        elif self.task == "multiclass":
            self.positive = 1 / (len(share) * share)
            self.negative = torch.zeros(len(share))  # of a softmax only the own class counts
        else:
            self.positive, self.negative = 0.5 / share, 0.5 / (1 - share)
        balanced = self.positive / self.negative if self.task != "multiclass" else self.positive
        self.shift = balanced.log().to(device)
        self.positive, self.negative = self.positive.to(device), self.negative.to(device)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over a batch of logits and labels (B, k), both as the shards have them."""
        if self.task == "regression":
            return functional.mse_loss(logits, (labels - self.mean) / self.std)
        if self.task == "multiclass":
            return -(labels * self.positive * logits.log_softmax(1)).sum(1).mean()
        weight = torch.lerp(self.negative, self.positive, labels)
        return functional.binary_cross_entropy_with_logits(logits, labels, weight)

    def scores(self, logits: Tensor) -> Tensor:
        """(n, k) probabilities, or values in the target's units, of logits as they are trained."""
        if self.task == "regression":
            return logits * self.std + self.mean
        logits = logits - self.shift
        return logits.softmax(1) if self.task == "multiclass" else logits.sigmoid()

    def judged(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """`loss` and the task's main metric (AUROC or RMSE), of all rows of a split; the metric where it is defined."""
        found = {"loss": float(self.loss(logits, labels))}
        value = metrics.main_value(self.task, labels.cpu().numpy(), self.scores(logits).cpu().numpy())
        return found if value is None else {**found, metrics.main_metric(self.task): value}
