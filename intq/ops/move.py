"""Operations that rearrange whole tensors and compute nothing."""

from __future__ import annotations

import numpy as np

from intq.ops.op import Attrs, Constants, Op, Sample, expect
from intq.value import Shape, Value


def _reshape(L, operands, constants: Constants, attrs: Attrs):
    """The same elements in row-major order under another shape; the batch stays the first axis."""
    (x,) = operands
    return L.reshape(x, (x.shape[0], *(-1 if isinstance(d, str) else d for d in attrs["shape"][1:])))


def _transpose(L, operands, constants: Constants, attrs: Attrs):
    """Axis i of the result is axis perm[i] of the input; perm[0] = 0."""
    return L.transpose(operands[0], attrs["perm"])


def _concat(L, operands, constants: Constants, attrs: Attrs):
    """The inputs one after another along an axis; all have one scale and zero point."""
    return L.concat(operands, attrs["axis"])


def _slice(L, operands, constants: Constants, attrs: Attrs):
    """Elements start, start + step, ... below stop of one axis."""
    index = [slice(None)] * attrs["axis"] + [slice(attrs["start"], attrs["stop"], attrs["step"])]
    return operands[0][tuple(index)]


def _pad(L, operands, constants: Constants, attrs: Attrs):
    """Rows and columns of ``pad_value`` (one per channel) around an (n, h, w, c) image."""
    return L.pad2d(operands[0], attrs["padding"], constants["pad_value"])


def _reshape_shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    (x,), shape = inputs, tuple(attrs["shape"])
    expect(len(shape) > 0 and shape[0] == x.shape[0], f"the first axis must stay {x.shape[0]}, got {shape}")
    before, after = _sections(x.shape[1:]), _sections(shape[1:])
    expect(len(before) < 4, f"at most one axis of unknown length is possible, got {x.shape}")
    has, wants = (" x ".join(str(d) for d in each if d != 1) or "1" for each in (before, after))
    expect(before == after, f"{x.shape} has {has} elements per sample, {shape} has {wants}")
    return shape


def _sections(shape: Shape) -> list[int | str]:
    """The elements between axes of unknown length, which stay where they are, and these axes."""
    found: list[int | str] = [1]
    for d in shape:
        if isinstance(d, str):
            found += [d, 1]
        else:
            found[-1] *= d
    return found


def _transpose_shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    (x,), perm = inputs, tuple(attrs["perm"])
    expect(sorted(perm) == list(range(len(x.shape))), f"perm must reorder {len(x.shape)} axes, got {perm}")
    expect(perm[0] == 0, f"the batch must stay the first axis, got perm {perm}")
    return tuple(x.shape[i] for i in perm)


def _concat_shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    first, axis = inputs[0], attrs["axis"]
    expect(0 < axis < len(first.shape), f"axis must be in 1..{len(first.shape) - 1}, got {axis}")
    for x in inputs[1:]:
        same = len(x.shape) == len(first.shape) and all(
            p == q for i, (p, q) in enumerate(zip(x.shape, first.shape, strict=True)) if i != axis
        )
        expect(same, f"shapes may differ along axis {axis} only, got {first.shape} and {x.shape}")
        expect(x.dtype == first.dtype, f"dtypes must agree, got {first.dtype} and {x.dtype}")
        alike = (x.scale, x.zero_point) == (first.scale, first.zero_point)
        expect(alike, f"{x.name} and {first.name} must have one scale and zero point; requantize one of them")
    return (*first.shape[:axis], sum(x.shape[axis] for x in inputs), *first.shape[axis + 1 :])


def _slice_shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    (x,), axis = inputs, attrs["axis"]
    expect(0 < axis < len(x.shape), f"axis must be in 1..{len(x.shape) - 1}, got {axis}")
    start, stop, step = attrs["start"], attrs["stop"], attrs["step"]
    if isinstance(x.shape[axis], str):
        expect(
            (start, stop, step) == (0, 1, 1),
            f"of the axis {x.shape[axis]!r} only the first element is sure to be there",
        )
        return (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    fits = 0 <= start < stop <= x.shape[axis] and step >= 1
    expect(fits, f"[{start}:{stop}:{step}] does not lie in an axis of {x.shape[axis]}")
    return (*x.shape[:axis], len(range(start, stop, step)), *x.shape[axis + 1 :])


def _pad_shape(inputs: tuple[Value, ...], attrs: Attrs, constants: Constants) -> Shape:
    (x,), (top, left, bottom, right) = inputs, attrs["padding"]
    expect(len(x.shape) == 4, f"expects an (n, h, w, c) input, got shape {x.shape}")
    expect(min(attrs["padding"]) >= 0, f"padding must not be negative, got {attrs['padding']}")
    expect(constants["pad_value"].shape == (x.shape[3],), "pad_value must hold one value per channel")
    n, h, w, c = x.shape
    return (n, h + top + bottom, w + left + right, c)


def _image(name: str, dtype: str = "uint8", channels: int = 12) -> Value:
    low, high = (0, 255) if dtype == "uint8" else (-(2**15), 2**15 - 1)
    return Value(name, ("n", 4, 6, channels), dtype, low, high)


def _samples(*cases):
    return lambda rng: [
        Sample(tuple(inputs), attrs, {k: make(rng) for k, make in constants.items()}, inputs[0].dtype)
        for inputs, attrs, constants in cases
    ]


OPS = (
    Op(
        "reshape",
        "move",
        _reshape,
        _reshape_shape,
        _samples(
            ([_image("x")], {"shape": ("n", 288)}, {}),
            ([_image("x", "int16")], {"shape": ("n", 4, 6, 3, 4)}, {}),
        ),
        attrs=frozenset({"shape"}),
    ),
    Op(
        "transpose",
        "move",
        _transpose,
        _transpose_shape,
        _samples(([_image("x")], {"perm": (0, 3, 1, 2)}, {}), ([_image("x", "int16")], {"perm": (0, 2, 1, 3)}, {})),
        attrs=frozenset({"perm"}),
    ),
    Op(
        "concat",
        "move",
        _concat,
        _concat_shape,
        _samples(
            ([_image("a"), _image("b", channels=5), _image("c")], {"axis": 3}, {}),
            ([_image("a", "int16"), _image("b", "int16")], {"axis": 1}, {}),
        ),
        attrs=frozenset({"axis"}),
    ),
    Op(
        "slice",
        "move",
        _slice,
        _slice_shape,
        _samples(
            ([_image("x")], {"axis": 3, "start": 1, "stop": 11, "step": 3}, {}),
            ([_image("x", "int16")], {"axis": 2, "start": 2, "stop": 6, "step": 1}, {}),
            ([Value("x", ("n", "s", 24), "int16", -9, 99)], {"axis": 1, "start": 0, "stop": 1, "step": 1}, {}),
        ),
        attrs=frozenset({"axis", "start", "stop", "step"}),
    ),
    Op(
        "pad",
        "move",
        _pad,
        _pad_shape,
        _samples(
            (
                [_image("x")],
                {"padding": (1, 0, 2, 3)},
                {"pad_value": lambda rng: rng.integers(0, 256, 12).astype(np.uint8)},
            )
        ),
        attrs=frozenset({"padding"}),
        constants=frozenset({"pad_value"}),
    ),
)
