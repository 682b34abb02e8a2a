"""Graph -> one Relax module -> a library: a kernel per node (shared where nodes are alike), memory planned by TVM."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import tvm
from tvm import relax, tirx

from intq import dims
from intq.graph import Graph, Node
from intq.kernels import pack
from intq.kernels.cpu import writers as cpu
from intq.kernels.cuda import binary, pipeline
from intq.kernels.cuda import writers as cuda
from intq.kernels.library import Library, description, is_gpu, kernel_key, structure
from intq.kernels.targets import choose
from intq.value import Value

Tensor = tuple[tuple, str]  # (shape, dtype)
BATCH, TOKENS = "n", "s"  # sizes that keep their names in kernels


def build(graph: Graph, target: str | dict = "cpu", isa: str | None = None) -> Library:
    """Compile a graph for a target: "cpu" (this machine) or a TVM target, as a string or a dict. No GPU need be here.

    ``isa`` forces one of :data:`intq.kernels.cpu.isa.ISAS` that the target has.
    Raises IntqError when TVM does not know the target or the target lacks the instruction set.
    """
    chosen = choose(target, isa)
    names, kernels = kernels_of(graph, chosen.isa.name)
    module = _relax(graph, names, kernels, description(graph, chosen.isa.name, names))
    if not chosen.gpu:
        executable = tvm.compile(module, target=chosen.target, relax_pipeline=_PIPELINE)
        return Library(executable, chosen, structure(graph), names)
    options = {"relax_pipeline": _PIPELINE, "tir_pipeline": pipeline.NAME}
    executable, cubin = binary.build(module, chosen.target, chosen.isa.name, **options)
    return Library(executable, chosen, structure(graph), names, cubin)


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


def kernels_of(graph: Graph, isa: str) -> tuple[dict[str, str], dict[str, tirx.PrimFunc]]:
    """The name of each node's kernel, "" for a view, and the kernels by name."""
    kernels: dict[str, tirx.PrimFunc] = {}
    return {node.name: _kernel(node, graph.values, isa, kernels) for node in graph.nodes}, kernels


def _kernel(node: Node, values: dict[str, Value], isa: str, kernels: dict[str, tirx.PrimFunc]) -> str:
    """The name of the node's kernel, written into ``kernels`` if no node like it came before; "" for a view."""
    if node.op == "reshape":
        return ""
    node, inputs = _localized(node, tuple(values[name] for name in node.inputs))
    name = f"{node.op}_{hashlib.sha256(kernel_key(node, inputs).encode()).hexdigest()[:12]}"
    if name not in kernels:
        room = cuda if is_gpu(isa) else cpu
        kernels[name] = room.write(node, inputs, pack.arrays(node, inputs, isa), isa).with_attr("global_symbol", name)
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
