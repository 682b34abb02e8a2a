"""What `intq finetune` does: quantize (or go on), train, and write the artifact with what was measured on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from intq import artifact
from intq.batchnorm import settled
from intq.console import step
from intq.errors import IntqError
from intq.finetune import Outcome, Recipe, finetune
from intq.graph import Graph
from intq.processes import first_does

TRAINING = ".training"  # what the folder of a training's state has behind the output's name
START, ASKED = "start", "asked.json"


def training_folder(output: Path) -> Path:
    """Where the state of a training lies until it is done."""
    return output.with_name(output.name + TRAINING)


def tuned(
    domain: ModuleType,
    checkpoint: Any,
    output: Path,
    recipe: Recipe,
    *,
    data: str | None,
    held_out: str | None,
    task: str | None,
    teacher: Any,
    samples: int,
    limit: int | None,
    options: Mapping[str, Any],
    settle: bool = False,
    check: Callable | None = None,
    save_every: int = 100,
) -> Outcome:
    """The outcome of a training, new or continued; its graph is complete and ready to be written.

    ``options``: of quantization; ``check`` may refuse its float graph. ``teacher``: a checkpoint of the same domain.
    ``held_out``: data to evaluate on. ``settle``: BatchNorms take the statistics of the calibration samples first.
    """
    folder, given = training_folder(output), {"task": task} if task else {}
    asked = {"recipe": asdict(recipe), "data": data, "task": task, "samples": samples, "settle": settle}
    asked |= {"model": checkpoint.name, "options": dict(sorted(options.items()))}
    _same(folder, asked)
    prepared = domain.prepare(checkpoint, data, samples=samples, seed=recipe.seed, **given, **options)
    if settle:
        image = {name: prepared.options[name] for name in ("mean", "std") if name in prepared.options}
        prepared = replace(prepared, model=settled(prepared.model, prepared.samples, **image))
    with first_does():
        graph = _start(folder, prepared, asked, checkpoint.name, check)
    examples = domain.training(checkpoint, data, **given)
    with step(f"Training {checkpoint.name}") as advance:
        return finetune(
            graph,
            examples,
            recipe,
            folder=folder,
            teacher=None if not recipe.distill else answers_of(domain, teacher, checkpoint),
            hidden=None if not recipe.hidden else hidden_of(prepared),
            evaluate=evaluation(domain, checkpoint, held_out, limit, given),
            save_every=save_every,
            progress=advance,
        )


def forget(output: Path) -> None:
    """Remove the state of a training that is done."""
    shutil.rmtree(training_folder(output), ignore_errors=True)


def _same(folder: Path, asked: Mapping[str, Any]) -> None:
    """Raise IntqError when a folder holds the state of a training that was asked for in other words."""
    if not (folder / ASKED).is_file():
        return
    try:
        before = json.loads((folder / ASKED).read_text())
    except ValueError:
        raise IntqError(f"{folder / ASKED} is damaged; remove {folder} to begin anew") from None
    now = json.loads(json.dumps(asked, default=asdict))
    if differing := [name for name in now if now[name] != before.get(name)]:
        raise IntqError(
            f"{folder} holds a training that was begun with another {differing[0]} ({before.get(differing[0])}, now "
            f"{now[differing[0]]}): ask for the same again to go on with it, or remove the folder to begin anew"
        )


def _start(folder: Path, prepared: Any, asked: Mapping[str, Any], name: str, check: Callable | None) -> Graph:
    """The quantized network that the training begins with, made once."""
    if not (folder / ASKED).is_file():
        with step(f"Quantizing {name}") as advance:
            graph = prepared.quantize(lambda stage, done, total: advance(done, total, stage), check)
        folder.mkdir(parents=True, exist_ok=True)
        artifact.save(graph, folder / START, overwrite=True)
        part = folder / f"{ASKED}.part"
        part.write_text(json.dumps(asked, default=asdict))
        part.replace(folder / ASKED)
    return artifact.load(folder / START)


def answers_of(domain: ModuleType, teacher: Any, checkpoint: Any) -> Callable:
    """A float network's answers to the integer network's inputs.

    Raises IntqError when the teacher has other labels.
    """
    import torch

    mine, its = (list(each.labels) for each in (checkpoint, teacher))
    if len(mine) != len(its) or (mine != its and set(mine) == set(its)):
        raise IntqError(
            f"the teacher {teacher.name} has other labels ({_some(its)}) than {checkpoint.name} ({_some(mine)}): "
            "distillation needs the same, in the same order"
        )
    network = domain.network(teacher)
    return lambda *inputs: torch.from_numpy(np.asarray(network(*(x.numpy() for x in inputs))))


def _some(labels: list[str]) -> str:
    return f"{len(labels)}: {', '.join(map(str, labels[:4]))}{', ...' if len(labels) > 4 else ''}"


def hidden_of(prepared: Any) -> Callable:
    """Of the float network itself, the values at the ends of its blocks: what residuals are added to."""
    import torch

    from intq.floatgraph import CONTRACTIONS
    from intq.quantize import observe

    graph = observe(prepared.model, prepared.samples, **prepared.options).graph
    ends = {n.name for n in graph.nodes if n.op == "add" or (n.op in CONTRACTIONS and len(n.inputs) > 1)}
    if not ends:
        raise IntqError(
            "this network has no residual sums, so no hidden values to come near to: leave out --hidden, "
            "or distill from the answers alone (--distill)"
        )

    def values(x, *lengths) -> dict[str, Any]:
        images = x.ndim == 4 and not x.is_floating_point()
        real = x.permute(0, 3, 1, 2).float() if images else x
        real = real.float() / 32768 if graph.reads_samples else real
        with torch.no_grad():
            found = {name: y for name, y in graph.values(real) if name in ends}
        return {name: y.permute(0, 2, 3, 1) if y.ndim == 4 else y for name, y in found.items()}

    return values


def evaluation(
    domain: ModuleType, checkpoint: Any, data: str | None, limit: int | None, given: Mapping[str, Any]
) -> Callable[[Graph], Mapping[str, float]] | None:
    """A graph's metrics on labelled data, computed by the torch backend; None without data."""
    if data is None and not given:
        return None
    from intq.backends import torch as integers

    metadata = domain.metadata(checkpoint)
    reader = domain.reader(checkpoint, metadata)

    def evaluate(graph: Graph) -> Mapping[str, float]:
        network = integers.prepare(graph)

        def predict(*inputs: np.ndarray) -> np.ndarray:
            return network(*inputs)[0].numpy()

        known = {**graph.metadata, **metadata}
        return domain.evaluate(predict, reader, known, data, limit=limit, batch=64, **given)["metrics"]

    return evaluate


def points(metrics: Mapping[str, float]) -> float:
    """The first of a domain's metrics in points, the higher the better."""
    name, value = next(iter(metrics.items()))
    return -100 * value if name in ("wer", "cer", "per") else 100 * value


def finished(outcome: Outcome, recipe: Recipe) -> Graph:
    """The trained graph, with what its training was in its metadata."""
    told = {"recipe": asdict(recipe), "history": [dict(row) for row in outcome.history]}
    return replace(outcome.graph, metadata={**outcome.graph.metadata, "training": told})
