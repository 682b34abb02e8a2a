"""Constants in the order in which CPU kernels read them. Runs when an artifact is loaded: quick, without TVM."""

from __future__ import annotations

import numpy as np

from intq.graph import Node
from intq.kernels.cpu import frames, heads
from intq.kernels.cpu.isa import ISAS
from intq.kernels.cpu.plan import Plan, interleaves, of_node, padded_width
from intq.kernels.cpu.runs import DOUBLE, Run, runs
from intq.kernels.reach import scalars
from intq.kernels.rescale import EMBEDDING_TABLES, Rescale, rescale_of
from intq.packing import pack
from intq.value import DTYPE_RANGE, Value

WINDOWED = ("conv2d", "avg_pool2d", "max_pool2d")
PAIR = {"amx": 4, "vnni": 4, "avx2": 2, "plain": 1}  # consecutive k of one column that lie together
PASS = {"avx2": 16}  # columns of a block whose sums registers hold: fewer than all

Blocks = list[tuple[int, tuple[Run, ...]]]  # (first channel, runs)


def arrays(node: Node, inputs: tuple[Value, ...], isa: str) -> list[np.ndarray]:
    """What a node's kernel takes after its inputs, in order."""
    constants, out = node.constants, []
    if "weight" in constants:
        plan, weight = of_node(isa, node, inputs[0]), constants["weight"]
        if node.op == "conv1d":
            weight = weight[:, :, None]  # (co, k, 1, ci): frames are the rows of an image that is one pixel wide
        pack_weights = depthwise_weights if plan.mode == "depthwise" else weights
        packed = epilogue(rescale_of(node, inputs), output_blocks(plan), constants.get("lift"))
        out = [narrowed(plan, pack_weights(plan, weight)), packed]
    elif "table" in constants:
        out = [constants["table"]]
    elif node.op == "attention":
        out = [scalars(node, rescale_of(node, inputs).base)]
    elif node.op == "log_mel":
        out = frames.log_mel_arrays(node, rescale_of(node, inputs), isa)
    elif node.op == "normalize_frames":
        out = [normalize_array(node, inputs)]
    elif node.op == "relative":
        table = heads.distance_columns(heads.distances_of(isa, node), constants["distances"])
        out = [*table, rescale_array(node, inputs, isa)]
    elif node.op == "embedding":
        out = [*(constants[name] for name in EMBEDDING_TABLES), rescale_array(node, inputs, isa)]
    elif node.op != "avg_pool2d" and "shift" in constants:
        out = [rescale_array(node, inputs, isa)]
    if "curve" in constants:
        out.append(constants["curve"].ravel())
    out += [constants[name].reshape(1) for name in ("epsilon", "deviation_epsilon") if name in constants]
    if "weight" in constants and not plan.source[0]:
        out.append(constants["pad_value"])
    elif node.op == "pad" or (node.op in WINDOWED and any(node.attrs["padding"])):
        lowest = DTYPE_RANGE[node.output.dtype][0]
        channels = inputs[0].channels
        out.append(constants.get("pad_value", np.full(channels, lowest)).astype(inputs[0].dtype))
    if node.op == "avg_pool2d" and constants["multiplier"].size > 1:
        pixels = node.output.shape[1:3]
        rescale = rescale_of(node, inputs).constants
        fields = [rescale[name].astype(np.int64) for name in ("multiplier", "offset", "shift")]
        out.append(np.concatenate([np.broadcast_to(f.squeeze(-1) if f.ndim else f, pixels).ravel() for f in fields]))
    return [np.ascontiguousarray(array) for array in out]


def rescale_array(node: Node, inputs: tuple[Value, ...], isa: str) -> np.ndarray:
    """Rescale constants as :func:`epilogue` lays them out, or one int64 each where no channel has its own."""
    rescale = rescale_of(node, inputs)
    if rescale.channelwise:
        return epilogue(rescale, [(0, tuple(runs(node.output.channels, ISAS[isa].quads, ISAS[isa].natural)))])
    return np.array([rescale.constants[name] for name in (*rescale.fields, "shift")], np.int64)


def normalize_array(node: Node, inputs: tuple[Value, ...]) -> np.ndarray:
    """The same in runs of natural order, of which a kernel has four times as many as of quads."""
    return epilogue(rescale_of(node, inputs), [(0, tuple(runs(node.output.channels, (), frames.CHANNELS)))])


def output_blocks(plan: Plan) -> Blocks:
    """The output channels of a contraction, in the order in which its constants lie."""
    if plan.mode == "depthwise":
        return [(0, tuple(runs(plan.co, plan.isa.quads, plan.isa.natural)))]
    return [(group * plan.columns + at, block) for group in range(plan.groups) for at, block in plan.blocks]


def weights(plan: Plan, weight: np.ndarray) -> np.ndarray:
    """(co, kh, kw, ci) int8 -> flat int8: per group, per block of columns, pass by pass, k by k in the plan's order."""
    rows = weight.reshape(plan.groups, plan.columns, -1)
    if plan.mode == "dense":
        rows = np.pad(rows, ((0, 0), (0, -plan.columns % DOUBLE.width), (0, 0)))
    if not np.array_equal(plan.k_order, np.arange(rows.shape[-1])):
        rows = np.concatenate([rows, np.zeros_like(rows[..., :1])], axis=-1)[..., plan.k_order]  # k = -1 is zero
    return np.concatenate([_block(plan, rows[g], at, block) for g in range(plan.groups) for at, block in plan.blocks])


def _block(plan: Plan, rows: np.ndarray, at: int, block: tuple[Run, ...]) -> np.ndarray:
    order = np.concatenate([at + run.start + run.order for run in block])
    columns = np.zeros((padded_width(block), rows.shape[1]), np.int8)
    columns[: len(order)] = rows[order]
    if plan.isa_name != "amx":
        at_once, pair = PASS.get(plan.isa_name, len(columns)), PAIR[plan.isa_name]
        return columns.reshape(-1, at_once, rows.shape[1] // pair, pair).swapaxes(1, 2).ravel()
    tiles = columns.reshape(-1, 16, plan.steps, plan.step // 4, 4).transpose(
        0, 2, 3, 1, 4
    )  # (tile, step, k/4, column, 4)
    return np.concatenate([tiles[i : i + 2].swapaxes(0, 1).ravel() for i in range(0, len(tiles), 2)])


def depthwise_weights(plan: Plan, weight: np.ndarray) -> np.ndarray:
    """(c, kh, kw, 1) int8 -> flat: run by run (kh, kw, lane); interleaved: (kw, kh/4, lane, 4)."""
    kh, kw = plan.kernel
    out = []
    for run in output_blocks(plan)[0][1]:
        taps = weight[run.start : run.start + run.width, :, :, 0][run.order]  # (lane, kh, kw)
        if interleaves(plan, run):
            taps = np.pad(taps, ((0, 0), (0, -kh % 4), (0, 0))).reshape(run.width, -1, 4, kw).transpose(3, 1, 0, 2)
        else:
            taps = taps.transpose(1, 2, 0)
        out.append(taps.ravel())
    return np.concatenate(out)


def narrowed(plan: Plan, weight: np.ndarray) -> np.ndarray:
    """Flat weights as memory holds them: of fewer than 8 bits two or four to a byte, chunk by chunk, see Plan.chunk."""
    if plan.weight_bits == 8:
        return weight
    fields = np.pad(weight, (0, -weight.size % plan.chunk)).reshape(-1, plan.per_byte, plan.chunk // plan.per_byte)
    return pack(fields.swapaxes(1, 2), plan.weight_bits).view(np.int8)


def epilogue(rescale: Rescale, blocks: Blocks, lift: np.ndarray | None = None) -> np.ndarray:
    """Per-channel constants -> flat int64: for every run its multipliers, offset, shift and lift, in lane order."""
    channels, base = sum(run.width for _, block in blocks for run in block), rescale.base
    spread = {name: _spread(array, channels) for name, array in rescale.constants.items()}
    fields, shift = [spread[name] for name in rescale.fields], spread["shift"]
    lifts = None if lift is None else _spread(lift, channels)
    out = []
    for at, block in blocks:
        for run in block:
            here = slice(at + run.start, at + run.start + run.width)
            out += [field[here][run.pair_order] for field in fields]
            out.append(_narrow(shift[here], run) if base else shift[here][run.pair_order])
            if lift is not None:
                out.append(_narrow(lifts[here], run))
    return np.concatenate(out)


def _narrow(values: np.ndarray, run: Run) -> np.ndarray:
    """A run's int32, two in a word where it is a quad."""
    return values[run.order].astype(np.int32).view(np.int64) if run.quad else values[run.pair_order]


def _spread(array: np.ndarray, channels: int) -> np.ndarray:
    """One int64 for each channel; the last repeated for those that only fill a run."""
    return np.pad(np.atleast_1d(array), (0, channels - max(1, array.size)), "edge").astype(np.int64)


def shift_words(run: Run, base: int) -> int:
    """int64 words of a run's shifts."""
    return run.width // 2 if base and run.quad else run.width


def epilogue_words(run: Run, fields: int, base: int, lift: bool = False) -> int:
    """int64 words that :func:`epilogue` writes for a run with so many fields before the shift."""
    return fields * run.width + shift_words(run, base) + lift * shift_words(run, 1)
