"""The mean over the tokens that a mask keeps."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import TvmDialect, Vector
from intq.kernels.build import i64, kernel, ramp
from intq.kernels.cpu.build import local, parallel_region, serial
from intq.kernels.cpu.constants import everywhere, scalars, uniform
from intq.kernels.cpu.isa import Isa
from intq.kernels.cpu.lanes import accumulated, load, store
from intq.kernels.cpu.runs import Run
from intq.kernels.cpu.sweep import row_runs
from intq.kernels.rescale import Rescale
from intq.ops.rows import share_of_token, shared

CHANNELS = 64  # that one thread sums at a time
ONE = Run(0, 1, False)


def mean_tokens(name: str, isa: Isa, attrs, rescale: Rescale, source, mask, output) -> tirx.PrimFunc:
    """The kernel (x, mask, constants, out)."""
    channels = output[0][-1]

    def write(n, s, x, mask, packed, out):
        with parallel_region():
            constants = scalars(packed, rescale)

            def mean(sample, start, run: Run):
                sums, count = local(run.width, "int32"), local(1, "int32")
                lanes = run.part_lanes
                for part, zero in enumerate(everywhere(0, run).parts):
                    T.buffer_store(sums, zero, [ramp(part * lanes, lanes)])
                T.buffer_store(count, 0, [i64(0)])
                with serial(s) as token:
                    at = T.Bind(sample * s + token)
                    with T.If(mask[at] != 0), T.Then():
                        T.buffer_store(count, count[i64(0)] + 1, [i64(0)])
                        row = load(x, T.Bind(at * channels + start), run)
                        for part, more in enumerate(row.parts):
                            place = ramp(part * lanes, lanes)
                            T.buffer_store(sums, sums[place] + more, [place])
                kept = Vector((count[i64(0)],), "int32")
                share = share_of_token(TvmDialect, kept, uniform(constants, ONE, rescale.base), attrs)
                total, share = accumulated(sums, i64(0), run), everywhere(share.parts[0], run)
                result = shared(TvmDialect, total, share, uniform(constants, run, rescale.base), attrs)
                store(out, T.Bind(sample * channels + start), result, run)

            row_runs(n, channels, isa, CHANNELS, mean)

    arguments = [source, mask, ((len(rescale.fields) + 1,), "int64"), output]
    return kernel(name, arguments, write, mask[0])
