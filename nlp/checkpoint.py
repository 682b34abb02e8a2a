"""Checkpoints: a folder of save_pretrained or a hub id, as a network of token ids with its tokenizer and its labels."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from intq.errors import IntqError
from intq.nlp import ibert
from intq.nlp.models import ARCHITECTURES
from intq.nlp.wrap import COUNTED, FromIds, Head, Pooling, longest
from intq.pretrained import download, few, first_line, load_model, read_json

log = logging.getLogger(__name__)

FAMILIES = {  # model_type: how its transformers classes begin
    "bert": "Bert",
    "roberta": "Roberta",
    "distilbert": "DistilBert",
    "xlm-roberta": "XLMRoberta",
    "ibert": "IBert",
    "camembert": "Camembert",
    "electra": "Electra",
}
HEADS: dict[str, Head] = {  # how they end
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "tokens",
    "Model": "embedding",
}
_POOLINGS: dict[Pooling, set[str]] = {  # what sentence-transformers calls them
    "mean": {"pooling_mode_mean_tokens", "mean"},
    "first": {"pooling_mode_cls_token", "cls"},
}
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
_DOWNLOADED = (*TOKENIZER_FILES, "merges.txt", "special_tokens_map.json", "added_tokens.json", "modules.json")
# Files hold more than a network uses: the pooler and the word predictor of pretraining, buffers of old versions.
_SPARE = (
    r"(^|\.)(pooler|cls|lm_head|vocab_\w+|discriminator_predictions|generator\w*)\.|(^|\.)(position|token_type)_ids$"
)


@dataclass(frozen=True)
class Checkpoint:
    """A trained encoder in evaluation mode, with all that its text input and its answer need.

    model: ids int32 or int64 (n, s) to logits (n, labels), of head "tokens" (n, s, labels), of a regression (n, 1), of
        an embedding (n, C), which is not normalised to length 1.
    tokenizer: of transformers; None for random weights, which have no language. labels: the name of each class, empty
        where there are none. name: for people; source: the hub id or the folder's absolute path, "" for random weights.
    longest: the most tokens, special ones included. padding: the id that fills a batch. vocabulary: ids are below it.
    separator: the id that ends a segment, None where segments are not told apart.
    functions: the real functions that it was trained with, "exact" or I-BERT's polynomials.
    ranges: {module: (low, high)} of values whose ranges training has learned; empty but for `ibert` checkpoints.
    """

    model: nn.Module
    tokenizer: Any | None
    labels: tuple[str, ...]
    head: Head
    name: str
    source: str
    longest: int
    padding: int
    vocabulary: int
    separator: int | None = None
    functions: Literal["exact", "ibert"] = "exact"
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def load(source: str | Path) -> Checkpoint:
    """The network in `source`: a folder written by save_pretrained (of sentence-transformers too), or a hub id.

    Raises IntqError when it is neither, holds another kind of model, has no tokenizer, or has weights that are
    missing, left over, NaN or infinite.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _load(path, str(source), str(path.resolve()), path.resolve().name)
    if path.is_file():
        raise IntqError(f"{source} is a file: expected a folder with config.json, the weights and the tokenizer in it")
    if str(source) in ARCHITECTURES:
        raise IntqError(
            f"{source} is an architecture without weights here: give a checkpoint, or --random for random weights"
        )
    if path.is_absolute() or str(source).startswith(".") or len(path.parts) > 2:
        raise IntqError(f"there is no folder {source}")
    name = str(source)
    return _load(download(name, _DOWNLOADED), name, name, name.split("/")[-1])


def _load(folder: Path, shown: str, source: str, name: str) -> Checkpoint:
    config = read_json(folder / "config.json", shown)
    class_name, head = _class(folder, config, shown)
    tokenizer = _tokenizer(folder, shown)
    options = {"add_pooling_layer": False} if head == "embedding" and _has_pooler(config) else {}
    functions, ranges = "exact", {}
    if config["model_type"] == "ibert":
        model = load_model(folder, class_name, shown, spare=_SPARE, optional=ibert.SIMULATION, **options)
        functions = "ibert" if model.config.quant_mode else "exact"
        ranges = ibert.learned_ranges(model.state_dict(), "model.")
        model = ibert.as_roberta(model, **options)
    else:
        model = load_model(folder, class_name, shown, spare=_SPARE, attn_implementation="sdpa", **options)
    settings = model.config
    if head == "classification" and (settings.num_labels == 1 or settings.problem_type == "regression"):
        head = "regression"
    padding, separator = _special(tokenizer, settings, shown)
    pooling = _pooling(folder, shown) if head == "embedding" else None
    labels = [str(settings.id2label[index]) for index in range(settings.num_labels)]
    return Checkpoint(
        FromIds(model, padding, separator, pooling).eval(),
        tokenizer,
        tuple(labels) if head in ("classification", "tokens") else (),
        head,
        name,
        source,
        min(longest(settings, padding), tokenizer.model_max_length),
        padding,
        settings.vocab_size,
        separator,
        functions,
        ranges,
    )


def _class(folder: Path, config: Mapping[str, Any], source: str) -> tuple[str, Head]:
    """The transformers class to load, and the head that it has."""
    kind, found = config.get("model_type"), (config.get("architectures") or ["Model"])[0]
    generates = str(found).endswith(("ForConditionalGeneration", "ForCausalLM", "LMHeadModel"))
    if generates or config.get("is_encoder_decoder") or config.get("is_decoder"):
        raise IntqError(f"{source}: holds a {found}, which generates text; taken are encoders: {', '.join(FAMILIES)}")
    if kind not in FAMILIES:
        raise IntqError(
            f"{source}: config.json describes a model of type {kind!r}; taken are the families {', '.join(FAMILIES)}"
        )
    if (folder / "modules.json").is_file():  # of sentence-transformers, which names any class and uses the bare model
        return FAMILIES[kind] + "Model", "embedding"
    for ending, head in HEADS.items():
        if found in (FAMILIES[kind] + ending, ending):
            return FAMILIES[kind] + ending, head
    raise IntqError(
        f"{source}: holds a {found}, which has no head that gives an answer: fine-tune it first; of this family "
        f"{', '.join(FAMILIES[kind] + ending for ending in HEADS)} are taken"
    )


def _has_pooler(config: Mapping[str, Any]) -> bool:
    return config["model_type"] not in ("distilbert", "electra")


def _tokenizer(folder: Path, source: str) -> Any:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise IntqError(
            f"{source} has no tokenizer: expected one of {', '.join(TOKENIZER_FILES)} beside config.json; save it with "
            "tokenizer.save_pretrained(folder)"
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a damaged file may raise anything on its way through transformers
        raise IntqError(f"{source}: the tokenizer does not load ({first_line(error)})") from error


def _special(tokenizer: Any, settings: Any, source: str) -> tuple[int, int | None]:
    """(the padding id, the separator id or None), checked to say what the tokenizer's own masks and segments say."""
    padding = settings.pad_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if padding is None:
        raise IntqError(f"{source}: neither the tokenizer nor config.json has a padding token: set pad_token")
    if settings.model_type in COUNTED and padding != settings.pad_token_id:
        raise IntqError(
            f"{source}: the tokenizer pads with the id {padding}, but config.json counts positions from pad_token_id "
            f"{settings.pad_token_id}: make them the same"
        )
    if getattr(settings, "type_vocab_size", 0) < 2 or "token_type_ids" not in tokenizer.model_input_names:
        return padding, None
    pair = tokenizer("a", "a", return_token_type_ids=True)
    ids, separator, segment = pair["input_ids"], tokenizer.sep_token_id, 0
    for given, token in zip(pair["token_type_ids"], ids, strict=True):
        if given != min(segment, settings.type_vocab_size - 1):
            raise IntqError(
                f"{source}: the tokenizer's token_type_ids {few(map(str, pair['token_type_ids']), 12)} for a pair do "
                f"not change after each separator (id {separator}) of {few(map(str, ids), 12)}, as BERT's do"
            )
        segment += token == separator
    return padding, separator


def _pooling(folder: Path, source: str) -> Pooling:
    """How sentence-transformers makes one vector of the tokens': from its modules, the mean where they do not say."""
    path = folder / "modules.json"
    if not path.is_file():
        log.warning("%s is a bare encoder: its answer is the mean of its tokens' last hidden states", source)
        return "mean"
    try:
        modules = {entry["type"].split(".")[-1]: entry["path"] for entry in json.loads(path.read_text("utf-8"))}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise IntqError(f"{source}: modules.json is not a list of sentence-transformers' modules ({error})") from error
    # Normalize only divides the vector by its length, which no cosine sees.
    if unknown := [name for name in modules if name not in ("Transformer", "Pooling", "Normalize")]:
        raise IntqError(f"{source}: has a module {few(unknown)} behind the encoder; taken are Pooling and Normalize")
    path = folder / modules.get("Pooling", "1_Pooling") / "config.json"
    if not path.is_file():
        return "mean"
    found = read_json(path, source)
    modes = {key for key, on in found.items() if key.startswith("pooling_mode_") and on is True}
    modes |= {found["pooling_mode"]} if "pooling_mode" in found else set()
    for pooling, names in _POOLINGS.items():
        if modes and modes <= names:
            return pooling
    raise IntqError(f"{source}: pools by {few(sorted(map(str, modes))) or 'nothing'}; taken are mean and first token")
