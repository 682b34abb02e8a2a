"""Attention's scores: what of their range kernels rely on, and the numbers they are given when loaded. Without TVM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intq.curves import TOP
from intq.graph import Node
from intq.ops.attention import FAR

SCALARS = (
    "score_multiplier",
    "score_offset",
    "score_shift",
    "multiplier",
    "offset",
    "shift",
    "masked",  # how far below the others the score of a masked key is put
    "beyond",  # and that of a key that there is not
)


@dataclass(frozen=True)
class Reach:
    """What of the scores' range the arithmetic may rely on.

    ``masked``: a penalty that gives a masked key's weight the argument TOP, as FAR does; ``beyond``: one larger by more
    than scores can differ; ``narrow``: every rescaled distance is in [0, 2**31), so that it needs no 64-bit clamp.
    """

    masked: int
    beyond: int
    narrow: bool


def reach_of(node: Node) -> Reach:
    multiplier, offset, shift = (int(node.constants[f"score_{name}"]) for name in ("multiplier", "offset", "shift"))
    # two scores differ by less than that: |(q - 128) (k - 128)| <= 2**14
    span = (node.attrs["size"] << 15) + 2 * node.attrs.get("bias", 0)
    masked = FAR
    if multiplier > 0:
        least = max(1, -((offset - (TOP << shift)) // multiplier))  # the least distance whose argument is TOP
        masked = min(FAR, least + span)
    beyond = masked + span
    largest = ((beyond + span) * multiplier + offset) >> shift
    return Reach(masked, beyond, multiplier > 0 and offset >= 0 and largest < 2**31)


def scalars(node: Node, base: int) -> np.ndarray:
    """SCALARS as int64, in order; ``base`` is taken off ``shift``."""
    reach, constants = reach_of(node), node.constants
    values = {name: int(constants[name]) for name in SCALARS[:6]}
    values |= {"shift": values["shift"] - base, "masked": reach.masked, "beyond": reach.beyond}
    return np.array([values[name] for name in SCALARS], np.int64)
