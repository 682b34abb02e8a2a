"""Integer networks on disk: ``graph.json`` (readable) and ``weights.safetensors``, versioned and hashed, no pickle.

graph.json holds the inputs, nodes and metadata, the SHA-256 of the weights file, and the SHA-256 of its own other
fields, so that a truncated or edited artifact is refused rather than run. Constants are named ``node/constant``, and
are stored in the narrowest integers that hold them (shifts take a byte); :data:`intq.graph.CONSTANT_DTYPES` says what
they are in memory. Weights of 4 and 2 bits are packed (:mod:`intq.packing`): their node's field ``packed`` has their
shapes, and the file, which older versions of intq cannot read, version 3.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from intq.errors import IntqError
from intq.graph import CONSTANT_DTYPES, Graph, Node
from intq.ops.contract import weight_bits
from intq.packing import pack, unpack
from intq.value import Value

FORMAT, VERSION = "intq", 3
UNPACKED_VERSION = 2  # of a network without narrow weights, which keeps the document, and the digest, that it had
GRAPH_FILE, WEIGHTS_FILE = "graph.json", "weights.safetensors"


@contextmanager
def new_folder(folder: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill that appears under its name only when the block ends well; nothing is left when it fails.

    Raises IntqError when ``folder`` exists (unless ``overwrite``), or its parent cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise IntqError(f"{folder} exists already; remove it, choose another name, or ask to overwrite it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise IntqError(f"{folder} cannot be written: {error.strerror}") from None
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        for path in (temporary, *temporary.iterdir()):  # mkdtemp and safetensors make them private
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
        elif folder.exists():
            folder.unlink()
        temporary.rename(folder)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def save(graph: Graph, folder: str | Path, overwrite: bool = False) -> None:
    """Write the graph, proven first, as a new folder.

    Raises IntqError when the folder exists and ``overwrite`` is false, or the graph cannot be proven.
    """
    graph.verify()
    with new_folder(folder, overwrite) as temporary:
        write(graph, temporary)


def write(graph: Graph, folder: Path) -> None:
    """Write graph.json and weights.safetensors into an existing folder."""
    # Not ascontiguousarray, which makes a vector of a single number.
    constants = {f"{n.name}/{k}": _stored(n, k) for n in graph.nodes for k in n.constants}
    save_file(constants, folder / WEIGHTS_FILE)
    document = to_document(graph) | {"weights_sha256": _file_digest(folder / WEIGHTS_FILE)}
    document["sha256"] = _document_digest(document)
    (folder / GRAPH_FILE).write_text(_pretty(document), encoding="utf-8")


def _packed(node: Node) -> dict[str, list[int]]:
    """The shapes of the constants that are stored packed."""
    return {"weight": list(node.constants["weight"].shape)} if weight_bits(node.attrs) < 8 else {}


def _stored(node: Node, key: str) -> np.ndarray:
    """A constant packed, or in the narrowest signed integers, where its kind has one type alone to be restored to."""
    array = node.constants[key]
    if key in _packed(node):
        return pack(array, weight_bits(node.attrs))
    if len(CONSTANT_DTYPES[key]) == 1 and array.size:
        low, high = int(array.min()), int(array.max())
        narrow = next(
            t for t in ("int8", "int16", "int32", "int64") if np.iinfo(t).min <= low <= high <= np.iinfo(t).max
        )
        array = array.astype(narrow)
    return np.asarray(array, order="C")  # ascontiguousarray would make a vector of a single number


def _restored(fields: dict[str, Any], key: str, array: np.ndarray) -> np.ndarray:
    """A constant as it is in memory, of a node's ``fields`` in graph.json."""
    if key in fields.get("packed", {}):
        return unpack(array, weight_bits(fields["attrs"]), tuple(fields["packed"][key]))
    types = CONSTANT_DTYPES.get(key, ())
    return array.astype(types[0]) if len(types) == 1 and array.dtype.kind == "i" else array


def load(folder: str | Path) -> Graph:
    """Read and prove an artifact.

    Raises IntqError when ``folder`` is not an artifact, is truncated or edited, or was written by a newer version.
    """
    folder = Path(folder)
    document = _read_document(folder)
    constants = _read_constants(folder / WEIGHTS_FILE, document["weights_sha256"])
    try:
        graph = _from_document(document, constants)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntqError(f"{folder / GRAPH_FILE} is malformed ({error!r}); quantize the network again") from None
    graph.verify()
    return graph


def is_artifact(folder: str | Path) -> bool:
    """Whether the folder looks like an artifact (it may still fail to load)."""
    return (Path(folder) / GRAPH_FILE).is_file()


def digest(graph: Graph) -> str:
    """SHA-256 of the network's meaning: everything but the metadata."""
    document = to_document(graph)
    del document["metadata"]
    state = hashlib.sha256(_canonical(document))
    for node in graph.nodes:
        for key in sorted(node.constants):
            array = np.ascontiguousarray(node.constants[key])
            state.update(f"{node.name}/{key} {array.dtype.str} {array.shape}".encode())
            state.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return state.hexdigest()


def to_document(graph: Graph) -> dict[str, Any]:
    """The graph without its constants as plain JSON data."""
    return {
        "format": FORMAT,
        "version": VERSION if any(map(_packed, graph.nodes)) else UNPACKED_VERSION,
        "inputs": [_fields(v) for v in graph.inputs],
        "nodes": [
            {
                "op": n.op,
                "inputs": list(n.inputs),
                "output": _fields(n.output),
                "attrs": _plain(dict(n.attrs)),
                "constants": sorted(n.constants),
                "source": n.source,
                **({"packed": _packed(n)} if _packed(n) else {}),
            }
            for n in graph.nodes
        ],
        "outputs": list(graph.outputs),
        "metadata": _plain(dict(graph.metadata)),
    }


def _from_document(document: dict[str, Any], constants: dict[str, np.ndarray]) -> Graph:
    nodes = tuple(
        Node(
            n["op"],
            tuple(n["inputs"]),
            _value(n["output"]),
            {k: _frozen(v) for k, v in n["attrs"].items()},
            {k: _restored(n, k, constants[f"{n['output']['name']}/{k}"]) for k in n["constants"]},
            n["source"],
        )
        for n in document["nodes"]
    )
    inputs = tuple(_value(v) for v in document["inputs"])
    return Graph(inputs, nodes, tuple(document["outputs"]), document["metadata"])


def _fields(value: Value) -> dict[str, Any]:
    """A value's fields; a network without a longest input has the document, and the digest, that it always had."""
    fields = _plain(asdict(value))
    return {key: field for key, field in fields.items() if key != "longest" or field}


def _value(fields: dict[str, Any]) -> Value:
    return Value(**{k: _frozen(v) for k, v in fields.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def _canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _document_digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical({k: v for k, v in document.items() if k != "sha256"})).hexdigest()


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pretty(document: dict[str, Any]) -> str:
    """JSON with one line a node: readable and small."""
    fields = []
    for key, value in document.items():
        if key == "nodes":
            value = "[\n" + ",\n".join(f"    {json.dumps(n, allow_nan=False)}" for n in value) + "\n  ]"
        else:
            value = json.dumps(value, allow_nan=False)
        fields.append(f"  {json.dumps(key)}: {value}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _read_document(folder: Path) -> dict[str, Any]:
    path = folder / GRAPH_FILE
    if not path.is_file():
        raise IntqError(f"{folder} is not an intq artifact: it has no {GRAPH_FILE}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise IntqError(f"{path} is truncated or damaged ({error}); quantize the network again") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise IntqError(f'{path} is not a graph written by intq (no field "format": "{FORMAT}")')
    version = document.get("version")
    if not isinstance(version, int) or version < 1:
        raise IntqError(f"{path} has no valid version number, found {version!r}")
    if version > VERSION:
        raise IntqError(f"{path} has format version {version}, this intq reads up to {VERSION}; upgrade intq")
    try:
        intact = document.get("sha256") == _document_digest(document)
    except (ValueError, RecursionError):  # NaN, or nested without end: never written by us
        intact = False
    if not intact or not isinstance(document.get("weights_sha256"), str):
        raise IntqError(f"{path} was edited or damaged (its hash does not match); quantize the network again")
    return document


def _read_constants(path: Path, sha256: str) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise IntqError(f"{path} is missing; the artifact is incomplete")
    if _file_digest(path) != sha256:
        raise IntqError(f"{path} was truncated or edited (its hash does not match graph.json); quantize again")
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise IntqError(f"{path} cannot be read ({error})") from None
