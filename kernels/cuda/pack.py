"""Constants in the order in which CUDA kernels read them. Runs when an artifact is loaded: quick, without TVM."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from intq.graph import Node
from intq.kernels.cuda.plan import CHUNK, STEP, SWIZZLE, Plan, is_depthwise, of_node
from intq.kernels.reach import scalars
from intq.kernels.rescale import EMBEDDING_TABLES, Rescale, rescale_of
from intq.ops.log_mel import input_order
from intq.value import DTYPE_RANGE, Value

BEYOND = 128  # channels that constants are padded by: a tile of C may end behind the last one
WINDOWED = ("conv2d", "avg_pool2d", "max_pool2d")


def arrays(node: Node, inputs: tuple[Value, ...], arch: str) -> list[np.ndarray]:
    """What a node's kernel takes after its inputs, in order."""
    constants, out = node.constants, []
    if "weight" in constants:
        plan = of_node(arch, node, inputs[0])
        weight = depthwise_weights(constants["weight"]) if is_depthwise(plan) else weights(plan, constants["weight"])
        out = [weight, rescale_array(rescale_of(node, inputs), constants.get("lift"))]
    elif "table" in constants:
        out = [constants["table"]]
    elif node.op == "embedding":
        out = [*(constants[name] for name in EMBEDDING_TABLES), rescale_array(rescale_of(node, inputs))]
    elif node.op == "relative":
        out = [distance_rows(constants["distances"]), rescale_array(rescale_of(node, inputs))]
    elif node.op == "log_mel":
        out = [*log_mel_arrays(constants), rescale_array(rescale_of(node, inputs))]
    elif node.op == "attention":
        out = [scalars(node, rescale_of(node, inputs).base)]
    elif "shift" in constants:
        out = [rescale_array(rescale_of(node, inputs))]
    if "curve" in constants:
        out.append(constants["curve"].ravel())
    out += [constants[name].reshape(1) for name in ("epsilon", "deviation_epsilon") if name in constants]
    windowed = "weight" in constants and node.op != "linear"
    if windowed or node.op == "pad" or (node.op in WINDOWED and any(node.attrs["padding"])):
        lowest = DTYPE_RANGE[node.output.dtype][0]
        channels = inputs[0].channels
        out.append(constants.get("pad_value", np.full(channels, lowest)).astype(inputs[0].dtype))
    return [np.ascontiguousarray(array) for array in out]


def weights(plan: Plan, weight: np.ndarray) -> np.ndarray:
    """(co, ..., ci) int8 -> flat int8: per group and tile of columns, step by step, the column's chunks of k.

    The chunks of a column are exchanged as they lie in shared memory, see :func:`swizzled`.
    """
    step = STEP * plan.per_byte
    rows = weight.reshape(plan.groups, plan.columns, -1)
    columns, k = plan.column_tiles * plan.tile.columns - plan.columns, plan.steps * step - plan.k
    rows = np.pad(rows, ((0, 0), (0, columns), (0, k)))
    if plan.nibbles:
        rows = (rows[..., ::2] & 15) | (rows[..., 1::2] << 4)  # the first of two in the low bits
    tiles = rows.reshape(plan.groups, plan.column_tiles, plan.tile.columns, plan.steps, STEP // CHUNK, CHUNK)
    tiles = tiles.swapaxes(2, 3)  # (group, tile, step, column, chunk, byte)
    column, place = np.ogrid[: plan.tile.columns, : STEP // CHUNK]
    return tiles[:, :, :, column, swizzled(column, place)].ravel()


def swizzled(row, chunk):
    """Where a chunk of a row lies in shared memory, and which one lies there: eight rows of one chunk, which a warp
    reads at once, are in different banks."""
    return chunk ^ ((row >> 1) % SWIZZLE)


def depthwise_weights(weight: np.ndarray) -> np.ndarray:
    """(co, taps..., 1) int8 -> (taps, co): a thread's channels lie together."""
    return np.moveaxis(weight.reshape(len(weight), -1), 0, 1)


def distance_rows(table: np.ndarray) -> np.ndarray:
    """(heads, distances, size) int8 with zeros behind the channels: a row is a whole number of chunks and of steps."""
    size = table.shape[2]
    return np.pad(table, ((0, 0), (0, 0), (0, -size % (CHUNK if size <= STEP else STEP))))


def log_mel_arrays(constants: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """[window, order, turn, bands, weights, guard]: the place where each complex point's transform begins; real and
    imaginary part of each turn; of each band its first bin, how many it has and where their weights begin."""
    first, count = constants["band_first"], constants["band_count"]
    return [
        constants["window"].ravel(),
        np.argsort(input_order(constants["window"].shape[1] // 2)).astype(np.int32),
        constants["turn"].T.ravel(),
        np.stack([first, count, np.cumsum(count, dtype=np.int32) - count], 1).ravel(),
        constants["band_weight"],
        constants["guard"],
    ]


def rescale_array(rescale: Rescale, lift: np.ndarray | None = None) -> np.ndarray:
    """Rescale constants -> flat int32: offsets of 64 bits, then one multiplier after the other, shifts, lifts.

    Of each there are :func:`padded` many, the last of which are copies.
    """
    count = rescale_count(rescale)

    def spread(array: np.ndarray) -> np.ndarray:
        return np.pad(np.broadcast_to(np.asarray(array).ravel(), count), (0, padded(count) - count), "edge")

    out = [spread(rescale.constants["offset"]).astype(np.int64).view(np.int32)]
    names = (*(name for name in rescale.fields if name != "offset"), "shift")
    out += [spread(rescale.constants[name]).astype(np.int32) for name in names]
    if lift is not None:
        out.append(spread(lift).astype(np.int32))
    return np.concatenate(out)


def rescale_count(rescale: Rescale) -> int:
    """How many channels (or pixels) have constants of their own; 1: all have the same."""
    return max(np.size(array) for array in rescale.constants.values())


def padded(count: int) -> int:
    """Elements of each of the constants for so many channels."""
    return 1 if count == 1 else count + BEYOND
