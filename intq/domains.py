"""What the commands know of a domain (vision; text and speech register the same way), and how they find the right one.

A domain is a module `intq.<name>.domain` with these functions; a command sees nothing else of it:

    TASK_CLASSES: tuple of str                 how its transformers classes end: "ForImageClassification"
    names() -> tuple of str                    the architectures that `random` builds
    load(source) -> Checkpoint                 a trained model with all that its raw input and its answer need
    random(name, seed) -> Checkpoint           an architecture of names() at full size with random weights
    metadata(checkpoint) -> dict               JSON that travels in the graph, "domain" and "model" in it
    quantize(checkpoint, data, samples=, seed=, progress=, **options) -> Graph    data None: made up
    network(checkpoint) -> callable            the float network on the same raw input
    read(files, metadata) -> iterator          the raw input in each file, as a batch of one
    answer(scores, metadata, top) -> list      one row of integer scores as the `top` best {"label", "index", "score"}
    evaluate(predict, metadata, data, limit=, batch=, progress=) -> {"task", "examples", "metrics"}

A module rather than a class, imported only when a command needs it: running a deployed network needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from intq.errors import IntqError

DOMAINS = ("vision",)


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
    """The domain that a checkpoint belongs to: of a folder written by save_pretrained, its configuration tells.

    State dicts, hub ids and what is none of them go to the first domain, whose `load` knows or says what is wrong.
    """
    try:
        classes = json.loads(Path(source, "config.json").read_text())["architectures"]
    except (OSError, ValueError, LookupError, TypeError):
        return domain(DOMAINS[0])
    for candidate in map(domain, DOMAINS):
        if any(str(name).endswith(candidate.TASK_CLASSES) for name in classes or ()):
            return candidate
    return domain(DOMAINS[0])


def of_architecture(name: str) -> ModuleType:
    """The domain that builds the architecture `name`."""
    for candidate in map(domain, DOMAINS):
        if name in candidate.names():
            return candidate
    raise IntqError(f"no architecture is called {name!r}; there are {', '.join(architectures())}")


def architectures() -> list[str]:
    """The names of all architectures of all domains."""
    return [name for candidate in DOMAINS for name in domain(candidate).names()]
