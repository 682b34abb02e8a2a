"""The mean over the tokens that a mask keeps: a warp takes every WARPS-th token, a lane a few channels."""

from __future__ import annotations

from collections.abc import Mapping

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import Vector
from intq.kernels.cuda.build import (
    WARP,
    barrier,
    blocks,
    ceil_div,
    i32,
    kernel,
    quotient,
    registers,
    remainder,
    shared,
    store,
)
from intq.kernels.cuda.dialect import CudaDialect, HeldDialect, everywhere
from intq.kernels.cuda.elements import Constants, Elements, width_of
from intq.kernels.cuda.reduce import over_warps
from intq.ops.rows import share_of_token
from intq.ops.rows import shared as share_out

WARPS = 8

Tensor = tuple[tuple, str]


def mean_tokens(
    name: str, attrs: Mapping, constants: Constants, source: Tensor, mask: Tensor, out: Tensor
) -> tirx.PrimFunc:
    """The kernel (x, mask, constants, out)."""
    channels, names = out[0][-1], tuple(dict.fromkeys(d for d in mask[0] if isinstance(d, str)))
    width = width_of(channels, source[1], out[1])
    tile = WARP * width

    def write(*given):
        sizes, (x, kept, packed, target) = dict(zip(names, given, strict=False)), given[len(names) :]
        n, s = (sizes.get(d, d) for d in mask[0])
        with blocks(WARPS * WARP, ceil_div(channels, tile), n) as (bx, sample, _, thread):
            warp, lane = T.Bind(quotient(thread, WARP)), T.Bind(remainder(thread, WARP))
            channel = T.Bind(bx * tile + lane * width)
            sums, counts = shared(WARPS * tile, "int32"), shared(WARPS, "int32")
            mine, count = registers(width, "int32"), registers(1, "int32")
            for memory, i in [(count, 0), *((mine, i) for i in range(width))]:
                store(memory, i32(0), i)
            elements = Elements(x, n * s * channels, width)
            with T.serial(i32(0), ceil_div(s - warp, WARPS)) as turn:
                at = T.Bind(sample * s + turn * WARPS + warp)
                with T.If(kept[at] != 0), T.Then():
                    store(count, count[0] + 1, 0)
                    with T.If(channel < channels), T.Then():
                        for i, part in enumerate(elements.load(T.Bind(at * channels + channel)).parts):
                            store(mine, mine[i] + part, i)
            for i in range(width):
                store(sums, mine[i], warp * tile + lane * width + i)
            with T.If(lane.equal(0)), T.Then():
                store(counts, count[0], warp)
            barrier()
            with T.If(tirx.all(warp.equal(0), channel < channels)), T.Then():
                total = [over_warps(sums, WARPS, tile, lane * width + i).parts[0] for i in range(width)]
                values = constants.load(packed, [i32(0)])
                share = share_of_token(HeldDialect, over_warps(counts, WARPS, 1), values, attrs)
                values = {key: everywhere(value.parts[0], width) for key, value in values.items()}
                share = everywhere(share.parts[0], width)
                result = share_out(CudaDialect, Vector(tuple(total), "int32"), share, values, attrs)
                Elements(target, n * channels, width).store(T.Bind(sample * channels + channel), result)

    return kernel(name, [source, mask, ((constants.size,), "int32"), out], write, names)
