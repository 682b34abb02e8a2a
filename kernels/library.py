"""A compiled library: what it says of itself, and how it is written to disk. Imports no TVM."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any

from intq.errors import IntqError
from intq.graph import Graph, Node
from intq.ops import OPS
from intq.value import Value


def structure(graph: Graph) -> str:
    """SHA-256 of all of a graph that its library depends on, and of the compiler itself."""
    state, values = hashlib.sha256(compiler_digest()), graph.values
    for value in graph.inputs:
        state.update(f"{value.name} {value.shape} {value.dtype}\n".encode())
    for node in graph.nodes:
        key = kernel_key(node, tuple(values[name] for name in node.inputs))
        state.update(f"{node.name} {node.inputs} {key}\n".encode())
    state.update(str(graph.outputs).encode())
    return state.hexdigest()


def kernel_key(node: Node, inputs: tuple[Value, ...]) -> str:
    """All that a node's kernel depends on: nodes of one key share it.

    Arrays are given to a kernel when it runs, so that the layers of an encoder are alike: what counts of them is their
    shapes, whether shifts reach 32 and operands fit 4 bits. Only an average pooling has its constants as immediates.
    """
    from intq.kernels.cpu.frames import window_span
    from intq.kernels.cpu.heads import arithmetic, words_suffice
    from intq.kernels.cuda.plan import in_nibbles
    from intq.kernels.rescale import rescale_of

    parts = [node.op, *((value.shape, value.dtype) for value in (*inputs, node.output))]
    parts.append(json.dumps(dict(node.attrs), sort_keys=True, default=list))
    parts += [(name, array.shape, array.dtype.name) for name, array in sorted(node.constants.items())]
    if OPS[node.op].loop == "sum2d":
        parts += [array.item() for _, array in sorted(node.constants.items()) if array.size == 1]
    if "weight" in node.constants:
        parts.append(in_nibbles(node, inputs[0]))
    if "shift" in node.constants:
        rescale = rescale_of(node, inputs)
        parts += [rescale.base, rescale.lift]
    if node.op == "attention":
        parts.append(arithmetic(node))
    if node.op == "log_mel":
        parts.append(window_span(node))
    if "weight" in node.constants and "curve" in node.constants:
        lifted = "lift" in node.constants and int(node.constants["lift"].max()) > node.attrs["drop"]
        parts += [words_suffice(node.constants["curve"]), lifted]
    return str(parts)


def compiler_digest() -> bytes:
    """Of the sources of the compiler and of the bodies it compiles: a library made by other ones is not used."""
    here = Path(__file__).resolve().parent
    ops = Path(__import__("intq.ops").ops.__file__).resolve().parent
    state = hashlib.sha256()
    bodies = [*ops.glob("*.py"), *(ops.parent / name for name in ("fixedpoint.py", "curves.py", "packing.py"))]
    for path in sorted([*here.rglob("*.py"), *bodies]):
        state.update(path.read_bytes())
    return state.digest()


def description(graph: Graph, isa: str, kernels: dict[str, str]) -> str:
    """What a library says of itself, as JSON: its instruction set, its graph's structure, the kernel of every node."""
    return json.dumps({"instruction_set": isa, "structure": structure(graph), "kernels": kernels})


def place(folder: str | Path, structure: str, instruction_set: str = "cpu") -> Path:
    """Where an artifact keeps its library for CPUs, or for one architecture of GPUs ("sm_75").

    Another structure has another name, because a process that loads a name twice gets what it got the first time,
    whatever the file holds by then."""
    return Path(folder) / f"{_room(instruction_set)}-{structure[:16]}.so"


def _room(instruction_set: str) -> str:
    return instruction_set if is_gpu(instruction_set) else "cpu"


def is_gpu(instruction_set: str) -> bool:
    """Whether a library's instruction set is a GPU's, such as "sm_75"."""
    return instruction_set.startswith("sm_")


@dataclass(frozen=True)
class Library:
    """``executable``: TVM's; ``target``: the choice it was compiled for; ``kernels``: the kernel of every node;
    ``cubin``: their machine code for a GPU."""

    executable: Any
    target: Any
    structure: str
    kernels: dict[str, str]
    cubin: bytes | None = None

    @property
    def instruction_set(self) -> str:
        return self.target.isa.name

    def assembly(self) -> str:
        """The text of every kernel's machine code."""
        return "\n".join(_sources(self.executable.mod))

    def keep(self, folder: str | Path) -> Path:
        """Write the library into an artifact, instead of any that is there; its path."""
        path = place(folder, self.structure, self.instruction_set)
        self.save(path)
        for other in set(path.parent.glob(f"{_room(self.instruction_set)}-*.so")) - {path}:
            other.unlink()
        return path

    def save(self, path: str | Path) -> None:
        """Write a shared library.

        Raises IntqError when there is no linker for the target's processor.
        """
        path = Path(path)
        linker = _linker(self.target.triple)
        temporary = path.with_name(f".{path.name}.tmp.so")
        options = {"fcompile": lambda *files, **_: _link(linker, *files)}
        if self.cubin is not None:
            from intq.kernels.cuda.binary import packer

            options["fpack_imports"] = packer(self.cubin)
        try:
            self.executable.export_library(str(temporary), **options)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _linker(triple: str) -> str:
    """The linker for a target such as "aarch64-linux-gnu": a library of kernels needs no compiler and no headers."""
    parts = [part for part in triple.split("-") if part not in ("unknown", "pc")]
    known = [f"{'-'.join(parts)}-ld", "ld.lld"]
    if parts[0] == platform.machine():
        known.insert(0, "ld")
    found = next((name for name in known if which(name)), None)
    if found is None:
        raise IntqError(
            f"linking a library for {parts[0]} needs one of {', '.join(known)} on the PATH (Debian: "
            f"{'binutils' if known[0] == 'ld' else f'binutils-{known[0][:-3]}'} or lld)"
        )
    return found


def _link(linker: str, path: str, objects: list[str]) -> None:
    command = [linker, "-shared", "--strip-debug", "-o", path, *objects]  # LLVM's debug data is a fifth of the file
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise IntqError(f"{linker} cannot link the kernels: {run.stderr.strip()}")


def _sources(module) -> list[str]:
    out = []
    if module.kind == "llvm":
        out.append(module.inspect_source("asm"))
    for imported in module.imports:
        out += _sources(imported)
    return out
