"""The classes that integer scores speak for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def best(scores: np.ndarray, labels: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The ``count`` best classes of one row of integer scores as {"label", "index", "score"}.

    Of equal scores the lower class comes first.
    """
    order = np.argsort(-scores.astype(np.int64), kind="stable")[:count]
    return [{"label": labels[i], "index": int(i), "score": int(scores[i])} for i in order]
