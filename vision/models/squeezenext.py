"""SqueezeNext (Gholami et al., 2018), 1.0-SqNxt-23, under the state-dict keys of pytorchcv, whose weights HAWQ used.

A 3x3 first convolution makes the small stem for 28x28 and 32x32 images: stride 1 before the pooling.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """relu(batch_norm(conv(x))); the convolution keeps its bias, as published."""

    def __init__(self, inputs: int, outputs: int, kernel=1, stride: int = 1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        self.bn = nn.BatchNorm2d(outputs)
        self.activ = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activ(self.bn(self.conv(x)))


class Unit(nn.Module):
    """y = relu(x' + expand(3x1(1x3(squeeze(squeeze(x)))))): two 1x1 squeezes, a separable 3x3, one 1x1 expansion."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        # A unit that strides starts from all its channels, one that narrows from a quarter, any other from a half.
        first = inputs // (1 if stride == 2 else 4 if inputs > outputs else 2)
        second = first // 2
        self.conv1 = ConvBlock(inputs, first, stride=stride)
        self.conv2 = ConvBlock(first, second)
        self.conv3 = ConvBlock(second, first, (1, 3), padding=(0, 1))
        self.conv4 = ConvBlock(first, first, (3, 1), padding=(1, 0))
        self.conv5 = ConvBlock(first, outputs)
        self.identity_conv = ConvBlock(inputs, outputs, stride=stride) if stride == 2 or inputs > outputs else None
        self.activ = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.identity_conv is None else self.identity_conv(x)
        x = self.conv5(self.conv4(self.conv3(self.conv2(self.conv1(x)))))
        return self.activ(x + identity)


class Stem(nn.Module):
    """A convolution, 7x7 of stride 2 or 3x3 of stride 1, and a 3x3 maximum of stride 2."""

    def __init__(self, channels: int, outputs: int, kernel: int):
        super().__init__()
        self.conv = ConvBlock(channels, outputs, kernel, 2 if kernel == 7 else 1, 1)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(x))


class SqueezeNext(nn.Module):
    """Images (n, channels, h, w) to logits (n, classes); `depths` units in stages of 32, 64, 128 and 256 channels.

    width: a factor on every number of channels; stem: the first kernel, 7 or 3.
    """

    def __init__(
        self,
        classes: int = 1000,
        channels: int = 3,
        depths: Sequence[int] = (6, 6, 8, 1),
        width: float = 1.0,
        stem: int = 7,
    ):
        super().__init__()
        inputs = int(64 * width)
        self.features = nn.Sequential()
        self.features.add_module("init_block", Stem(channels, inputs, stem))
        for stage, depth in enumerate(depths):
            units, outputs = nn.Sequential(), int((32 << stage) * width)
            for index in range(depth):
                units.add_module(f"unit{index + 1}", Unit(inputs, outputs, 2 if stage > 0 and index == 0 else 1))
                inputs = outputs
            self.features.add_module(f"stage{stage + 1}", units)
        self.features.add_module("final_block", ConvBlock(inputs, int(128 * width)))
        self.features.add_module("final_pool", nn.AdaptiveAvgPool2d(1))
        self.output = nn.Linear(int(128 * width), classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(torch.flatten(self.features(x), 1))


def squeezenext(classes: int = 1000) -> SqueezeNext:
    """1.0-SqNxt-23: 0.72 million parameters, 0.29 GMAC at 224 x 224."""
    return SqueezeNext(classes)


def small_squeezenext(classes: int = 10, channels: int = 1) -> SqueezeNext:
    """Two units a stage at 32, 64 and 128 channels, for images of 28 x 28 or 32 x 32: 0.13 million parameters."""
    return SqueezeNext(classes, channels, (2, 2, 2), stem=3)


def from_state_dict(state: Mapping[str, Tensor]) -> tuple[str, SqueezeNext] | None:
    """The SqueezeNext (name, untrained network) whose shapes these are, or None when the keys are not one's."""
    needed = {"features.init_block.conv.conv.weight", "features.stage1.unit1.conv1.conv.weight", "output.weight"}
    if not needed <= set(state):
        return None
    depths = []
    while f"features.stage{len(depths) + 1}.unit1.conv1.conv.weight" in state:
        prefix, depth = f"features.stage{len(depths) + 1}", 1
        while f"{prefix}.unit{depth + 1}.conv1.conv.weight" in state:
            depth += 1
        depths.append(depth)
    width, channels, kernel, _ = state["features.init_block.conv.conv.weight"].shape
    name = "squeezenext" if kernel == 7 else "small_squeezenext"
    return name, SqueezeNext(len(state["output.weight"]), channels, depths, width / 64, kernel)
