"""Inputs for comparing backends: random ones, and those that reach what random data does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from intq import dims
from intq.graph import Graph
from intq.value import Value, bind_shape

RECORDED = 8123  # samples: half a second at 16 kHz
SHORT = 29  # tokens: few enough to be quick, and no multiple of what kernels compute at once

Arrays = tuple[np.ndarray, ...]


def probes(graph: Graph, seed: int) -> Iterator[tuple[str, Arrays]]:
    """(name, inputs) of batches for a graph of images, of texts (an axis of unknown length) or of recordings."""
    rng, inputs = np.random.default_rng(seed), graph.inputs
    if reads_recordings(graph):
        yield from _recordings(graph, rng)
        return
    yield from (_texts if any(isinstance(d, str) for v in inputs for d in v.shape[1:]) else _images)(graph, rng)


def reads_recordings(graph: Graph) -> bool:
    """Whether the inputs are samples (n, t) and how many of them each recording has, (n,)."""
    return len(graph.inputs) == 2 and graph.inputs[0].dtype == "int16" and graph.inputs[1].shape == ("n",)


def _images(graph: Graph, rng: np.random.Generator) -> Iterator[tuple[str, Arrays]]:
    """Both ends of every range, and one element that stands out."""
    inputs = graph.inputs
    yield "random", _each(inputs, lambda v: _random(v, rng, 1))
    yield "lowest, highest", _each(inputs, lambda v: _rows(_full(v, v.low), _full(v, v.high)))
    hot = "one-hot corner, one-hot centre"
    yield hot, _each(inputs, lambda v: _rows(_one_hot(v, 0.0), _one_hot(v, 0.5)))


def _texts(graph: Graph, rng: np.random.Generator) -> Iterator[tuple[str, Arrays]]:
    """Padded texts, a single token, one token all over (padding too), and the longest text."""
    inputs, padding = graph.inputs, padding_of(graph)
    yield "random, padded", tuple(padded(graph, 3, rng)[0])
    yield "one token", _each(inputs, lambda v: _random(v, rng, 1, 1))
    fills = [[v.low, v.high, *([padding] if padding is not None else [])] for v in inputs]
    extremes = "lowest, highest" + (", padding" if padding is not None else "")
    yield extremes, tuple(_rows(*(_full(v, f, short(v)) for f in fs)) for v, fs in zip(inputs, fills, strict=True))
    if all(v.longest > short(v) for v in inputs):
        yield "longest", _each(inputs, lambda v: _random(v, rng, 1, v.longest))


def _recordings(graph: Graph, rng: np.random.Generator) -> Iterator[tuple[str, Arrays]]:
    """Padded recordings, the shortest that there is, silence, full scale at all frequencies and clipped."""
    yield "random, padded", tuple(padded(graph, 3, rng)[0])
    samples = graph.inputs[0]
    least = shortest(graph)
    yield "shortest", (rng.integers(samples.low, samples.high, (1, least), samples.dtype), np.array([least], np.int32))
    length = max(least, RECORDED)
    square = np.where(np.arange(length) // 20 % 2, samples.high, samples.low)
    both = np.stack([np.zeros(length), square, np.full(length, samples.low)]).astype(samples.dtype)
    yield "silence, clipped, lowest", (both, np.full(len(both), length, np.int32))


def shortest(graph: Graph) -> int:
    """The fewest samples of which every value of a graph of recordings has a frame."""
    needed = 1
    for value in graph.values.values():
        for _, add, divide in (dims.parts(d) for d in value.shape[1:] if isinstance(d, str)):
            needed = max(needed, divide - add)
    return needed


def padding_of(graph: Graph) -> int | None:
    """The id that the graph's mask leaves out; None for a graph without a mask of its input."""
    names = {v.name for v in graph.inputs}
    masks = (n for n in graph.nodes if n.op == "differs" and names & set(n.inputs))
    return next((node.attrs["value"] for node in masks), None)


def short(value: Value) -> int:
    return min(SHORT, value.longest or SHORT)


def padded(graph: Graph, batch: int, rng: np.random.Generator) -> tuple[list[np.ndarray], list[int]]:
    """Inputs of different lengths in one batch, the first of full length, the last as short as can be; their lengths.

    Texts of random ids, padded at their end. Recordings, with noise where they have ended: nothing may read it.
    """
    if reads_recordings(graph):
        samples, least = graph.inputs[0], shortest(graph)
        longest = least + RECORDED
        lengths = [longest, *rng.integers(least, longest, max(0, batch - 2), endpoint=True).tolist(), least][:batch]
        noise = rng.integers(samples.low, samples.high, (batch, longest), samples.dtype, endpoint=True)
        return [noise, np.array(lengths, np.int32)], lengths
    padding = padding_of(graph)
    tokens = min(short(v) for v in graph.inputs)
    lengths = [tokens, *rng.integers(1, tokens, max(0, batch - 2), endpoint=True).tolist(), 1][:batch]
    arrays = [_random(v, rng, batch, tokens) for v in graph.inputs]
    if padding is not None:
        for array in arrays:
            array[array == padding] = padding + 1 if padding == 0 else padding - 1  # no padding inside a text
            for row, length in zip(array, lengths, strict=True):
                row[length:] = padding
    return arrays, lengths


def _each(inputs: Sequence[Value], make) -> Arrays:
    return tuple(make(value) for value in inputs)


def _rows(*arrays: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays)


def _shape(value: Value, batch: int, tokens: int) -> tuple[int, ...]:
    return bind_shape(value.shape, {d: tokens for d in value.shape[1:] if isinstance(d, str)} | {value.shape[0]: batch})


def _random(value: Value, rng: np.random.Generator, batch: int, tokens: int = 0) -> np.ndarray:
    return rng.integers(value.low, value.high, _shape(value, batch, tokens), endpoint=True).astype(value.dtype)


def _full(value: Value, fill: int, tokens: int = 0) -> np.ndarray:
    return np.full(_shape(value, 1, tokens), fill, value.dtype)


def _one_hot(value: Value, where: float) -> np.ndarray:
    array = _full(value, value.low)
    array[tuple(int(size * where) for size in array.shape)] = value.high
    return array
