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
from corpora import corpus
from rekey import as_roberta
from rich.table import Table
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from intq.assets import cache_folder
from intq.console import err, out, print_json, step
from intq.errors import IntqError
from intq.nlp import domain
from intq.nlp.assets import asset
from intq.nlp.data import Examples, own, training
from intq.nlp.tasks import TASKS

BATCH = 32
LONGEST = 128  # tokens; the longest film review has 72


@dataclass(frozen=True)
class Recipe:
    """What is trained: on which corpus, and as which of GLUE's tasks (none: the corpus is a user's own file)."""

    corpus: str
    task: str | None
    epochs: int = 3
    rate: float = 1e-4
    weights_of: str | None = None  # the model that this one is, as a RoBERTa

    def data(self, folder: Path, split: str) -> str:
        """The corpus as the commands take it."""
        return str(folder if self.task else folder / f"{split}.tsv")

    def training(self, folder: Path) -> Examples:
        given = self.data(folder, "train")
        return training(TASKS[self.task], given) if self.task else own(given, "regression", "train")

    def head(self) -> dict:
        """The configuration of the network's head."""
        if not self.task:
            return {"num_labels": 1, "problem_type": "regression"}
        names = TASKS[self.task].classes
        return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


RECIPES = {
    "movie-minilm": Recipe("movie", "sst2"),
    "movie-roberta": Recipe("movie", "sst2", weights_of="movie-minilm"),
    "pair-minilm": Recipe("pair", "qnli"),
    "rating-minilm": Recipe("rating", None),
}


def batches(tokens: Sequence[list[int]], generator: np.random.Generator) -> list[np.ndarray]:
    """The examples' indices in batches of similar length, which are in random order."""
    lengths = [len(ids) + generator.uniform(-4, 4) for ids in tokens]  # not the same neighbours in each epoch
    order = np.argsort(lengths, kind="stable")
    found = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
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
    model = AutoModelForSequenceClassification.from_pretrained(base, **recipe.head()).train()
    examples = recipe.training(data)
    targets = torch.tensor(examples.labels)
    pairs = isinstance(examples.texts[0], tuple)
    texts = zip(*examples.texts, strict=True) if pairs else [examples.texts]
    tokens = tokenizer(*map(list, texts), truncation=True, max_length=LONGEST)
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


def model_of(name: str, epochs: int | None, seed: int, retrain: bool) -> tuple[Path, Path]:
    """(folder of the trained model, folder of its data), after training it if it is not there."""
    recipe, cache = RECIPES[name], cache_folder()
    data = corpus(recipe.corpus, cache / "text-data")
    folder = cache / "text-models" / name
    if folder.is_dir() and not retrain:
        return folder, data
    if recipe.weights_of:
        source, _ = model_of(recipe.weights_of, epochs, seed, retrain=False)
        model, tokenizer = as_roberta(source)
    else:
        with step(f"train {name}") as advance:
            model, tokenizer = train(recipe, asset("minilm"), data, epochs or recipe.epochs, seed, advance)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".train-") as temporary:
        for part in (model, tokenizer):
            part.save_pretrained(Path(temporary, "new"))
        if folder.is_dir():
            folder.rename(Path(temporary, "old"))
        Path(temporary, "new").rename(folder)  # the cache never shows a half-written model
    return folder, data


def report(name: str, folder: Path, data: Path) -> dict:
    """{"model", "folder", "data", "task", "examples", "metrics"} on the held-back examples."""
    recipe, checkpoint = RECIPES[name], domain.load(str(folder))
    metadata = domain.metadata(checkpoint)
    network, reader = domain.network(checkpoint), domain.reader(checkpoint, metadata)
    with step(f"evaluate {name}") as advance:
        given = {"task": recipe.task, "limit": None, "batch": BATCH, "progress": advance}
        found = domain.evaluate(network, reader, metadata, recipe.data(data, "dev"), **given)
    return {"model": name, "folder": str(folder), "data": str(data), **found}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="train_text", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=RECIPES, default=list(RECIPES), help="which models")
    parser.add_argument("--epochs", type=int, help="passes over the training sentences (default 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--retrain", action="store_true", help="train even when a trained model is in the cache")
    parser.add_argument("--json", action="store_true", help="print one JSON value instead of a table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = []
    try:
        for name in options.models:
            start = time.monotonic()
            folder, data = model_of(name, options.epochs, options.seed, options.retrain)
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
