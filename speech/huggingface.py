"""Hugging Face's recognisers that read samples as they are: Wav2Vec 2.0 and HuBERT with a CTC head.

    x = (samples - mean) / sqrt(variance + 1e-7)      over a recording, where the folder says do_normalize
    logits = model(x)

(Baevski et al., wav2vec 2.0, 2020; Hsu et al., HuBERT, 2021.) Samples, labels and weights come from the folder that
save_pretrained wrote; of the tokenizer only its files are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intq import frontend  # noqa: F401 (normalize_frames)
from intq.errors import IntqError
from intq.pretrained import download, few, load_model, read_json
from intq.speech.labels import DELIMITER, Labels, hugging_face

FAMILIES = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert"}  # model_type: how its transformers class begins
HEAD = "ForCTC"
CONFIG, VOCABULARY = "config.json", "vocab.json"
_DOWNLOADED = (VOCABULARY, "special_tokens_map.json", "added_tokens.json")  # and the *config.json
TOKENIZERS = ("Wav2Vec2CTCTokenizer", "Wav2Vec2Tokenizer")
EXTRACTOR = "Wav2Vec2FeatureExtractor"
RATE = 16000  # Hz, of all that have been published
EPSILON = 1e-7  # of the extractor's variance
SECONDS = 30.0  # at a time: attention's work grows with the square
# The vector that stands for masked time in training; what only pretraining uses.
_TRAINING = r"(^|\.)masked_spec_embed$"
_SPARE = _TRAINING + r"|^(quantizer|project_q|project_hid)\."

# The labels of the first that were published, by how often English has them.
LETTERS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {  # name: (family, what differs from its configuration)
    "wav2vec2-base": ("Wav2Vec2", {}),  # 94 million weights
}


class FromSamples(nn.Module):
    """Float samples (n, t) in [-1, 1), with `lengths` (n,) of them valid, to logits (n, frames, labels).

    model: of transformers, with attn_implementation="sdpa" and a head whose output has `logits`. normalize: each
        recording to mean 0 and deviation 1 first.

    With lengths each row is run alone, and what it has no frames for is 0: many of these networks normalise over time
    or have no mask, and are only right alone.
    """

    rate, seconds = RATE, SECONDS

    def __init__(self, model: nn.Module, normalize: bool) -> None:
        super().__init__()
        self.model, self.normalize = model, normalize

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            return self._logits(samples)
        rows = [self._logits(row[None, :length])[0] for row, length in zip(samples, lengths.tolist(), strict=True)]
        whole = rows[0].new_zeros(len(rows), self.frames(samples.shape[1]), rows[0].shape[1])
        for row, logits in zip(whole, rows, strict=True):
            row[: len(logits)] = logits
        return whole

    def _logits(self, samples: Tensor) -> Tensor:
        if self.normalize:
            samples = torch.ops.intq.normalize_frames(samples[..., None], 0.0, 0, None, EPSILON)[..., 0]
        return self.model(samples).logits

    def frames(self, samples):
        """How many frames of logits so many samples give (an int or a tensor of them)."""
        config = self.model.config
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples


def is_checkpoint(source: str) -> bool:
    """Whether a source looks like a folder of save_pretrained or a hub id ("owner/name"), which may be wrong yet."""
    path = Path(source).expanduser()
    hub = not path.exists() and len(path.parts) == 2 and not path.is_absolute() and not source.startswith(".")
    return (path / CONFIG).is_file() or (hub and not path.suffix)


def load(source: str) -> tuple[FromSamples, Labels, str, str]:
    """(network, what its labels spell, its name, the hub id or the folder's absolute path) of a checkpoint.

    Raises IntqError when it holds another kind of model, lacks its preprocessing or its vocabulary, or has weights
    that are missing, left over, NaN or infinite.
    """
    path = Path(source).expanduser()
    found = path.is_dir()
    folder, name = (path.resolve(), str(path.resolve())) if found else (download(source, _DOWNLOADED), source)
    config = read_json(folder / CONFIG, source)
    class_name = _class(config, source)
    normalize = _normalize(folder, source)
    labels = _labels(folder, int(config.get("vocab_size", len(LETTERS))), source)
    model = load_model(folder, class_name, source, spare=_SPARE, optional=_TRAINING, attn_implementation="sdpa")
    return FromSamples(model, normalize).eval(), labels, Path(name).name, name


def build(name: str) -> FromSamples:
    """The architecture called `name`, whose weights are not set."""
    import transformers
    from transformers.initialization import no_init_weights

    family, settings = ARCHITECTURES[name]
    config = getattr(transformers, f"{family}Config")(**settings, vocab_size=len(LETTERS))
    with no_init_weights():
        make = getattr(transformers, family + HEAD)._from_config
        model = make(config, attn_implementation="sdpa", dtype=torch.float32)
    return FromSamples(model, normalize=True).eval().requires_grad_(False)


def letters() -> Labels:
    """What LETTERS spell."""
    return hugging_face({token: index for index, token in enumerate(LETTERS)})


def _class(config: Mapping[str, Any], source: str) -> str:
    """The transformers class to load."""
    found = str((config.get("architectures") or [""])[0])
    known = {kind: prefix + HEAD for kind, prefix in FAMILIES.items()}
    if known.get(config.get("model_type")) != found:
        raise IntqError(
            f"{source}: config.json describes a {found or 'model without a class'}; of the networks that read samples "
            f"{' and '.join(known.values())} are taken"
        )
    if config.get("add_adapter"):
        raise IntqError(f"{source}: {found} with add_adapter is not taken: its frames are counted otherwise")
    return found


def _normalize(folder: Path, source: str) -> bool:
    """Whether recordings are normalised, as the preprocessing says."""
    name = "preprocessor_config.json"
    if not (folder / name).is_file() and (folder / "processor_config.json").is_file():
        settings = read_json(folder / "processor_config.json", source).get("feature_extractor") or {}
    else:
        settings = read_json(folder / name, source)
    kind, rate = settings.get("feature_extractor_type", EXTRACTOR), settings.get("sampling_rate")
    if kind != EXTRACTOR or settings.get("feature_size", 1) != 1:
        raise IntqError(f"{source}: {name} describes a {kind}; taken is a {EXTRACTOR} of single samples")
    if rate != RATE:
        raise IntqError(f"{source}: {name} says a sampling_rate of {rate}, taken is {RATE} Hz")
    normalize = settings.get("do_normalize", True)
    if not isinstance(normalize, bool):
        raise IntqError(f"{source}: {name} says do_normalize is {normalize!r}, expected true or false")
    return normalize


def _labels(folder: Path, count: int, source: str) -> Labels:
    """What the `count` labels spell, from the tokenizer's files."""
    if not (folder / VOCABULARY).is_file():
        raise IntqError(
            f"{source} has no {VOCABULARY}: without it nobody knows what the network's labels spell; save it with "
            "processor.save_pretrained(folder)"
        )
    vocabulary = read_json(folder / VOCABULARY, source)
    if any(isinstance(value, dict) for value in vocabulary.values()):
        raise IntqError(f"{source}: {VOCABULARY} holds several languages' ({few(vocabulary)}); keep one of them")
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        settings |= read_json(folder / name, source) if (folder / name).is_file() else {}
    kind = settings.get("tokenizer_class") or TOKENIZERS[0]
    if kind not in TOKENIZERS:
        raise IntqError(f"{source}: has a tokenizer of the class {kind}; taken is {TOKENIZERS[0]}")
    added = read_json(folder / "added_tokens.json", source) if (folder / "added_tokens.json").is_file() else {}
    for index, token in (settings.get("added_tokens_decoder") or {}).items():
        added |= {_content(token): int(index)}
    taken = set(vocabulary.values())
    vocabulary |= {token: index for token, index in added.items() if index not in taken and token not in vocabulary}
    vocabulary = {token: index for token, index in vocabulary.items() if index < count}
    if len(vocabulary) != count:
        raise IntqError(f"{source}: {VOCABULARY} spells {len(vocabulary)} labels, but the network has {count}")
    tokens = [
        _content(settings.get(f"{which}_token") or default)
        for which, default in (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>"))
    ]
    try:
        return hugging_face(
            vocabulary,
            _content(settings.get("pad_token") or "<pad>"),
            tokens,
            _content(settings.get("word_delimiter_token") or DELIMITER),
            bool(settings.get("do_lower_case", False)),
        )
    except IntqError as error:
        raise IntqError(f"{source}: {error}") from None


def _content(token: Any) -> str:
    """A token, which may be written as what it is or with how it is split."""
    return str(token["content"]) if isinstance(token, dict) else str(token)
