"""A node's rescale as kernels compute it: constants, and how its sums reach the high word of 64 bits. Without TVM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intq.graph import Node
from intq.value import Value

HIGH_WORD = 32  # a shift by 32 or more is the choice of the high word, then a 32-bit shift by the rest
# the fields of packed constants, in order; the shift is last
PER_CHANNEL = (
    *("multiplier", "multiplier_a", "multiplier_b", "residual_multiplier"),
    *("position_multiplier", "segment_multiplier", "offset"),
)
EMBEDDING_TABLES = ("word", "word_multiplier", "position", "segment")
NO_RESCALE = (
    *EMBEDDING_TABLES,
    "distances",
    "epsilon",
    "weight",
    "pad_value",
    "table",
    "curve",
    "lift",
    "window",
    "turn",
    "band_first",
    "band_count",
    "band_weight",
    "guard",
    "deviation_epsilon",
)  # constants that are none of a rescale's


@dataclass(frozen=True)
class Rescale:
    """A node's rescale constants as its kernel computes with them, an identity away from the node's own.

    Where every shift is 32 or more, a kernel takes the high word of the 64-bit sum first and shifts 32 bits by the
    rest: ``base`` is then 32 and the shifts are what exceeds it; otherwise it is 0. A residual whose scale is about
    that of the output needs shifts of 30 or 31. There all terms are lifted by ``lift`` bits, which changes nothing:
        (a m + r n + offset) >> s  =  (a (m 2^lift) + (r 2^lift) n + offset 2^lift) >> (s + lift)
    """

    constants: dict[str, np.ndarray]
    base: int
    lift: int

    @property
    def channelwise(self) -> bool:
        return any(array.ndim for array in self.constants.values())

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(name for name in PER_CHANNEL if name in self.constants)


def rescale_of(node: Node, inputs: tuple[Value, ...]) -> Rescale:
    """Whether and how a node's rescale reaches the high word."""
    constants = {name: array for name, array in node.constants.items() if name not in NO_RESCALE}
    if not constants:
        return Rescale({}, 0, 0)
    if "weight" not in node.constants:
        constants = {name: array.reshape(()) if array.size == 1 else array for name, array in constants.items()}
    least = int(constants["shift"].min())
    if least >= HIGH_WORD:
        return Rescale(constants | {"shift": constants["shift"] - HIGH_WORD}, HIGH_WORD, 0)
    lift = HIGH_WORD - least
    lifted = inputs[1:] if "weight" in node.constants else inputs
    # every term stays below 2**62: a multiplier or operand that is lifted stays an int32
    narrow = all(x.dtype != "int32" for x in lifted) and lift <= 15
    offset = np.abs(constants["offset"].astype(np.float64)).max() < 2.0 ** (61 - lift)
    if "weight" in node.constants:
        multiplier = np.abs(constants["multiplier"].astype(np.int64)).max() < 2 ** (31 - lift)
    else:
        multiplier = node.op in ("add", "requantize", "curve")
    if not (narrow and offset and multiplier):
        return Rescale(constants, 0, 0)
    constants |= {"offset": constants["offset"] << lift, "shift": constants["shift"] + (lift - HIGH_WORD)}
    if "weight" in node.constants:
        constants["multiplier"] = constants["multiplier"] << lift
    return Rescale(constants, HIGH_WORD, lift)
