"""torch.nn.Module -> :class:`intq.floatgraph.FloatGraph`, through ``torch.export`` with a symbolic batch.

Every operation becomes what :mod:`intq.aten` makes of it; an in-place variant is the operation itself followed by a
renaming. What depends on parameters alone is computed at once. What no function takes is an
:class:`~intq.errors.IntqError` that names the module, the operation and what to do.
"""

from __future__ import annotations

import copy
import operator
import warnings
from typing import Any

import torch
from torch import Tensor

from intq import dims
from intq.aten import TAKES, Build, Unsupported
from intq.aten.text import Derived
from intq.errors import IntqError
from intq.floatgraph import BATCH, SAMPLES, TOKENS, FloatGraph
from intq.rewriter import without_unused

CHECKS = frozenset({torch.ops.aten._assert_tensor_metadata.default})  # compute nothing
EXPORTED_SAMPLES = 2**14  # of a recording that torch traces the model with


def capture(model: torch.nn.Module, example: Tensor) -> FloatGraph:
    """The float graph of ``model`` in evaluation mode; ``example`` (batch, ...) gives the input's shape.

    Integers (batch, tokens) are token ids, of any number: the tokens are then the symbolic axis "s" of every shape.
    int16 (batch, samples) are recordings of any length, which the model takes in [-1, 1): the samples are then the
    symbolic axis "t", and frames are "(t+160)//160" or whatever the model makes of them.
    The model may return a tensor or an object holding one tensor (a Hugging Face output). It is not changed.
    Raises IntqError when the model does not export, returns several tensors, holds NaN or infinite numbers, or uses an
    operation that intq does not take.
    """
    if example.ndim < 2:
        raise IntqError(f"expected an example with a batch axis, got shape {tuple(example.shape)}; add one")
    samples = example.dtype == torch.int16
    tokens = not (samples or example.is_floating_point())
    if samples and example.ndim != 2:
        raise IntqError(f"recordings must be (batch, samples), got shape {tuple(example.shape)}")
    if tokens and example.ndim != 2:
        raise IntqError(f"token ids must be (batch, tokens), got shape {tuple(example.shape)}")
    program = _export(model, example.detach(), tokens, samples)
    program.graph.eliminate_dead_code()
    signature, constants = program.graph_signature, {**program.state_dict, **program.constants}
    sources = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    values: dict[torch.fx.Node, Any] = {}
    build, graph_input, storage = Build({}), None, _Storage(program.graph)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in sources:
                values[node] = _finite(constants[sources[node.name]], sources[node.name])
            else:
                graph_input = node.name
                values[node] = node.name
                names = (BATCH, SAMPLES if samples else TOKENS)
                build.symbols = {str(s): name for s, name in zip(node.meta["val"].shape, names, strict=False)}
                build.shapes[node.name] = _shape(build, node.meta["val"])
                build.recordings = samples
                if tokens:
                    build.ids, build.vocabulary = node.name, _vocabulary(node, values)
        elif node.target in CHECKS:
            continue
        elif node.op == "call_function":
            values[node] = _take(build, node, values)
            for alias in storage.renamed(node, build):
                values[alias] = values[node]
        elif node.op == "output":
            output = _single_output(node, values)
        else:
            raise IntqError(
                f"cannot take the exported node {node.name!r} ({node.op}); keep control flow out of the model"
            )
    graph = FloatGraph(
        graph_input, build.shapes[graph_input], tuple(build.nodes.values()), output, tuple(build.notices)
    )
    graph = without_unused(graph)
    if graph.input != graph.output and not graph.users().get(graph.input):
        raise IntqError("the model's answer does not depend on its input; there is nothing to quantize")
    return graph


def _vocabulary(ids: torch.fx.Node, values: dict) -> int:
    """The rows of the table that the ids index."""
    for user in ids.users:
        if str(user.target).startswith("aten.embedding.") and user.args[1] is ids:
            return len(values[user.args[0]])
    raise IntqError("the network takes integers but no embedding reads them; expected token ids, or give float samples")


def _export(model: torch.nn.Module, example: Tensor, tokens: bool, samples: bool):
    model = copy.deepcopy(model).eval().float()
    example = example.to(torch.int64 if tokens else torch.float32)
    example = example[:1].expand(2, *example.shape[1:]).contiguous()  # a batch of one would be taken for a constant
    axes = {0: torch.export.Dim.DYNAMIC}
    if tokens:
        example = example[:, :1].expand(2, 3).contiguous()
    if samples:
        example = torch.zeros(2, EXPORTED_SAMPLES)
    if tokens or samples:
        axes[1] = torch.export.Dim.DYNAMIC
    hint = "write it without control flow on values, keep the batch as the first axis and read its size as x.shape[0]"
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's own deprecations
            return torch.export.export(model, (example,), dynamic_shapes=(axes,))
    except IntqError:
        raise
    except Exception as error:  # torch.export raises many kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise IntqError(f"torch.export cannot trace {type(model).__name__}: {reason[0]}; {hint}") from error


def _finite(tensor: Tensor, name: str) -> Tensor:
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        kind = "NaN" if torch.isnan(tensor).any() else "infinite"
        raise IntqError(f"{name} holds {kind} numbers; the checkpoint is broken, export it again")
    return tensor.detach()


def _shape(build: Build, value: Tensor) -> tuple:
    """The shape with the symbolic batch as "n" and the tokens as "s"; the batch must be the first axis alone."""
    sizes = [s if isinstance(s, int) else int(str(s)) if str(s).isdigit() else str(s) for s in value.shape]
    for spelling, s in zip(sizes, value.shape, strict=True):
        if not isinstance(spelling, int) and spelling not in build.symbols:
            build.symbols[spelling] = _frames(build, s)
    shape = tuple(s if isinstance(s, int) else build.symbols.get(s) for s in sizes)
    if not shape or shape[0] != BATCH or BATCH in shape[1:] or None in shape:
        found = ", ".join(map(str, sizes))
        raise Unsupported(f"its result ({found}) does not keep the batch as its own first axis")
    return shape


def _frames(build: Build, size: torch.SymInt) -> str | None:
    """A size that follows from the number of samples; None for another."""
    expression = size.node.expr
    symbols = list(expression.free_symbols)
    if len(symbols) != 1 or build.symbols.get(str(symbols[0])) != SAMPLES:
        return None
    try:
        return dims.fitted(SAMPLES, lambda t: int(expression.subs(symbols[0], t)))
    except ValueError as error:
        raise Unsupported(str(error)) from None


def _where(node: torch.fx.Node) -> str:
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    path = stack[-1] if stack else ""
    return (
        path.removeprefix("L['self'].")
        .removeprefix("L['self']")
        .removeprefix("_empty_nn_module_stack_from_metadata_hook")
    )


def _arguments(node: torch.fx.Node, values: dict) -> dict[str, Any]:
    """The node's arguments by schema name, graph values as names and constants as tensors."""
    schema = node.target._schema.arguments
    given = dict(zip((a.name for a in schema), node.args, strict=False)) | dict(node.kwargs)
    full = {a.name: given.get(a.name, a.default_value) for a in schema}
    return torch.fx.node.map_arg(full, lambda n: values[n])


def _take(build: Build, node: torch.fx.Node, values: dict):
    target = node.target
    if target is operator.getitem:
        return values[node.args[0]][node.args[1]]
    schema = getattr(target, "_schema", None)
    name = schema.name.split("::")[-1] if schema else getattr(target, "__name__", str(target))
    base = name if name.startswith("__") else name.rstrip("_")
    build.module, build.op = _where(node), base
    at = f"{build.module or 'the model'}: "
    try:
        if name.startswith("sym_") or not hasattr(target, "_schema"):
            return node.meta.get("val")  # a size or arithmetic on sizes: results carry their own shapes
        if (build.ids or build.recordings) and _is_derived(build, node, values):
            return Derived(lambda given: _evaluate(node, values, given, {}))
        arguments = _arguments(node, values)
        if not any(isinstance(values[n], (str, list, Derived)) for n in node.all_input_nodes):
            return _constant(target, node, values)
        if base not in TAKES:
            raise Unsupported(
                "intq has no integer form of it; replace it by one of conv2d, linear, batch_norm, layer_norm, "
                "embedding, scaled_dot_product_attention, relu and other functions of one value, add, mul, cat, "
                "pooling, mean, reshape, permute, slice, pad"
            )
        sized = any(isinstance(values[n], Derived) for n in node.all_input_nodes)
        if build.recordings and sized and base != "scaled_dot_product_attention":
            raise Unsupported("a constant may not depend on the number of samples; keep a table of it in a buffer")
        meta = node.meta["val"]
        if base == "embedding":  # a position's is (1, tokens, channels): it is made for every sample
            return TAKES[base](build, **arguments)
        build.shape = [_shape(build, v) for v in meta] if isinstance(meta, (list, tuple)) else _shape(build, meta)
        return TAKES[base](build, **arguments)
    except Unsupported as reason:
        raise IntqError(f"{at}{base}: {reason}") from None
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise IntqError(f"{at}{base}: this form ({target}) is not taken; use the plain form of the operation") from None


def _is_derived(build: Build, node: torch.fx.Node, values: dict) -> bool:
    """Whether the ids determine a result: integers and masks made of them, and what depends on their number.

    Of recordings, whether the number of samples does.
    """
    inputs = [values[n] for n in node.all_input_nodes]
    if build.recordings and _repeats(node, values):
        return False
    if "embedding" in str(node.target) or any(isinstance(v, (str, list)) and v != build.ids for v in inputs):
        return False
    return any(isinstance(v, (Derived, torch.SymInt)) or v == build.ids for v in inputs if not isinstance(v, Tensor))


def _evaluate(node: torch.fx.Node, values: dict, given: Tensor, known: dict) -> Any:
    """What a node that the ids, or the number of samples, determine is for the ``given`` ones."""
    if node in known:
        return known[node]
    if isinstance(values.get(node), Tensor):
        return values[node]
    if node.op == "placeholder":
        return given
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: _evaluate(n, values, given, known))
    known[node] = node.target(*args, **kwargs)
    return known[node]


def _repeats(node: torch.fx.Node, values: dict) -> bool:
    """Whether a node repeats a constant for every sample of the batch."""
    if "expand" not in str(node.target) or not isinstance(values.get(node.args[0]), Tensor):
        return False
    size = node.args[1][0]
    return isinstance(size, torch.fx.Node) and isinstance(values[size], torch.SymInt)


def _constant(target, node: torch.fx.Node, values: dict):
    """A computation on parameters and sizes alone, done now (weight standardisation, a buffer made in forward)."""
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    if _repeats(node, values):
        return args[0]
    flat = torch.utils._pytree.tree_leaves((args, kwargs))
    if any(isinstance(a, torch.SymInt) for a in flat):
        raise Unsupported("a constant may not depend on the batch size")
    result = target(*args, **kwargs)
    if isinstance(result, Tensor):
        return _finite(result, node.name)
    return result


def _single_output(node: torch.fx.Node, values: dict) -> str:
    outputs = [values.get(n) for n in torch.utils._pytree.tree_leaves(node.args) if isinstance(n, torch.fx.Node)]
    if len(outputs) != 1:
        raise IntqError(
            f"expected a model that returns one tensor, got {len(outputs)}; wrap it so that it returns the scores"
        )
    if not isinstance(outputs[0], str):
        raise IntqError("the model's answer does not depend on its input; there is nothing to quantize")
    return outputs[0]


class _Storage:
    """Which fx nodes share memory, so that an in-place operation reaches every later reader of what it overwrites."""

    _SAME = frozenset({"alias", "detach", "contiguous", "dropout", "feature_dropout", "to"})

    def __init__(self, graph: torch.fx.Graph) -> None:
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.root: dict[torch.fx.Node, torch.fx.Node] = {}
        self.variable: dict[torch.fx.Node, set[torch.fx.Node]] = {}

    def renamed(self, node: torch.fx.Node, build: Build) -> list[torch.fx.Node]:
        """The earlier fx nodes that mean ``node``'s result from here on."""
        schema = getattr(node.target, "_schema", None)
        source = next((a for a in node.args if isinstance(a, torch.fx.Node)), None)
        inplace = schema is not None and any(a.alias_info and a.alias_info.is_write for a in schema.arguments)
        views = schema is not None and any(a.alias_info and not a.alias_info.is_write for a in schema.arguments)
        if source is None or not (inplace or views or node.target is operator.getitem or build.op in self._SAME):
            self.root[node], self.variable[node] = node, {node}
            return []
        self.root[node] = self.root.get(source, source)
        if not inplace:
            same = build.op in self._SAME
            self.variable[node] = self.variable.get(source, {source}) if same else {node}
            self.variable[node].add(node)
            return []
        variable = self.variable.get(source, {source})
        now = self.order[node]
        for other, root in self.root.items():
            read_later = any(self.order[user] > now for user in other.users)
            if root is self.root[node] and other not in variable and other is not node and read_later:
                raise IntqError(
                    f"{build.module or 'the model'}: {build.op}: an in-place operation on a view whose base is read "
                    "later is not taken; use the form that is not in place"
                )
        variable.add(node)
        self.variable[node] = variable
        return [other for other in variable if other is not node]
