"""ResNet (He, Zhang, Ren, Sun, CVPR 2016) with basic blocks; parameters are named as torchvision names them.

B batch, C channels, h x w feature map.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from medray.models._network import Encoder


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
            if stride != 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, outputs, h / stride, w / stride)."""
        # strided here and not in the convolution: oneDNN's backward pass of a strided 1x1 convolution in channels_last
        # writes beyond its memory, seen with AVX-512, 2 threads, 8 channels and an odd batch (torch 2.13.0)
        shortcut = x if self.downsample is None else self.downsample(x[:, :, :: self.stride, :: self.stride])
        x = self.relu(self.bn1(self.conv1(x)))
        return cast(Tensor, self.relu(self.bn2(self.conv2(x)) + shortcut))


class ResNet(Encoder):
    """The trunk of a ResNet-10 or -18.

    Args:
        channels: of the image.
        blocks: in each of the four stages: 1 makes a ResNet-10, 2 a ResNet-18.
        width: channels of the first stage; each stage doubles them.
        small: a 3x3 stem without pooling, for images below 128 pixels.
        last_stride: of the last stage: 1 gives a finer map.
        dropout: after pooling.
    """

    def __init__(
        self, channels: int, *, blocks: int, width: int, small: bool, last_stride: int, dropout: float
    ) -> None:
        super().__init__()
        self.width = 8 * width
        kernel = 3 if small else 7
        self.conv1 = nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(width, width, blocks, 1)
        self.layer2 = _stage(width, 2 * width, blocks, 2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, 2)
        self.layer4 = _stage(4 * width, 8 * width, blocks, last_stride)
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on a CPU

    def trunk(self, x: Tensor) -> Tensor:
        """(B, 8 width, h, w)."""
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return cast(Tensor, self.layer4(self.layer3(self.layer2(self.layer1(x)))))

    def pool(self, features: Tensor) -> Tensor:
        """The mean over the map."""
        return cast(Tensor, self.dropout(features.mean((2, 3))))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(1, blocks)))
