"""Elements and constants of a thread: loaded and stored as few wide words where they are aligned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.graph import Node
from intq.kernels.bodies import Vector, low_words
from intq.kernels.cuda.build import i32, quotient, ramp, store, view
from intq.kernels.cuda.pack import padded, rescale_count
from intq.kernels.rescale import Rescale, rescale_of
from intq.value import Value


@dataclass(frozen=True)
class Elements:
    """Neighbouring elements of a flat buffer, ``width`` at a time from multiples of it on. A thread moves them as one
    word of up to 16 bytes. ``count``: of the buffer."""

    buffer: object
    count: object
    width: int

    @property
    def bits(self) -> int:
        return 8 * np.dtype(str(self.buffer.dtype)).itemsize

    def load(self, at) -> Vector:
        """Elements ``at`` .. ``at + width`` as int32."""
        if self.width == 1:
            return Vector((T.Bind(self.buffer[at]).astype("int32"),), "int32")
        whole = view(self.buffer, "uint32", self._words(self.count))
        words = T.Bind(whole[self._place(at)])
        return Vector(tuple(self._element(words, i) for i in range(self.width)), "int32")

    def store(self, at, value: Vector) -> None:
        """Clamped, as the buffer's type."""
        value = low_words(value.clamped()) if value.dtype == "int64" else value.clamped()
        dtype = str(self.buffer.dtype)
        if self.width == 1:
            store(self.buffer, value.parts[0].astype(dtype), at)
            return
        each = 32 // self.bits
        words = [self._word(value.parts[i : i + each]) for i in range(0, self.width, each)]
        target = view(self.buffer, "uint32", self._words(self.count))
        whole = words[0] if len(words) == 1 else _vector(words)
        store(target, whole, self._place(at))

    def _place(self, at):
        """Of the words from element ``at`` on, a multiple of the width: TVM must see that to load them whole."""
        count = self._words(self.width)
        return ramp(quotient(at, self.width) * count, count)

    def _words(self, elements):
        each = 32 // self.bits
        return elements // each if isinstance(elements, int) else quotient(elements, each)

    def _element(self, words, i: int):
        each = 32 // self.bits
        word = words if self._words(self.width) == 1 else tirx.Shuffle([words], [i32(i // each)])
        if each == 1:
            return tirx.op.reinterpret("int32", word)
        place, dtype = i % each * self.bits, str(self.buffer.dtype)
        if dtype.startswith("u"):
            return ((word >> tirx.const(place, "uint32")) & tirx.const(2**self.bits - 1, "uint32")).astype("int32")
        high = tirx.op.reinterpret("int32", word << tirx.const(32 - place - self.bits, "uint32"))
        return high >> i32(32 - self.bits)

    def _word(self, parts):
        mask = tirx.const(2**self.bits - 1, "uint32")
        word = None
        for i, part in enumerate(parts):
            bits = tirx.op.reinterpret("uint32", part)
            bits = bits if len(parts) == 1 else (bits & mask) << tirx.const(i * self.bits, "uint32")
            word = bits if word is None else word | bits
        return word


def _vector(words):
    return tirx.Shuffle(words, [i32(i) for i in range(len(words))])


def width_of(channels: int | str, *dtypes: str, most: int = 4) -> int:
    """Elements that a thread takes at a time: up to ``most`` of a row of channels, no more than 16 bytes of any type,
    and a whole word of every type, else one. (Where the last axis is one of tokens, that is its name.)"""
    width = most if isinstance(channels, int) else 1
    if width == 1:
        return 1
    while channels % width or any(width * np.dtype(d).itemsize > 16 for d in dtypes):
        width //= 2
    return width if all(width * np.dtype(d).itemsize % 4 == 0 for d in dtypes) else 1


@dataclass(frozen=True)
class Constants:
    """A rescale's constants as :func:`intq.kernels.cuda.pack.rescale_array` lays them out for ``count`` channels."""

    rescale: Rescale
    count: int
    lift: bool = False

    @classmethod
    def of(cls, node: Node, inputs: tuple[Value, ...]) -> Constants:
        """Those of a node."""
        rescale = rescale_of(node, inputs)
        return cls(rescale, rescale_count(rescale), "lift" in node.constants)

    @property
    def names(self) -> tuple[str, ...]:
        return (*(name for name in (*self.rescale.fields, "shift") if name != "offset"), *(["lift"] * self.lift))

    @property
    def size(self) -> int:
        return padded(self.count) * (2 + len(self.names))

    def load(self, buffer, channels) -> dict[str, Vector]:
        """The constants of each of some channels; of all where there is one for all."""
        room, found = padded(self.count), {}
        places = [i32(0)] * len(channels) if self.count == 1 else channels
        offsets = view(buffer, "int64", self.size // 2)
        found["offset"] = Vector(tuple(T.Bind(offsets[p]) for p in places), "int64")
        for i, name in enumerate(self.names):
            parts = tuple(T.Bind(buffer[p + (i + 2) * room]) for p in places)
            found[name] = Vector(parts, "int32")
        if not self.rescale.base:
            found["shift"] = Vector(tuple(p.astype("int64") for p in found["shift"].parts), "int64")
        return found
