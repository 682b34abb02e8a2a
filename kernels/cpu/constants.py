"""Rescale constants inside a kernel: of each channel, as :mod:`intq.kernels.cpu.pack` lays them out, or one number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import Vector, reinterpret, splat
from intq.kernels.build import i64, ramp
from intq.kernels.cpu.pack import epilogue_words, shift_words
from intq.kernels.cpu.runs import Run
from intq.kernels.rescale import Rescale


@dataclass(frozen=True)
class Channelwise:
    """Constants of each channel. ``base``: what was taken off the shifts, see :class:`intq.kernels.rescale.Rescale`.
    ``lift``: whether a curve's channels have a scale of their own."""

    fields: tuple[str, ...]
    base: int
    lift: bool = False

    def words(self, runs: tuple[Run, ...]) -> int:
        """int64 words of the constants of some runs."""
        return sum(epilogue_words(run, len(self.fields), self.base, self.lift) for run in runs)

    def load(self, buffer, at, run: Run) -> dict[str, Vector]:
        """A run's constants from ``buffer[at]`` on; bound to names, so that loops inside find them in registers."""
        count, width = (8 // run.rows, run.part_lanes // 2) if run.quad else (1, run.width)

        def words(start, parts: int) -> tuple:
            return tuple(T.Bind(buffer[ramp(start + i * width, width)]) for i in range(parts)) * run.rows

        loaded = {}
        for name in self.fields:
            loaded[name] = Vector(words(at, count), "int64", run.quad)
            at = at + run.width

        def narrow(start) -> Vector:
            if run.quad:
                parts = tuple(T.Bind(reinterpret(w, f"int32x{2 * width}")) for w in words(start, count // 2))
                return Vector(parts, "int32", True)
            parts = tuple(w.astype("int32" if width == 1 else f"int32x{width}") for w in words(start, 1))
            return Vector(parts, "int32")

        loaded["shift"] = narrow(at) if self.base else Vector(words(at, count), "int64", run.quad)
        if self.lift:
            loaded["lift"] = narrow(at + shift_words(run, self.base))
        return loaded


@dataclass(frozen=True)
class Uniform:
    """The same constants for all channels, as immediates; takes the place of :class:`Channelwise`."""

    rescale: Rescale

    def words(self, runs: tuple[Run, ...]) -> int:
        return 0

    def load(self, buffer, at, run: Run) -> dict[str, Vector]:
        return uniform(self.rescale.constants, run, self.rescale.base)


def scalars(packed, rescale: Rescale) -> dict:
    """Constants that are one number each, as :func:`intq.kernels.cpu.pack.rescale_array` lays them out."""
    return {name: T.Bind(packed[i64(i)]) for i, name in enumerate((*rescale.fields, "shift"))}


def everywhere(scalar, run: Run) -> Vector:
    """An int32 in every lane."""
    return Vector((splat(scalar, "int32", run.part_lanes),) * run.parts, "int32", run.quad)


def uniform(constants: dict, run: Run, base: int) -> dict[str, Vector]:
    """The same value in every lane: a NumPy scalar becomes an immediate, a TIR int64 is broadcast."""

    def scalar(value):
        return i64(value.item()) if isinstance(value, np.ndarray) else value

    def wide(value) -> Vector:
        count, width = (8, run.part_lanes // 2) if run.quad else (1, run.width)
        return Vector((splat(scalar(value), "int64", width),) * count, "int64", run.quad)

    if not constants:
        return {}
    out = {name: wide(value) for name, value in constants.items() if name != "shift"}
    shift = scalar(constants["shift"])
    if base:
        out["shift"] = Vector((splat(shift.astype("int32"), "int32", run.part_lanes),) * run.parts, "int32", run.quad)
    else:
        out["shift"] = wide(shift)
    return out
