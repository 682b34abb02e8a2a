"""LayerNorm: the sums of each row, the inverse deviations of a block of rows at once, then channel by channel.

Square root and reciprocal are some eighty dependent steps of 64-bit arithmetic: in vectors across rows they cost a row
less than its sums.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intq.kernels.bodies import TvmDialect, Vector, lanes, reinterpret, splat, vector_type
from intq.kernels.build import i64, kernel, ramp, sample_size
from intq.kernels.cpu.build import local, parallel, parallel_region, serial
from intq.kernels.cpu.constants import Channelwise, everywhere
from intq.kernels.cpu.isa import Isa
from intq.kernels.cpu.lanes import load, store
from intq.kernels.cpu.runs import Run, runs
from intq.kernels.cpu.sweep import over_runs, words_before
from intq.kernels.rescale import Rescale
from intq.ops.rows import inverse_deviation, normalised

ROWS = 16  # of a block
PAIR_PRODUCTS = {  # words in a register -> the instruction that multiplies them and adds neighbours
    32: "llvm.x86.avx512.pmaddw.d.512",
    16: "llvm.x86.avx2.pmadd.wd",
}


def layernorm(name: str, isa: Isa, attrs, rescale: Rescale, source, output) -> tirx.PrimFunc:
    """The kernel (x, packed constants, epsilon (1,), out). ``source``, ``output``: (shape, dtype)."""
    channels = output[0][-1]
    row = tuple(runs(channels, isa.quads, isa.natural))
    layout = Channelwise(rescale.fields, rescale.base)

    def write(n, x, packed, epsilon, out):
        count = n * (sample_size(output[0]) // channels)
        with parallel_region(), parallel((count + (ROWS - 1)) // ROWS) as block:
            first = T.Bind(block * ROWS)
            rows = T.Bind(tirx.min(count - first, i64(ROWS)))
            totals, squares, inverse = (local(ROWS, dtype) for dtype in ("int32", "int64", "int32"))
            for buffer in (totals, squares):
                T.buffer_store(buffer, splat(0, str(buffer.dtype), ROWS), [ramp(0, ROWS)])
            with serial(rows) as i:
                _sums(x, T.Bind((first + i) * channels), channels, isa, totals, squares, i)
            sums = (Vector((b[ramp(0, ROWS)],), str(b.dtype)) for b in (totals, squares))
            constants = {"epsilon": Vector((splat(epsilon[0], "int64", ROWS),), "int64")}
            result = inverse_deviation(TvmDialect, *sums, constants, attrs)
            T.buffer_store(inverse, result.clamped().parts[0], [ramp(0, ROWS)])

            def normalise(start, run: Run):
                values = layout.load(packed, words_before(layout, row, start, run), run)
                with serial(rows) as i:
                    at = T.Bind((first + i) * channels + start)
                    total, share = (everywhere(T.Bind(b[i]), run) for b in (totals, inverse))
                    store(out, at, normalised(TvmDialect, load(x, at, run), total, share, values, attrs), run)

            over_runs(row, normalise)

    words = layout.words(row)
    return kernel(name, [source, ((words,), "int64"), ((1,), "int64"), output], write)


def _sums(x, at, channels: int, isa: Isa, totals, squares, i) -> None:
    """totals[i], squares[i] = sums of x and of x**2 over the row that begins at ``x[at]``."""
    done, width = 0, 32 if "avx512f" in isa.features else 16
    while done < channels:
        count = (channels - done) // width
        if count:
            terms = lambda k: _terms(x[ramp(T.Bind(at + (k * width + done)), width)], isa)  # noqa: B023, E731
            for buffer, total in zip((totals, squares), _summed(terms, count), strict=True):
                T.buffer_store(buffer, buffer[i] + _across(total), [i])
        done += count * width
        width //= 2


def _summed(terms, count: int) -> list:
    """The sums of the vectors ``terms(0)``, ``terms(1)``, ..."""
    first = terms(0)
    if count == 1:
        return first
    dtype = lambda v: str(v.ty.dtype).partition("x")[0]  # noqa: E731
    sums = [local(lanes(v), dtype(v)) for v in first]

    def add(vectors) -> None:
        for buffer, v in zip(sums, vectors, strict=True):
            T.buffer_store(buffer, buffer[ramp(0, lanes(v))] + v, [ramp(0, lanes(v))])

    for buffer, v in zip(sums, first, strict=True):
        T.buffer_store(buffer, splat(0, dtype(v), lanes(v)), [ramp(0, lanes(v))])
    with serial(count) as k:
        add(terms(k))
    return [buffer[ramp(0, lanes(v))] for buffer, v in zip(sums, first, strict=True)]


def _terms(words, isa: Isa) -> list:
    """Vectors, int32 and int64, whose elements add up to the sum of int16 ``words`` and to that of their squares."""
    count = lanes(words)
    if not isa.quads or count not in PAIR_PRODUCTS:
        wide = words.astype(vector_type("int32", count))
        return [wide, (wide * wide).astype(vector_type("int64", count))]
    pairs = lambda other: tirx.call_llvm_pure_intrin(  # noqa: E731
        f"int32x{count // 2}", PAIR_PRODUCTS[count], words, other
    )
    # two squares may add up to 2**31: unsigned
    both = reinterpret(pairs(words), f"uint64x{count // 4}")
    low, high = both & splat(2**32 - 1, "uint64", count // 4), both >> splat(32, "uint64", count // 4)
    return [pairs(splat(1, "int16", count)), reinterpret(low + high, f"int64x{count // 4}")]


def _across(vector):
    """The sum of a vector's elements."""
    while lanes(vector) > 1:
        half = lanes(vector) // 2
        low, high = (tirx.Shuffle([vector], [tirx.const(j + i, "int32") for i in range(half)]) for j in (0, half))
        vector = low + high
    return vector
