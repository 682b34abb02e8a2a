"""Artifacts: what is saved is what is loaded, and nothing damaged, edited or newer is ever run."""

import json

import numpy as np
import pytest
from graphs import narrowed
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from text_graphs import random_text_graph, sentences

from intq import artifact
from intq.backends import reference
from intq.errors import IntqError
from intq.graph import Graph, make_node
from intq.value import DTYPE_RANGE, Value


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


def spread(*shape: int, step: int = 37, dtype=np.int8) -> np.ndarray:
    """Numbers all over [-127, 127] by a formula."""
    return ((np.arange(np.prod(shape)) * step % 255) - 127).astype(dtype).reshape(shape)


def small_text_network() -> Graph:
    """Ids to 3 scores through every operation of texts, from formulas in integers only: the golden text artifact's."""

    def add(op, name, inputs, dtype, zero_point=0, attrs=None, **constants):
        low, high = DTYPE_RANGE[dtype]
        attrs = attrs if op in ("differs", "slice", "reshape") else {"low": low, "high": high, **(attrs or {})}
        arrays = {key: np.asarray(value) for key, value in constants.items()}
        nodes.append(make_node(op, name, inputs, dtype=dtype, zero_point=zero_point, attrs=attrs, constants=arrays))
        return nodes[-1].output

    def rescale(shift: int, zero_point: int = 0, co=()) -> dict:
        half = (zero_point << shift) + (1 << (shift - 1))
        multiplier = 2**30 + np.arange(np.prod(co, dtype=int)).reshape(co) * 9973
        shifts = np.full(co, shift, np.int32)
        return {"multiplier": multiplier.astype(np.int32), "offset": np.full(co, half), "shift": shifts}

    def linear(name, x, co, dtype, shift, zero_point=0, attrs=None, inputs=(), **more):
        weight = spread(co, x.channels, step=len(name) * 13 + 7)
        constants = rescale(shift, zero_point, (co,)) | {"weight": weight} | more
        return add("linear", name, [x, *inputs], dtype, 128 if zero_point == 128 else 0, attrs, **constants)

    nodes, segments = [], np.arange(32)
    ramp = np.stack([(255 * (32 - segments) << 3) + 128, np.full(32, -255 << 3), np.zeros(32)]).astype(np.int32)
    rise = np.stack([(segments << 3) * 32 + 16, np.full(32, 128), (segments % 5) * 32]).astype(np.int32)
    ids = Value("ids", ("n", "s"), "int32", 0, 11, longest=9)
    mask = add("differs", "mask", [ids], "uint8", attrs={"value": 1})
    x = add(
        "embedding",
        "embedding",
        [ids],
        "int16",
        attrs={"positions": "counted", "padding": 1, "separator": 2},
        word=spread(12, 8),
        word_multiplier=(2**29 + np.arange(12) * 2**24).astype(np.int32),
        position=spread(11, 8, step=91, dtype=np.int16) * 50,
        position_multiplier=np.int32(2**24),
        segment=spread(2, 8, step=53, dtype=np.int16),
        segment_multiplier=np.int32(2**26),
        offset=np.int64(2**21),
        shift=np.int32(22),
    )
    epsilon = np.int64(64 * 100)
    x = add("layernorm", "norm", [x], "int16", attrs={"size": 8}, epsilon=epsilon, **rescale(38, co=(8,)))
    h = add("layernorm", "narrow", [x], "uint8", 128, attrs={"size": 8}, epsilon=epsilon, **rescale(44, 128, (8,)))
    q, k, v = (linear(name, h, 8, "uint8", 38, 128) for name in ("q", "key", "value"))
    scores = {"score_multiplier": np.int32(2**30), "score_offset": np.int64(2**29), "score_shift": np.int32(30)}
    attrs = {"heads": 2, "size": 4, "longest": 9, "drop": 8}
    scale = rescale(37, 128)
    a = add("attention", "attention", [q, k, v, mask], "uint8", 128, attrs, curve=ramp, **scores, **scale)
    residual = {"residual_multiplier": np.full(8, 2**30, np.int32)}
    x = linear("out", a, 8, "int16", 31, inputs=[x], **residual)
    attrs = {"drop": 5, "function": "rise"}
    h = add("layernorm", "after", [x], "uint8", 128, attrs={"size": 8}, epsilon=epsilon, **rescale(44, 128, (8,)))
    h = linear("wide", h, 16, "uint8", 32, 100, attrs, curve=rise)
    x = linear("back", h, 8, "int16", 30, inputs=[x], **residual)
    mean = add("mean_tokens", "mean", [x, mask], "int16", attrs={"longest": 9}, **rescale(30))
    y = add("curve", "curve", [mean], "uint8", 0, attrs, curve=rise, **rescale(31, 2**14))
    first = add("slice", "first", [h], "uint8", 0, {"axis": 1, "start": 0, "stop": 1, "step": 1})
    flat = add("reshape", "flat", [first], "uint8", 0, {"shape": ("n", 16)})
    scores = linear("scores", flat, 3, "int32", 24)
    return Graph((ids,), tuple(nodes), (scores.name, y.name), {"name": "small text"})


NARROW = {"conv": 4, "scores": 2}


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
    assert artifact.digest(graph) == "63a9dab7ebe844a97326616e29865240f4a21b0a232b968e40a022b019511f91"
    assert scores.tolist() == [
        [-23043072, 10874880, 41398272, 27792384, -1741824],
        [31782912, 40725504, 56718336, -59154432, -19660800],
    ]


def test_the_golden_text_artifact_and_its_answer_never_change(tmp_path):
    graph = small_text_network()
    ids = np.array([[3, 4, 5, 2, 6, 7, 11, 0, 2], [9, 8, 2, 1, 1, 1, 1, 1, 1]], np.int32)
    scores, means = reference.run(graph, ids)
    assert artifact.digest(graph) == "00f5a680cf625a6c34216f821da3b62793be747d4833f95a65f706197f194fad"
    assert scores.tolist() == [[-749056, -243138, -798031], [-791936, -405700, -753870]]
    assert means.tolist() == [[51, 144, 153, 115, 119, 123, 182, 2], [44, 153, 153, 132, 105, 133, 178, 17]]
    graph.save(tmp_path / "text")
    loaded = artifact.load(tmp_path / "text")
    assert artifact.digest(loaded) == artifact.digest(graph) and loaded.values == graph.values
    for array, again in zip((scores, means), reference.run(loaded, ids), strict=True):
        np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize("seed", range(3))
def test_random_text_networks_survive_being_saved(tmp_path, seed):
    graph, ids = random_text_graph(seed), sentences(3, 9, seed)
    graph.save(tmp_path / "net")
    loaded = artifact.load(tmp_path / "net")
    assert loaded.text() == graph.text() and loaded.inputs == graph.inputs
    np.testing.assert_array_equal(reference.run(loaded, ids)[0], reference.run(graph, ids)[0])


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


@given(st.booleans(), st.sampled_from([artifact.GRAPH_FILE, artifact.WEIGHTS_FILE]), st.data())
@settings(max_examples=120, deadline=None)
def test_damage_is_found(tmp_path_factory, packed, name, data):
    folder = tmp_path_factory.mktemp("damage") / "net"
    graph = narrowed(small_network(), NARROW if packed else {})
    graph.save(folder)
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
    assert loaded.text() == graph.text()
    assert artifact.digest(loaded) == artifact.digest(graph)


@pytest.mark.parametrize("name", [artifact.GRAPH_FILE, artifact.WEIGHTS_FILE])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(IntqError, match=name):
        artifact.load(saved)


def test_narrow_weights_are_stored_packed_and_load_to_the_same_integers(tmp_path):
    graph = narrowed(small_network(), NARROW)
    graph.save(tmp_path / "net")
    document = json.loads((tmp_path / "net" / artifact.GRAPH_FILE).read_text())
    assert (document["version"], document["nodes"][0]["packed"]) == (3, {"weight": [8, 3, 3, 3]})
    stored = load_file(tmp_path / "net" / artifact.WEIGHTS_FILE)
    assert stored["conv/weight"].nbytes == 8 * 27 // 2 and stored["scores/weight"].nbytes == 5 * 32 // 4
    loaded = artifact.load(tmp_path / "net")
    assert loaded.text() == graph.text() and artifact.digest(loaded) == artifact.digest(graph)
    for node, again in zip(graph.nodes, loaded.nodes, strict=True):
        for key, array in node.constants.items():
            assert again.constants[key].dtype == array.dtype
            np.testing.assert_array_equal(again.constants[key], array)


def test_narrow_weights_take_half_and_a_quarter_of_the_file(tmp_path):
    x = Value("x", ("n", 512), "uint8", 0, 255)
    constants = {
        "weight": spread(512, 512),
        "multiplier": np.full(512, 2**30, np.int32),
        "offset": np.full(512, 1 << 19, np.int64),
        "shift": np.full(512, 20, np.int32),
    }
    attrs = {"low": -(2**31), "high": 2**31 - 1}
    graph = Graph((x,), (make_node("linear", "y", [x], dtype="int32", attrs=attrs, constants=constants),), ("y",))
    size = {}
    for bits in (8, 4, 2):
        (graph if bits == 8 else narrowed(graph, {"y": bits})).save(tmp_path / str(bits))
        size[bits] = (tmp_path / str(bits) / artifact.WEIGHTS_FILE).stat().st_size
    assert 0.5 <= size[4] / size[8] < 0.52
    assert 0.25 <= size[2] / size[8] < 0.28


def test_a_network_without_narrow_weights_has_the_document_that_it_had(saved):
    document = json.loads((saved / artifact.GRAPH_FILE).read_text())
    assert document["version"] == 2 and not any("packed" in node for node in document["nodes"])


@pytest.mark.parametrize("version", [1, 2])
def test_artifacts_of_older_versions_load(saved, version):
    edit(saved, lambda d: d.update(version=version))
    assert artifact.digest(artifact.load(saved)) == artifact.digest(small_network())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: n["packed"].update(weight=[8, 3, 3, 4]), "malformed"),
        (lambda n: n["packed"].update(weight=[-8, -3, 3, 3]), "malformed|weight"),
        (lambda n: n["packed"].update(weight=[8, 9, 3, 1]), "channels"),
        (lambda n: n["packed"].update(weight=[2**80]), "malformed"),
        (lambda n: n["packed"].update(weight=None), "malformed"),
        (lambda n: n.update(packed=5), "malformed"),
        (lambda n: n["packed"].update(multiplier=[8]), "malformed"),
        (lambda n: n.pop("packed"), "must be int8"),
        (lambda n: n["attrs"].update(weight_bits=2), "malformed"),
        (lambda n: n["attrs"].update(weight_bits=0), "malformed"),
        (lambda n: n["attrs"].update(weight_bits="4"), "malformed"),
        (lambda n: n["attrs"].pop("weight_bits"), "malformed"),
    ],
)
def test_an_edited_packing_is_refused(tmp_path, change, message):
    narrowed(small_network(), NARROW).save(tmp_path / "net")
    edit(tmp_path / "net", lambda document: change(document["nodes"][0]))
    with pytest.raises(IntqError, match=message):
        artifact.load(tmp_path / "net")


def test_packed_bytes_beyond_the_narrow_range_are_refused(tmp_path):
    folder = tmp_path / "net"
    narrowed(small_network(), NARROW).save(folder)
    constants = load_file(folder / artifact.WEIGHTS_FILE)
    constants["conv/weight"] = np.zeros_like(constants["conv/weight"])  # of four bits the lowest, -8
    save_file(constants, folder / artifact.WEIGHTS_FILE)
    edit(folder, lambda d: d.update(weights_sha256=artifact._file_digest(folder / artifact.WEIGHTS_FILE)))
    with pytest.raises(IntqError, match="must lie within 7, found 8"):
        artifact.load(folder)
