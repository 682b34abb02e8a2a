"""The integer network: values, nodes, and the proof that nothing in it can overflow."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from intq import dims
from intq.bounds import Bounds, bounds
from intq.curves import SEGMENTS
from intq.errors import IntqError, UnprovenError
from intq.fixedpoint import MAX_SHIFT, MIN_SHIFT
from intq.ops import OPS
from intq.value import Value

CONSTANT_DTYPES = {
    "weight": ("int8",),
    "multiplier": ("int32",),
    "multiplier_a": ("int32",),
    "multiplier_b": ("int32",),
    "residual_multiplier": ("int32",),
    "offset": ("int64",),
    "shift": ("int32",),
    "pad_value": ("uint8", "int16", "int32"),
    "table": ("uint8", "int16"),
    "curve": ("int32",),
    "lift": ("int32",),
    "score_multiplier": ("int32",),
    "score_offset": ("int64",),
    "score_shift": ("int32",),
    "epsilon": ("int64",),
    "word": ("int8",),
    "word_multiplier": ("int32",),
    "position": ("int16",),
    "position_multiplier": ("int32",),
    "segment": ("int16",),
    "distances": ("int8",),
    "segment_multiplier": ("int32",),
    "window": ("int32",),
    "turn": ("int32",),
    "band_first": ("int32",),
    "band_count": ("int32",),
    "band_weight": ("int16",),
    "guard": ("int64",),
    "deviation_epsilon": ("int64",),
}


@dataclass(frozen=True, eq=False)
class Node:
    """One operation: ``output = OPS[op](*inputs)``. ``source``: the module of the float network that it stands for."""

    op: str
    inputs: tuple[str, ...]
    output: Value
    attrs: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    source: str = ""

    @property
    def name(self) -> str:
        return self.output.name


def make_node(
    op: str,
    name: str,
    inputs: Sequence[Value],
    *,
    dtype: str,
    scale: float = 1.0,
    zero_point: int = 0,
    attrs: Mapping[str, Any] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    source: str = "",
) -> Node:
    """A node whose output's shape and bounds are derived from its inputs.

    Raises IntqError when an input, attribute or constant does not fit the operation, UnprovenError when a width
    cannot be proven to hold every value; both name the node.
    """
    inputs, attrs, constants = tuple(inputs), dict(attrs or {}), dict(constants or {})
    shape, proof = _infer(op, name, inputs, attrs, constants, dtype)
    output = Value(name, shape, dtype, proof.low, proof.high, scale, zero_point)
    return Node(op, tuple(x.name for x in inputs), output, attrs, constants, source)


def _infer(op: str, name: str, inputs, attrs, constants, dtype: str) -> tuple[tuple, Bounds]:
    if op not in OPS:
        raise IntqError(f"{name}: unknown operation {op!r}; known: {', '.join(sorted(OPS))}")
    operation = OPS[op]
    try:
        _check_parts(operation, attrs, constants)
        shape = operation.shape(inputs, attrs, constants)
        _check_broadcast(constants, shape)
        return shape, bounds(op, inputs, attrs, constants, dtype)
    except (IntqError, UnprovenError) as error:
        raise type(error)(f"{name} ({op}): {error}") from None
    except (KeyError, TypeError, ValueError, IndexError) as error:  # attributes of the wrong kind, from an edited file
        raise IntqError(f"{name} ({op}): its attributes or constants are malformed ({error})") from None


def _check_parts(operation, attrs, constants) -> None:
    for kind, has, needs, may in (
        ("attributes", set(attrs), operation.attrs, operation.optional),
        ("constants", set(constants), operation.constants, operation.optional),
    ):
        if not needs <= has <= needs | may:
            raise IntqError(f"needs the {kind} {sorted(needs)}, got {sorted(has)}")
    for key, array in constants.items():
        if array.dtype.name not in CONSTANT_DTYPES[key]:
            raise IntqError(f"constant {key} must be {' or '.join(CONSTANT_DTYPES[key])}, got {array.dtype.name}")
    for shift in (constants[key] for key in ("shift", "score_shift") if key in constants):
        if not np.all((shift >= MIN_SHIFT) & (shift <= MAX_SHIFT)):
            raise IntqError(f"shifts must lie in [{MIN_SHIFT}, {MAX_SHIFT}], got [{shift.min()}, {shift.max()}]")
    if "curve" in constants and constants["curve"].shape != (3, SEGMENTS):
        raise IntqError(f"a curve has three rows of {SEGMENTS} coefficients, got shape {constants['curve'].shape}")
    if "drop" in attrs and not 0 <= attrs["drop"] < 31:
        raise IntqError(f"drop must lie in [0, 30], got {attrs['drop']}")
    if "low" in attrs and attrs["low"] > attrs["high"]:
        raise IntqError(f"low must not exceed high, got [{attrs['low']}, {attrs['high']}]")


def _check_broadcast(constants, shape: tuple) -> None:
    """The constants of a rescale apply to every sample alike, and do not stretch the output."""
    for key in ("multiplier", "multiplier_a", "multiplier_b", "offset", "shift"):
        found = constants[key].shape if key in constants else ()
        fits = len(found) < len(shape) and all(f in (1, s) for f, s in zip(found[::-1], shape[::-1], strict=False))
        if not fits:
            raise IntqError(f"constant {key} of shape {found} does not broadcast against the output's {shape}")


@dataclass(frozen=True)
class Proof:
    """That no value overflows: the widest accumulator of the network and the node that has it."""

    widest_bits: int
    node: str


@dataclass(frozen=True, eq=False)
class Graph:
    """An integer network: nodes, each after those it reads; ``metadata`` (JSON) is for people and for domains."""

    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, Value]:
        return {v.name: v for v in (*self.inputs, *(n.output for n in self.nodes))}

    def verify(self) -> Proof:
        """Derive every shape and bound again and compare; return the proof that nothing overflows.

        Raises IntqError (UnprovenError for widths) naming the node at fault.
        """
        known: dict[str, Value] = {}
        for value in self.inputs:
            _define(known, value)
        widest = Proof(0, "")
        longest = {d: v.longest for v in self.inputs for d in v.shape[1:] if isinstance(d, str)}
        for node in self.nodes:
            missing = [name for name in node.inputs if name not in known]
            if missing:
                raise IntqError(f"{node.name} ({node.op}): its input {missing[0]!r} is not defined before it")
            inputs = tuple(known[name] for name in node.inputs)
            _check_longest(node, inputs, longest)
            shape, proof = _infer(node.op, node.name, inputs, node.attrs, node.constants, node.output.dtype)
            derived = replace(node.output, shape=shape, low=proof.low, high=proof.high)
            if derived != node.output:
                raise IntqError(f"{node.name} ({node.op}): declared as {node.output}, derived as {derived}")
            if proof.accumulator_bits > widest.widest_bits:
                widest = Proof(proof.accumulator_bits, node.name)
            _define(known, node.output)
        for name in self.outputs:
            if name not in known:
                raise IntqError(f"the output {name!r} is not defined by any node")
        return widest

    def text(self) -> str:
        """The network as text, a line a node."""
        lines = [f"input  {value}" for value in self.inputs]
        for node in self.nodes:
            parts = [f"{k}={_short(v)}" for k, v in node.attrs.items()]
            parts += [f"{k}:{v.dtype.name}{list(v.shape)}" for k, v in sorted(node.constants.items())]
            source = f"  # {node.source}" if node.source else ""
            lines.append(f"{node.output} = {node.op}({', '.join(node.inputs)}; {', '.join(parts)}){source}")
        return "\n".join([*lines, f"return {', '.join(self.outputs)}"])

    def save(self, folder: str | Path) -> None:
        """Write the artifact ``folder``/graph.json and weights.safetensors (see :mod:`intq.artifact`)."""
        from intq.artifact import save

        save(self, folder)


def _check_longest(node: Node, inputs: tuple[Value, ...], longest: Mapping[str, int]) -> None:
    """That sums over samples, frames or tokens are proven for as many as the network's inputs make (0: any number)."""
    if "longest" not in node.attrs or not isinstance(axis := inputs[0].shape[1], str):
        return
    most = dims.size(axis, longest) if longest[dims.parts(axis)[0]] else math.inf
    if most > node.attrs["longest"]:
        raise IntqError(
            f"{node.name} ({node.op}): proven for at most {node.attrs['longest']} along {axis!r}, but the longest "
            f"input makes {most}; lower the input's `longest`, or quantize again for longer ones"
        )


def _define(known: dict[str, Value], value: Value) -> None:
    if value.name in known:
        raise IntqError(f"two values have the name {value.name!r}")
    known[value.name] = value


def _short(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
