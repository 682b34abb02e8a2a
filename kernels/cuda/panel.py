"""Queries, keys and values of attention's heads on their way from tensors to matrices that tensor cores take."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.cuda.build import quotient, ramp, registers, remainder, store, view, when
from intq.kernels.cuda.heads import Heads, pitch
from intq.kernels.cuda.plan import CHUNK
from intq.ops.attention import ZERO_POINT

WORDS = CHUNK // 4


@dataclass(frozen=True)
class Place:
    """What a block has to do: ``part`` of the channels of a ``head`` of a ``sample``; and a thread of it."""

    heads: Heads
    samples: object
    tokens: object
    sample: object
    head: object
    part: object
    thread: object

    @property
    def elements(self):
        """Of q, k, v and the result."""
        return self.samples * self.tokens * self.heads.channels

    def element(self, token, channel):
        """The place of a channel of the head."""
        heads = self.heads
        return (self.sample * self.tokens + token) * heads.channels + self.head * heads.size + channel


class Panel:
    """Rows of chunks in shared memory, those of consecutive tokens, and how the block's threads bring them there.

    Zero points are taken off. Where there is no token or channel there are zeros.
    """

    def __init__(self, place: Place, buffer, chunks: int, first_chunk, memory):
        heads = place.heads
        self.place, self.buffer, self.chunks, self.first_chunk, self.memory = place, buffer, chunks, first_chunk, memory
        self.pitch = pitch(chunks) * WORDS
        self.whole = heads.size % CHUNK == 0 and heads.size == chunks * CHUNK * heads.parts
        turns = range(-(-heads.rows * chunks // heads.threads))
        numbers = [T.Bind(place.thread + turn * heads.threads) for turn in turns]
        self.at = [(T.Bind(quotient(n, chunks)), T.Bind(remainder(n, chunks)), n) for n in numbers]
        self.fetched = [registers(WORDS) for _ in turns]

    def _turns(self, body: Callable) -> None:
        """``body(row, chunk, registers)`` of every chunk that the thread brings."""
        count = self.place.heads.rows * self.chunks
        for turn, ((row, chunk, number), words) in enumerate(zip(self.at, self.fetched, strict=True)):
            with when(number < count if (turn + 1) * self.place.heads.threads > count else None):
                body(row, chunk, words)

    def fetch(self, token) -> None:
        """Load the chunks of the rows from ``token`` on into registers."""
        self._turns(lambda row, chunk, words: self._gather(words, T.Bind(token + row), self.first_chunk + chunk))

    def keep(self) -> None:
        """Store what was fetched."""
        zero = tirx.Broadcast(tirx.const(ZERO_POINT * 0x01010101, "uint32"), WORDS)

        def body(row, chunk, words):
            store(self.memory, words[ramp(0, WORDS)] ^ zero, ramp(row * self.pitch + chunk * WORDS, WORDS))

        self._turns(body)

    def load(self, target, at: int, row, chunk, count: int, transposed: bool = False) -> None:
        """``count`` matrices of eight rows of a chunk, to ``target[at]`` and behind; ``row``: the lane's own."""
        load = getattr(T.ptx.ldmatrix.sync.aligned.m8n8, f"x{count}")
        load = (load.trans if transposed else load).shared.b16
        address = T.address_of(self.memory[row * self.pitch + chunk * WORDS])
        T.evaluate(load(*[target[at + i] for i in range(count)], address))

    def _gather(self, words, token, chunk) -> None:
        """A chunk as words, in pieces that are aligned; what is not there has the zero point."""
        place, heads = self.place, self.place.heads
        piece = math.gcd(CHUNK, heads.size)
        dtype, lanes = f"uint{8 * min(piece, 4)}", max(1, piece // 4)
        nothing = tirx.const(ZERO_POINT * 0x01010101 & (2 ** (8 * min(piece, 4)) - 1), dtype)
        nothing = nothing if lanes == 1 else tirx.Broadcast(nothing, lanes)
        source = view(self.buffer, dtype, place.elements // piece if piece > 1 else place.elements)
        channel = T.Bind(chunk * CHUNK)
        start = T.Bind(place.element(token, channel))
        loaded = []
        for i in range(0, CHUNK, piece):
            inside = token < place.tokens
            inside = inside if self.whole else tirx.all(inside, channel + i < heads.size)
            value = source[ramp(quotient(start + i, piece) * lanes, lanes)]
            loaded.append(T.Bind(tirx.if_then_else(inside, value, nothing)))
        if piece >= 4:
            for i, value in enumerate(loaded):
                store(words, value, ramp(i * lanes, lanes))
            return
        each = 4 // piece
        for i in range(WORDS):
            few = [part.astype("uint32") for part in loaded[i * each : (i + 1) * each]]
            store(words, _joined(few, 8 * piece), i)


def _joined(parts: list, bits: int):
    """A word of parts of so many bits, the first lowest."""
    word = parts[0]
    for i, part in enumerate(parts[1:], 1):
        word = word | (part << tirx.const(i * bits, "uint32"))
    return word
