"""Budgets as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intq.budgets import UNITS, Budget, limits, parse_budgets, spelled
from intq.errors import IntqError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("size=7.5MB,bops=0.5x,latency=0.8x", {"size": (7.5e6, False), "bops": (0.5, True), "latency": (0.8, True)}),
        ("size=1MiB", {"size": (2**20, False)}),
        (" size = 512 kB , memory=64KiB", {"size": (512e3, False), "memory": (65536, False)}),
        ("bops=2G", {"bops": (2e9, False)}),
        ("bops=1.5e3MBOPS", {"bops": (1.5e9, False)}),
        ("latency=250us", {"latency": (250e-6, False)}),
        ("latency=250µs,size=100B", {"latency": (250e-6, False), "size": (100, False)}),
        ("latency=1s", {"latency": (1, False)}),
        ("size=.5x", {"size": (0.5, True)}),
    ],
)
def test_understood(text, expected):
    found = parse_budgets(text)
    assert {name: (pytest.approx(b.value), b.relative) for name, b in found.items()} == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "several are separated by commas"),
        ("size", "a budget is a name, = and a number with its unit"),
        ("size=", "size=1MB, bops=1GBOPS, latency=1ms, memory=1MB, bops=0.5x"),
        ("weight=7MB", "found 'weight=7MB'"),
        ("size=7.5", "the unit of size is one of MB, B, kB"),
        ("size=7mb", "or x for so many times W8A8's; found 'size=7mb'"),
        ("latency=3MB", "the unit of latency is one of ms, s, us"),
        ("size=1MB,size=2MB", "the budget size is given twice"),
        ("size=0MB", "must be a number above 0, found '0'"),
        ("size=1.2.3MB", "must be a number above 0, found '1.2.3'"),
        ("bops=1e999G", "must be a number above 0"),
        ("bops=-1G", "found 'bops=-1G'"),
        ("bops=50%", "found 'bops=50%'"),
        ("size=1MB,", "found ''"),
    ],
)
def test_not_understood(text, says):
    with pytest.raises(IntqError) as error:
        parse_budgets(text)
    assert says in str(error.value)


@given(st.text(max_size=30) | st.from_regex(r"(size|bops)=[0-9.e]{0,5}(MB|G|x)?(,latency=[0-9]ms)?", fullmatch=True))
def test_any_text_is_understood_or_refused(text):
    try:
        found = parse_budgets(text)
    except IntqError:
        return
    assert found and all(budget.value > 0 for budget in found.values())


def test_relative_to_the_network():
    costs = {"size": 10e6, "bops": 4e9}
    assert limits({"size": Budget(7.5e6), "bops": Budget(0.5, True)}, costs) == {"size": 7.5e6, "bops": 2e9}
    with pytest.raises(IntqError, match="there is no latency to limit; the network has size, bops; measure a table"):
        limits({"latency": Budget(0.8, True)}, costs)
    with pytest.raises(IntqError, match="there is no memory to limit"):
        limits({"memory": Budget(0.8, True)}, costs)


@given(st.sampled_from(sorted(UNITS)), st.floats(1e-3, 1e12))
def test_what_is_spelled_is_understood(name, value):
    text = f"{name}={spelled(name, value)}".replace(" ", "")
    assert parse_budgets(text)[name].value == pytest.approx(value, rel=1e-5)
    within = parse_budgets(f"{name}={spelled(name, value, up=True)}".replace(" ", ""))[name].value
    assert value * (1 - 1e-9) <= within <= value * (1 + 2e-5)


def test_units_by_size():
    cases = {("size", 7.5e6): "7.5 MB", ("size", 12): "12 B", ("bops", 5e8): "500 MBOPS", ("latency", 2e-4): "200 us"}
    assert {case: spelled(*case) for case in cases} == cases
    assert spelled("joules", 2.5) == "2.5" and spelled("size", 0) == "0 B" and spelled("error", -0.5, up=True) == "-0.5"
