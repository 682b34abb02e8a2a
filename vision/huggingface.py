"""Hugging Face checkpoints: the model, its preprocessing and its labels from a folder written by save_pretrained.

The image processor itself is not used: its configuration says all, and `Preprocess` must work without transformers.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from intq.errors import IntqError
from intq.pretrained import load_model, read_json
from intq.vision.preprocess import Preprocess

log = logging.getLogger(__name__)

# model_type: the classes that are taken; the first where the configuration names none.
CLASSES = {
    "resnet": ("ResNetForImageClassification",),
    "mobilenet_v1": ("MobileNetV1ForImageClassification",),
    "mobilenet_v2": ("MobileNetV2ForImageClassification",),
    "vit": ("ViTForImageClassification",),
    "deit": ("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"),
}
TRANSFORMERS = ("vit", "deit")  # those that attend

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_BOTH = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255, "resample": 2}
# What each image processor does where its configuration is silent.
PROCESSORS = {
    "ConvNext": {**_BOTH, **HALF, "resample": 3, "size": {"shortest_edge": 384}, "crop_pct": 224 / 256},
    "MobileNetV1": {**_BOTH, **HALF, "size": 256, "crop_size": 224, "do_center_crop": True},
    "MobileNetV2": {**_BOTH, **HALF, "size": 256, "crop_size": 224, "do_center_crop": True},
    "ViT": {**_BOTH, **HALF, "size": {"height": 224, "width": 224}},
    "DeiT": {**_BOTH, **HALF, "resample": 3, "size": 256, "crop_size": 224, "do_center_crop": True},
    "Bit": {**_BOTH, "resample": 3, "size": 224, "crop_size": 224, "do_center_crop": True},
}
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


class Logits(nn.Module):
    """The model's logits alone, from its pixel values alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels, return_dict=True).logits


def load_folder(folder: Path, source: str) -> tuple[Logits, Preprocess, tuple[str, ...], tuple[int, int]]:
    """(model, preprocessing, labels, input size) of a folder written by save_pretrained; `source` names it in errors.

    Raises IntqError when the folder is no checkpoint, holds another kind of model, or lacks some of its weights.
    """
    config = read_json(folder / "config.json", source)
    kind = config.get("model_type")
    if kind not in CLASSES:
        known = ", ".join(names[0] for names in CLASSES.values())
        raise IntqError(f"{source}: config.json describes a model of type {kind!r}; supported are {known}")
    name = (config.get("architectures") or CLASSES[kind])[0]
    if name not in CLASSES[kind]:
        raise IntqError(f"{source}: holds a {name}; of this family {' and '.join(CLASSES[kind])} are supported")
    attends = kind in TRANSFORMERS
    options = {"attn_implementation": "sdpa"} if attends else {}
    # A published ViT may hold the pooler that pretraining used; classification does not.
    model = load_model(folder, name, source, spare=r"\bpooler\." if attends else None, **options)
    settings = model.config
    preprocess = _preprocess(folder, kind, config, settings.num_channels, source)
    labels = tuple(str(settings.id2label[index]) for index in range(settings.num_labels))
    if not labels:
        raise IntqError(f"{source}: the model has no classes (num_labels is 0): it has no classifier to quantize")
    size = preprocess.size or _pair(getattr(settings, "image_size", 224), source)
    return Logits(model).eval(), preprocess, labels, size


def _preprocess(folder: Path, kind: str, config: Mapping, channels: int, source: str) -> Preprocess:
    path = folder / "preprocessor_config.json"
    if path.is_file():
        values = read_json(path, source)
        return preprocess_from_config(values, channels, f"{source}: preprocessor_config.json")
    # The published checkpoints' settings at the size of this one; said aloud, because the answer depends on it.
    size = _pair(config.get("image_size") or 224, source)
    larger = min(size) * 8 // 7
    resize: int | tuple[int, int] = larger
    crop: tuple[int, int] | None = size
    if kind == "vit":
        resize, crop = size, None
    elif kind == "deit":
        resize = (larger, larger)
    mean = IMAGENET["image_mean"] if kind == "resnet" and channels == 3 else [0.5] * channels
    std = IMAGENET["image_std"] if kind == "resnet" and channels == 3 else [0.5] * channels
    log.warning(
        "%s has no preprocessor_config.json: taking the usual one of %s: resized to %s, middle %s, mean %s, std %s",
        *(source, CLASSES[kind][0], resize, crop, mean, std),
    )
    interpolation = "bicubic" if kind in ("resnet", "deit") else "bilinear"
    return Preprocess(resize, crop, interpolation, tuple(mean), tuple(std))


def preprocess_from_config(config: Mapping, channels: int, source: str) -> Preprocess:
    """The preprocessing that the configuration of a transformers image processor describes.

    channels: what the model takes. Raises IntqError for a processor or a setting that `Preprocess` cannot express.
    """
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    for ending in ("FeatureExtractor", "ImageProcessorFast", "ImageProcessorPil", "ImageProcessor"):
        kind = kind.removesuffix(ending)
    given = {key: value for key, value in config.items() if value is not None}
    values = {**PROCESSORS.get(kind, _BOTH), **given}
    if values.get("do_pad"):
        raise IntqError(f"{source}: do_pad is not supported")
    resize = crop = None
    if values["do_resize"]:
        if kind == "ConvNext":
            resize, crop = _convnext_resize(values, source)
        else:
            resize = _resize(_require(values, "size", source), kind, source)
    if values.get("do_center_crop"):
        crop = _pair(_require(values, "crop_size", source), source)
    factor = float(values["rescale_factor"]) if values["do_rescale"] else 1.0
    mean, std = (0.0,) * channels, (1.0,) * channels
    if values["do_normalize"]:
        mean, std = (
            _channels(_require(values, key, source), channels, key, source) for key in ("image_mean", "image_std")
        )
    if values["resample"] not in RESAMPLE:
        raise IntqError(f"{source}: resample is {values['resample']!r}; known are {RESAMPLE}")
    # (pixel * factor - mean) / std = (pixel / 255 - mean / (255 factor)) / (std / (255 factor))
    scale = 255 * factor
    return Preprocess(
        resize,
        crop,
        RESAMPLE[values["resample"]],
        tuple(value / scale for value in mean),
        tuple(value / scale for value in std),
    )


def _convnext_resize(values: Mapping, source: str) -> tuple:
    """ConvNext's processor: below 384 the shorter side is size / crop_pct, then the middle; from 384 on it squeezes."""
    size = values["size"]
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else size
    if not isinstance(edge, int):
        raise IntqError(f"{source}: size must be {{'shortest_edge': number}}, not {size!r}")
    return (int(edge / float(values["crop_pct"])), (edge, edge)) if edge < 384 else ((edge, edge), None)


def _resize(size, kind: str, source: str) -> int | tuple[int, int]:
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"} and isinstance(size["shortest_edge"], int):
        return size["shortest_edge"]
    if isinstance(size, int) and kind not in ("ViT", "DeiT"):  # these take one number for a square
        return size
    return _pair(size, source)


def _pair(size, source: str) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and set(size) == {"height", "width"}:
        size = (size["height"], size["width"])
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(value, int) for value in size):
        return tuple(size)
    raise IntqError(f"{source}: the size {size!r} is not supported: expected a number, or a height and a width")


def _channels(value, channels: int, key: str, source: str) -> tuple[float, ...]:
    value = [value] * channels if isinstance(value, int | float) else value
    if len(value) != channels:
        raise IntqError(f"{source}: {key} has {len(value)} values, and the model takes {channels} channels")
    return tuple(map(float, value))


def _require(values: Mapping, key: str, source: str):
    if key not in values:
        raise IntqError(f"{source}: lacks {key!r}, and {values.get('image_processor_type')} is not known to imply it")
    return values[key]
