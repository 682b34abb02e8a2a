"""The sections of a NeMo model's configuration: what each says of the network, and what NeMo would have written.

What only training needs (augmentation, dropout, dither, initialisation) is passed over. All that would change the
numbers is taken exactly or refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import nn

from intq.errors import IntqError
from intq.frontend import FrontEnd
from intq.pretrained import few
from intq.speech.labels import piece_names
from intq.speech.models import CEPSTRAL
from intq.speech.models.conformer import ConformerEncoder, ConformerSettings
from intq.speech.models.convolutional import BlockSettings, ConvEncoder
from intq.speech.models.heads import HEADS, Head
from intq.speech.models.network import SpeechModel

MODULES = "nemo.collections.asr.modules."
DECODERS: dict[str, Head] = {
    "ConvASRDecoder": "ctc",
    "ConvASRDecoderClassification": "classification",
    "MultiLayerPerceptron": "frames",
}


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
        labels = piece_names(tokenizer)
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


def sections_of(model: SpeechModel, kind: Head, labels: Sequence[str]) -> dict[str, Any]:
    """The configuration, as NeMo would have written it, of a network with this head.

    Raises IntqError when NeMo has no way to say what it is.
    """
    front = model.front.front
    return {
        "sample_rate": front.sample_rate,
        "labels": list(labels),
        "preprocessor": _front_section(front, model.cepstra),
        "encoder": _encoder_section(model.encoder),
        "decoder": _decoder_section(kind, model.encoder.channels, list(labels)),
        "nemo_version": _nemo_version(front),
    }


def _front_section(front: FrontEnd, cepstra: nn.Module) -> dict[str, Any]:
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
        raise IntqError(f"no version of NeMo has this front end: {front}")
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
