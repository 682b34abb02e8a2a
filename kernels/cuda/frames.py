"""Operations over frames: which of them there are, and their normalisation over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import Vector
from intq.kernels.cuda.build import kernel
from intq.kernels.cuda.dialect import CudaDialect
from intq.kernels.cuda.elements import Elements
from intq.kernels.cuda.sweep import each

Tensor = tuple[tuple, str]


def frame_mask(name: str, body: Callable, attrs: Mapping, source: Tensor, out: Tensor) -> tirx.PrimFunc:
    """The kernel (x, lengths, out); of x only the shape counts."""
    names = tuple(dict.fromkeys(d for d in (*source[0], *out[0]) if isinstance(d, str)))

    def write(*given):
        sizes, (_, lengths, target) = dict(zip(names, given, strict=False)), given[len(names) :]
        rows, frames = (sizes.get(d, d) for d in out[0])

        def element(row, frame):
            operands = (Vector((value,), "int32") for value in (T.Bind(lengths[row]), frame + 1))
            result = body(CudaDialect, tuple(operands), {}, attrs)
            Elements(target, rows * frames, 1).store(row * frames + frame, result)

        each(rows, frames, element)

    return kernel(name, [source, (out[0][:1], "int32"), out], write, names)
