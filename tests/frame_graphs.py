"""Graphs of a speech front end's operations, and sounds and signals that they take."""

import numpy as np

from intq.graph import Graph, Node, make_node
from intq.ops.frames import normalize_parts
from intq.ops.log_mel import log_mel_parts
from intq.value import DTYPE_RANGE, Value

INT16 = DTYPE_RANGE["int16"]
SAMPLES, LENGTHS = (
    Value("x", ("n", "s"), "int16", *INT16, longest=2**20),
    Value("lengths", ("n",), "int32", 0, 2**31 - 1),
)


def triangles(bands: int, bins: int) -> np.ndarray:
    corners = np.linspace(0, bins - 1, bands + 2)
    at, middle, half = np.arange(bins), corners[1:-1, None], (bins - 1) / (bands + 1)
    return np.maximum(0, 1 - np.abs(at - middle) / max(half, 1))


def spectrum(name: str, fft: int, window: int, bands: int, seed: int = 0, **own) -> Node:
    """``window`` points of a random one, not in the middle."""
    rng, weights = np.random.default_rng(seed), np.zeros(fft)
    first = int(rng.integers(0, fft - window + 1))
    weights[first : first + window] = rng.uniform(0.1, 1, window)
    attrs, constants = log_mel_parts(weights, triangles(bands, fft // 2 + 1), 0.97, 2.0**-20, 2.0**-10, **own)
    return make_node("log_mel", name, (SAMPLES, LENGTHS), dtype="int16", attrs=attrs, constants=constants)


def spectra() -> Graph:
    """Transforms of an even and an odd number of stages, and of 3 and 5; windows that fill the points, and do not."""
    nodes = (
        spectrum("a", 512, 400, 80, hop=160, extra_frame=True),
        spectrum("c", 400, 400, 80, hop=160, padding="reflect", extra_frame=True),
        spectrum("d", 60, 41, 9, hop=20, extra_frame=True),
        spectrum("b", 64, 17, 16, hop=33, padding="reflect", extra_frame=True, guard_kind="clamp"),
    )
    return Graph((SAMPLES, LENGTHS), nodes, tuple(node.name for node in nodes))


def sound(rng, n: int, samples: int) -> np.ndarray:
    """Rows from silent to as loud as can be."""
    level = np.array([0, 1, 100, 2**15, 2**17])[np.arange(n) % 5, None]
    return np.clip(np.rint(rng.normal(0, 1, (n, samples)) * level), *INT16).astype(np.int16)


def overlapping() -> Graph:
    """Every sample begins a frame, so frames end at, before and behind the end of the row, whatever their lane."""
    nodes = tuple(
        spectrum(f"y{i}", 32, 20, 4, hop=1, padding=padding, extra_frame=True)
        for i, padding in enumerate(("constant", "reflect"))
    )
    return Graph((SAMPLES, LENGTHS), nodes, ("y0", "y1"))


def normalisation(name: str, rng, channels: int, dtype: str) -> tuple[tuple[Value, Value], Node]:
    x = Value(f"x{name}", ("n", "s", channels), "int16", *INT16, longest=5000)
    mask = Value(f"m{name}", ("n", "s"), "uint8", 0, 1, longest=5000)
    gamma, beta = rng.normal(0, 1, (2, channels))
    own = {"correction": int(rng.integers(2)), "epsilon": 1e-3, "deviation_epsilon": 1e-2, "longest": 5000}
    zero_point, scale = (128, 0.05) if dtype == "uint8" else (0, 1e-3)
    attrs, constants = normalize_parts(2.0**-10, gamma, beta, scale, zero_point, dtype, **own)
    return (x, mask), make_node("normalize_frames", name, (x, mask), dtype=dtype, attrs=attrs, constants=constants)


def normalisations(rng, *channels: int) -> Graph:
    made = [normalisation(f"y{c}", rng, c, "int16" if c % 2 else "uint8") for c in channels]
    inputs, nodes = tuple(x for pair, _ in made for x in pair), tuple(node for _, node in made)
    return Graph(inputs, nodes, tuple(node.name for node in nodes))


def frames_and_masks(graph: Graph, rng, n: int, frames: int) -> list[np.ndarray]:
    """Signals of every level, with every frame kept in the first row and, mostly, none in the last."""
    arrays = []
    for node, (x, _) in zip(graph.nodes, zip(graph.inputs[::2], graph.inputs[1::2], strict=True), strict=True):
        level = 4.0 ** rng.integers(0, 9, (n, 1, x.channels))
        values = rng.normal(0, 1, (n, frames, x.channels)) * level + rng.normal(0, 1, (n, 1, x.channels)) * level
        arrays.append(np.clip(np.rint(values), *INT16).astype(np.int16))
        arrays[-1][0, ::2, 0], arrays[-1][0, 1::2, 0] = INT16  # all the spread there is
        mask = rng.integers(0, 2, (n, frames)).astype(np.uint8)
        mask[0], mask[-1] = 1, node.name == "y80"  # all frames, and none
        arrays.append(mask)
    return arrays
