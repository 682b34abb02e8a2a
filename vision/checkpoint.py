"""Checkpoints: a folder of save_pretrained, a hub id, or a state dict file, as one network with all its input needs."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from intq.errors import IntqError
from intq.pretrained import download, few, fill, read_state_dict
from intq.vision import assets, huggingface
from intq.vision.labels import default_labels
from intq.vision.models import ARCHITECTURES, from_state_dict
from intq.vision.preprocess import Preprocess

WEIGHT_FILES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A trained classifier in evaluation mode.

    model: float32 (n, channels, height, width), normalised as `preprocess` says, to logits (n, classes).
    labels: the name of each class. input_size: (height, width). name: for people.
    """

    model: nn.Module
    preprocess: Preprocess
    labels: tuple[str, ...]
    name: str
    input_size: tuple[int, int]


def load(source: str | Path) -> Checkpoint:
    """The network in `source`.

    source: a folder written by save_pretrained; a state dict (.pth, .pt, .safetensors) of a known architecture; the
    name of weights that a package ships ("mobilenet_v2", "efficientnet_lite0"); or a Hugging Face hub id.

    Raises IntqError when it is none of them, holds another kind of model, or has weights that are missing, left over,
    NaN or infinite.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        checkpoint = _from_folder(path)
    elif path.is_file():
        checkpoint = _from_file(path)
    elif str(source) in assets.ASSETS and str(source) in ARCHITECTURES:
        checkpoint = _from_file(assets.asset(str(source)))
    elif str(source) in ARCHITECTURES:
        raise IntqError(
            f"{source} is an architecture without weights here: give a checkpoint, or --random for random weights"
        )
    elif path.suffix in WEIGHT_FILES or path.is_absolute() or str(source).startswith(".") or len(path.parts) > 2:
        raise IntqError(f"there is no file or folder {source}")
    else:
        checkpoint = _from_folder(download(str(source)), str(source))
    return checkpoint


def _from_folder(folder: Path, name: str | None = None) -> Checkpoint:
    model, preprocess, labels, size = huggingface.load_folder(folder, name or str(folder))
    return Checkpoint(model, preprocess, labels, (name or folder.resolve().name).split("/")[-1], size)


def _from_file(path: Path) -> Checkpoint:
    state = read_state_dict(path, str(path))
    try:
        found = from_state_dict(state)
    except (ValueError, IndexError, ZeroDivisionError, AttributeError, RuntimeError) as error:  # shapes of no network
        raise IntqError(f"{path}: the tensors' shapes fit no architecture that intq knows ({error})") from error
    if found is None:
        raise IntqError(
            f"{path}: these are not the keys of an architecture that intq knows ({few(state)}): expected a state dict "
            "with torchvision's keys of ResNet, MobileNetV2 or InceptionV3, or of SqueezeNext or EfficientNet-Lite0"
        )
    name, model, preprocess = found
    # The auxiliary classifier of InceptionV3 only helps training.
    fill(model, {key: value for key, value in state.items() if not key.startswith("AuxLogits.")}, str(path), name)
    classes = next(module for module in reversed(list(model.modules())) if isinstance(module, nn.Linear)).out_features
    return Checkpoint(model, preprocess, default_labels(classes), name, preprocess.size)
