"""Graph -> one Relax module -> a library: a kernel per node (shared where nodes are alike), memory planned by TVM."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import tvm
from tvm import relax, tirx

from intq import dims
from intq.graph import Graph, Node
from intq.kernels import pack
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
from intq.kernels.library import Library, description, kernel_key, structure
from intq.kernels.targets import choose
from intq.ops import OPS
from intq.ops.contract import masked
from intq.value import Value

Tensor = tuple[tuple, str]  # (shape, dtype)
BATCH, TOKENS = "n", "s"  # sizes that keep their names in kernels


def build(graph: Graph, target: str | dict = "cpu", isa: str | None = None) -> Library:
    """Compile a graph for a target: "cpu" (this machine) or a TVM target, as a string or a dict.

    ``isa`` forces one of :data:`intq.kernels.cpu.isa.ISAS` that the target has.
    Raises IntqError when TVM does not know the target or the target lacks the instruction set.
    """
    chosen = choose(target, isa)
    kernels: dict[str, tirx.PrimFunc] = {}
    names = {node.name: _kernel(node, graph.values, chosen.isa.name, kernels) for node in graph.nodes}
    module = _relax(graph, names, kernels, description(graph, chosen.isa.name, names))
    executable = tvm.compile(module, target=chosen.target, relax_pipeline=_PIPELINE)
    return Library(executable, chosen, structure(graph), names)


_PIPELINE = tvm.transform.Sequential(  # TVM's own for relax, without the passes that look for operators or blocks
    [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
)


# ---- kernels ---------------------------------------------------------------------------------------------------


def _kernel(node: Node, values: dict[str, Value], isa: str, kernels: dict[str, tirx.PrimFunc]) -> str:
    """The name of the node's kernel, written into ``kernels`` if no node like it came before; "" for a view."""
    if node.op == "reshape":
        return ""
    node, inputs = _localized(node, tuple(values[name] for name in node.inputs))
    name = f"{node.op}_{hashlib.sha256(kernel_key(node, inputs).encode()).hexdigest()[:12]}"
    if name not in kernels:
        write = _WRITERS.get(OPS[node.op].loop) or _WRITERS[node.op]
        kernels[name] = write(node, inputs, pack.arrays(node, inputs, isa), isa).with_attr("global_symbol", name)
    return name


def _localized(node: Node, inputs: tuple[Value, ...]) -> tuple[Node, tuple[Value, ...]]:
    """The node as its kernel sees it: every symbolic size is one of its own, whatever it is made of elsewhere.

    So nodes that differ in the size of their frames alone share a kernel.
    """
    names: dict[str, str] = {}
    for value in (*inputs, node.output):
        for d in value.shape:
            if isinstance(d, str):
                names.setdefault(d, d if d in (BATCH, TOKENS) else f"s{len(names)}")

    def local(value: Value) -> Value:
        return replace(value, shape=tuple(names[d] if isinstance(d, str) else d for d in value.shape))

    return replace(node, output=local(node.output)), tuple(map(local, inputs))


def _tensor(value: Value) -> Tensor:
    return value.shape, value.dtype


def _contraction(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    plan, rescale = of_node(isa, node, inputs[0]), pack.rescale_of(node, inputs)
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
    rescale = pack.rescale_of(node, inputs)
    return pointwise("kernel", ISAS[isa], body, node.attrs, rescale, tensors, _tensor(node.output))


def _avg_pool(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    rescale, body, a = pack.rescale_of(node, inputs), OPS[node.op].body, node.attrs
    x, channels = inputs[0], inputs[0].channels
    plan = Plan(isa, "depthwise", x.shape[1:], a["kernel"], a["stride"], a["padding"], (1, 1), channels, channels)
    if rescale.constants["multiplier"].ndim == 0 and sums_by_product(plan, x.dtype):
        finish = Epilogue(body, a, node.output.dtype, None, 0, Uniform(rescale))
        return avg_pool("kernel", plan, finish, {"x": x.shape, "out": node.output.shape})
    return pool.avg_pool("kernel", ISAS[isa], body, a, rescale, _tensor(x), _tensor(node.output))


def _max_pool(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    return pool.max_pool("kernel", OPS[node.op].body, node.attrs, _tensor(inputs[0]), _tensor(node.output))


def _layernorm(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    rescale = pack.rescale_of(node, inputs)
    return layernorm("kernel", ISAS[isa], node.attrs, rescale, _tensor(inputs[0]), _tensor(node.output))


def _mean_tokens(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    tensors = [_tensor(x) for x in (*inputs, node.output)]
    return mean_tokens("kernel", ISAS[isa], node.attrs, pack.rescale_of(node, inputs), *tensors)


def _embedding(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    rescale, tables = pack.rescale_of(node, inputs), [(array.shape, array.dtype.name) for array in arrays[:-1]]
    ends = _tensor(inputs[0]), _tensor(node.output)
    return embedding("kernel", ISAS[isa], OPS[node.op].body, node.attrs, rescale, tables, *ends)


def _log_mel(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    given = [(array.shape, array.dtype.name) for array in arrays]
    base, ends = pack.rescale_of(node, inputs).base, (_tensor(inputs[0]), _tensor(node.output))
    return log_mel("kernel", ISAS[isa], spectrum_of(node, isa), node.attrs, base, given, *ends)


def _normalize_frames(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    tensors = [_tensor(x) for x in (*inputs, node.output)]
    return normalize_frames("kernel", node.attrs, pack.rescale_of(node, inputs), *tensors)


def _frame_mask(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    return frame_mask("kernel", OPS[node.op].body, node.attrs, _tensor(inputs[0]), _tensor(node.output))


def _relative(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    distances, rescale, body = heads.distances_of(isa, node), pack.rescale_of(node, inputs), OPS[node.op].body
    return relative("kernel", distances, body, node.attrs, rescale, _tensor(inputs[0]), _tensor(node.output))


def _move(write: Callable) -> Callable:
    return lambda node, inputs, arrays, isa: write("kernel", node.attrs, _tensor(inputs[0]), _tensor(node.output))


def _concat(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    return move.concat("kernel", node.attrs, [_tensor(x) for x in inputs], _tensor(node.output))


def _attention(node: Node, inputs, arrays, isa: str) -> tirx.PrimFunc:
    arithmetic, base = heads.arithmetic(node), pack.rescale_of(node, inputs).base
    tensors = [_tensor(x) for x in inputs]
    return attention("kernel", heads.of_node(isa, node), node.attrs, arithmetic, base, tensors, _tensor(node.output))


_WRITERS: dict[str, Callable] = {  # by loop; movements each have their own
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


# ---- the module ------------------------------------------------------------------------------------------------


def _arguments(kernel: tirx.PrimFunc) -> list[Tensor]:
    return [(tuple(buffer.shape), str(buffer.dtype)) for buffer in kernel.params]


def _size(dim: str, sizes: dict[str, tirx.Var]):
    """A symbolic size as an expression of the inputs' sizes."""
    name, add, divide = dims.parts(dim)
    return (sizes[name] + add) // divide if (add, divide) != (0, 1) else sizes[name]


def _relax(graph: Graph, names, kernels, text: str) -> tvm.IRModule:
    """``main(inputs..., constants)`` calls the kernels in turn; ``description()`` returns ``text``."""
    sizes = {d: tirx.Var(d, "int64") for value in graph.inputs for d in value.shape if isinstance(d, str)}

    def bound(shape: tuple) -> list:
        return [_size(d, sizes) if isinstance(d, str) else d for d in shape]

    def info(tensor: Tensor):
        shape, dtype = tensor
        return relax.TensorType(bound(shape), dtype)

    constants_of = {
        node.name: _arguments(kernels[names[node.name]])[len(node.inputs) : -1] if names[node.name] else []
        for node in graph.nodes
    }
    types = [info(argument) for arguments in constants_of.values() for argument in arguments]
    inputs = [relax.Var(f"x{i}", info(_tensor(value))) for i, value in enumerate(graph.inputs)]
    constants = relax.Var("constants", relax.TupleType(types))
    builder = relax.BlockBuilder()
    functions = {name: builder.add_func(function, name) for name, function in kernels.items()}
    with builder.function("main", [*inputs, constants]):
        known = dict(zip((value.name for value in graph.inputs), inputs, strict=True))
        taken = 0
        with builder.dataflow():
            for node in graph.nodes:
                operands = [known[name] for name in node.inputs]
                if not names[node.name]:
                    known[node.name] = builder.emit(relax.op.reshape(operands[0], bound(node.output.shape)))
                    continue
                count = len(constants_of[node.name])
                operands += [builder.emit(relax.TupleGetItem(constants, taken + i)) for i in range(count)]
                taken += count
                call = relax.call_tir(functions[names[node.name]], operands, info(_tensor(node.output)))
                known[node.name] = builder.emit(call)
            results = builder.emit_output(relax.Tuple([known[name] for name in graph.outputs]))
        builder.emit_func_output(results)
    with builder.function("description", []):
        builder.emit_func_output(tvm.ir.StringImm(text))
    return builder.finalize()
