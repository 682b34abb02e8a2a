"""What follows the sums of a contraction: an operation's body, with its constants, its residual and its curve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from intq.graph import Node
from intq.kernels.bodies import TvmDialect, Vector, lanes
from intq.kernels.cpu.constants import Channelwise, Uniform
from intq.kernels.cpu.heads import words_suffice
from intq.kernels.cpu.isa import Isa
from intq.kernels.cpu.lanes import CURVE, TABLE, load, tables
from intq.kernels.cpu.runs import Run
from intq.kernels.cpu.words import WIDTH, LayerDialect, Words, bound, packed, word_tables
from intq.kernels.rescale import HIGH_WORD


@dataclass(frozen=True)
class Buffers:
    """A contraction's flat buffers: ``residual`` and ``curve`` are None where the operation has none."""

    x: object
    residual: object
    weight: object
    constants: object
    curve: object
    out: object


def frames_arguments(shapes: Mapping[str, tuple], epilogue: Epilogue, masked: bool) -> dict[str, tuple[tuple, str]]:
    """(shape, dtype) of all that the kernel of a convolution over frames takes, in order, by name.

    ``shapes``: of "x" and "out" as in the graph, of "weight" and "constants" as packed.
    """
    x, out = shapes["x"], shapes["out"]
    arguments = {
        "x": (x, "uint8"),
        "residual": (out, epilogue.residual) if epilogue.residual else None,
        "mask": (x[:2], "uint8") if masked else None,
        "weight": (shapes["weight"], "int8"),
        "constants": (shapes["constants"], "int64"),
        "curve": ((CURVE * TABLE,), "int32") if epilogue.curve else None,
        "pad_value": (x[-1:], "uint8"),
        "out": (out, epilogue.dtype),
    }
    return {name: argument for name, argument in arguments.items() if argument}


def sizes_of(shapes: Mapping[str, tuple]) -> tuple[tuple[str, ...], tuple]:
    """The symbolic names among (samples, frames, places) of a convolution's input and output, and all three."""
    sizes = (*shapes["x"][:2], shapes["out"][1])
    return tuple(dict.fromkeys(d for d in sizes if isinstance(d, str))), sizes


@dataclass(frozen=True)
class Epilogue:
    """An operation's ``body`` and attributes, the layout of its constants, output and residual dtypes.

    ``words``: whether its curve may be computed in 16-bit lanes (see :func:`curve_in_words`), 64 values at a time.
    """

    body: Callable
    attrs: Mapping
    dtype: str
    residual: str | None
    lift: int  # of the residual, see intq.kernels.rescale.Rescale
    constants: Channelwise | Uniform
    words: bool = False

    @property
    def curve(self) -> bool:
        """Whether the body ends in a curve, whose coefficients are a kernel's argument after the other constants."""
        return "drop" in self.attrs

    def load(self, buffers: Buffers, at, run: Run, isa: Isa) -> dict:
        """All constants of a run of channels, those of the rescale from ``constants[at]`` on."""
        constants = self.constants.load(buffers.constants, at, run)
        if self.words and 4 * run.part_lanes == WIDTH:
            constants["curve"] = word_tables(buffers.curve)
            if "lift" in constants:
                constants["lift"] = bound(packed(constants["lift"]))
        elif self.curve:
            constants["curve"] = tables(buffers.curve, isa)
        return constants

    def residual_of(self, buffer, index, run: Run) -> Vector:
        return load(buffer, index, run).lifted(self.lift)

    def apply(self, operands: tuple[Vector, ...], constants: dict) -> Vector | Words:
        whole = sum(map(lanes, operands[0].parts)) == WIDTH
        return self.body(LayerDialect if self.words and whole else TvmDialect, operands, constants, self.attrs)


def curve_in_words(node: Node, isa: Isa, base: int) -> bool:
    """Whether a node's curve loses nothing in 16-bit lanes: a result of all 8 bits, coefficients and level that fit."""
    if "curve" not in node.constants or "avx512bw" not in isa.features or base != HIGH_WORD:
        return False
    bytes_ = node.output.dtype == "uint8" and (node.attrs["low"], node.attrs["high"]) == (0, 255)
    fits = node.attrs.get("level", 0) < 2**15 and node.attrs["drop"] <= 15
    lifts = int(node.constants["lift"].max()) <= node.attrs["drop"] if "lift" in node.constants else True
    return bytes_ and fits and lifts and words_suffice(node.constants["curve"])
