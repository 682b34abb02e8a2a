"""The kernel of every node on a CPU: what each writer is given."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from intq.graph import Node
from intq.kernels.cpu import heads, move, pool
from intq.kernels.cpu.attention import attention
from intq.kernels.cpu.constants import Channelwise, Uniform
from intq.kernels.cpu.contract import contraction, convolve_frames
from intq.kernels.cpu.depthwise import avg_pool, depthwise, sums_by_product
from intq.kernels.cpu.depthwise_frames import depthwise_frames
from intq.kernels.cpu.embedding import embedding
from intq.kernels.cpu.epilogue import Epilogue, curve_in_words
from intq.kernels.cpu.frames import spectrum_of
from intq.kernels.cpu.isa import ISAS
from intq.kernels.cpu.layernorm import layernorm
from intq.kernels.cpu.log_mel import log_mel
from intq.kernels.cpu.normalize import frame_mask, normalize_frames
from intq.kernels.cpu.plan import Plan, of_node
from intq.kernels.cpu.pointwise import lookup, pointwise
from intq.kernels.cpu.relative import relative
from intq.kernels.cpu.tokens import mean_tokens
from intq.kernels.rescale import rescale_of
from intq.ops import OPS
from intq.ops.contract import masked
from intq.value import Value

Tensor = tuple[tuple, str]  # (shape, dtype)


def write(node: Node, inputs: tuple[Value, ...], arrays, isa: str) -> tirx.PrimFunc:
    """The kernel (inputs..., arrays..., out) of a node."""
    writer = WRITERS.get(OPS[node.op].loop) or WRITERS[node.op]
    return writer(node, inputs, arrays, isa)


def _tensor(value: Value) -> Tensor:
    return value.shape, value.dtype


def _contraction(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    plan, rescale = of_node(isa, node, inputs[0]), rescale_of(node, inputs)
    finish = Epilogue(
        OPS[node.op].body,
        node.attrs,
        node.output.dtype,
        inputs[1].dtype if "residual_multiplier" in node.constants else None,
        rescale.lift,
        Channelwise(rescale.fields, rescale.base, "lift" in node.constants),
        curve_in_words(node, ISAS[isa], rescale.base),
    )
    shapes = {"x": inputs[0].shape, "out": node.output.shape, "weight": arrays[0].shape, "constants": arrays[1].shape}
    if not plan.source[0]:  # frames of any number
        write = depthwise_frames if plan.mode == "depthwise" else convolve_frames
        return write("kernel", plan, finish, shapes, masked(inputs, node.constants))
    write = depthwise if plan.mode == "depthwise" else contraction
    return write("kernel", plan, finish, shapes)


def _pointwise(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    tensors, body = [_tensor(x) for x in inputs], OPS[node.op].body
    if "table" in node.constants:
        return lookup("kernel", body, node.attrs, node.constants["table"].dtype.name, tensors, _tensor(node.output))
    rescale = rescale_of(node, inputs)
    return pointwise("kernel", ISAS[isa], body, node.attrs, rescale, tensors, _tensor(node.output))


def _avg_pool(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    rescale, body, a = rescale_of(node, inputs), OPS[node.op].body, node.attrs
    x, channels = inputs[0], inputs[0].channels
    plan = Plan(isa, "depthwise", x.shape[1:], a["kernel"], a["stride"], a["padding"], (1, 1), channels, channels)
    if rescale.constants["multiplier"].ndim == 0 and sums_by_product(plan, x.dtype):
        finish = Epilogue(body, a, node.output.dtype, None, 0, Uniform(rescale))
        return avg_pool("kernel", plan, finish, {"x": x.shape, "out": node.output.shape})
    return pool.avg_pool("kernel", ISAS[isa], body, a, rescale, _tensor(x), _tensor(node.output))


def _max_pool(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    return pool.max_pool("kernel", OPS[node.op].body, node.attrs, _tensor(inputs[0]), _tensor(node.output))


def _layernorm(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    rescale = rescale_of(node, inputs)
    return layernorm("kernel", ISAS[isa], node.attrs, rescale, _tensor(inputs[0]), _tensor(node.output))


def _mean_tokens(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    tensors = [_tensor(x) for x in (*inputs, node.output)]
    return mean_tokens("kernel", ISAS[isa], node.attrs, rescale_of(node, inputs), *tensors)


def _embedding(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    rescale, tables = rescale_of(node, inputs), [(array.shape, array.dtype.name) for array in arrays[:-1]]
    ends = _tensor(inputs[0]), _tensor(node.output)
    return embedding("kernel", ISAS[isa], OPS[node.op].body, node.attrs, rescale, tables, *ends)


def _log_mel(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    given = [(array.shape, array.dtype.name) for array in arrays]
    base, ends = rescale_of(node, inputs).base, (_tensor(inputs[0]), _tensor(node.output))
    return log_mel("kernel", ISAS[isa], spectrum_of(node, isa), node.attrs, base, given, *ends)


def _normalize_frames(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    tensors = [_tensor(x) for x in (*inputs, node.output)]
    return normalize_frames("kernel", node.attrs, rescale_of(node, inputs), *tensors)


def _frame_mask(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    return frame_mask("kernel", OPS[node.op].body, node.attrs, _tensor(inputs[0]), _tensor(node.output))


def _relative(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    distances, rescale, body = heads.distances_of(isa, node), rescale_of(node, inputs), OPS[node.op].body
    return relative("kernel", distances, body, node.attrs, rescale, _tensor(inputs[0]), _tensor(node.output))


def _move(write: Callable) -> Callable:
    return lambda node, inputs, arrays, isa: write("kernel", node.attrs, _tensor(inputs[0]), _tensor(node.output))


def _concat(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    return move.concat("kernel", node.attrs, [_tensor(x) for x in inputs], _tensor(node.output))


def _attention(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    arithmetic, base = heads.arithmetic(node), rescale_of(node, inputs).base
    tensors = [_tensor(x) for x in inputs]
    return attention("kernel", heads.of_node(isa, node), node.attrs, arithmetic, base, tensors, _tensor(node.output))


WRITERS: dict[str, Callable] = {  # by loop; movements each have their own
    "conv1d": _contraction,
    "conv2d": _contraction,
    "linear": _contraction,
    "pointwise": _pointwise,
    "rows": _layernorm,
    "tokens": _mean_tokens,
    "embedding": _embedding,
    "attention": _attention,
    "relative": _relative,
    "spectrum": _log_mel,
    "frames": _normalize_frames,
    "mask": _frame_mask,
    "sum2d": _avg_pool,
    "max2d": _max_pool,
    "concat": _concat,
    "slice": _move(move.slice_),
    "transpose": _move(move.transpose),
    "pad": _move(move.pad),
}
