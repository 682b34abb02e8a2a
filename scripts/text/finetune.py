"""Fine-tune MiniLM on three tasks: film reviews (and the same network as a RoBERTa), pairs of sentences, ratings.

The networks are plain float ones that know nothing of quantization. Each is trained once, in a few minutes on two
cores, and kept in the cache as `save_pretrained` writes it, with its tokenizer; `intq quantize` takes the folders. The
data lie beside them as GLUE lays out its TSV files; the metric is of the 15 % that are held back.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from corpora import corpus, read
from rich.table import Table
from rekey import as_roberta
from scipy import stats
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from intq.assets import cache_folder
from intq.console import err, out, print_json, step
from intq.errors import IntqError
from intq.nlp.assets import asset

BATCH = 32
LONGEST = 128  # tokens; the longest film review has 72


@dataclass(frozen=True)
class Recipe:
    """What is trained: the corpus, its columns, and the head's labels in their order (none: a regression)."""

    corpus: str
    columns: tuple[str, ...]
    target: str
    labels: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # the labels as the files write them, where they differ
    epochs: int = 3
    rate: float = 1e-4
    as_roberta: bool = False


MOVIE = Recipe("movie", ("sentence",), "label", ("negative", "positive"), ("0", "1"))
RECIPES = {
    "movie-minilm": MOVIE,
    "movie-roberta": Recipe(**{**vars(MOVIE), "as_roberta": True}),
    "pair-minilm": Recipe("pair", ("question", "sentence"), "label", ("entailment", "not_entailment"), epochs=4),
    "rating-minilm": Recipe("rating", ("sentence",), "score"),
}


def examples(recipe: Recipe, path: Path) -> tuple[list[tuple[str, ...]], torch.Tensor]:
    """(texts, targets): class indices int64 (n,) or scores float32 (n,)."""
    rows = read(path)
    texts = [tuple(row[column] for column in recipe.columns) for row in rows]
    if recipe.labels:
        index = {name: i for i, name in enumerate(recipe.names or recipe.labels)}
        return texts, torch.tensor([index[row[recipe.target]] for row in rows])
    return texts, torch.tensor([float(row[recipe.target]) for row in rows])


def batches(tokens: Sequence[list[int]], generator: np.random.Generator | None = None) -> list[np.ndarray]:
    """The examples' indices in batches of similar length, in random order with a generator."""
    lengths = np.array([len(ids) for ids in tokens])
    if generator is not None:
        lengths = lengths + generator.uniform(-4, 4, len(lengths))  # not the same neighbours in each epoch
    order = np.argsort(lengths, kind="stable")
    found = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    if generator is not None:
        generator.shuffle(found)
    return found


def train(
    recipe: Recipe, base: Path, data: Path, epochs: int, seed: int, advance: Callable[[int, int], None]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """MiniLM with a new head, trained on the recipe's corpus: AdamW, one cycle of the learning rate.

    The products are bfloat16 (autocast: half the time on a processor that multiplies it), the weights float32. The
    words' own vectors, half of all weights, stay as they are: most of them do not occur here.
    """
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    head = {"num_labels": 1, "problem_type": "regression"}
    if recipe.labels:
        head = {
            "id2label": dict(enumerate(recipe.labels)),
            "label2id": {name: i for i, name in enumerate(recipe.labels)},
        }
    model = AutoModelForSequenceClassification.from_pretrained(base, **head).train()
    texts, targets = examples(recipe, data / "train.tsv")
    tokens = tokenizer(*map(list, zip(*texts, strict=True)), truncation=True, max_length=LONGEST)
    model.base_model.embeddings.word_embeddings.requires_grad_(False)
    generator = np.random.default_rng(seed)
    plan = [batch for _ in range(epochs) for batch in batches(tokens["input_ids"], generator)]
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, len(plan), pct_start=0.1)
    for done, batch in enumerate(plan, start=1):
        inputs = tokenizer.pad({key: [tokens[key][i] for i in batch] for key in tokens}, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**inputs, labels=targets[batch]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        advance(done, len(plan))
        if done % (len(plan) // epochs) == 0:
            err.print(f"epoch {done * epochs // len(plan)} of {epochs}, last loss {loss.item():.3f}")
    return model.eval(), tokenizer


@torch.inference_mode()
def scores(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, ...]]) -> np.ndarray:
    """The float32 logits (n, labels) of the texts, in their order."""
    tokens = tokenizer(*map(list, zip(*texts, strict=True)), truncation=True, max_length=LONGEST)
    found = np.empty((len(texts), model.config.num_labels), np.float32)
    for batch in batches(tokens["input_ids"]):
        inputs = tokenizer.pad({key: [tokens[key][i] for i in batch] for key in tokens}, return_tensors="pt")
        found[batch] = model(**inputs).logits
    return found


def metrics(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The accuracy of a classifier, or both correlations of a regression."""
    if logits.shape[1] > 1:
        return {"accuracy": float((logits.argmax(1) == targets).mean())}
    return {
        "pearson": float(stats.pearsonr(logits[:, 0], targets).statistic),
        "spearman": float(stats.spearmanr(logits[:, 0], targets).statistic),
    }


def model_of(name: str, cache: Path, epochs: int | None, seed: int, retrain: bool) -> tuple[Path, Path]:
    """(folder of the trained model, folder of its data), after training it if it is not there."""
    recipe = RECIPES[name]
    data = corpus(recipe.corpus, cache / "text-data")
    folder = cache / "text-models" / name
    if folder.is_dir() and not retrain:
        return folder, data
    if recipe.as_roberta:
        source, _ = model_of(name.replace("roberta", "minilm"), cache, epochs, seed, retrain=False)
        model, tokenizer = as_roberta(source)
    else:
        with step(f"train {name}") as advance:
            model, tokenizer = train(recipe, asset("minilm", cache), data, epochs or recipe.epochs, seed, advance)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".train-") as temporary:
        for part in (model, tokenizer):
            part.save_pretrained(Path(temporary, "new"))
        if folder.is_dir():
            folder.rename(Path(temporary, "old"))
        Path(temporary, "new").rename(folder)  # the cache never shows a half-written model
    return folder, data


def report(name: str, folder: Path, data: Path) -> dict:
    """{"model", "folder", "data", "examples", metric: value, ...} on the held-back examples."""
    texts, targets = examples(RECIPES[name], data / "dev.tsv")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    logits = scores(model, AutoTokenizer.from_pretrained(folder), texts)
    found = metrics(logits, targets.numpy())
    return {"model": name, "folder": str(folder), "data": str(data), "examples": len(texts), "metrics": found}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="train_text", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=RECIPES, default=list(RECIPES), help="which models")
    parser.add_argument("--epochs", type=int, help="passes over the training sentences (default 3, pairs 4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--retrain", action="store_true", help="train even when a trained model is in the cache")
    parser.add_argument("--cache", type=Path, help="folder of assets, data and models (default $INTQ_CACHE)")
    parser.add_argument("--json", action="store_true", help="print one JSON value instead of a table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cache = options.cache or cache_folder()
    rows = []
    try:
        for name in options.models:
            start = time.monotonic()
            folder, data = model_of(name, cache, options.epochs, options.seed, options.retrain)
            err.print(f"{name}: {folder} ({time.monotonic() - start:.0f} s)", soft_wrap=True)
            rows.append(report(name, folder, data))
    except IntqError as error:
        print(f"train_text: {error}", file=sys.stderr)
        return 2
    if options.json:
        print_json(rows)
        return 0
    table = Table("model", "held back", "metric", "folder")
    for row in rows:
        shown = ", ".join(f"{metric} {100 * value:.2f} %" for metric, value in row["metrics"].items())
        table.add_row(row["model"], str(row["examples"]), shown, row["folder"])
    out.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
