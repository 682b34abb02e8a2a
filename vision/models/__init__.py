"""The vision architectures that no library we may depend on ships, and the registry that names all of them.

To add one: write its module with a builder and a `from_state_dict`, and add a line to ARCHITECTURES and to FAMILIES.
Of vision transformers transformers ships the definitions: they are here for their names, and come in its folders.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from intq.errors import IntqError
from intq.vision.models import efficientnet_lite, inception, mobilenet, resnet, squeezenext, vit
from intq.vision.preprocess import Preprocess

IMAGENET_MEAN, IMAGENET_STD = inception.MEAN, inception.STD
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Architecture:
    """A network by name: `build(classes)` makes it, untrained; `preprocess` is what its published weights expect."""

    name: str
    build: Callable[[int], nn.Module]
    preprocess: Preprocess
    classes: int = 1000

    @property
    def size(self) -> tuple[int, int]:
        """The height and width of its input."""
        return self.preprocess.size


def _imagenet(resize: int, size: int, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bilinear") -> Preprocess:
    return Preprocess(resize, (size, size), interpolation, mean, std)


def _small(channels: int, size: int = 28) -> Preprocess:
    return Preprocess((size, size), None, "bilinear", (0.5,) * channels, (0.5,) * channels)


# EfficientNet-Lite takes (pixel - 127) / 128.
_LITE_MEAN, _LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3

ARCHITECTURES = {
    item.name: item
    for item in (
        Architecture("resnet18", resnet.resnet18, _imagenet(256, 224)),
        Architecture("resnet34", resnet.resnet34, _imagenet(256, 224)),
        Architecture("resnet50", resnet.resnet50, _imagenet(256, 224)),
        Architecture("resnet101", resnet.resnet101, _imagenet(256, 224)),
        Architecture("mobilenet_v2", mobilenet.mobilenet_v2, _imagenet(256, 224)),
        Architecture("inception_v3", inception.inception_v3, _imagenet(342, 299, HALF, HALF)),
        Architecture("squeezenext", squeezenext.squeezenext, _imagenet(256, 224)),
        Architecture(
            "efficientnet_lite0",
            efficientnet_lite.efficientnet_lite0,
            _imagenet(256, 224, _LITE_MEAN, _LITE_STD, "bicubic"),
        ),
        Architecture("vit-base-16", vit.vit(768, 12, 12), Preprocess((224, 224), None, "bilinear", HALF, HALF)),
        Architecture("deit-small-16", vit.vit(384, 12, 6), _imagenet(256, 224, interpolation="bicubic")),
        Architecture("small_resnet", resnet.small_resnet, _small(1), classes=10),
        Architecture("small_mobilenet_v2", mobilenet.small_mobilenet_v2, _small(1), classes=10),
        Architecture("small_squeezenext", squeezenext.small_squeezenext, _small(1), classes=10),
        Architecture("small_inception", inception.small_inception, _small(1), classes=10),
    )
}
FAMILIES = (resnet, mobilenet, inception, squeezenext, efficientnet_lite)


def architecture(name: str) -> Architecture:
    """The architecture called `name`; IntqError when there is none."""
    if name not in ARCHITECTURES:
        raise IntqError(f"no architecture is called {name!r}; there are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def from_state_dict(state: Mapping[str, Tensor]) -> tuple[str, nn.Module, Preprocess] | None:
    """The network that a state dict's keys and shapes describe, untrained, with its name and usual preprocessing.

    None when no family knows the keys.
    """
    for family in FAMILIES:
        found = family.from_state_dict(state)
        if found is None:
            continue
        name, model = found
        stem = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        channels = stem.in_channels
        if stem.stride == (1, 1) or name.startswith("small"):  # a stem that keeps the size is for small images
            return name, model, _small(channels, 32 if channels == 3 else 28)
        if name in ARCHITECTURES and ARCHITECTURES[name].preprocess.channels == channels:
            return name, model, ARCHITECTURES[name].preprocess
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels,) * 2
        return name, model, _imagenet(256, 224, mean, std)
    return None
