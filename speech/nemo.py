"""NeMo's checkpoints: `.nemo` archives, and weights with their configuration beside them, read safely and written."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from intq.errors import IntqError
from intq.pretrained import few, first_line, read_state_dict
from intq.speech import archive
from intq.speech.sections import sections_of

if TYPE_CHECKING:
    from intq.speech.checkpoint import Checkpoint

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
CONFIG_FILES, WEIGHT_FILES = (".yaml", ".yml"), (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
LONGEST_CONFIG = 16 << 20  # bytes; NeMo's are of some 10 kB, with a large vocabulary a hundred times that
MOST_SETTINGS, DEEPEST = 2_000_000, 50  # counted with all that anchors and references repeat
TOKENIZER = "tokenizer.model"
SECTIONS = (  # of a model's configuration: what is read
    *("sample_rate", "labels", "preprocessor", "crop_or_pad_augment", "encoder", "decoder", "tokenizer"),
    "nemo_version",
)
NETWORK = ("encoder.", "decoder.")  # what the names of weights begin with
# In NeMo's state dict, but no weights of the network: the front end's tables, counted metrics, losses, augmentation.
NOT_WEIGHTS = re.compile(r"^(preprocessor|spec_augment\w*|crop_or_pad\w*|loss|_?wer|_?accuracy|_?macro_accuracy)\.")


@dataclass(frozen=True)
class Source:
    """A checkpoint as it was read: its configuration (that of the model), its tensors, its tokenizer's file."""

    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    tokenizer: bytes | None


def read(path: Path) -> Source:
    """A `.nemo` archive, a folder with its files, or a file of weights with a configuration of the same name beside it.

    Raises IntqError when it is none of them, is unsafe, damaged, or holds pickled objects besides tensors.
    """
    if path.is_dir():
        return _pair(_only(path, CONFIG_FILES, "configuration"), _only(path, WEIGHT_FILES, "file of weights"), path)
    if path.suffix in WEIGHT_FILES:
        beside = [path.with_suffix(suffix) for suffix in CONFIG_FILES]
        found = [config for config in beside if config.is_file()]
        if not found:
            raise IntqError(f"{path} needs its configuration beside it: expected {beside[0].name}, as NeMo writes it")
        return _pair(found[0], path, path)
    files = archive.read(path)
    if missing := [name for name in (CONFIG, WEIGHTS) if name not in files]:
        raise IntqError(f"{path} is no NeMo checkpoint: lacks {' and '.join(missing)}, holds {few(sorted(files), 5)}")
    config = _config(files[CONFIG], str(path))
    state = _weights(io.BytesIO(files[WEIGHTS]), str(path))
    return Source(config, state, _tokenizer(config, {Path(name).name: files[name] for name in files}, str(path)))


def _only(folder: Path, suffixes: Sequence[str], what: str) -> Path:
    found = sorted(path for path in folder.iterdir() if path.suffix in suffixes and path.is_file())
    if len(found) != 1:
        names = few([path.name for path in found]) or "none"
        raise IntqError(f"{folder} is no NeMo checkpoint: expected one {what} ({', '.join(suffixes)}), found {names}")
    return found[0]


def _pair(config: Path, weights: Path, shown: Path) -> Source:
    if config.stat().st_size > LONGEST_CONFIG:
        raise IntqError(f"{config} is absurdly large for a configuration: expected at most {LONGEST_CONFIG >> 20} MiB")
    settings = _config(config.read_bytes(), str(config))
    files = {path.name: path.read_bytes() for path in config.parent.glob("*.model") if path.is_file()}
    return Source(settings, _weights(weights, str(weights)), _tokenizer(settings, files, str(shown)))


def _weights(file: Path | io.BytesIO, source: str) -> dict[str, Tensor]:
    return {key: value for key, value in read_state_dict(file, source).items() if not NOT_WEIGHTS.match(key)}


def _config(content: bytes, source: str) -> dict[str, Any]:
    if len(content) > LONGEST_CONFIG:
        raise IntqError(f"{source}: its configuration has {len(content)} bytes, expected at most {LONGEST_CONFIG}")
    try:
        root = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise IntqError(f"{source}: its configuration is not plain YAML ({first_line(error)})") from error
    if not isinstance(root, dict):
        raise IntqError(f"{source}: its configuration is no table of settings")
    model = root.get("model", root)
    if not isinstance(model, dict):
        raise IntqError(f"{source}: its configuration's model is no table of settings")
    resolve = _resolver({"model": model, **root}, source)
    return {key: resolve(model.get(key)) for key in SECTIONS}


def _resolver(root: Mapping[str, Any], source: str) -> Callable[[Any], Any]:
    """What copies a value of the configuration with each reference "${model.dropout}" replaced by what it refers to."""
    left = MOST_SETTINGS

    def resolved(value: Any, depth: int = 0) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > DEEPEST:
            raise IntqError(f"{source}: a setting in its configuration refers to itself, or to absurdly much")
        if isinstance(value, dict):
            return {key: resolved(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list):
            return [resolved(inner, depth + 1) for inner in value]
        reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        if reference is None:
            return value
        found: Any = root
        for key in reference[1].split("."):
            if not isinstance(found, dict) or key not in found:
                raise IntqError(f"{source}: its configuration refers to {value}, which it does not hold")
            found = found[key]
        return resolved(found, depth + 1)

    return resolved


def _tokenizer(config: Mapping[str, Any], files: Mapping[str, bytes], source: str) -> bytes | None:
    """SentencePiece's model, where the configuration has a tokenizer."""
    section = config["tokenizer"]
    if not isinstance(section, dict):
        return None
    if section.get("type", "bpe") != "bpe":
        raise IntqError(f"{source}: has a tokenizer of type {section['type']!r}; taken is bpe, SentencePiece's")
    given = str(section.get("model_path") or TOKENIZER).removeprefix("nemo:")
    name = Path(given).name
    if name not in files:
        raise IntqError(f"{source}: lacks its tokenizer, {name}")
    return files[name]


def save(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a checkpoint as a `.nemo` archive, whole or not at all; what stands at the path is replaced.

    Raises IntqError when NeMo has no way to say what it holds.
    """
    model = checkpoint.model
    config = sections_of(model, checkpoint.head, checkpoint.labels)
    files = {}
    if checkpoint.tokenizer is not None:
        config["tokenizer"] = {"type": "bpe", "model_path": f"nemo:{TOKENIZER}"}
        files[TOKENIZER] = checkpoint.tokenizer
    buffer = io.BytesIO()
    torch.save({key: value for key, value in model.state_dict().items() if key.startswith(NETWORK)}, buffer)
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    archive.write(Path(path), {CONFIG: text.encode(), WEIGHTS: buffer.getvalue(), **files})
