"""NeMo's checkpoints: from the YAML that describes a model to its settings and networks, and back.

What only training needs (optimizers, data, augmentation, dither, initialisation) is passed over. All that would change
the numbers is taken exactly or refused by name.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor, nn

from intq.errors import IntqError
from intq.frontend import FrontEnd
from intq.pretrained import few, first_line, read_state_dict
from intq.speech import archive
from intq.speech.models import CEPSTRAL
from intq.speech.models.conformer import ConformerEncoder, ConformerSettings
from intq.speech.models.convolutional import BlockSettings, ConvEncoder
from intq.speech.models.heads import HEADS, Head

if TYPE_CHECKING:
    from intq.speech.checkpoint import Checkpoint

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
CONFIG_FILES, WEIGHT_FILES = (".yaml", ".yml"), (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
LONGEST_CONFIG = 16 << 20  # bytes; NeMo's are of some 10 kB, with a large vocabulary a hundred times that
TOKENIZER = "tokenizer.model"
# Of a model's configuration, what is read.
SECTIONS = (
    "sample_rate",
    "labels",
    "preprocessor",
    "encoder",
    "decoder",
    "tokenizer",
    "nemo_version",
    "crop_or_pad_augment",
)
MODULES = "nemo.collections.asr.modules."
DECODERS: dict[str, Head] = {
    "ConvASRDecoder": "ctc",
    "ConvASRDecoderClassification": "classification",
    "MultiLayerPerceptron": "frames",
}
NETWORK = ("encoder.", "decoder.")  # what the names of weights begin with
# In NeMo's state dict, but no weights of the network: the front end's tables, counted metrics, losses, augmentation.
NOT_WEIGHTS = re.compile(r"^(preprocessor|spec_augment\w*|crop_or_pad\w*|loss|_?wer|_?accuracy|_?macro_accuracy)\.")


@dataclass(frozen=True)
class Source:
    """A checkpoint as it was read: its configuration (that of the model), its tensors, its tokenizer's file."""

    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    tokenizer: bytes | None


# Reading files


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
    return {key: _resolved(model.get(key), {"model": model, **root}, source) for key in SECTIONS}


def _resolved(value: Any, root: Mapping[str, Any], source: str, depth: int = 0) -> Any:
    """The value with every reference "${model.dropout}" in it replaced by what it refers to."""
    if depth > 50:
        raise IntqError(f"{source}: a setting in its configuration refers to itself")
    if isinstance(value, dict):
        return {key: _resolved(inner, root, source, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, root, source, depth + 1) for inner in value]
    reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
    if reference is None:
        return value
    found: Any = root
    for key in reference[1].split("."):
        if not isinstance(found, dict) or key not in found:
            raise IntqError(f"{source}: its configuration refers to {value}, which it does not hold")
        found = found[key]
    return _resolved(found, root, source, depth + 1)


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


# From settings to networks


def front_end(config: Mapping[str, Any]) -> tuple[FrontEnd, int | None]:
    """The front end that NeMo's `preprocessor` section describes, and how many cepstral coefficients follow, if any.

    Two of its settings follow from NeMo's version, since no file says them:

        version      padding     frames of t samples that count
        up to 1.0rc  reflect     ceil(t / hop)
        1.0 to 2.4   reflect     t // hop + 1 (extra_frame)
        from 2.5     constant    t // hop

    The first two differ only where t is a multiple of the hop, and the second's rule is taken for both. Without a
    version the newest is meant. Dither and the padding of batches to multiples of 16 frames are for training and speed.

    Cepstral coefficients are torchaudio's in every version: a periodic window, HTK's bands with peaks of 1, reflected
    ends, and t // hop + 1 frames (of which NeMo counts ceil(t / hop), which differ as above).

    Raises IntqError for features other than log-mel spectra of power and their cosine transform.
    """
    name, given = _target(config["preprocessor"], "preprocessor", tuple(_FEATURES))
    _refuse(given, "preprocessor", *_FEATURES[name])
    rate = int(given.get("sample_rate") or config["sample_rate"] or 16000)
    window = int(given.get("n_window_size") or given.get("window_size", 0.02) * rate)
    hop = int(given.get("n_window_stride") or given.get("window_stride", 0.01) * rate)
    high, kind = given.get("highfreq"), given.get("window", "hann") or "none"
    settings: dict[str, Any] = {
        "sample_rate": rate,
        "window": window,
        "hop": hop,
        "fft": int(given.get("n_fft") or 2 ** math.ceil(math.log2(window))),
        "low_hz": float(given.get("lowfreq") or 0.0),
        "high_hz": float(high) if high else None,
        "window_kind": "rectangular" if kind in ("none", "ones") else kind,
    }
    if name == "AudioToMFCCPreprocessor":
        bands, cepstra = int(given.get("n_mels", 64)), int(given.get("n_mfcc", 64))
        if cepstra > bands:
            raise IntqError(f"preprocessor.n_mfcc is {cepstra}, more than its {bands} bands")
        return replace(CEPSTRAL, bands=bands, **settings), cepstra
    version, guard = config["nemo_version"], given.get("log_zero_guard_value", 2**-24)
    old = version is not None and _version(version) < (2, 5)
    normalize = given.get("normalize", "per_feature") or "none"
    if not isinstance(normalize, str) or normalize.lower() not in ("per_feature", "none", "na"):
        raise IntqError(f"preprocessor.normalize is {normalize!r}; taken are per_feature and none")
    front = FrontEnd(
        **settings,
        bands=int(given.get("features", 64)),
        preemphasis=float(given.get("preemph", 0.97) or 0.0),
        guard=float(getattr(torch.finfo(torch.float32), guard) if guard in ("tiny", "eps") else guard),
        guard_kind=given.get("log_zero_guard_type", "add"),
        normalize=normalize if normalize == "per_feature" else "none",
        padding="reflect" if old else "constant",
        extra_frame=old,
        mel_norm=given.get("mel_norm", "slaney"),
    )
    return front, None


_FRONT_KEYS = {
    *("sample_rate", "window_size", "window_stride", "n_window_size", "n_window_stride", "window", "n_fft"),
    *("lowfreq", "highfreq"),
}
# Of each kind of features, what must have this value, if it is there at all, since others change the numbers in ways
# that are not taken; and the settings that are known.
_FEATURES = {
    "AudioToMelSpectrogramPreprocessor": (
        {"log": True, "mag_power": 2.0, "frame_splicing": 1, "exact_pad": False, "use_torchaudio": False},
        {
            *_FRONT_KEYS,
            *("preemph", "features", "normalize", "log_zero_guard_value", "log_zero_guard_type", "mel_norm"),
            *("dither", "pad_to", "pad_value", "rng", "nb_augmentation_prob", "nb_max_freq", "max_duration"),
            *("use_grads", "stft_conv", "stft_exact_pad"),  # NeMo itself ignores the last two now
        },
    ),
    "AudioToMFCCPreprocessor": ({"log": True, "dct_type": 2, "norm": "ortho"}, {*_FRONT_KEYS, "n_mels", "n_mfcc"}),
}
_ENCODER = {"conv_mask": True, "normalization_mode": "batch", "frame_splicing": 1, "quantize": False}
_ENCODER_KEYS = {"jasper", "feat_in", "activation", "residual_mode", "norm_groups", "init_mode"}
_BLOCK = {"heads": -1, "future_context": -1}
# Squeeze and excitation takes the whole utterance at inference, whatever window it was trained with.
_SETTINGS = {field.name for field in fields(BlockSettings)}
_BLOCK_KEYS = {*_SETTINGS, "kernel_size_factor", "se_context_size", "se_interpolation_mode"}


def encoder(section: Mapping[str, Any]) -> nn.Module:
    """The encoder that NeMo's `encoder` section describes, untrained.

    Raises IntqError for an encoder, or a setting of it, that is not taken, naming it.
    """
    name, given = _target(section, "encoder", ("ConvASREncoder", "ConformerEncoder"))
    return _convolutional(given) if name == "ConvASREncoder" else _conformer(given)


def _convolutional(given: Mapping[str, Any]) -> ConvEncoder:
    _refuse(given, "encoder", _ENCODER, _ENCODER_KEYS)
    mode = given.get("residual_mode", "add")
    blocks = []
    for index, block in enumerate(given["jasper"]):
        _refuse(block, f"encoder.jasper[{index}]", _BLOCK, _BLOCK_KEYS)
        mode = block.get("residual_mode", mode)  # NeMo's blocks inherit it from the one before
        settings = {key: value for key, value in block.items() if key in _SETTINGS}
        for name in ("kernel", "stride", "dilation"):
            settings[name] = _number(block.get(name, 1), f"encoder.jasper[{index}].{name}")
        # NeMo's kernels are odd, whatever was written.
        settings["kernel"] = max(int(settings["kernel"] * float(block.get("kernel_size_factor", 1.0))), 1) | 1
        blocks.append(BlockSettings(**settings | {"residual_mode": mode}))
    return ConvEncoder(int(given["feat_in"]), blocks, str(given.get("activation", "relu")))


def _conformer(given: Mapping[str, Any]) -> ConformerEncoder:
    _refuse(given, "encoder", _CONFORMER, _CONFORMER_KEYS)
    context, width = given.get("att_context_size"), given.get("feat_out", -1)
    if context not in (None, [-1, -1], [[-1, -1]]):
        raise IntqError(f"encoder.att_context_size is {context!r}; taken is [-1, -1], the whole utterance")
    if width not in (None, -1, given["d_model"]):
        raise IntqError(f"encoder.feat_out is {width!r}; taken is -1, as many as d_model")
    subsampling, inner = given.get("subsampling", "striding"), given.get("subsampling_conv_channels", -1)
    if subsampling not in ("striding", "dw_striding"):
        raise IntqError(f"encoder.subsampling is {subsampling!r}; taken are striding and dw_striding")
    return ConformerEncoder(
        ConformerSettings(
            bands=int(given["feat_in"]),
            channels=int(given["d_model"]),
            layers=int(given["n_layers"]),
            heads=int(given.get("n_heads", 4)),
            kernel=int(given.get("conv_kernel_size", 31)),
            expansion=int(given.get("ff_expansion_factor", 4)),
            subsampling=subsampling,
            factor=int(given.get("subsampling_factor", 4)),
            inner=None if inner == -1 else int(inner),
            scaled=bool(given.get("xscaling", True)),
            bias=bool(given.get("use_bias", True)),
        )
    )


_CONFORMER = {
    "self_attention_model": "rel_pos",
    "att_context_style": "regular",
    "conv_norm_type": "batch_norm",
    "conv_context_size": None,
    "causal_downsampling": False,
    "reduction": None,
}
_CONFORMER_KEYS = {
    *("feat_in", "feat_out", "d_model", "n_layers", "n_heads", "conv_kernel_size", "ff_expansion_factor", "use_bias"),
    *("subsampling", "subsampling_factor", "subsampling_conv_channels", "xscaling", "att_context_size"),
    *("reduction_position", "reduction_factor"),  # of a reduction that is none
    *("untie_biases", "pos_emb_max_len"),  # how they are kept: each layer's are in the file in any case
    *("dropout", "dropout_pre_encoder", "dropout_emb", "dropout_att", "att_context_probs"),
    *("stochastic_depth_drop_prob", "stochastic_depth_mode", "stochastic_depth_start_layer"),
    *("global_tokens", "global_tokens_spacing", "global_attn_separate"),  # of local attention
    *("use_pytorch_sdpa", "use_pytorch_sdpa_backends", "sync_max_audio_length", "subsampling_conv_chunking_factor"),
}


def _number(value: Any, name: str) -> int:
    """NeMo writes [33] for 33."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, int):
        raise IntqError(f"{name} is {value!r}; expected one whole number")
    return value


def head(config: Mapping[str, Any], channels: int, tokenizer: bytes | None) -> tuple[Head, nn.Module, tuple[str, ...]]:
    """The kind of head, the head that NeMo's `decoder` section describes, untrained, and its labels without a blank."""
    name, given = _target(config["decoder"], "decoder", tuple(DECODERS))
    kind = DECODERS[name]
    _refuse(given, "decoder", _DECODERS[kind], _DECODER_KEYS)
    width = given.get("hidden_size" if kind == "frames" else "feat_in") or channels
    if width != channels:
        raise IntqError(f"the decoder takes {width} channels, but the encoder gives {channels}")
    if kind != "ctc":
        labels = config["labels"]
    elif not (labels := given.get("vocabulary")) and tokenizer is not None:
        labels = pieces(tokenizer)
    count = given.get("num_classes") or -1
    if not labels:
        if count < 1:
            raise IntqError("the configuration names no labels: expected decoder.vocabulary, labels, or a tokenizer")
        labels = range(count)
    labels = tuple(map(str, labels))
    if count > 0 and count != len(labels):
        raise IntqError(f"decoder.num_classes is {count}, but there are {len(labels)} labels")
    return kind, HEADS[kind](channels, len(labels)), labels


_DECODERS: dict[Head, dict[str, Any]] = {
    "ctc": {"add_blank": True},
    "classification": {"pooling_type": "avg"},
    "frames": {"num_layers": 1, "channel_idx": None},
}
_DECODER_KEYS = {
    *("feat_in", "hidden_size", "num_classes", "vocabulary", "init_mode"),
    *("return_logits", "log_softmax", "activation"),  # logits are given in any case
}


def pieces(tokenizer: bytes) -> list[str]:
    """The pieces of a SentencePiece model, in the order of their ids."""
    import sentencepiece

    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    except RuntimeError as error:
        raise IntqError(f"the tokenizer is not a SentencePiece model ({first_line(error)})") from error
    return [processor.id_to_piece(index) for index in range(processor.get_piece_size())]


def _target(section: Any, what: str, taken: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The class that a section asks for, and its arguments."""
    if not isinstance(section, dict):
        raise IntqError(
            f"the configuration has no section {what!r}: expected a model's configuration as NeMo writes it"
        )
    target = str(section.get("_target_", section.get("cls", "")))
    name = target.rpartition(".")[2]
    if name not in taken:
        raise IntqError(f"the {what} is {target or 'without a _target_'}; taken are {', '.join(taken)}")
    given = section.get("params", section)  # NeMo before 1.0 had `cls` and `params`
    return name, {key: value for key, value in given.items() if key not in ("_target_", "cls")}


def _refuse(given: Mapping[str, Any], what: str, fixed: Mapping[str, Any], known: set[str]) -> None:
    """Raises IntqError for a setting that is not known, or has another value than the only one that is taken."""
    if unknown := sorted(str(key) for key in given if key not in known | set(fixed)):
        raise IntqError(f"{what} has settings that are not taken: {few(unknown)}")
    for key, value in fixed.items():
        if given.get(key, value) != value:
            raise IntqError(f"{what}.{key} is {given[key]!r}; taken is {value!r}")


def _version(text: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", str(text))
    if found is None:
        raise IntqError(f"nemo_version is {text!r}; expected a version as 1.23.0")
    return int(found[1]), int(found[2])


# Writing


def save(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a checkpoint as a `.nemo` archive, whole or not at all; what stands at the path is replaced.

    Raises IntqError when NeMo has no way to say what it holds.
    """
    path = Path(path)
    front, model = checkpoint.front, checkpoint.model
    labels = list(checkpoint.labels)
    config = {
        "sample_rate": checkpoint.sample_rate,
        "labels": labels,
        "preprocessor": _front_section(checkpoint),
        "encoder": _encoder_section(model.encoder),
        "decoder": _decoder_section(checkpoint.head, model.encoder.channels, labels),
        "nemo_version": _nemo_version(front),
    }
    files = {}
    if checkpoint.tokenizer is not None:
        config["tokenizer"] = {"type": "bpe", "model_path": f"nemo:{TOKENIZER}"}
        files[TOKENIZER] = checkpoint.tokenizer
    buffer = io.BytesIO()
    torch.save({key: value for key, value in model.state_dict().items() if key.startswith(NETWORK)}, buffer)
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    archive.write(path, {CONFIG: text.encode(), WEIGHTS: buffer.getvalue(), **files})


def _front_section(checkpoint: Checkpoint) -> dict[str, Any]:
    front, cepstra = checkpoint.front, checkpoint.model.cepstra
    section = {
        "sample_rate": front.sample_rate,
        "window_size": None,
        "window_stride": None,
        "n_window_size": front.window,
        "n_window_stride": front.hop,
        "window": "none" if front.window_kind == "rectangular" else front.window_kind,
        "n_fft": front.fft,
        "lowfreq": front.low_hz,
        "highfreq": front.high_hz,
    }
    if isinstance(cepstra, nn.Conv1d):
        kind = "AudioToMFCCPreprocessor"
        section |= {"n_mels": front.bands, "n_mfcc": cepstra.out_channels}
        if front.window_kind == "rectangular":
            section["window"] = "ones"
    else:
        kind = "AudioToMelSpectrogramPreprocessor"
        section |= {
            "features": front.bands,
            "normalize": "None" if front.normalize == "none" else front.normalize,
            "preemph": front.preemphasis or None,
            "log_zero_guard_value": front.guard,
            "log_zero_guard_type": front.guard_kind,
            "mel_norm": front.mel_norm,
        }
    section = {"_target_": MODULES + kind, **section}
    config = {"preprocessor": section, "sample_rate": None, "nemo_version": _nemo_version(front)}
    if front_end(config)[0] != front:
        raise IntqError(f"{checkpoint.name}: no version of NeMo has its front end, {front}")
    return section


def _nemo_version(front: FrontEnd) -> str:
    return "2.4.0" if front.extra_frame else "2.5.0"


def _encoder_section(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, ConformerEncoder):
        settings = module.settings
        if settings.subsampling == "conv1d" or not settings.positions:
            raise IntqError(f"NeMo has no such Conformer: {settings}")
        return {
            "_target_": MODULES + "ConformerEncoder",
            "feat_in": settings.bands,
            "d_model": settings.channels,
            "n_layers": settings.layers,
            "n_heads": settings.heads,
            "conv_kernel_size": settings.kernel,
            "ff_expansion_factor": settings.expansion,
            "subsampling": settings.subsampling,
            "subsampling_factor": settings.factor,
            "subsampling_conv_channels": settings.inner or -1,
            "xscaling": settings.scaled,
            "use_bias": settings.bias,
            "self_attention_model": "rel_pos",
            "att_context_size": [-1, -1],
        }
    lists = ("kernel", "stride", "dilation")
    blocks = [
        {key: [value] if key in lists else value for key, value in asdict(block).items()} for block in module.blocks
    ]
    return {
        "_target_": MODULES + "ConvASREncoder",
        "feat_in": module.bands,
        "activation": module.activation,
        "conv_mask": True,
        "jasper": blocks,
    }


def _decoder_section(kind: Head, channels: int, labels: list[str]) -> dict[str, Any]:
    if kind == "frames":
        return {
            "_target_": "nemo.collections.common.parts.MultiLayerPerceptron",
            "hidden_size": channels,
            "num_classes": len(labels),
            "num_layers": 1,
            "log_softmax": False,
        }
    name = next(name for name, known in DECODERS.items() if known == kind)
    section = {"_target_": MODULES + name, "feat_in": channels, "num_classes": len(labels)}
    return section | ({"vocabulary": labels} if kind == "ctc" else {})
