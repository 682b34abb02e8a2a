"""The proof that a compiled library computes without floating point: its machine code, disassembled and searched."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which

from intq.errors import IntqError
from intq.kernels.cuda import sass

# Arithmetic, comparison and conversion in floating point; moves and bitwise logic, which have "ps" and "pd" forms that
# compilers use on integers too, compute nothing.
X86 = re.compile(
    r"v?(?:f?n?m(?:add|sub)|add|sub|addsub|hadd|hsub|mul|div|sqrt|rsqrt|rcp|max|min|round|rndscale|range|reduce|getexp|getmant"
    r"|scalef|fixupimm|dp|u?comi|cmp\w*|cvt\w+|fm\w+|fnm\w+|exp2|fpclass)\w*(?:ss|sd|ps|pd|sh|ph)(?:14|28)?"
    r"|v?cvt\w+|f(?:add|sub|mul|div|sqrt|com|ucom|i(?:add|sub|mul|div|com)|ild|ist|sin|cos|ptan|patan|yl2x|2xm1|abs|chs)\w*"
    r"|tdp(?:bf16|fp16|hf8|bf8|bhf8|hbf8)ps|tcmm\w+|vdpbf16ps"
)
ARM = re.compile(
    r"f(?:add|sub|mul|div|sqrt|abs|neg|madd|msub|nmadd|nmsub|nmul|mla|mls|max|min|rint|cvt|cmp|ccmp|rec|rsqrt|cadd|cmla|ac)\w*"
    r"|[su]cvtf|bfdot|bfmmla|bfcvt\w*"
)
KERNEL = re.compile(r"^(?:__tvm_ffi_)?(?P<name>[a-z]\w*?_[0-9a-f]{12})(?:_compute_)?$")


@dataclass(frozen=True)
class Audit:
    """Floating-point instructions by kernel; of a library for a GPU, also what its machine code there holds.

    A node's kernel may be several on the GPU, whose names begin with its own: ``kernels`` adds them up, with the
    processor's part, and ``gpu`` has each by itself.
    """

    instruction_set: str
    kernels: dict[str, int]
    gpu: dict[str, sass.Facts] = field(default_factory=dict)


def audit(network) -> Audit:
    """Count the floating-point instructions in the machine code of a loaded network, kernel by kernel.

    Raises IntqError when objdump or, for a GPU, cuobjdump, which read machine code, are missing.
    """
    return audit_library(network.path, network.instruction_set, {layer.kernel for layer in network.layers} - {""})


def audit_library(path: str | Path, instruction_set: str, wanted: set[str]) -> Audit:
    """The audit of a library's file, which no GPU is needed for; ``wanted``: kernels that it must hold.

    Raises IntqError as :func:`audit` does.
    """
    found, cubin = float_instructions(path), sass.read(path)
    gpu = sass.facts(cubin) if cubin else {}
    there = _on_gpu(gpu)
    missing = wanted - set(there if instruction_set.startswith("sm_") else found)
    if missing:
        raise IntqError(f"{path} holds no machine code of {sorted(missing)[0]}; compile it again")
    return Audit(instruction_set, found | {name: found.get(name, 0) + count for name, count in there.items()}, gpu)


def _on_gpu(facts: dict[str, sass.Facts]) -> dict[str, int]:
    """Floating-point instructions on the GPU by node's kernel: TVM calls its parts NAME_kernel, NAME_kernel_1, ..."""
    found: dict[str, int] = {}
    for name, fact in facts.items():
        kernel = re.sub(r"_kernel(?:_\d+)?$", "", name)
        found[kernel] = found.get(kernel, 0) + sum(fact.floats.values())
    return found


def float_instructions(library: str | Path) -> dict[str, int]:
    """Floating-point instructions of every kernel of a shared library; code of no kernel counts as "other"."""
    objdump = which("objdump") or which("llvm-objdump")
    if objdump is None:
        raise IntqError("the float audit reads machine code with objdump, which is not installed (package binutils)")
    command = [objdump, "-d", "--no-show-raw-insn", "-w", str(library)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise IntqError(f"objdump cannot read {library}: {run.stderr.strip()}")
    return count(run.stdout)


def count(disassembly: str) -> dict[str, int]:
    """Floating-point instructions by kernel in what objdump printed."""
    pattern = ARM if "aarch64" in disassembly[:500] else X86
    found: dict[str, int] = {}
    kernel = "other"
    for line in disassembly.splitlines():
        if line.endswith(">:"):
            symbol = line[line.index("<") + 1 : -2]
            named = KERNEL.match(symbol)
            if named:
                kernel = named["name"]
            elif not symbol.startswith("__tvm_parallel"):  # a kernel's parallel part lies behind it
                kernel = "other"
            found.setdefault(kernel, 0)
        elif "\t" in line:
            mnemonic = line.split("\t")[1].split(" ")[0]
            if pattern.fullmatch(mnemonic):
                found[kernel] += 1
    if not found.get("other"):
        found.pop("other", None)
    return found
