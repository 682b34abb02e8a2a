"""The file formats of the classic data sets, read safely: idx (MNIST, Fashion-MNIST) and both of CIFAR's.

Every reader checks sizes before it believes them, and raises IntqError for a file that is cut short or another format.
"""

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from intq.errors import IntqError

Files = Callable[[str], bytes | None]  # a file's bytes by name, None where there is no such file


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in an idx file, gzipped or not: (n,) labels or (n, height, width) images.

    Layout: two zero bytes, the type (8 = uint8), the number of dimensions, each dimension as a big-endian uint32, data.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise IntqError(f"{path} is no whole gzip file ({error})") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise IntqError(f"{path} is no idx file of bytes: it starts with {data[:4].hex() or 'nothing'}, not 000008")
    shape = tuple(map(int, np.frombuffer(data, ">u4", data[3], 4)))
    body = data[4 + 4 * len(shape) :]
    size = 1
    for dimension in shape:  # in Python's integers: a forged header must not wrap around
        size *= dimension
    if size != len(body):
        raise IntqError(f"{path}: the header says {size} bytes of data {shape}, the file holds {len(body)}")
    return np.frombuffer(body, np.uint8).reshape(shape)


def files_of(path: Path) -> Files:
    """The files of a folder, or of a tar archive by their last name."""
    if path.is_dir():
        return lambda name: (path / name).read_bytes() if (path / name).is_file() else None
    members = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile():
                    members[Path(member.name).name] = archive.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise IntqError(f"{path} is no whole tar archive ({error})") from error
    return members.get


# (files, where the names of the classes are, their key) of each split: CIFAR-10 and CIFAR-100, pickled and binary.
_CIFAR = {
    "cifar10 pickle": ({"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}, "batches.meta"),
    "cifar100 pickle": ({"train": ["train"], "test": ["test"]}, "meta"),
    "cifar10 binary": (
        {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]},
        "batches.meta.txt",
    ),
    "cifar100 binary": ({"train": ["train.bin"], "test": ["test.bin"]}, "fine_label_names.txt"),
}


def is_cifar(files: Files) -> bool:
    """Are these the files of CIFAR-10 or CIFAR-100, some of them at least?"""
    return any(files(file) for splits, _ in _CIFAR.values() for part in splits.values() for file in part)


def read_cifar(files: Files, split: str, name: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """(images uint8 (n, 32, 32, 3), labels (n,), class names) of CIFAR-10 or CIFAR-100.

    split: "train" or "test". CIFAR-100's labels are the fine ones. name: says in errors what was read.
    """
    for kind, (splits, meta) in _CIFAR.items():
        contents = [files(file) for file in splits[split]]
        if not any(contents):
            continue
        if not all(contents):
            missing = [file for file, content in zip(splits[split], contents, strict=True) if not content]
            raise IntqError(f"{name}: CIFAR's {split} split lacks {', '.join(missing)}")
        classes = 100 if "100" in kind else 10
        read = _pickled if "pickle" in kind else _binary
        parts = [
            read(content, classes, f"{name}/{file}") for file, content in zip(splits[split], contents, strict=True)
        ]
        images = np.concatenate([images for images, _ in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = np.concatenate([labels for _, labels in parts])
        if labels.min(initial=0) < 0 or labels.max(initial=0) >= classes:
            raise IntqError(f"{name}: a label is outside CIFAR-{classes}'s 0..{classes - 1}")
        return np.ascontiguousarray(images), labels, _class_names(files(meta), classes, name)
    raise IntqError(f"{name}: CIFAR's {split} split is not there")


def _pickled(content: bytes, classes: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    batch = safe_unpickle(content, name)
    key = "fine_labels" if classes == 100 else "labels"
    data, labels = (batch.get("data"), batch.get(key)) if isinstance(batch, dict) else (None, None)
    whole = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3072
    if not whole or not isinstance(labels, list) or len(labels) != len(data):
        raise IntqError(f"{name}: expected CIFAR's 'data' (n, 3072) of bytes and n {key!r}")
    if not all(isinstance(label, int) for label in labels):
        raise IntqError(f"{name}: {key!r} must be integers")
    return data, np.array(labels, np.int64)


def _binary(content: bytes, classes: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    head = 2 if classes == 100 else 1  # CIFAR-100's records start with the coarse label
    if not content or len(content) % (head + 3072):
        raise IntqError(f"{name}: {len(content)} bytes are no whole number of CIFAR records of {head + 3072} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, head + 3072)
    return records[:, head:], records[:, head - 1].astype(np.int64)


def _class_names(content: bytes | None, classes: int, name: str) -> tuple[str, ...]:
    if content is None:
        return ()
    try:
        names = content.decode("ascii").split()  # the binary version's text file
    except UnicodeDecodeError:
        meta = safe_unpickle(content, name)
        names = (meta.get("label_names") or meta.get("fine_label_names")) if isinstance(meta, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) and len(names) == classes else ()


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numbers, strings, containers and NumPy arrays: nothing that a pickle could use to run code."""

    def find_class(self, module: str, name: str):
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np._core.multiarray._reconstruct
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return _plain_dtype
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _plain_dtype(name: str, *_flags) -> np.dtype:
    dtype = np.dtype(name)
    if dtype.hasobject:
        raise pickle.UnpicklingError("an array of Python objects")
    return dtype


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """What Python 3 writes for bytes in a protocol-2 pickle."""
    return text.encode("latin1")


def safe_unpickle(content: bytes, name: str):
    """The plain values and NumPy arrays of a pickle, Python 2's too. IntqError for anything else in it."""
    try:
        return _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a forged pickle may make the unpickler raise anything
        raise IntqError(f"{name} is no pickle of plain arrays ({error or type(error).__name__})") from error
