"""`intq eval`: one network, one beside its float network, or the nine tasks of GLUE in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from intq import artifact, domains
from intq.console import step
from intq.errors import IntqError
from intq.networks import network_of, refuse_options


def measured(
    network: str,
    task: str | None,
    beside: str | None,
    *,
    data: str | None,
    labels: str | None,
    truncate: bool,
    threads: int | None,
    limit: int | None,
    batch: int,
) -> tuple[dict[str, Any], str]:
    """(what `evaluate` of its domain finds, the name of the model) of an artifact's folder or of `float:CHECKPOINT`.

    beside: the checkpoint of a float network to measure too.
    """
    found = network_of(network, task, labels, truncate, threads)
    refuse_options(found.domain, float=beside)
    options: dict[str, Any] = {"task": task} if task else {}
    if beside:
        other = network_of(f"float:{beside}", task, labels, truncate, threads)
        check_same_head(found.metadata, other.metadata, beside)
        options["beside"] = other.predict
    with step(f"Evaluating {network}") as advance:
        value = found.domain.evaluate(
            found.predict, found.reader, found.metadata, data, limit=limit, batch=batch, progress=advance, **options
        )
    return value, found.metadata["model"]


def glue(network: str, beside: str | None, measured: Callable[..., tuple[dict[str, Any], str]]) -> dict[str, Any]:
    """All tasks of GLUE for which the folder `network` holds an artifact (or a checkpoint), each beside its float one.

    beside: where the float networks are, {task} standing for the task's name; each artifact's origin if None.
    """
    prefix = "float:" if network.startswith("float:") else ""
    nlp = domains.domain("nlp")
    rows, notices = [], []
    for task, path in nlp.members(Path(network.removeprefix(prefix))).items():
        other = beside.replace("{task}", task) if beside else ""
        if not (beside or prefix):
            other = artifact.load(path).metadata.get("source", "")
            if Path(other).is_absolute() and not Path(other).exists():
                notices.append(f"{task}: the float checkpoint {other} is not there; say with --float where it is")
                other = ""
        value, _ = measured(f"{prefix}{path}", task, other)
        rows.append({"artifact": str(path)} | value)
    return nlp.summary(rows) | {"notices": notices}


def check_same_head(metadata: Mapping[str, Any], other: Mapping[str, Any], name: str) -> None:
    """Raise IntqError unless two networks' answers can be compared. Classes may have got other names, by --labels."""
    mine, its = ([m.get("head"), *m["labels"]] for m in (metadata, other))
    if mine[0] != its[0] or len(mine) != len(its) or (set(mine) == set(its) and mine != its):
        raise IntqError(f"--float {name}: its head ({', '.join(its)}) is not that of the artifact ({', '.join(mine)})")
