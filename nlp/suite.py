"""GLUE as a whole: a folder with a network for each task, and one score."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from intq import artifact
from intq.errors import IntqError
from intq.nlp import tasks


def members(folder: Path) -> dict[str, Path]:
    """The artifacts or checkpoints in a folder by the task of GLUE that each is for, in GLUE's order.

    An artifact remembers the task that it was quantized for; otherwise the folder's name tells: "sst2", "SST-2-int8".
    An artifact itself is the only member. Raises IntqError when there are none, or two for one task.
    """
    places = [folder] if artifact.is_artifact(folder) else sorted(path for path in folder.iterdir() if path.is_dir())
    found: dict[str, Path] = {}
    for path in places:
        name = _task_of(path)
        if name in found:
            raise IntqError(f"{found[name]} and {path} are both for the task {name}: keep one of them in {folder}")
        if name:
            found[name] = path
    if not found:
        raise IntqError(
            f"{folder}: no folder in it is for a task of GLUE: expected artifacts made with `intq quantize --task`, or "
            f"folders named after the tasks ({', '.join(tasks.TASKS)})"
        )
    return {name: found[name] for name in tasks.TASKS if name in found}


def _task_of(path: Path) -> str | None:
    if artifact.is_artifact(path):
        remembered = json.loads((path / artifact.GRAPH_FILE).read_text(encoding="utf-8"))["metadata"].get("task")
        if remembered:
            return remembered
    parts = re.split(r"[-_.]", path.resolve().name.lower())
    words = {*parts, *map("".join, pairwise(parts))}  # SST-2 is two parts
    named = [name for name in tasks.TASKS if name in words]
    return named[0] if len(named) == 1 else None


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"task": "glue", "tasks": rows, "score", "float_score", "missing"} of what `evaluate` found for each task.

    score: the mean over the tasks of the mean of each one's metrics, as GLUE has it; float_score: the same of the
    float networks, null unless all are there; missing: the tasks that are not among them.
    """
    found = {row["task"] for row in rows}
    beside = [row["float"] for row in rows if "float" in row]
    return {
        "task": tasks.GLUE,
        "tasks": list(rows),
        "score": _score([row["metrics"] for row in rows]),
        "float_score": _score(beside) if len(beside) == len(rows) else None,
        "missing": [name for name in tasks.TASKS if name not in found],
    }


def _score(metrics: Sequence[Mapping[str, float]]) -> float:
    return float(np.mean([np.mean(list(values.values())) for values in metrics]))
