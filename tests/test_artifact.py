"""Artifacts: what is saved is what is loaded, and nothing damaged, edited or newer is ever run."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intq import artifact
from intq.backends import reference
from intq.errors import IntqError
from intq.graph import Graph, make_node
from intq.value import Value


def small_network() -> Graph:
    """A convolution and a classifier with constants derived from a formula: the golden artifact's network."""
    x = Value("x", ("n", 4, 4, 3), "uint8", 0, 255, (0.017, 0.0175, 0.0174), (123.7, 116.3, 103.5))
    conv = make_node(
        "conv2d",
        "conv",
        [x],
        dtype="uint8",
        scale=0.02,
        attrs={"stride": (2, 2), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1, "low": 0, "high": 255},
        constants={
            "weight": ((np.arange(8 * 27) * 37 % 255) - 127).astype(np.int8).reshape(8, 3, 3, 3),
            "pad_value": np.array([124, 116, 104], np.uint8),
            "multiplier": (2**30 + np.arange(8) * 12345).astype(np.int32),
            "offset": (np.int64(1) << np.full(8, 36)) * (np.arange(8) + 1),
            "shift": np.full(8, 37, np.int32),
        },
        source="features.0",
    )
    flat = make_node("reshape", "flat", [conv.output], dtype="uint8", scale=0.02, attrs={"shape": ("n", 32)})
    head = make_node(
        "linear",
        "scores",
        [flat.output],
        dtype="int32",
        attrs={"low": -(2**31), "high": 2**31 - 1},
        constants={
            "weight": ((np.arange(5 * 32) * 91 % 255) - 127).astype(np.int8).reshape(5, 32),
            "multiplier": np.full(5, 2**30, np.int32),
            "offset": np.full(5, 1 << 19, np.int64),
            "shift": np.full(5, 20, np.int32),
        },
    )
    return Graph((x,), (conv, flat, head), ("scores",), {"name": "small", "labels": ["a", "b", "c", "d", "e"]})


@pytest.fixture
def saved(tmp_path):
    small_network().save(tmp_path / "net")
    return tmp_path / "net"


def test_a_saved_graph_loads_to_the_same_integers(saved):
    graph, loaded = small_network(), artifact.load(saved)
    assert loaded.text() == graph.text()
    assert loaded.values == graph.values
    assert loaded.metadata == graph.metadata
    assert artifact.digest(loaded) == artifact.digest(graph)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3)).astype(np.uint8)
    np.testing.assert_array_equal(reference.run(loaded, pixels), reference.run(graph, pixels))


def test_the_golden_artifact_and_its_answer_never_change():
    """A change of either hash is a change of format or of arithmetic: it needs a new version, not a new hash here."""
    graph = small_network()
    pixels = (np.arange(2 * 48) * 29 % 256).astype(np.uint8).reshape(2, 4, 4, 3)
    (scores,) = reference.run(graph, pixels)
    assert artifact.digest(graph) == "8ff4b8cbc9b5de0eeea8ced0cc15b01e3bd1960c938c90c9e85012139a615874"
    assert scores.tolist() == [
        [-23043072, 10874880, 41398272, 27792384, -1741824],
        [31782912, 40725504, 56718336, -59154432, -19660800],
    ]


def test_two_saves_are_the_same_bytes(saved, tmp_path):
    small_network().save(tmp_path / "again")
    for name in (artifact.GRAPH_FILE, artifact.WEIGHTS_FILE):
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_an_existing_folder_is_left_alone(saved):
    before = (saved / artifact.GRAPH_FILE).read_bytes()
    with pytest.raises(IntqError, match="exists already"):
        small_network().save(saved)
    assert (saved / artifact.GRAPH_FILE).read_bytes() == before


def test_nothing_is_left_when_writing_fails(tmp_path):
    with pytest.raises(RuntimeError), artifact.new_folder(tmp_path / "net") as folder:
        (folder / "half").write_text("written")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_overwriting_replaces_the_whole_folder(saved):
    (saved / "old").write_text("from before")
    artifact.save(small_network(), saved, overwrite=True)
    assert sorted(p.name for p in saved.iterdir()) == [artifact.GRAPH_FILE, artifact.WEIGHTS_FILE]


def edit(folder, change) -> None:
    """Rewrite graph.json with its hash made right again, as somebody who edits on purpose would."""
    document = json.loads((folder / artifact.GRAPH_FILE).read_text())
    change(document)
    document["sha256"] = artifact._document_digest(document)
    (folder / artifact.GRAPH_FILE).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=99), "upgrade intq"),
        (lambda d: d.update(version="1"), "version"),
        (lambda d: d.update(format="onnx"), "not a graph written by intq"),
        (lambda d: d["nodes"][0].update(op="conv9d"), "unknown operation"),
        (lambda d: d["nodes"][0]["output"].update(high=7), "derived as"),
        (lambda d: d["nodes"][0]["attrs"].update(stride=[0, 1]), "stride"),
        (lambda d: d["nodes"][0]["attrs"].update(stride="x"), "malformed"),
        (lambda d: d["nodes"][0]["attrs"].pop("groups"), "needs the attributes"),
        (lambda d: d["nodes"][1].update(inputs=["nowhere"]), "not defined before"),
        (lambda d: d["nodes"][0].update(constants=["weight"]), "needs the constants"),
        (lambda d: d["nodes"].pop(), "not defined by any node"),
        (lambda d: d.update(nodes=5), "malformed"),
        (lambda d: d["inputs"][0].update(dtype="float32"), "dtype"),
    ],
)
def test_an_edited_graph_is_refused_even_with_its_hash_mended(saved, change, message):
    edit(saved, change)
    with pytest.raises(IntqError, match=message):
        artifact.load(saved)


@given(st.sampled_from([artifact.GRAPH_FILE, artifact.WEIGHTS_FILE]), st.data())
@settings(max_examples=60, deadline=None)
def test_damage_is_found(tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("damage") / "net"
    small_network().save(folder)
    raw = bytearray((folder / name).read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw = raw[:at]
    else:
        raw[at] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(raw)
    try:
        loaded = artifact.load(folder)
    except IntqError:
        return
    # White space or an equal spelling of the same JSON may differ: then nothing that is run or shown does.
    assert loaded.text() == small_network().text()
    assert artifact.digest(loaded) == artifact.digest(small_network())


@pytest.mark.parametrize("name", [artifact.GRAPH_FILE, artifact.WEIGHTS_FILE])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(IntqError, match=name):
        artifact.load(saved)
