"""The GPU's machine code in a library: compiled when the library is, and put where TVM leaves CUDA source.

Where no driver is installed TVM keeps a GPU's kernels as source, for the machine with the GPU to compile. A deployed
library has to hold machine code, wherever it was built; so TVM is made to keep the source on every machine, NVRTC
compiles it, and the library is written with the binary in the source's place. TVM's runtime finds what it would have
written itself.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tvm
from tvm.runtime import Module

from intq.errors import IntqError
from intq.kernels.cuda import nvrtc

_KEEP_SOURCE = "TVM_COMPILE_FORCE_FALLBACK"  # TVM: make no module that could run here


def build(module: tvm.IRModule, target: tvm.target.Target, arch: str, **options):
    """``tvm.compile(module, target, **options)`` and the machine code of its GPU kernels: (executable, cubin).

    A module without kernels for a GPU, such as a network of views, has None.
    Raises IntqError as :func:`intq.kernels.cuda.nvrtc.compile` does.
    """
    with _keeping_source():
        executable = tvm.compile(module, target=target, **options)
    text = source(executable.mod)
    return executable, text and nvrtc.compile(text, arch)


def source(module: Module) -> str | None:
    """The CUDA C++ of a compiled module's kernels, or None where it has none."""
    kernels = _find(module, "cuda")
    return kernels and kernels.inspect_source()


def packer(cubin: bytes) -> Callable:
    """What ``export_library`` takes as ``fpack_imports``: TVM's own packing, with a binary in the source's place."""

    def pack(module: Module, system_lib: bool, prefix: str, folder: str) -> str:
        blob = tvm.get_global_func("runtime.ModulePackImportsToTensor")(module).numpy().tobytes()
        host = _find(module, "llvm").get_function("_get_target_string")()
        blob = replace_source(blob, source(module).encode(), cubin)
        path = str(Path(folder) / "imports.o")
        tvm.get_global_func("codegen.codegen_blob")(blob, system_lib, host, prefix).write_to_file(path)
        return path

    return pack


def replace_source(blob: bytes, source: bytes, cubin: bytes) -> bytes:
    """TVM's record of imported modules with its CUDA source replaced.

    A string is its length, in 8 bytes, and its bytes. The record is such a string; in it, a GPU's module is the string
    "cuda" (its kind) and a string of three parts: the code's format, a table of kernels, the code.
    """
    kind, old = _string(b"cuda"), _string(source)
    end = blob.rfind(old) + len(old)
    starts = [match.end() for match in re.finditer(re.escape(kind), blob)]
    start = next((at for at in starts if blob[at:].startswith(struct.pack("<Q", end - at - 8) + kind)), None)
    if start is None or struct.unpack_from("<Q", blob)[0] != len(blob) - 8:
        raise IntqError("TVM wrote its library in a way that intq does not know: install the version that intq pins")
    table = blob[start + 8 + len(kind) : end - len(old)]
    return _string(blob[8:start] + _string(_string(b"cubin") + table + _string(cubin)) + blob[end:])


@contextmanager
def _keeping_source() -> Iterator[None]:
    before = os.environ.get(_KEEP_SOURCE)
    os.environ[_KEEP_SOURCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_KEEP_SOURCE]
        else:
            os.environ[_KEEP_SOURCE] = before


def _find(module: Module, kind: str) -> Module | None:
    return next((each for each in _tree(module) if each.kind == kind), None)


def _tree(module: Module) -> Iterator[Module]:
    yield module
    for imported in module.imports:
        yield from _tree(imported)


def _string(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data
