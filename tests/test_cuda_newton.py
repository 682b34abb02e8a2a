"""A GPU's exact quotients and square roots, against Python's integers."""

import math
from functools import cache

import numpy as np
import simt
import tvm
from cuda_nodes import assert_integers_alone, facts, on_cpu
from tvm.tirx.script.builder import ir as T

from intq.kernels.cuda import newton
from intq.kernels.cuda.build import kernel, store
from intq.kernels.cuda.sweep import each

LIMIT = 2**62


def function(name: str, compute, inputs: int):
    """The kernel (int64 tensors..., out)."""

    def write(n, *tensors):
        *given, out = tensors
        each(1, n, lambda _, i: store(out, compute(*(T.Bind(x[i]) for x in given)), i))

    return kernel(name, [(("n",), "int64")] * (inputs + 1), write)


KERNELS = tvm.IRModule(
    {"quotient": function("quotient", newton.quotient, 2), "isqrt": function("isqrt", newton.isqrt, 1)}
)


@cache
def compiled() -> simt.Kernels:
    return on_cpu(KERNELS)


def run(name: str, *inputs: list[int]) -> list[int]:
    out = np.zeros(len(inputs[0]), np.int64)
    compiled()[name](*(np.array(x, np.int64) for x in inputs), out)
    return out.tolist()


def spread(rng, limit: int, count: int) -> list[int]:
    """Numbers below ``limit`` of every length."""
    bits = limit.bit_length() - 1
    return [int(rng.integers(0, 2 ** int(rng.integers(1, bits + 1)))) for _ in range(count)]


def test_quotients():
    rng = np.random.default_rng(0)
    edges = [*range(1, 40), *(2**k + i for k in range(6, 31) for i in (-1, 0, 1)), 2**31 - 1]
    pairs = [(n, max(1, d)) for n, d in zip(spread(rng, LIMIT, 20000), spread(rng, 2**31, 20000), strict=True)]
    for d in edges:
        whole = LIMIT // d
        pairs += [(n, d) for n in (0, 1, d - 1, d, d + 1, LIMIT - 1, whole * d - 1, (whole - 1) * d, 2**61, 2**46)]
        pairs += [(q * d + r, d) for q in spread(rng, whole, 10) for r in (-1, 0) if 0 <= q * d + r < LIMIT]
    pairs = [(n, d) for n, d in pairs if n < LIMIT]
    ns, ds = map(list, zip(*pairs, strict=True))
    assert run("quotient", ns, ds) == [n // d for n, d in pairs]


def test_square_roots():
    rng = np.random.default_rng(1)
    roots = [*range(70), *spread(rng, 2**31, 10000), *(2**k + i for k in range(7, 31) for i in (-1, 0, 1)), 2**31 - 1]
    numbers = [root * root + i for root in roots for i in (-1, 0, 1) if root or i >= 0] + spread(rng, LIMIT, 10000)
    numbers = [n for n in numbers if n < LIMIT] + [LIMIT - 1]
    assert run("isqrt", numbers) == [math.isqrt(n) for n in numbers]


def test_the_machine_code():
    assert_integers_alone(facts(KERNELS))
