"""What a GPU's machine code holds, kernel by kernel: registers, memory, tensor-core instructions, floating point."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from intq.errors import IntqError
from intq.kernels.cuda import toolkit

EM_CUDA = 190  # the ELF header's number of NVIDIA's machines

# Arithmetic, comparison and conversion in floating point, by the names of "CUDA Binary Utilities", with U where one
# value serves a whole warp; an integer `/` shows as I2F, MUFU.RCP and F2I. FSEL, which compilers use on integers,
# chooses one of two registers and changes neither; FLO and FENCE are of integers too. Atomics name their type.
FLOAT = re.compile(
    r"(?:U?(?:F(?:ADD|FMA|MUL|MNMX|SET|CHK|SWZ|RND|HADD|HFMA|2F|2I)|H(?:ADD|MUL|FMA|SET|MNMX)|D(?:ADD|MUL|FMA|SET|MNMX)"
    r"|I2F|MUFU)|[HDQO]MMA|[HQ]GMMA|UTC[HQO]MMA)\w*(?:\..*)?"
    r"|(?:ATOM|ATOMG|ATOMS|RED|REDG|REDUX|UREDGR)\.(?:.*\.)?(?:F16|F32|F64|BF16).*"
)
# The multiplication of two registers that are always zero, and a constant added: how a constant is put into a register
# when the integer pipe is busy. It computes nothing, whatever the bits of the constant are.
CONSTANT = re.compile(r"HFMA2\S*\s+U?R\d+, -U?RZ, U?RZ, [-+\dQI]\S*, [-+\dQI]\S*")
TENSOR = re.compile(r"I(?:G?MMA)\.\S*")
LINE = re.compile(r"\s*/\*(?P<at>[0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?(?P<text>(?P<name>[A-Z][\w.]*)[^;]*?)\s*;")
JUMP = re.compile(r"(?:BRA|JMP)\b.*?(?P<to>0x[0-9a-f]+)")
USAGE = re.compile(
    r"Function (?P<name>\w+):\n\s*REG:(?P<reg>\d+) STACK:(?P<stack>\d+) SHARED:(?P<shared>\d+) LOCAL:(?P<local>\d+)"
)


@dataclass(frozen=True)
class Facts:
    """One kernel. Counts are of instructions as they stand in the code, not as often as they run.

    ``registers``: of a thread. ``shared``: bytes of a block's static shared memory, with the system's own KB from sm_90
    on (dynamic shared memory is asked for at launch). ``local``: bytes of a thread's own memory, for spilled registers
    and for arrays that are indexed; ``spills``: its loads and stores. ``int8``, ``int4``: tensor-core instructions by
    their operands' width; ``int_in_loop``: some of them stand in an innermost loop. ``ldsm``: loads of matrices from
    shared memory. ``loads``: loads from global memory by bits. ``floats``: floating-point instructions by name.
    """

    registers: int
    shared: int
    local: int
    spills: int
    int8: int
    int4: int
    int_in_loop: bool
    ldsm: int
    loads: dict[int, int]
    floats: dict[str, int]


def facts(cubin: bytes) -> dict[str, Facts]:
    """The facts of every kernel of a binary for a GPU, by name.

    Raises IntqError when NVIDIA's disassembler is not installed or does not take the binary.
    """
    tool = toolkit.program("cuobjdump", "nvidia-cuda-cuobjdump")
    nvdisasm = toolkit.program("nvdisasm", "nvidia-cuda-nvdisasm")  # which cuobjdump starts
    environment = os.environ | {"PATH": f"{nvdisasm.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(cubin)
        command = [tool, "-sass", "-res-usage", path]
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if run.returncode:
        raise IntqError(f"cuobjdump cannot read the kernels' machine code: {run.stderr.strip()}")
    return parse(run.stdout)


def read(library: str | Path) -> bytes | None:
    """The machine code for a GPU that a library holds, or None: an ELF file of NVIDIA's, its length before it."""
    data = Path(library).read_bytes()
    for match in re.finditer(b"\x7fELF", data):
        at = match.start()
        if at < 8 or len(data) < at + 20 or struct.unpack_from("<H", data, at + 18)[0] != EM_CUDA:
            continue
        size = struct.unpack_from("<Q", data, at - 8)[0]
        if size <= len(data) - at:
            return data[at : at + size]
    return None


def parse(text: str) -> dict[str, Facts]:
    """The facts in what ``cuobjdump -sass -res-usage`` printed."""
    bodies = {}
    for part in text.split("\tFunction : ")[1:]:
        name, _, body = part.partition("\n")
        bodies[name.strip()] = [match.groupdict() for match in LINE.finditer(body)]
    usage = {match["name"]: match for match in USAGE.finditer(text)}
    return {name: _facts(usage[name], bodies[name]) for name in sorted(bodies)}


def _facts(usage: re.Match, lines: list[dict[str, str]]) -> Facts:
    names = Counter(line["name"] for line in lines)
    tensor = [line for line in lines if TENSOR.match(line["name"])]
    loops = _innermost(lines)
    return Facts(
        registers=int(usage["reg"]),
        shared=int(usage["shared"]),
        local=int(usage["stack"]) + int(usage["local"]),
        spills=sum(count for name, count in names.items() if re.match(r"(?:LDL|STL)\b", name)),
        int8=sum(".S8" in line["name"] or ".U8" in line["name"] for line in tensor),
        int4=sum(".S4" in line["name"] or ".U4" in line["name"] for line in tensor),
        int_in_loop=any(low <= int(line["at"], 16) <= high for line in tensor for low, high in loops),
        ldsm=sum(count for name, count in names.items() if name.startswith("LDSM")),
        loads=_loads(names),
        floats=_floats(lines),
    )


def _loads(names: Counter) -> dict[int, int]:
    found: Counter[int] = Counter()
    for name, count in names.items():
        if re.match(r"LD(?:G|GSTS)\b", name):  # LDGSTS: from global to shared memory
            width = re.search(r"\.[US]?(8|16|64|128|256)\b", name.replace(".LTC128B", ""))
            found[int(width[1]) if width else 32] += count
    return dict(sorted(found.items()))


def _floats(lines: list[dict[str, str]]) -> dict[str, int]:
    found = Counter(
        line["name"] for line in lines if FLOAT.fullmatch(line["name"]) and not CONSTANT.fullmatch(line["text"])
    )
    return dict(sorted(found.items()))


def _innermost(lines: list[dict[str, str]]) -> list[tuple[int, int]]:
    """First and last address of every loop that holds no other: a jump back and where it goes.

    The jump to itself behind a kernel's end is none.
    """
    loops = set()
    for line in lines:
        jump = JUMP.match(line["text"])
        if jump and int(jump["to"], 16) < int(line["at"], 16):
            loops.add((int(jump["to"], 16), int(line["at"], 16)))
    return sorted(a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops))
