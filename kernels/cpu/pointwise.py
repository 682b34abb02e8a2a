"""Operations on one element of each input: their bodies in a loop."""

from __future__ import annotations

import math

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import TvmDialect, Vector
from intq.kernels.build import bound, i64, kernel, ramp, sample_size, symbolic
from intq.kernels.cpu.build import parallel, parallel_region
from intq.kernels.cpu.constants import Channelwise, scalars, uniform
from intq.kernels.cpu.isa import Isa
from intq.kernels.cpu.lanes import CURVE, TABLE, load, store, tables
from intq.kernels.cpu.runs import Run, runs
from intq.kernels.cpu.sweep import flat_runs, over_runs, words_before
from intq.kernels.rescale import Rescale


def pointwise(name: str, isa: Isa, body, attrs, rescale: Rescale, inputs, output) -> tirx.PrimFunc:
    """The kernel (inputs..., [constants], [curve], out). ``inputs``, ``output``: (shape, dtype).

    The constants are as :func:`intq.kernels.cpu.pack.rescale_array` lays them out; a body with a curve takes its
    coefficients after them. The second input may be 1 where the first is not.
    """
    curve = "drop" in attrs
    (shape, _), row = output, tuple(runs(output[0][-1], isa.quads, isa.natural)) if rescale.channelwise else ()
    layout = Channelwise(rescale.fields, rescale.base)
    arguments = list(inputs)
    if rescale.constants:
        arguments.append(((layout.words(row) if row else len(rescale.fields) + 1,), "int64"))
    if curve:
        arguments.append(((CURVE * TABLE,), "int32"))
    names = symbolic(shape)

    def write(*rest):
        known, (*sources, out) = bound(shape, rest), rest[len(names) :]
        coefficients = sources.pop() if curve else None
        packed = sources.pop() if rescale.constants else None
        with parallel_region():
            more = {"curve": tables(coefficients, isa)} if curve else {}
            single = {} if row or not rescale.constants else scalars(packed, rescale)

            def element(index, operands, values, run: Run):
                operands = tuple(operand.lifted(rescale.lift) for operand in operands)
                store(out, index, body(TvmDialect, operands, values | more, attrs), run)

            if not row and all(s == shape for s, _ in inputs):

                def alike(index, run: Run):
                    index = T.Bind(index)
                    element(index, [load(s, index, run) for s in sources], uniform(single, run, rescale.base), run)

                flat_runs(math.prod(rest[: len(names)]), sample_size(shape), isa, alike)
                return
            with parallel(math.prod(known[:-1])) as pixel:

                def channels(start, run: Run):
                    index = T.Bind(pixel * known[-1] + start)
                    operands = [load(sources[0], index, run)]
                    if len(sources) > 1:
                        other = inputs[1][0]
                        at = _broadcast_pixel(pixel, known, other) * other[-1]
                        operands.append(_broadcast_load(sources[1], at, start, other[-1], run))
                    values = layout.load(packed, words_before(layout, row, start, run), run) if row else None
                    element(index, operands, values or uniform(single, run, rescale.base), run)

                over_runs(row or runs(known[-1], isa.quads, isa.natural), channels)

    return kernel(name, [*arguments, output], write, names)


def _broadcast_pixel(pixel, shape, other):
    """The pixel of ``other`` that meets ``pixel`` of ``shape``: all axes but the last, 1 repeats."""
    place, stride, rest = i64(0), i64(1), pixel
    for size, own in zip(reversed(shape[:-1]), reversed(other[:-1]), strict=True):
        if own != 1:
            place = place + rest % size * stride
            stride = stride * size
        rest = rest // size
    return place


def _broadcast_load(buffer, at, start, channels: int, run: Run) -> Vector:
    if channels > 1:
        return load(buffer, T.Bind(at + start), run)
    one = buffer[at].astype("int32")
    return Vector((tirx.Broadcast(one, run.part_lanes) if run.part_lanes > 1 else one,) * run.parts, "int32", run.quad)


def lookup(name: str, body, attrs, dtype: str, inputs, output) -> tirx.PrimFunc:
    """The kernel (x, table, out)."""
    natural = Isa("", 0, 0, 0, (), 16, ())  # a gather has no use for pack order

    def write(n, x, table, out):
        def gather(v: Vector) -> Vector:
            return Vector((table[v.parts[0]],), dtype)

        def element(index, run: Run):
            index = T.Bind(index)
            result = body(TvmDialect, (load(x, index, run),), {"table": gather}, attrs)
            T.buffer_store(out, result.parts[0], [ramp(index, run.width)])

        with parallel_region():
            flat_runs(n, sample_size(output[0]), natural, element)

    return kernel(name, [*inputs, ((256,), dtype), output], write)
