"""Hugging Face checkpoints: the model, its preprocessing and its labels from a folder written by save_pretrained.

The image processor itself is not used: its configuration says all, and `Preprocess` must work without transformers.
"""

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from intq.errors import IntqError
from intq.vision.preprocess import Preprocess

log = logging.getLogger(__name__)

MODEL_TYPES = {
    "resnet": "ResNetForImageClassification",
    "mobilenet_v1": "MobileNetV1ForImageClassification",
    "mobilenet_v2": "MobileNetV2ForImageClassification",
}
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_BOTH = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255, "resample": 2}
# What each image processor does where its configuration is silent.
PROCESSORS = {
    "ConvNext": {**_BOTH, **HALF, "resample": 3, "size": {"shortest_edge": 384}, "crop_pct": 224 / 256},
    "MobileNetV1": {**_BOTH, **HALF, "size": 256, "crop_size": 224, "do_center_crop": True},
    "MobileNetV2": {**_BOTH, **HALF, "size": 256, "crop_size": 224, "do_center_crop": True},
    "ViT": {**_BOTH, **HALF, "size": {"height": 224, "width": 224}},
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


def download(name: str) -> Path:
    """The folder that holds the files of a hub id, from the hub or from its cache. IntqError when neither has it."""
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*config.json", "model*.safetensors", "model.safetensors.index.json"]
        folder = Path(snapshot_download(name, allow_patterns=patterns))
        if not list(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*patterns, "pytorch_model*"]))
    except Exception as error:  # the hub's client raises its own, its HTTP library's and the system's errors
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise IntqError(
            f"{name} is no file or folder here and could not be fetched from the Hugging Face hub: check the name and "
            f"the connection, or give the path of a downloaded folder ({reason})"
        ) from error
    return folder


def load_folder(folder: Path, source: str) -> tuple[Logits, Preprocess, tuple[str, ...], tuple[int, int]]:
    """(model, preprocessing, labels, input size) of a folder written by save_pretrained; `source` names it in errors.

    Raises IntqError when the folder is no checkpoint, holds another kind of model, or lacks some of its weights.
    """
    config = _read_json(folder / "config.json", source)
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise IntqError(
            f"{source}: config.json describes a model of type {kind!r}; supported are {', '.join(MODEL_TYPES.values())}"
        )
    names = config.get("architectures") or [MODEL_TYPES[kind]]
    if names[0] != MODEL_TYPES[kind]:
        raise IntqError(f"{source}: holds a {names[0]}; of this family {MODEL_TYPES[kind]} is supported")
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise IntqError(f"{source}: has a config.json but no weights: looked for {', '.join(WEIGHTS)}")
    model = _load_model(folder, MODEL_TYPES[kind], source)
    settings = model.config
    preprocess = _preprocess(folder, kind, config, settings.num_channels, source)
    labels = tuple(str(settings.id2label[index]) for index in range(settings.num_labels))
    if not labels:
        raise IntqError(f"{source}: the model has no classes (num_labels is 0): it has no classifier to quantize")
    size = preprocess.size or _pair(getattr(settings, "image_size", 224), source)
    return Logits(model).eval().requires_grad_(False), preprocess, labels, size


def _read_json(path: Path, source: str) -> dict:
    if not path.is_file():
        found = sorted(entry.name for entry in path.parent.iterdir())
        raise IntqError(
            f"{source} is no checkpoint: expected a folder written by save_pretrained with {path.name} and "
            f"{WEIGHTS[0]}, found {', '.join(found[:5]) + (' ...' if len(found) > 5 else '') or 'nothing in it'}"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise IntqError(f"{source}: {path.name} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise IntqError(f"{source}: {path.name} holds no JSON object")
    return value


def _load_model(folder: Path, name: str, source: str) -> nn.Module:
    import torch
    import transformers

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers' advice about its own future
            model, report = getattr(transformers, name).from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
    except Exception as error:  # a damaged file may raise anything on its way through transformers
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise IntqError(f"{source}: the weights do not load into {name} ({reason})") from error
    # transformers fills what is missing with random numbers; here that is an error.
    for word, keys in (("lack", report["missing_keys"]), ("do not fit", report["mismatched_keys"])):
        if keys:
            some = ", ".join(sorted(str(key) for key in keys)[:3])
            raise IntqError(f"{source}: the weights {word} {some} ({len(keys)} in all) of {name}")
    if report["unexpected_keys"]:
        some = ", ".join(sorted(report["unexpected_keys"])[:3])
        raise IntqError(f"{source}: the weights hold {some}, which {name} with this config.json does not have")
    return model


def _preprocess(folder: Path, kind: str, config: Mapping, channels: int, source: str) -> Preprocess:
    path = folder / "preprocessor_config.json"
    if path.is_file():
        values = _read_json(path, source)
        return preprocess_from_config(values, channels, f"{source}: preprocessor_config.json")
    # The published checkpoints' settings at the size of this one; said aloud, because the answer depends on it.
    size = _pair(config.get("image_size") or 224, source)
    mean = IMAGENET["image_mean"] if kind == "resnet" and channels == 3 else [0.5] * channels
    std = IMAGENET["image_std"] if kind == "resnet" and channels == 3 else [0.5] * channels
    log.warning(
        "%s has no preprocessor_config.json: taking the usual one of %s: side %d, middle %d x %d, mean %s, std %s",
        *(source, MODEL_TYPES[kind], min(size) * 8 // 7, *size, mean, std),
    )
    return Preprocess(min(size) * 8 // 7, size, "bicubic" if kind == "resnet" else "bilinear", tuple(mean), tuple(std))


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
    if isinstance(size, int) and kind != "ViT":  # ViT's processor takes one number for a square
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
