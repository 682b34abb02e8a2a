"""What the commands know of a domain (vision, text, speech), and how they find the right one.

A domain is a module `intq.<name>.domain` with these names; a command sees nothing else of it:

    TASK_CLASSES: tuple of str                 how its transformers classes end: "ForImageClassification"
    READS: str                                 what its networks read, for messages: "images"
    OPTIONS: tuple of str                      the options of `run` and `eval` that only this domain has
    RATE: float                                the learning rate of `finetune`, where none is given
    PACKAGED: tuple of str                     the trained networks that packages ship, which `load` knows by name
    names() -> tuple of str                    the architectures that `random` builds
    load(source) -> Checkpoint                 a trained model with all that its raw input and its answer need
    random(name, seed) -> Checkpoint           an architecture of names() at full size with random weights
    metadata(checkpoint) -> dict               JSON that travels in the graph, "domain" and "model" in it
    save(checkpoint, folder)                   write into an artifact what its raw input needs besides: a tokenizer
    prepare(checkpoint, data, samples=, seed=, zero_shot=, progress=, **options) -> Prepared
                                               for quantization; data None: made up, of the task, or with zero_shot
                                               from the network
    training(checkpoint, data, **options) -> intq.finetune.Data    labelled examples to train on
    network(checkpoint) -> callable            the float network on the same input
    reader(source, metadata, **options) -> Reader    from raw input to the network's; source: an artifact's folder or
                                               a Checkpoint
    run(predict, reader, metadata, inputs, top=, progress=, **options) -> list    what the network answers to each raw
                                               input
    evaluate(predict, reader, metadata, data, limit=, batch=, progress=, **options) -> {"task", "examples", "metrics"}

A module rather than a class, imported only when a command needs it: running a deployed network needs no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from intq import pretrained
from intq.errors import IntqError
from intq.graph import Graph

Progress = Callable[[str, int, int], None]

WEIGHTS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")  # files of weights, which a hub id never ends in
DOMAINS = ("vision", "nlp", "speech")


@dataclass(frozen=True)
class Prepared:
    """What `intq.quantize.quantize` takes: a module, samples to calibrate on, options; and what completes its graph."""

    model: Any
    samples: Any
    options: Mapping[str, Any]
    complete: Callable[[Graph], Graph]

    def quantize(self, progress: Progress | None = None, check: Callable[[Any], None] | None = None) -> Graph:
        """The integer network, with all that its raw input and its answer need; `check` may refuse the float graph."""
        from intq.quantize import observe, quantized

        seen = observe(self.model, self.samples, progress=progress, check=check, **self.options)
        return self.complete(quantized(seen, progress))


def domain(name: str) -> ModuleType:
    """The domain with this name."""
    if name not in DOMAINS:
        raise IntqError(f"there is no domain {name!r} in this version of intq; there are {', '.join(DOMAINS)}")
    return import_module(f"intq.{name}.domain")


def of_graph(metadata: Mapping[str, Any]) -> ModuleType:
    """The domain of a graph, which says so itself. Raises IntqError for one that was quantized from a bare module."""
    if "domain" not in metadata:
        raise IntqError(
            "this artifact carries no preprocessing, because it was quantized in Python from a bare module: run it "
            "with intq.compile(folder)(pixels), or make it with `intq quantize`"
        )
    return domain(metadata["domain"])


def of_checkpoint(source: str) -> ModuleType:
    """The domain that a checkpoint belongs to: its name, or the configuration of a folder written by save_pretrained or
    of a hub id, tells.

    State dicts and what is none of them go to the first domain, whose `load` knows or says what is wrong.
    """
    folder = Path(source)
    if _is_nemo(folder):
        return domain("speech")
    for candidate in map(domain, DOMAINS):
        if source in candidate.PACKAGED and not folder.exists():
            return candidate
    if not folder.exists() and re.fullmatch(r"[\w-]+/[\w.-]+", source) and folder.suffix not in WEIGHTS:
        folder = pretrained.download(source, weights=False)
    try:
        classes = json.loads((folder / "config.json").read_text())["architectures"]
    except (OSError, ValueError, LookupError, TypeError):
        return domain(DOMAINS[0])
    for candidate in map(domain, DOMAINS):
        if any(str(name).endswith(candidate.TASK_CLASSES) for name in classes or ()):
            return candidate
    return domain(DOMAINS[0])


def _is_nemo(path: Path) -> bool:
    """Whether a path is a checkpoint of NVIDIA NeMo: an archive, what one holds, or weights beside their YAML."""
    beside = any(path.with_suffix(suffix).is_file() for suffix in (".yaml", ".yml")) and path.suffix in WEIGHTS
    return path.suffix == ".nemo" or (path / "model_config.yaml").is_file() or beside


def of_architecture(name: str) -> ModuleType:
    """The domain that builds the architecture `name`."""
    for candidate in map(domain, DOMAINS):
        if name in candidate.names():
            return candidate
    raise IntqError(f"no architecture is called {name!r}; there are {', '.join(architectures())}")


def architectures() -> list[str]:
    """The names of all architectures of all domains."""
    return [name for candidate in DOMAINS for name in domain(candidate).names()]
