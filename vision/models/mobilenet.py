"""MobileNetV2 (Sandler et al., 2018) under torchvision's state-dict keys."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

# (expansion, output channels, blocks, stride of the first block): table 2 of the paper.
IMAGENET = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
SMALL = ((1, 16, 1, 1), (4, 24, 2, 2), (4, 48, 2, 1), (4, 96, 1, 1))


class InvertedResidual(nn.Module):
    """y = [x +] project(depthwise(expand(x))): 1x1 to `expansion` times the channels, 3x3 depthwise, 1x1 linear."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        layers = [_conv_bn_relu6(inputs, hidden, 1)] if expansion != 1 else []
        layers += [
            _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def _conv_bn_relu6(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


class MobileNetV2(nn.Module):
    """Images (n, channels, h, w) to logits (n, classes).

    table: rows of (expansion, output channels, blocks, stride); width: a factor on every number of channels;
    features: the channels before the classifier at width <= 1.
    """

    def __init__(
        self,
        classes: int = 1000,
        width: float = 1.0,
        channels: int = 3,
        table: Sequence[tuple[int, int, int, int]] = IMAGENET,
        features: int = 1280,
    ):
        super().__init__()
        inputs, last = _channels(32 * width), _channels(features * max(1.0, width))
        layers: list[nn.Module] = [_conv_bn_relu6(channels, inputs, 3, 2)]
        for expansion, row_channels, blocks, stride in table:
            outputs = _channels(row_channels * width)
            for index in range(blocks):
                layers.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expansion))
                inputs = outputs
        layers.append(_conv_bn_relu6(inputs, last, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(x, 1))


def _channels(value: float, divisor: int = 8) -> int:
    """The multiple of 8 nearest to `value`, at least 8, and not more than 10 % below it."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * value else rounded + divisor


def mobilenet_v2(classes: int = 1000, width: float = 1.0) -> MobileNetV2:
    """MobileNetV2: 3.5 million parameters, 0.30 GMAC at 224 x 224."""
    return MobileNetV2(classes, width)


def small_mobilenet_v2(classes: int = 10, channels: int = 1) -> MobileNetV2:
    """Six blocks at 14 x 14 and 7 x 7, for images of 28 x 28 (or 32 x 32)."""
    return MobileNetV2(classes, 1.0, channels, SMALL, features=256)


def from_state_dict(state: Mapping[str, Tensor]) -> tuple[str, MobileNetV2] | None:
    """The MobileNetV2 (name, untrained network) whose shapes these are, or None when the keys are not one's."""
    if not {"features.0.0.weight", "features.1.conv.0.0.weight", "classifier.1.weight"} <= set(state):
        return None
    classes, channels = len(state["classifier.1.weight"]), state["features.0.0.weight"].shape[1]
    blocks = sum(row[2] for row in SMALL)
    if f"features.{blocks + 1}.0.weight" in state:
        return "small_mobilenet_v2", small_mobilenet_v2(classes, channels)
    # Any width gives some multiple of 8; the widths in use are multiples of 0.05.
    for width in (step / 20 for step in range(1, 61)):
        shapes = (_channels(32 * width), *(_channels(row[1] * width) for row in IMAGENET))
        keys = ("features.0.1.weight", *(f"features.{index}.conv.{part}.weight" for index, part in _ROW_ENDS))
        if all(key in state and len(state[key]) == shape for key, shape in zip(keys, shapes, strict=True)):
            return "mobilenet_v2", MobileNetV2(classes, width, channels)
    return None


# The last batch normalisation of each row's first block: (index in `features`, index in the block's `conv`).
_ROW_ENDS = tuple(
    (1 + sum(row[2] for row in IMAGENET[:number]), 2 if row[0] == 1 else 3) for number, row in enumerate(IMAGENET)
)
