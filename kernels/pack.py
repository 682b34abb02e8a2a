"""Constants in the order in which kernels read them. Runs when an artifact is loaded: quick, without TVM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intq.graph import Node
from intq.kernels.cpu import frames, heads
from intq.kernels.cpu.isa import ISAS
from intq.kernels.cpu.plan import Plan, interleaves, of_node, padded_width
from intq.kernels.cpu.runs import DOUBLE, Run, runs
from intq.packing import pack
from intq.value import DTYPE_RANGE, Value

HIGH_WORD = 32  # a shift by 32 or more is the choice of the high word, then a 32-bit shift by the rest
# the fields of packed constants, in order; the shift is last
PER_CHANNEL = (
    *("multiplier", "multiplier_a", "multiplier_b", "residual_multiplier"),
    *("position_multiplier", "segment_multiplier", "offset"),
)
WINDOWED = ("conv2d", "avg_pool2d", "max_pool2d")
EMBEDDING_TABLES = ("word", "word_multiplier", "position", "segment")
PAIR = {"amx": 4, "vnni": 4, "avx2": 2, "plain": 1}  # consecutive k of one column that lie together
PASS = {"avx2": 16}  # columns of a block whose sums registers hold: fewer than all

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
        out = [heads.scalars(node, rescale_of(node, inputs).base)]
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
