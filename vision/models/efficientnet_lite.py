"""EfficientNet-Lite0 under the state-dict keys of the package `efficientnet-lite-pytorch`.

EfficientNet-B0 (Tan and Le, 2019) without squeeze-and-excitation and with ReLU6 for SiLU. It was trained in TensorFlow,
so a convolution pads as TensorFlow's "SAME" does: the odd pixel goes to the bottom and the right.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# (blocks, kernel, stride of the first block, expansion, output channels)
TABLE = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
EPS = 1e-3  # TensorFlow's batch normalisation


class SameConv2d(nn.Conv2d):
    """A square convolution without bias whose output has ceil(size / stride) pixels ("SAME" padding)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        # At stride 1 the padding is even, and the convolution's own.
        super().__init__(inputs, outputs, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride > 1:
            # total = (ceil(size / stride) - 1) * stride + kernel - size
            tall, wide = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:])
            x = nn.functional.pad(x, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))
        return super().forward(x)


class MBConv(nn.Module):
    """y = [x +] project(depthwise(expand(x))), as in MobileNetV2, with a kernel of 3 or 5."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        self.expand = expansion != 1
        if self.expand:
            self._expand_conv = SameConv2d(inputs, hidden, 1)
            self._bn0 = nn.BatchNorm2d(hidden, eps=EPS)
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel, stride, groups=hidden)
        self._bn1 = nn.BatchNorm2d(hidden, eps=EPS)
        self._project_conv = SameConv2d(hidden, outputs, 1)
        self._bn2 = nn.BatchNorm2d(outputs, eps=EPS)
        self._relu6 = nn.ReLU6(inplace=True)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self._relu6(self._bn0(self._expand_conv(x))) if self.expand else x
        y = self._relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """Images (n, channels, h, w) to logits (n, classes)."""

    def __init__(self, classes: int = 1000, channels: int = 3):
        super().__init__()
        inputs = 32
        self._conv_stem = SameConv2d(channels, inputs, 3, 2)
        self._bn0 = nn.BatchNorm2d(inputs, eps=EPS)
        self._blocks = nn.ModuleList()
        for blocks, kernel, stride, expansion, outputs in TABLE:
            for index in range(blocks):
                self._blocks.append(MBConv(inputs, outputs, kernel, stride if index == 0 else 1, expansion))
                inputs = outputs
        self._conv_head = SameConv2d(inputs, 1280, 1)
        self._bn1 = nn.BatchNorm2d(1280, eps=EPS)
        self._relu6 = nn.ReLU6(inplace=True)
        self._avg_pooling = nn.AdaptiveAvgPool2d(1)
        self._dropout = nn.Dropout(0.2)
        self._fc = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self._relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = self._avg_pooling(self._relu6(self._bn1(self._conv_head(x))))
        return self._fc(self._dropout(torch.flatten(x, 1)))


def efficientnet_lite0(classes: int = 1000) -> EfficientNetLite:
    """EfficientNet-Lite0: 4.7 million parameters, 0.39 GMAC at 224 x 224."""
    return EfficientNetLite(classes)


def from_state_dict(state: Mapping[str, Tensor]) -> tuple[str, EfficientNetLite] | None:
    """EfficientNet-Lite0 (name, untrained network) for these weights, or None when the keys are not its."""
    if not {"_conv_stem.weight", "_blocks.0._depthwise_conv.weight", "_conv_head.weight", "_fc.weight"} <= set(state):
        return None
    return "efficientnet_lite0", EfficientNetLite(len(state["_fc.weight"]), state["_conv_stem.weight"].shape[1])
