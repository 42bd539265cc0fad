"""The peer: a ResNet as a user of PyTorch writes it, default memory layout, nothing folded, nothing of medray."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet(nn.Module):
    """ResNet-10 (1 block a stage) or -18 (2); `small` takes the stem and last stride of images below 128 pixels."""

    def __init__(self, blocks=2, width=64, small=False, num_outputs=1):
        super().__init__()
        kernel = 3 if small else 7
        self.conv1 = nn.Conv2d(1, width, kernel, stride=2, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self.stage(width, width, blocks, 1)
        self.layer2 = self.stage(width, 2 * width, blocks, 2)
        self.layer3 = self.stage(2 * width, 4 * width, blocks, 2)
        self.layer4 = self.stage(4 * width, 8 * width, blocks, 1 if small else 2)
        self.fc = nn.Linear(8 * width, num_outputs) if num_outputs else nn.Identity()

    @staticmethod
    def stage(inputs, outputs, blocks, stride):
        return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(1, blocks)))

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(x.mean((2, 3)), 1))
