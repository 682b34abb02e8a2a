"""Operations on one element of each input: their bodies in a loop."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import TvmDialect, Vector
from intq.kernels.cpu.build import kernel, parallel, parallel_region, ramp, sample_size
from intq.kernels.cpu.constants import Channelwise, uniform
from intq.kernels.cpu.isa import Isa
from intq.kernels.cpu.lanes import CURVE, TABLE, load, store, tables
from intq.kernels.cpu.runs import Run, runs
from intq.kernels.cpu.sweep import flat_runs, over_runs
from intq.kernels.pack import Rescale


def pointwise(name: str, isa: Isa, body, attrs, rescale: Rescale, inputs, output) -> tirx.PrimFunc:
    """The kernel (inputs..., [packed constants], out). ``inputs``, ``output``: (shape, dtype).

    Constants of shape () become immediates, others are packed; a body with a curve takes its coefficients after them.
    The second input may be 1 where the first is not.
    """
    constants, base, lift = rescale.constants, rescale.base, rescale.lift
    curve = "drop" in attrs
    channelwise = any(array.ndim for array in constants.values())
    length, channels = sample_size(output[0]), output[0][-1]
    arguments = list(inputs)
    layout = Channelwise(rescale.fields, base)
    if channelwise:
        arguments.append(((layout.words(tuple(runs(channels, isa.quads, isa.natural))),), "int64"))
    if curve:
        arguments.append(((CURVE * TABLE,), "int32"))

    def write(n, *buffers):
        *sources, out = buffers
        coefficients = sources.pop() if curve else None
        packed = sources.pop() if channelwise else None
        with parallel_region():
            more = {"curve": tables(coefficients, isa)} if curve else {}
            if not channelwise and all(shape == output[0] for shape, _ in inputs):

                def element(index, run: Run):
                    index = T.Bind(index)
                    operands = tuple(load(s, index, run).lifted(lift) for s in sources)
                    store(out, index, body(TvmDialect, operands, uniform(constants, run, base) | more, attrs), run)

                flat_runs(n, length, isa, element)
                return
            pixels = length // channels
            with parallel(n * pixels) as pixel:

                def element(start, run: Run):
                    operands = [load(sources[0], T.Bind(pixel * channels + start), run).lifted(lift)]
                    if len(sources) > 1:
                        at = _broadcast_pixel(pixel, inputs[0][0], inputs[1][0]) * inputs[1][0][-1]
                        operands.append(_broadcast_load(sources[1], at, start, inputs[1][0][-1], run))
                    if channelwise:
                        number = layout.words((run,)) * ((start - run.start) // run.width)
                        first = layout.words(tuple(r for r in row if r.start < run.start))
                        values = layout.load(packed, T.Bind(number + first), run)
                    else:
                        values = uniform(constants, run, base)
                    result = body(TvmDialect, tuple(operands), values | more, attrs)
                    store(out, T.Bind(pixel * channels + start), result, run)

                row = runs(channels, isa.quads, isa.natural)
                over_runs(row, element)

    return kernel(name, [*arguments, output], write)


def _broadcast_pixel(pixel, shape, other):
    """The pixel of ``other`` that meets ``pixel`` of ``shape``: all axes but the last, 1 repeats."""
    place, stride, rest = 0, 1, pixel
    for size, own in zip(reversed(shape[1:-1]), reversed(other[1:-1]), strict=True):
        if own != 1:
            place = place + rest % size * stride
        rest, stride = rest // size, stride * own
    return place + rest * stride


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
