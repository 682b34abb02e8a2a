"""How far the integer functions are from the real ones, beside I-BERT's polynomials (Kim et al. 2021).

Measured are operations as they are deployed, by the reference: of an 8-bit input a table of 256 entries, of a 16-bit
input a curve (:mod:`intq.curves`), each on every input there is. Results have 16 bits, so that their own rounding does
not hide the function's error. I-BERT's polynomials are taken in real arithmetic, as if its integers cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from intq.backends import reference
from intq.backends.reference import NumpyDialect
from intq.curves import fit
from intq.fixedpoint import dyadic, isqrt, offset_of, reciprocal
from intq.functions import FUNCTIONS, ibert_exp, ibert_gelu
from intq.graph import make_node
from intq.ops.rows import INVERSE_BITS, LEAST_ROOT
from intq.value import DTYPE_RANGE, Value

Real = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Approximation:
    """The largest absolute errors of a function on [low, high] over ``compared`` inputs of ``bits`` bits.

    An ``exact`` one equals floor(f) everywhere, and its interval is that of its integers. ``ibert`` is None where the
    paper has no approximation of it.
    """

    function: str
    low: float
    high: float
    bits: int
    compared: int
    ours: float
    ibert: float | None

    @property
    def exact(self) -> bool:
        return self.ours == 0

    @property
    def ratio(self) -> float | None:
        """How many times larger I-BERT's error is; None where either of them is exact."""
        return None if self.exact or self.ibert is None else self.ibert / self.ours


def ibert_tanh(x: Tensor) -> Tensor:
    """sgn(x) (1 - e) / (1 + e) with e = exp(-2 |x|), I-BERT's. (The paper leaves the pooler's tanh in float.)"""
    e = ibert_exp(-2 * x.abs())
    return x.sign() * (1 - e) / (1 + e)


def approximations(seed: int = 0) -> list[Approximation]:
    """GELU, tanh, exp, the square root and LayerNorm's division, as deployed."""
    cases = [
        ("gelu", FUNCTIONS["gelu"], ibert_gelu, -4.0, 4.0),
        ("gelu", FUNCTIONS["gelu"], ibert_gelu, -8.0, 8.0),
        ("tanh", FUNCTIONS["tanh"], ibert_tanh, -4.0, 4.0),
        ("exp", FUNCTIONS["exp"], ibert_exp, -20 * math.log(2), 0.0),
    ]
    measured = [_measured(*case, bits) for case in cases for bits in (8, 16)]
    return [*measured, _square_root(seed), _division(seed)]


def _measured(name: str, real: Real, ibert: Real, low: float, high: float, bits: int) -> Approximation:
    x = np.linspace(low, high, 2**bits)
    exact, theirs = (f(torch.from_numpy(x)).numpy() for f in (real, ibert))
    most = DTYPE_RANGE["int16"][1]
    scale = np.abs(exact).max() / most
    integers = (_table if bits == 8 else _curve)(name, real, low, high, scale)
    ours = np.abs(integers * scale - exact).max()
    return Approximation(name, low, high, bits, len(x), float(ours), float(np.abs(theirs - exact).max()))


def _function(real: Real) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: real(torch.from_numpy(x)).numpy()


def _table(name: str, real: Real, low: float, high: float, scale: float) -> np.ndarray:
    """The operation "lookup" on all of uint8."""
    x = Value("x", ("n", 256), "uint8", 0, 255)
    table = np.floor(_function(real)(np.linspace(low, high, 256)) / scale + 0.5).astype(np.int16)
    node = make_node("lookup", name, [x], dtype="int16", attrs={"function": name}, constants={"table": table})
    return reference.run_node(node, [np.arange(256, dtype=np.uint8)[None]])[0]


def _curve(name: str, real: Real, low: float, high: float, scale: float) -> np.ndarray:
    """The operation "curve" on all of int16. Where exp is less than half a step of its result, the curve has ended."""
    least, most = DTYPE_RANGE["int16"]
    step = (high - low) / (most - least)  # of x
    start = max(low, math.log(0.5 * scale)) if name == "exp" else low
    made = fit(_function(real), start, high, scale, 0, "int16")
    multiplier = dyadic(step / made.step)
    constants = {
        "multiplier": multiplier.multiplier,
        "offset": offset_of((low - start) / made.step - least * step / made.step, multiplier.shift, 0),
        "shift": multiplier.shift,
        "curve": made.coefficients,
    }
    attrs = {"low": least, "high": most, "drop": made.drop, "function": name}
    x = Value("x", ("n", 2**16), "int16", least, most)
    arrays = {key: np.asarray(value) for key, value in constants.items()}
    node = make_node("curve", name, [x], dtype="int16", attrs=attrs, constants=arrays)
    return reference.run_node(node, [np.arange(least, most + 1).astype(np.int16)[None]])[0]


def _square_root(seed: int, count: int = 50_000) -> Approximation:
    """floor(sqrt(n)) of random n of any magnitude and on both sides of squares, against Python's."""
    rng = np.random.default_rng(seed)
    roots = _any_magnitude(rng, 31, count)
    n = np.concatenate([np.arange(1, 2**10), _any_magnitude(rng, 62, count), roots**2, (roots + 1) ** 2 - 1])
    error = _largest_difference(isqrt(NumpyDialect, n), [math.isqrt(v) for v in n.tolist()])
    theirs = _largest_difference(newton_root(n[n < 2**31]), [math.isqrt(v) for v in n[n < 2**31].tolist()])
    return Approximation("sqrt", 0, 2.0**62, 62, len(n), error, theirs)


def _division(seed: int, count: int = 50_000) -> Approximation:
    """floor(2**46 / d) of LayerNorm's deviations d, against Python's."""
    d = np.clip(_any_magnitude(np.random.default_rng(seed), 31, count), LEAST_ROOT, None)
    d = np.concatenate([np.arange(LEAST_ROOT, LEAST_ROOT + 2**10), 2**31 - 1 - np.arange(2**10), d])
    quotients = reciprocal(NumpyDialect, d, INVERSE_BITS)
    error = _largest_difference(quotients, [2**INVERSE_BITS // v for v in d.tolist()])
    return Approximation("1 / deviation", LEAST_ROOT, 2.0**31, 31, len(d), error, None)


def newton_root(n: np.ndarray, rounds: int = 4) -> np.ndarray:
    """I-BERT's square root (algorithm 4): Newton's from 2**ceil(bits / 2), as many rounds as the paper says suffice."""
    bits = np.frexp(n.astype(np.float64))[1]
    root = np.left_shift(np.int64(1), (bits + 1) // 2)
    for _ in range(rounds):
        root = np.minimum(root, (root + n // root) // 2)
    return root


def _any_magnitude(rng: np.random.Generator, bits: int, count: int) -> np.ndarray:
    """Random integers in [1, 2**bits), as many of each number of bits."""
    return np.right_shift(rng.integers(2 ** (bits - 1), 2**bits, count), rng.integers(0, bits, count))


def _largest_difference(got: np.ndarray, wanted: list[int]) -> float:
    return float(max(abs(a - b) for a, b in zip(got.tolist(), wanted, strict=True)))


def table() -> list[dict]:
    """What `intq functions` prints: one row per function, interval and width of the input."""
    return [
        {
            "function": a.function,
            "interval": [a.low, a.high],
            "bits": a.bits,
            "compared": a.compared,
            "error": a.ours,
            "ibert_error": a.ibert,
            "ratio": a.ratio,
            "exact": a.exact,
        }
        for a in approximations()
    ]
