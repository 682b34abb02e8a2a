"""Files of weights, folders written by save_pretrained, and hub ids: what every domain's checkpoints have in common.

A checkpoint is taken whole or not at all: transformers fills what a file lacks with random numbers, and here that is an
error. torch and transformers are imported when a model is loaded, huggingface_hub when one is downloaded.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, BinaryIO

from intq.errors import IntqError

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_SAFE = ("model*.safetensors", "model.safetensors.index.json")


def download(name: str, extra: Sequence[str] = (), weights: bool = True) -> Path:
    """The folder that holds the files of a hub id, from the hub or from its cache.

    Its configuration always, files that match the `extra` patterns, and the weights unless told not to: safetensors,
    or where there are none PyTorch's own format. Raises IntqError when neither the hub nor the cache has it.
    """
    from huggingface_hub import snapshot_download

    patterns = ["*config.json", *extra]
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*patterns, *_SAFE] if weights else patterns))
        if weights and not list(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*patterns, "pytorch_model*"]))
    except Exception as error:  # the hub's client raises its own, its HTTP library's and the system's errors
        raise IntqError(
            f"{name} is no file or folder here and could not be fetched from the Hugging Face hub: check the name and "
            f"the connection, or give the path of a downloaded folder ({first_line(error)})"
        ) from error
    return folder


def read_json(path: Path, source: str) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint; `source` names the checkpoint in errors."""
    if not path.is_file():
        found = sorted(entry.name for entry in path.parent.iterdir())
        raise IntqError(
            f"{source} is no checkpoint: expected a folder written by save_pretrained with {path.name} and "
            f"{WEIGHTS[0]}, found {few(found, 5) or 'nothing in it'}"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise IntqError(f"{source}: {path.name} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise IntqError(f"{source}: {path.name} holds no JSON object")
    return value


def load_model(
    folder: Path, name: str, source: str, *, spare: str | None = None, optional: str | None = None, **options: Any
) -> nn.Module:
    """The transformers class `name` with the weights of a folder, as float32, in evaluation mode, without gradients.

    spare: a pattern of the keys that the file may hold although this class does not use them; optional: of those that
    it may lack although this class has them. options: for from_pretrained.
    Pickled weights are read as tensors alone: no code in them runs.
    Raises IntqError when weights are missing, of another shape, left over, NaN or infinite, or not readable.
    """
    import torch
    import transformers

    if not any((folder / file).is_file() for file in WEIGHTS):
        raise IntqError(f"{source}: has a config.json but no weights: looked for {', '.join(WEIGHTS)}")
    try:
        with _quiet():
            model, report = getattr(transformers, name).from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                weights_only=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # a damaged file may raise anything on its way through transformers
        raise IntqError(f"{source}: the weights do not load into {name} ({first_line(error)})") from error
    if missing := _others(report["missing_keys"], optional):
        raise IntqError(f"{source}: the weights lack {few(missing)} of {name}")
    if wrong := _others(report["mismatched_keys"], None):
        raise IntqError(f"{source}: the weights do not fit {few(wrong)} of {name}")
    if unknown := _others(report["unexpected_keys"], spare):
        raise IntqError(f"{source}: the weights hold {few(unknown)}, which {name} with this config.json does not have")
    model.eval().requires_grad_(False)
    check_finite(model, source)
    return model


def _others(keys: Iterable, pattern: str | None) -> list[str]:
    """Those of the keys that the pattern does not excuse."""
    return sorted(str(key) for key in keys if pattern is None or not re.search(pattern, str(key)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars, its report of keys (an error here says it) and advice about its future."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def read_state_dict(file: Path | BinaryIO, source: str) -> dict[str, Tensor]:
    """The tensors of a file, under keys without the prefixes and wrappers that training scripts add, floats as float32.

    file: safetensors (by its suffix), or what torch.save wrote, of which tensors alone are read: no code in it runs.
    Raises IntqError when it is damaged, or holds no state dict.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if isinstance(file, Path) and file.suffix == ".safetensors":
            state = load_file(file)
        else:
            with warnings.catch_warnings():  # about odd pickles, which are refused below
                warnings.simplefilter("ignore")
                state = torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise IntqError(f"{source} is not a whole safetensors file ({error})") from error
    except Exception as error:  # an unpickler fed with garbage may raise anything
        refused = "it is damaged, or holds objects besides tensors, which may be code and are never loaded"
        detail = refused if isinstance(error, UnpicklingError) else first_line(error)
        raise IntqError(
            f"{source} does not load as a file of tensors: expected a state dict saved by "
            f"torch.save(model.state_dict(), path), whole ({detail})"
        ) from error
    for wrapper in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise IntqError(f"{source} holds no state dict: expected {{name: tensor}}, as model.state_dict() gives")
    for prefix in ("module.", "_orig_mod.", "model."):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def fill(model: nn.Module, state: Mapping[str, Tensor], source: str, name: str) -> None:
    """Load a state dict into a network called `name`, whole; leave it in evaluation mode, without gradients.

    Raises IntqError when weights are missing, left over, of another shape, NaN or infinite. The count of batches that
    BatchNorm keeps may be missing: old files lack it, and only training reads it.
    """
    expected = model.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in expected]
    if missing or unknown:
        raise IntqError(
            f"{source}: not the weights of {name}: "
            + ", ".join([f"{word} {few(keys)}" for word, keys in (("missing", missing), ("unknown", unknown)) if keys])
        )
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise IntqError(
                f"{source}: {key} has the shape {tuple(value.shape)}, {name} expects {tuple(expected[key].shape)}"
            )
    model.load_state_dict(state, strict=False)
    model.eval().requires_grad_(False)
    check_finite(model, source)


def check_finite(model: nn.Module, source: str) -> None:
    """Raises IntqError when a weight or a buffer of the model is NaN or infinite, naming it."""
    import torch

    for key, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise IntqError(
                f"{source}: {key} holds {count} NaN or infinite values of {value.numel()}: retrain or repair it"
            )


def few(keys: Iterable[str], count: int = 3) -> str:
    """The first `count` of the keys, and how many more there are."""
    keys = list(keys)
    return ", ".join(keys[:count]) + (f" and {len(keys) - count} more" if len(keys) > count else "")


def first_line(error: Exception) -> str:
    """What an exception says, without its details."""
    return str(error).strip().split("\n")[0] or type(error).__name__
