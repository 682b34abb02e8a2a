"""`intq eval`: one network, one beside its float network, or the nine tasks of GLUE in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from intq import domains
from intq.console import step
from intq.errors import IntqError
from intq.networks import Network, refuse_options


def measured(
    network: Network,
    task: str | None,
    beside: Network | None,
    *,
    data: str | None,
    limit: int | None,
    batch: int,
    own: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `evaluate` of its domain finds of a network; beside: its float network, to measure too; own: options that
    only its domain has."""
    refuse_options(network.domain, float=beside, **(own or {}))
    options: dict[str, Any] = {**(own or {}), **({"task": task} if task else {})}
    if beside:
        check_same_head(network.metadata, beside.metadata)
        options["beside"] = beside.predict
    predict, reader, metadata = network.predict, network.reader, network.metadata
    with step(f"Evaluating {metadata['model']}") as advance:
        return network.domain.evaluate(
            predict, reader, metadata, data, limit=limit, batch=batch, progress=advance, **options
        )


def glue(
    folder: str, beside: str | None, opened: Callable[..., Network], measured: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """All tasks of GLUE for which a folder holds an artifact (as `float:DIR` a checkpoint), each beside its float one.

    beside: where the float networks are, {task} standing for the task's name; if None each artifact's origin, where
    that can still be had. opened, measured: `network_of` and `measured`, all but what differs between the tasks given.
    """
    prefix = "float:" if folder.startswith("float:") else ""
    nlp = domains.domain("nlp")
    rows, notices = [], []
    for task, path in nlp.members(Path(folder.removeprefix(prefix))).items():
        network, other = opened(f"{prefix}{path}", task), None
        if beside:
            other = opened(f"float:{beside.replace('{task}', task)}", task)
        elif not prefix:
            try:
                other = opened(f"float:{network.metadata['source']}", task)
            except IntqError as error:
                notices.append(f"{task}: no float network beside it, say with --float where it is ({error})")
        rows.append({"artifact": str(path)} | measured(network, task, other))
    return nlp.summary(rows) | {"notices": notices}


def check_same_head(metadata: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raise IntqError unless two networks' answers can be compared. Classes may have got other names, by --labels."""
    mine, its = ([m.get("head"), *m["labels"]] for m in (metadata, other))
    if mine[0] != its[0] or len(mine) != len(its) or (set(mine) == set(its) and mine != its):
        raise IntqError(
            f"--float {other['model']}: its head ({', '.join(its)}) is not that of {metadata['model']} "
            f"({', '.join(mine)})"
        )
