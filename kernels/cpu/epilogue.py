"""What follows the sums of a contraction: an operation's body, with its constants, its residual and its curve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from intq.kernels.bodies import TvmDialect, Vector
from intq.kernels.cpu.constants import Channelwise, Uniform
from intq.kernels.cpu.isa import Isa
from intq.kernels.cpu.lanes import load, tables
from intq.kernels.cpu.runs import Run


@dataclass(frozen=True)
class Buffers:
    """A contraction's flat buffers: ``residual`` and ``curve`` are None where the operation has none."""

    x: object
    residual: object
    weight: object
    constants: object
    curve: object
    out: object


@dataclass(frozen=True)
class Epilogue:
    """An operation's ``body`` and attributes, the layout of its constants, output and residual dtypes."""

    body: Callable
    attrs: Mapping
    dtype: str
    residual: str | None
    lift: int  # of the residual, see intq.kernels.pack.Rescale
    constants: Channelwise | Uniform

    @property
    def curve(self) -> bool:
        """Whether the body ends in a curve, whose coefficients are a kernel's argument after the other constants."""
        return "drop" in self.attrs

    def load(self, buffers: Buffers, at, run: Run, isa: Isa) -> dict:
        """All constants of a run of channels, those of the rescale from ``constants[at]`` on."""
        curve = {"curve": tables(buffers.curve, isa)} if self.curve else {}
        return self.constants.load(buffers.constants, at, run) | curve

    def residual_of(self, buffer, index, run: Run) -> Vector:
        return load(buffer, index, run).lifted(self.lift)

    def apply(self, operands: tuple[Vector, ...], constants: dict) -> Vector:
        return self.body(TvmDialect, operands, constants, self.attrs)
