"""The kernel of every node on a GPU: what each writer is given."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from intq.graph import Node
from intq.kernels.cuda import heads, move, windows
from intq.kernels.cuda.attention import attention
from intq.kernels.cuda.contract import Epilogue, contraction
from intq.kernels.cuda.elements import Constants
from intq.kernels.cuda.embedding import embedding
from intq.kernels.cuda.frames import frame_mask, normalize_frames
from intq.kernels.cuda.layernorm import layernorm
from intq.kernels.cuda.log_mel import log_mel
from intq.kernels.cuda.plan import is_depthwise, of_node
from intq.kernels.cuda.pointwise import lookup, pointwise
from intq.kernels.cuda.relative import relative
from intq.kernels.cuda.tokens import mean_tokens
from intq.kernels.reach import reach_of
from intq.kernels.rescale import rescale_of
from intq.ops import OPS
from intq.ops.contract import masked
from intq.value import Value


def write(node: Node, inputs: tuple[Value, ...], arrays, arch: str) -> tirx.PrimFunc:
    """The kernel (inputs..., arrays..., out) of a node."""
    writer = WRITERS.get(OPS[node.op].loop) or WRITERS[node.op]
    return writer(node, inputs, arrays, arch)


def _tensor(value: Value) -> tuple[tuple, str]:
    return value.shape, value.dtype


def _given(array) -> tuple[tuple, str]:
    return array.shape, array.dtype.name


def _contraction(node: Node, inputs, arrays, arch: str) -> tirx.PrimFunc:
    plan, constants = of_node(arch, node, inputs[0]), Constants.of(node, inputs)
    curve = node.constants["curve"].shape[1] if "curve" in node.constants else 0
    finish = Epilogue(OPS[node.op].body, node.attrs, constants, curve)
    has = {"x": True, "residual": "residual_multiplier" in node.constants, "mask": masked(inputs, node.constants)}
    names = [name for name in has if has[name]]
    tensors = dict(zip(names, map(_tensor, inputs), strict=True))
    given = ["weight", "constants", *(["curve"] * bool(curve)), *(["pad_value"] * (node.op != "linear"))]
    tensors |= dict(zip(given, map(_given, arrays), strict=True)) | {"out": _tensor(node.output)}
    return (windows.depthwise if is_depthwise(plan) else contraction)("kernel", plan, finish, tensors)


def _pointwise(node: Node, inputs, arrays, arch: str) -> tirx.PrimFunc:
    body, tensors = OPS[node.op].body, list(map(_tensor, inputs))
    if "table" in node.constants:
        return lookup("kernel", body, node.attrs, arrays[0].dtype.name, *tensors, _tensor(node.output))
    curve = node.constants["curve"].shape[1] if "curve" in node.constants else 0
    constants = Constants.of(node, inputs) if "shift" in node.constants else None
    return pointwise("kernel", body, node.attrs, constants, curve, tensors, _tensor(node.output))


def _avg_pool(node: Node, inputs, arrays, arch: str) -> tirx.PrimFunc:
    tensors = _windowed(node, inputs, arrays, ["constants"])
    return windows.avg_pool("kernel", OPS[node.op].body, node.attrs, Constants.of(node, inputs), tensors)


def _max_pool(node: Node, inputs, arrays, arch: str) -> tirx.PrimFunc:
    return windows.max_pool("kernel", OPS[node.op].body, node.attrs, _windowed(node, inputs, arrays, []))


def _layernorm(node: Node, inputs, arrays, arch: str) -> tirx.PrimFunc:
    return layernorm("kernel", node.attrs, Constants.of(node, inputs), _tensor(inputs[0]), _tensor(node.output))


def _mean_tokens(node: Node, inputs, arrays, arch: str) -> tirx.PrimFunc:
    return mean_tokens("kernel", node.attrs, Constants.of(node, inputs), *map(_tensor, (*inputs, node.output)))


def _embedding(node: Node, inputs, arrays, arch: str) -> tirx.PrimFunc:
    ends, tables = map(_tensor, (*inputs, node.output)), list(map(_given, arrays[:-1]))
    return embedding("kernel", OPS[node.op].body, node.attrs, Constants.of(node, inputs), tables, *ends)


def _relative(node: Node, inputs, arrays, arch: str) -> tirx.PrimFunc:
    ends = map(_tensor, (*inputs, node.output))
    return relative("kernel", OPS[node.op].body, node.attrs, Constants.of(node, inputs), _given(arrays[0]), *ends)


def _frame_mask(node: Node, inputs, arrays, arch: str) -> tirx.PrimFunc:
    return frame_mask("kernel", OPS[node.op].body, node.attrs, _tensor(inputs[0]), _tensor(node.output))


def _normalize_frames(node: Node, inputs, arrays, arch: str) -> tirx.PrimFunc:
    return normalize_frames("kernel", node.attrs, Constants.of(node, inputs), *map(_tensor, (*inputs, node.output)))


def _log_mel(node: Node, inputs, arrays, arch: str) -> tirx.PrimFunc:
    given, ends = list(map(_given, arrays)), (_tensor(inputs[0]), _tensor(node.output))
    return log_mel("kernel", node.attrs, Constants.of(node, inputs), given, *ends)


def _windowed(node: Node, inputs, arrays, names: list[str]) -> dict[str, tuple]:
    given = dict(zip([*names, *(["pad_value"] * any(node.attrs["padding"]))], map(_given, arrays), strict=True))
    return {"x": _tensor(inputs[0])} | given | {"out": _tensor(node.output)}


def _move(write: Callable) -> Callable:
    return lambda node, inputs, arrays, arch: write("kernel", node.attrs, _tensor(inputs[0]), _tensor(node.output))


def _concat(node: Node, inputs, arrays, arch: str) -> tirx.PrimFunc:
    return move.concat("kernel", node.attrs, list(map(_tensor, inputs)), _tensor(node.output))


def _attention(node: Node, inputs, arrays, arch: str) -> tirx.PrimFunc:
    narrow, base = reach_of(node).narrow, rescale_of(node, inputs).base
    tensors = list(map(_tensor, inputs))
    return attention("kernel", heads.of_node(arch, node), node.attrs, narrow, base, tensors, _tensor(node.output))


WRITERS: dict[str, Callable] = {  # by loop; movements each have their own
    "conv1d": _contraction,
    "conv2d": _contraction,
    "linear": _contraction,
    "pointwise": _pointwise,
    "rows": _layernorm,
    "tokens": _mean_tokens,
    "embedding": _embedding,
    "relative": _relative,
    "spectrum": _log_mel,
    "frames": _normalize_frames,
    "mask": _frame_mask,
    "attention": _attention,
    "sum2d": _avg_pool,
    "max2d": _max_pool,
    "concat": _concat,
    "slice": _move(move.slice_),
    "transpose": _move(move.transpose),
    "pad": _move(move.pad),
}
