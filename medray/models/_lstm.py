"""A bidirectional LSTM (Hochreiter and Schmidhuber 1997) over a strided convolutional stem.

B batch, T samples in time, C leads, T' steps after the stem, H hidden units each way.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from medray.models._network import Encoder


class LstmEncoder(Encoder):
    """Two convolutions of stride 4 shorten the signal 16 times; attention over time pools what the LSTM gives."""

    def __init__(self, leads: int, *, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.width = 2 * hidden
        self.stem = nn.Sequential(
            nn.Conv1d(leads, 32, 7, stride=4, padding=3, bias=False),
            nn.BatchNorm1d(32),
            nn.GELU(),
            nn.Conv1d(32, 64, 7, stride=4, padding=3, bias=False),
            nn.BatchNorm1d(64),
            nn.GELU(),
        )
        between = dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(64, hidden, layers, batch_first=True, bidirectional=True, dropout=between)
        self.attention = nn.Linear(2 * hidden, 1)
        self.dropout = nn.Dropout(dropout)

    def trunk(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T', 2H)."""
        x = self.stem(x.transpose(1, 2)).transpose(1, 2)
        # cuDNN has no backward pass of an LSTM in eval mode, which an explanation needs
        explained = x.is_cuda and not self.training and torch.is_grad_enabled()
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not explained):
            return cast(Tensor, self.lstm(x)[0])

    def pool(self, features: Tensor) -> Tensor:
        """The mean over time, weighed by attention."""
        weights = self.attention(features).softmax(dim=1)
        return cast(Tensor, self.dropout((weights * features).sum(1)))
