"""The plan file: what is written is what is read, nothing malformed is, and a plan for another network is refused."""

import fnmatch
import json
import math
import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intq import documents
from intq.baselines import METHODS
from intq.cost import Geometry
from intq.errors import IntqError
from intq.precision import Precision, PrecisionPlan, plan_of, read_plan, write_plan
from intq.problem import problem_of
from intq.search import search

LAYERS = {
    "conv1": Geometry(1000, ((8, 3, 3, 3),)),
    "block.0.[odd]": Geometry(2000, ((8, 8), (8, 8))),
    "fc": Geometry(80, ((10, 8),)),
}


@pytest.fixture
def plan() -> PrecisionPlan:
    weights = {name: {4: 0.3, 8: 0.1} for name in LAYERS}
    budgets = {"size": 700.0}
    found = search(problem_of(LAYERS, weights, {name: {4: 0.2, 8: 0.0} for name in LAYERS}), budgets)
    return plan_of(found, LAYERS, "small", budgets, {"conv1": {"mean_trace": 0.25}})


@pytest.fixture
def path(tmp_path, plan):
    write_plan(tmp_path / "plan.json", plan)
    return tmp_path / "plan.json"


def test_round_trip(plan, path):
    assert read_plan(path) == plan
    assert plan.gap == 0 and plan.method == "ilp" and plan.costs["size"] <= 700
    document = json.loads(path.read_text())
    assert document["format"] == "intq-plan" and document["version"] == 1
    assert document["layers"]["conv1"]["weights"] == [[8, 3, 3, 3]]


def test_what_the_quantizer_takes(plan):
    bits, weight_bits = plan.patterns()
    for name, layer in plan.layers.items():
        (own,) = (pattern for pattern in bits if fnmatch.fnmatchcase(name, pattern))
        assert (bits[own], weight_bits[own]) == (layer.input_bits, layer.weight_bits)


def test_a_gap_that_is_not_known(plan, tmp_path):
    problem = problem_of(LAYERS, {name: {4: 0.3, 8: 0.1} for name in LAYERS})
    found = METHODS["random"](problem, {"size": 700.0}, seed=4)
    assert math.isnan(found.gap)
    written = plan_of(found, LAYERS, "small", {"size": 700.0})
    write_plan(tmp_path / "other.json", written)
    assert written.gap is None and read_plan(tmp_path / "other.json") == written and written.seed == 4


def test_for_another_network(plan):
    plan.check(LAYERS, "small")
    other = {
        "conv1": Geometry(1, ((8, 1, 3, 3),)),
        "fc": LAYERS["fc"],
        "head": Geometry(1, ((2, 2),)),
    }
    with pytest.raises(IntqError) as error:
        plan.check(other, "other")
    assert str(error.value) == (
        "the plan is for another network (small, 3 layers) than other (3 layers): block.0.[odd] is not in the network; "
        "head is not in the plan; conv1 has weights of 8x1x3x3, the plan's of 8x3x3x3; search again for this one"
    )
    with pytest.raises(IntqError, match="and 2 more; search again"):
        plan.check({f"x{i}": LAYERS["fc"] for i in range(2)}, "other")


def test_files_that_are_no_plans(path, tmp_path):
    def error(match: str, text: str | None = None):
        if text is not None:
            path.write_text(text)
        with pytest.raises(IntqError, match=match):
            read_plan(path)

    whole = path.read_text()
    error("no JSON, or damaged", whole[:-40])
    error("not of the expected kind", '{"format": "intq"}')
    error("not of the expected kind", "[]")
    error(
        "has no valid version number, found True",
        whole.replace('"version": 1', '"version": true'),
    )
    error("has format version 2, this intq reads up to 1; upgrade intq", whole.replace('"version": 1', '"version": 2'))
    error("no JSON, or damaged", "[" * 100_000)
    path.unlink()
    error("there is no file")
    path.mkdir()
    error("cannot be read")


def test_edits_that_make_no_sense_are_named(path):
    document = json.loads(path.read_text())

    def error(match: str, **changes):
        path.write_text(json.dumps(document | changes))
        with pytest.raises(IntqError, match=match):
            read_plan(path)

    error("weight_bits must be one of 2, 4, 8, 16, found 3", layers={"a": {"weight_bits": 3}})
    error("input_bits must be one of 4, 8, 16, found None", layers={"a": {"weight_bits": 4}})
    layer = {"weight_bits": 4, "input_bits": 8}
    error("weights must be a list, found None", layers={"a": layer})
    error("weights must be a whole number, 1 or more, found 0", layers={"a": layer | {"weights": [[0]]}})
    error("layers must name one layer or more", layers={})
    error("error must be a finite number, found 'x'", error="x")
    error("seed must be a whole number, 0 or more, found -1", seed=-1)
    error(r"sensitivity\['a'\] must be an object, found 3", sensitivity={"a": 3})
    del document["costs"]
    error("the field 'costs' is missing")


LEAVES = st.sampled_from([None, True, -1, 0, 3, 1.5, 1e400, float("nan"), 10**400, "", "x", [], {}, [[]], {"a": None}])


@settings(max_examples=300)
@given(st.data())
def test_any_edit_is_read_or_refused(data):
    """A value anywhere in the file replaced or removed: IntqError or a plan that is written and read the same again."""
    fields = {name: getattr(EXAMPLE, name) for name in ("network", "method", "minimized", "budgets", "error", "costs")}
    fields |= {
        name: getattr(EXAMPLE, name) for name in ("gap", "seconds", "seed", "evaluations", "score", "sensitivity")
    }
    document = {"format": "intq-plan", "version": 1, **json.loads(json.dumps(fields))}
    document["layers"] = {"a": {"weight_bits": 4, "input_bits": 8, "weights": [[2, 3], [4, 5]]}}
    place = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        deeper = isinstance(place[key], (dict, list)) and place[key]
        if not deeper or data.draw(st.booleans()):
            break
        place = place[key]
    if data.draw(st.booleans()):
        place[key] = data.draw(LEAVES)
    else:
        del place[key]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "plan.json")
        path.write_text(json.dumps(document))
        try:
            found = read_plan(path)
        except IntqError as error:
            assert str(path) in str(error)
            return
        write_plan(path, found)
        assert read_plan(path) == found


EXAMPLE = PrecisionPlan(
    "small",
    {"a": Precision(4, 8, ((2, 3), (4, 5)))},
    "ilp",
    "error",
    {"size": 3.0},
    0.5,
    {"size": 2.0},
    0.0,
    0.01,
    7,
    3,
    0.25,
    {"a": {"mean_trace": 0.5}},
)


def test_never_half_written(plan, path, tmp_path, monkeypatch):
    before = path.read_bytes()

    def full(self, text):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(documents.tempfile._TemporaryFileWrapper, "write", full, raising=False)
        with pytest.raises(IntqError, match="cannot be written: No space left on device"):
            write_plan(path, plan)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(IntqError, match="cannot be written"):
        write_plan(tmp_path / "file" / "plan.json", plan)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
