"""ResNet (He et al., 2015) under torchvision's state-dict keys.

The bottleneck strides in its 3x3 convolution ("v1.5"). Groups and width per group make it a ResNeXt or a wide ResNet.
A 3x3 first convolution makes the small stem for 28x28 and 32x32 images: stride 1 and no pooling.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """y = relu(x' + conv3x3(relu(conv3x3(x)))), where x' is x, or its 1x1 projection when the shape changes."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, groups: int = 1, group_width: int = 64):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _projection(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + identity)


class Bottleneck(nn.Module):
    """y = relu(x' + conv1x1(relu(conv3x3(relu(conv1x1(x)))))): the 3x3 works on a quarter of the channels."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, groups: int = 1, group_width: int = 64):
        super().__init__()
        inner, outputs = width * group_width // 64 * groups, width * self.expansion
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x + identity)


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Images (n, channels, h, w) to logits (n, classes).

    block: BasicBlock or Bottleneck; depths: the number of blocks of each stage; stem: the first kernel, 7 or 3.
    The stage i has `width * 2**i` channels (times 4 after a bottleneck) and halves the image when i > 0.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        classes: int = 1000,
        channels: int = 3,
        width: int = 64,
        groups: int = 1,
        group_width: int = 64,
        stem: int = 7,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, stem, 2 if stem == 7 else 1, stem // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == 7 else nn.Identity()
        inputs = width
        self.stages = len(depths)
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(inputs, width << stage, stride, groups, group_width))
                inputs = (width << stage) * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18(classes: int = 1000) -> ResNet:
    """ResNet-18: 11.7 million parameters, 1.8 GMAC at 224 x 224."""
    return ResNet(BasicBlock, (2, 2, 2, 2), classes)


def resnet34(classes: int = 1000) -> ResNet:
    """ResNet-34: 21.8 million parameters, 3.7 GMAC at 224 x 224."""
    return ResNet(BasicBlock, (3, 4, 6, 3), classes)


def resnet50(classes: int = 1000) -> ResNet:
    """ResNet-50: 25.6 million parameters, 4.1 GMAC at 224 x 224."""
    return ResNet(Bottleneck, (3, 4, 6, 3), classes)


def resnet101(classes: int = 1000) -> ResNet:
    """ResNet-101: 44.5 million parameters, 7.8 GMAC at 224 x 224."""
    return ResNet(Bottleneck, (3, 4, 23, 3), classes)


def small_resnet(classes: int = 10, channels: int = 1) -> ResNet:
    """One basic block a stage, for images of 28 x 28 or 32 x 32."""
    return ResNet(BasicBlock, (1, 1, 1), classes, channels, width=16, stem=3)


def from_state_dict(state: Mapping[str, Tensor]) -> tuple[str, ResNet] | None:
    """The ResNet (name, untrained network) whose shapes these are, or None when the keys are not a ResNet's."""
    if not {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight", "fc.weight"} <= set(state):
        return None
    depths = []
    while f"layer{len(depths) + 1}.0.conv1.weight" in state:
        prefix, depth = f"layer{len(depths) + 1}", 0
        while f"{prefix}.{depth}.conv1.weight" in state:
            depth += 1
        depths.append(depth)
    width, channels, stem, _ = state["conv1.weight"].shape
    options = {"classes": len(state["fc.weight"]), "channels": channels, "width": width, "stem": stem}
    if "layer1.0.conv3.weight" not in state:
        layers = 2 * sum(depths) + 2
        return f"resnet{layers}", ResNet(BasicBlock, depths, **options)
    inner, group_inner = state["layer1.0.conv2.weight"].shape[:2]
    groups = inner // group_inner
    layers = 3 * sum(depths) + 2
    return f"resnet{layers}", ResNet(
        Bottleneck, depths, groups=groups, group_width=group_inner * 64 // width, **options
    )
