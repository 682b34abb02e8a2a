"""InceptionV3 (Szegedy et al., 2015) under torchvision's state-dict keys, no auxiliary classifier; and a small one.

The auxiliary classifier (`AuxLogits.*` in checkpoints) only helps training; inference never computes it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

# ImageNet's statistics, which torchvision's preprocessing subtracts, and the 1/2 that these weights were trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class BasicConv2d(nn.Module):
    """relu(batch_norm(conv(x)))."""

    def __init__(self, inputs: int, outputs: int, kernel, stride: int = 1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class InceptionA(nn.Module):
    """35 x 35: a 1x1, a 5x5, two 3x3, and a pooled branch."""

    def __init__(self, inputs: int, pool: int):
        super().__init__()
        self.branch1x1 = BasicConv2d(inputs, 64, 1)
        self.branch5x5_1 = BasicConv2d(inputs, 48, 1)
        self.branch5x5_2 = BasicConv2d(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = BasicConv2d(inputs, 64, 1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, padding=1)
        self.branch_pool = BasicConv2d(inputs, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pooled = self.branch_pool(avg_pool2d(x, 3, 1, 1))
        return torch.cat([self.branch1x1(x), five, three, pooled], 1)


class InceptionB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3 = BasicConv2d(inputs, 384, 3, 2)
        self.branch3x3dbl_1 = BasicConv2d(inputs, 64, 1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, max_pool2d(x, 3, 2)], 1)


class InceptionC(nn.Module):
    """17 x 17: 7x7 convolutions as pairs of 1x7 and 7x1 with `width` channels between them."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        wide, tall = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = BasicConv2d(inputs, 192, 1)
        self.branch7x7_1 = BasicConv2d(inputs, width, 1)
        self.branch7x7_2 = BasicConv2d(width, width, **wide)
        self.branch7x7_3 = BasicConv2d(width, 192, **tall)
        self.branch7x7dbl_1 = BasicConv2d(inputs, width, 1)
        self.branch7x7dbl_2 = BasicConv2d(width, width, **tall)
        self.branch7x7dbl_3 = BasicConv2d(width, width, **wide)
        self.branch7x7dbl_4 = BasicConv2d(width, width, **tall)
        self.branch7x7dbl_5 = BasicConv2d(width, 192, **wide)
        self.branch_pool = BasicConv2d(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        pooled = self.branch_pool(avg_pool2d(x, 3, 1, 1))
        return torch.cat([self.branch1x1(x), seven, double, pooled], 1)


class InceptionD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3_1 = BasicConv2d(inputs, 192, 1)
        self.branch3x3_2 = BasicConv2d(192, 320, 3, 2)
        self.branch7x7x3_1 = BasicConv2d(inputs, 192, 1)
        self.branch7x7x3_2 = BasicConv2d(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = BasicConv2d(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = BasicConv2d(192, 192, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_2(self.branch7x7x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(seven))
        return torch.cat([three, seven, max_pool2d(x, 3, 2)], 1)


class InceptionE(nn.Module):
    """8 x 8: branches that end in a 1x3 and a 3x1 side by side."""

    def __init__(self, inputs: int):
        super().__init__()
        wide, tall = {"kernel": (1, 3), "padding": (0, 1)}, {"kernel": (3, 1), "padding": (1, 0)}
        self.branch1x1 = BasicConv2d(inputs, 320, 1)
        self.branch3x3_1 = BasicConv2d(inputs, 384, 1)
        self.branch3x3_2a = BasicConv2d(384, 384, **wide)
        self.branch3x3_2b = BasicConv2d(384, 384, **tall)
        self.branch3x3dbl_1 = BasicConv2d(inputs, 448, 1)
        self.branch3x3dbl_2 = BasicConv2d(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = BasicConv2d(384, 384, **wide)
        self.branch3x3dbl_3b = BasicConv2d(384, 384, **tall)
        self.branch_pool = BasicConv2d(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = self.branch_pool(avg_pool2d(x, 3, 1, 1))
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            pooled,
        ]
        return torch.cat(branches, 1)


class InceptionV3(nn.Module):
    """Images (n, 3, h, w), 299 x 299 as a rule, to logits (n, classes).

    transform_input: the input was normalised with ImageNet's mean and standard deviation; undo that and normalise
    with 1/2 and 1/2, as the weights expect: ((x * STD + MEAN) - 1/2) / (1/2).
    """

    def __init__(self, classes: int = 1000, transform_input: bool = False):
        super().__init__()
        self.transform_input = transform_input
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, 3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, 3, padding=1)
        self.maxpool1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, 1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2)
        self.Mixed_5b = InceptionA(192, 32)
        self.Mixed_5c = InceptionA(256, 64)
        self.Mixed_5d = InceptionA(288, 64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, 128)
        self.Mixed_6c = InceptionC(768, 160)
        self.Mixed_6d = InceptionC(768, 160)
        self.Mixed_6e = InceptionC(768, 192)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE(1280)
        self.Mixed_7c = InceptionE(2048)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.transform_input:
            std, mean = (x.new_tensor(values).view(1, 3, 1, 1) for values in (STD, MEAN))
            x = x * (std / 0.5) + (mean - 0.5) / 0.5
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self.maxpool1(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(self.maxpool2(x))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))


def inception_v3(classes: int = 1000, transform_input: bool = False) -> InceptionV3:
    """InceptionV3: 23.8 million parameters, 5.7 GMAC at 299 x 299."""
    return InceptionV3(classes, transform_input)


class SmallInceptionA(nn.Module):
    """Four branches of `width` channels side by side: a 1x1, a 3x3, two 3x3, and an average followed by a 1x1."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.branch1x1 = BasicConv2d(inputs, width, 1)
        self.branch3x3_1 = BasicConv2d(inputs, width, 1)
        self.branch3x3_2 = BasicConv2d(width, width, 3, padding=1)
        self.branch3x3dbl_1 = BasicConv2d(inputs, width, 1)
        self.branch3x3dbl_2 = BasicConv2d(width, width, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(width, width, 3, padding=1)
        self.branch_pool = BasicConv2d(inputs, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pooled = self.branch_pool(avg_pool2d(x, 3, 1, 1))
        return torch.cat([self.branch1x1(x), three, double, pooled], 1)


class SmallInceptionB(nn.Module):
    """Half the height and width: a 3x3 and two 3x3 of `width` channels each, and the maxima of the input."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.branch3x3 = BasicConv2d(inputs, width, 3, 2, 1)
        self.branch3x3dbl_1 = BasicConv2d(inputs, width, 1)
        self.branch3x3dbl_2 = BasicConv2d(width, width, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(width, width, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, max_pool2d(x, 3, 2, 1)], 1)


class SmallInception(nn.Module):
    """Images (n, channels, h, w), 28 x 28 or 32 x 32, to logits (n, classes): blocks at two sizes."""

    def __init__(self, classes: int = 10, channels: int = 1):
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(channels, 32, 3, padding=1)
        self.maxpool1 = nn.MaxPool2d(3, 2, 1)
        self.Mixed_2a = SmallInceptionA(32, 16)
        self.Mixed_2b = SmallInceptionA(64, 16)
        self.Mixed_3a = SmallInceptionB(64, 32)
        self.Mixed_3b = SmallInceptionA(128, 32)
        self.Mixed_3c = SmallInceptionA(128, 40)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(160, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool1(self.Conv2d_1a_3x3(x))
        x = self.Mixed_3a(self.Mixed_2b(self.Mixed_2a(x)))
        x = self.Mixed_3c(self.Mixed_3b(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def small_inception(classes: int = 10, channels: int = 1) -> SmallInception:
    """Five blocks of branches, for images of 28 x 28 or 32 x 32: 0.17 million parameters."""
    return SmallInception(classes, channels)


def from_state_dict(state: Mapping[str, Tensor]) -> tuple[str, InceptionV3 | SmallInception] | None:
    """The Inception (name, untrained network) for these weights, or None when the keys are not one's."""
    if not {"Conv2d_1a_3x3.conv.weight", "fc.weight"} <= set(state):
        return None
    classes, channels = len(state["fc.weight"]), state["Conv2d_1a_3x3.conv.weight"].shape[1]
    if "Mixed_3c.branch1x1.conv.weight" in state:
        return "small_inception", small_inception(classes, channels)
    return ("inception_v3", InceptionV3(classes)) if "Mixed_7c.branch1x1.conv.weight" in state else None
