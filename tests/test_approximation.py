"""`intq functions`: the integer functions against the real ones and I-BERT's."""

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from intq.approximation import approximations, newton_root, table
from intq.cli import app


@pytest.fixture(scope="module")
def measured():
    return approximations()


def test_every_function_is_exact_or_four_times_closer_than_i_berts(measured):
    assert {(a.function, a.bits) for a in measured} == {
        *((name, bits) for name in ("gelu", "tanh", "exp") for bits in (8, 16)),
        ("sqrt", 62),
        ("1 / deviation", 31),
    }
    for a in measured:
        assert a.exact or a.ratio >= 4, a
        assert a.exact == (a.function in ("sqrt", "1 / deviation"))
        assert a.compared >= (2**a.bits if a.bits <= 16 else 50_000)


def test_tables_are_correctly_rounded(measured):
    """Half a step of a 16-bit result, whose largest is that of the function."""
    largest = {"gelu": 1.0, "tanh": 1.0, "exp": 1.0}
    for a in measured:
        if a.bits == 8:
            step = (a.high if a.function == "gelu" else largest[a.function]) / 32767
            assert a.ours <= 0.5 * step * 1.0001


def test_i_berts_errors_are_those_of_the_literature(measured):
    theirs = {(a.function, a.high): a.ibert for a in measured if a.bits == 16}
    assert theirs["gelu", 4.0] == pytest.approx(0.0182, abs=1e-4)
    assert theirs["exp", 0.0] == pytest.approx(0.0021, abs=1e-4)


def test_newtons_root_in_four_rounds_is_exact_for_small_numbers_only():
    n = np.arange(1, 2**16)
    assert newton_root(n).tolist() == [math.isqrt(v) for v in n.tolist()]
    large = np.random.default_rng(0).integers(2**30, 2**31, 100_000)
    over = newton_root(large) - np.array([math.isqrt(v) for v in large.tolist()])
    assert over.min() == 0 and over.max() == 1


def test_the_command_prints_a_row_each(measured):
    people = CliRunner().invoke(app, ["functions"])
    assert people.exit_code == 0 and people.stdout.count("exact") == 2 and "gelu" in people.stdout
    rows = json.loads(CliRunner().invoke(app, ["functions", "--json"]).stdout)
    assert rows == table()
    assert [row["function"] for row in rows] == [a.function for a in measured]
    assert set(rows[0]) == {"function", "interval", "bits", "compared", "error", "ibert_error", "ratio", "exact"}
