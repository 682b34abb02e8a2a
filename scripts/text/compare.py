"""How close each engine's integer text network stays to the float one, on the models that scripts/train_text made.

Every engine calibrates on the same sentences of the training split. On the held-back sentences: the task's metric, how
often the predicted class is the float network's, and the logits' signal to quantization noise.

Each result is written to standard error as it comes. On standard output a table, with --markdown the README's, and with
--json a list of {"model", "engine", "settings", "examples", "metrics", "agreement", "sqnr_db"}.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tables
import torch
from finetune import RECIPES, Recipe
from rivals import peers

from intq.assets import cache_folder
from intq.backends import torch as integers
from intq.console import err, step
from intq.errors import IntqError
from intq.nlp import domain
from intq.nlp.checkpoint import Checkpoint
from intq.nlp.data import Examples, held_out, own
from intq.nlp.evaluate import scores
from intq.nlp.metrics import METRICS
from intq.nlp.tasks import TASKS
from intq.vision.metrics import agreement, sqnr_db

ENGINES = ("intq", "openvino", "onnxruntime")
BATCH = 32

Predict = Callable[[np.ndarray], np.ndarray]  # ids int32 (n, s) -> real scores (n, classes)


@dataclass(frozen=True)
class Subject:
    """One trained model, its held-back sentences and what the float network answers to them."""

    name: str
    recipe: Recipe
    checkpoint: Checkpoint
    data: Path
    examples: Examples
    rows: list[np.ndarray]
    logits: np.ndarray

    def calibration(self, samples: int) -> list[np.ndarray]:
        """Batches of ids of training sentences, as `intq quantize` chooses them."""
        given = self.recipe.data(self.data, "train")
        return domain.calibration(self.checkpoint, given, self.recipe.task, samples, seed=0)


def subject(name: str, limit: int | None) -> Subject:
    """The model and its held-back sentences, at most `limit` of them."""
    recipe, cache = RECIPES[name], cache_folder()
    folder, data = cache / "text-models" / name, cache / "text-data" / recipe.corpus
    if not folder.is_dir():
        raise IntqError(f"{name} is not in {folder.parent}: run scripts/train_text once")
    checkpoint = domain.load(str(folder))
    given = recipe.data(data, "dev")
    examples = held_out(TASKS[recipe.task], given)[""] if recipe.task else own(given, checkpoint.head)
    examples = examples.sample(limit) if limit else examples
    rows = domain.reader(checkpoint, domain.metadata(checkpoint)).ids(examples.texts, examples.where)
    with step(f"{name}: float32"):
        logits = np.stack(scores(domain.network(checkpoint), rows, checkpoint.padding, BATCH))
    return Subject(name, recipe, checkpoint, data, examples, rows, logits)


def quantize_intq(this: Subject, samples: int, zero_shot: bool = False) -> Predict:
    """The network of `intq quantize FOLDER --data TRAIN --samples N`, or with --zero-shot instead of the data."""
    given = {"data": this.recipe.data(this.data, "train"), "task": this.recipe.task}
    given = {"data": None, "zero_shot": True} if zero_shot else given
    graph = domain.prepare(this.checkpoint, samples=samples, seed=0, **given).quantize()
    network, scale = integers.prepare(graph), graph.values[graph.outputs[0]].scale
    return lambda ids: scale * network(torch.from_numpy(ids))[0].numpy()


def compare(this: Subject, engines: Sequence[str], samples: int, zero_shot: bool = False) -> list[dict]:
    """A row for each engine and settings, the float network's first."""
    rows = [judge(this, "torch", "float32", this.logits)]
    with tempfile.TemporaryDirectory() as folder:
        contestants = {("intq", "default"): partial(quantize_intq, this, samples)}
        if zero_shot:
            contestants["intq", "no data (--zero-shot)"] = partial(quantize_intq, this, samples, zero_shot=True)
        if set(engines) - {"intq"}:
            batches = this.calibration(samples)
            contestants |= peers(this.checkpoint, batches, Path(folder))
        for (engine, settings), quantize in contestants.items():
            if engine not in engines:
                continue
            with step(f"{this.name}: {engine}, {settings}") as advance:
                predict, batch = quantize(), BATCH if engine == "intq" else 1
                found = scores(predict, this.rows, this.checkpoint.padding, batch, advance)
            rows.append(judge(this, engine, settings, np.stack(found)))
    return rows


def judge(this: Subject, engine: str, settings: str, logits: np.ndarray) -> dict:
    """The row of an engine that answers so to the held-back sentences."""
    classes = this.checkpoint.head == "classification"
    found, wanted = (logits.argmax(1), ("accuracy",)) if classes else (logits[:, 0], ("pearson", "spearman"))
    same = engine == "torch"
    row = {
        "model": this.name,
        "engine": engine,
        "settings": settings,
        "examples": len(this.rows),
        "metrics": {name: round(METRICS[name](found, np.array(this.examples.labels)), 5) for name in wanted},
        "agreement": round(agreement(logits, this.logits), 5) if classes else None,
        "sqnr_db": None if same else round(sqnr_db(logits, this.logits), 2),
    }
    err.print("  ".join(cells(row)), soft_wrap=True)
    return row


def cells(row: dict) -> list[str]:
    """One row for people."""
    metrics = ", ".join(f"{name} {100 * value:.2f}" for name, value in row["metrics"].items())
    same = "" if row["agreement"] is None else f"{row['agreement']:.1%}"
    noise = "" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f} dB"
    return [row["model"], row["engine"], row["settings"], metrics, same, noise]


HEADER = ("model", "engine", "settings", "metric, held back", "same class as float", "logits SQNR")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="accuracy_text", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=RECIPES, default=list(RECIPES), help="default: all")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["intq"], help="default: intq alone")
    parser.add_argument("--samples", type=int, default=128, help="sentences that calibrate (default 128)")
    parser.add_argument("--limit", type=int, help="compare on so many held-back sentences (default: all)")
    parser.add_argument("--zero-shot", action="store_true", help="intq also without data")
    parser.add_argument("--threads", type=int, default=2)
    tables.add_formats(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = []
    try:
        for name in options.models:
            this = subject(name, options.limit)
            rows += compare(this, options.engines, options.samples, options.zero_shot)
    except IntqError as error:
        err.print(f"accuracy_text: {error}", markup=False, soft_wrap=True)
        return 2
    tables.show(rows, HEADER, cells, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
