"""Runs the CUDA source that TVM generates on the CPU, lane by lane: kernels are held to the reference without a GPU.

    kernels = simt.compile({"gemm": prim_func}, arch="sm_75")   # every kernel in one call of g++
    kernels["gemm"](x, weight, out)                             # NumPy arrays, on "CUDA device 0"; out is written

The host code that TVM generates runs as it is: it checks the arguments, computes grid, block and shared memory, and
looks the device function up by name; what it finds is the CUDA source compiled by g++ (simt.h) with a thread block's
threads as fibers (simt.cpp). A launch that a GPU would not forgive is an error that says where: memory beyond a tensor
or beyond the shared memory, a misaligned vector access, a race in shared memory, a cp.async that nobody waited for, a
barrier or an instruction of a warp to which not all come, undefined behaviour.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import which

import numpy as np
import tvm
import tvm_ffi
from tvm.target import Target

HERE = Path(__file__).resolve().parent
DYNAMIC = "tirx.use_dyn_shared_memory"
MOST_TENSORS = 64
CHECKS = "thread,alignment,bounds,shift-exponent,integer-divide-by-zero,signed-integer-overflow"


@tvm_ffi.register_error("SimtError")  # TVM hands it on
class SimtError(Exception):
    """A kernel that cannot be built for the CPU: what it has that this harness does not know."""


@dataclass(frozen=True)
class Kernels:
    """The functions of a compiled module, by name; they take NumPy arrays, CUDA tensors and numbers.

    ``order`` of the lanes of a block between barriers, and of the blocks of a grid: 0 ascending, -1 descending,
    a positive number is the seed of a shuffle. A kernel without races gives the same result in any.
    """

    module: tvm.runtime.Module

    def __getitem__(self, name: str) -> Callable[..., None]:
        function = self.module[name]

        def run(*arguments, order: int = 0) -> None:
            memory = {i: _device_memory(a) for i, a in enumerate(arguments) if isinstance(a, np.ndarray)}
            _settings(order, list(memory.values()))
            try:
                function(*(tensor(memory[i]) if i in memory else a for i, a in enumerate(arguments)))
            except RuntimeError as error:
                raise RuntimeError(_located(str(error))) from None
            finally:
                _settings(0, [])
            for i, after in memory.items():
                if arguments[i].flags.writeable:
                    arguments[i][...] = after

        return run


def compile(functions: Mapping[str, tvm.tirx.PrimFunc] | tvm.IRModule, arch: str = "sm_75", **options) -> Kernels:
    """TVM's own compilation for a GPU, by ``options`` of ``tvm.compile``, with the device code built for the CPU.

    Raises SimtError for an instruction that :mod:`simt` does not know.
    """
    module = functions if isinstance(functions, tvm.IRModule) else tvm.IRModule(dict(functions))
    with cuda_on_cpu():
        executable = tvm.compile(module, target=Target({"kind": "cuda", "arch": arch}, host="llvm"), **options)
    return Kernels(executable.mod)


def _device_memory(array: np.ndarray) -> np.ndarray:
    """A copy as CUDA would lay it out: contiguous, at a multiple of 256 bytes."""
    raw = np.empty(array.nbytes + 256, np.uint8)
    start = -raw.ctypes.data % 256
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@contextmanager
def cuda_on_cpu() -> Iterator[None]:
    """Within, a CUDA module that TVM makes is a library for the CPU; neither nvcc nor a GPU is asked for anything."""
    with (
        _registered("tvm_callback_cuda_compile", lambda code, *_: code),
        _registered("ffi.Module.create.cuda", lambda code, _, functions, *__: build(bytes(code).decode(), functions)),
    ):
        yield


def tensor(array: np.ndarray) -> tvm.runtime.Tensor:
    """The memory of an array as a tensor that claims to lie on CUDA device 0."""
    if not array.flags.c_contiguous:
        raise ValueError(f"a tensor's memory is contiguous; the array's strides are {array.strides}")
    capsule = array.__dlpack__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    device = pointer(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p)  # behind DLTensor's data
    ctypes.c_int32.from_address(device).value = 2  # kDLCUDA
    return tvm_ffi.from_dlpack(capsule)


def build(source: str, functions: Mapping[str, object]) -> tvm.runtime.Module:
    """CUDA source as a library of functions that TVM's host code can call.

    ``functions``: by the name of each kernel, its ``arg_types`` and ``launch_param_tags`` (TVM's FunctionInfo).
    A kernel can also be called itself, with its arguments and the numbers that its tags name.
    """
    folder, runtime = _runtime()
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".cc", delete=False) as file:
        translated = translate(source)
        file.write(translated + "".join(_entry(translated, name, info) for name, info in functions.items()))
        # TVM's host code sets the device first, and finds this before the one that knows no CUDA
        file.write(
            'extern "C" int __tvm_ffi___tvm_set_device(void*, const TVMFFIAny*, int, TVMFFIAny*) { return 0; }\n'
        )
    path = Path(file.name)
    options = ["-O1", "-g1", "-w", "-fno-strict-aliasing", f"-fsanitize={CHECKS}"]
    _gpp("-c", path, "-o", path.with_suffix(".o"), "-include", HERE / "simt.h", *options)
    _gpp("-shared", path.with_suffix(".o"), "-o", path.with_suffix(".so"), runtime)  # without GCC's own sanitizers
    return tvm.runtime.load_module(str(path.with_suffix(".so")))


def _entry(translated: str, name: str, info) -> str:
    """What TVM's host code calls for a kernel."""
    tags = [str(tag) for tag in info.launch_param_tags]
    unknown = [tag for tag in tags if tag != DYNAMIC and not re.fullmatch(r"(block|thread)Idx\.[xyz]", tag)]
    if unknown:
        raise SimtError(f"{name} is launched with {unknown[0]!r}, which this harness does not know")
    section, declared = ("nullptr", "nullptr"), ""
    if f'section("simt_{name}")' in translated:
        section = (f"__start_simt_{name}", f"__stop_simt_{name}")
        declared = f'extern "C" __attribute__((weak, visibility("hidden"))) char {section[0]}[], {section[1]}[];\n'
    return f"""
{declared}extern "C" int __tvm_ffi_{name}(void*, const TVMFFIAny* arguments, int count, TVMFFIAny*) {{
  static const char* const tags[] = {{{", ".join(f'"{tag}"' for tag in tags)}}};
  static const simt::Kernel launched_ = {{
    "{name}", [](const TVMFFIAny* a) {{ simt::call({name}, a); }},
    {len(info.arg_types)}, {len(tags)}, tags, {", ".join(section)}}};
  return simt::simt_launch(&launched_, arguments, count);
}}
"""


# ---- CUDA source to C++ ------------------------------------------------------------------------------------------


def translate(source: str) -> str:
    """CUDA C++ as C++: without CUDA's headers, shared memory declared otherwise, PTX as calls of the harness."""
    source = re.sub(r"#\s*include\s*[<\"](cuda|cooperative_groups|mma|nv)[^>\"]*[>\"]", "", source)
    source = re.sub(r"extern\s+__shared__\s+(?:__align__\(\d+\)|alignas\(\d+\))?\s*([\w ]+?)\s+(\w+)\[\];",
                    r"\1* const \2 = (\1*)simt::simt_dynamic();", source)  # fmt: skip
    pieces, at = [], 0
    for start, stop, text in _asm_statements(source):
        pieces += [source[at:start], text]
        at = stop
    return _static_shared("".join([*pieces, source[at:]]))


def _static_shared(source: str) -> str:
    """Each kernel's shared arrays in a section of its own, so that the linker says where they begin and end."""

    def declaration(match: re.Match) -> str:
        before = re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(", source[: match.start()])
        attribute = f'__attribute__((section("simt_{before[-1]}")))'
        return f"{match['align'] or ''} static {attribute} "

    return re.sub(r"__shared__\s*(?P<align>alignas\(\d+\))?", declaration, source)


def _asm_statements(source: str) -> Iterator[tuple[int, int, str]]:
    """(first character, the one after the last, C++) of every asm statement."""
    for match in re.finditer(r"\b(?:asm|__asm__)\s*(?:volatile|__volatile__)?\s*\(", source):
        stop = _closing(source, match.end())
        parts = _split(source[match.end() : stop], ":")
        text = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', parts[0])).replace("\\n", " ").replace("\\t", " ")
        operands = [_operand(o) for part in parts[1:3] for o in _split(part, ",") if o.strip()]
        yield match.start(), source.index(";", stop) + 1, "{ " + " ".join(_statements(text, operands)) + " }"


def _operand(text: str) -> str:
    """The expression of an operand such as "=r"(x)."""
    return text[text.index("(") :].strip()


def _closing(text: str, at: int) -> int:
    """Where the parenthesis closes that is open at ``at``."""
    depth = 1
    for match in re.compile(r'"(?:[^"\\]|\\.)*"|[()]').finditer(text, at):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if not depth:
            return match.start()
    raise SimtError(f"an asm statement does not end: {text[at : at + 80]}")


def _split(text: str, separator: str) -> list[str]:
    """Split outside of strings and of all kinds of brackets."""
    pieces, depth, start = [], 0, 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[()\[\]{}]|' + re.escape(separator), text):
        if match[0] in ("(", "[", "{"):
            depth += 1
        elif match[0] in (")", "]", "}"):
            depth -= 1
        elif match[0] == separator and not depth:
            pieces.append(text[start : match.start()])
            start = match.end()
    return [*pieces, text[start:]]


def _statements(text: str, operands: list[str]) -> Iterator[str]:
    """C++ of the PTX instructions of one asm statement."""
    text = text.strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    filled = re.sub(r"%(\d+)", lambda match: operands[int(match[1])], text)
    for one in filter(None, (piece.strip() for piece in _split(filled, ";"))):
        guard, instruction = re.fullmatch(r"(?:@(!?\w+)\s+)?(.*)", one, re.DOTALL).groups()
        name, _, rest = instruction.partition(" ")
        arguments = [a.strip() for a in _split(rest, ",") if a.strip()]
        code = next((write(match, *arguments) for match, write in _known(name)), None)
        if code is None:
            raise SimtError(
                f"the kernel has the instruction {name!r}, which this harness does not know (tests/simt.py)"
            )
        yield f"if ({guard}) {{ {code} }}" if guard else code


def _known(name: str) -> Iterator[tuple[re.Match, Callable[..., str]]]:
    for pattern, write in INSTRUCTIONS.items():
        match = re.fullmatch(pattern, name)
        if match:
            yield match, write


def _words(group: str) -> list[str]:
    """The registers of a group {a, b}."""
    return [word.strip() for word in _split(group.strip()[1:-1], ",")]


def _address(text: str) -> str:
    """The expression of an address [a] or [a + 16]."""
    return text.strip()[1:-1]


def _array(name: str, group: str) -> str:
    return f"const uint32_t {name}[] = {{{', '.join(f'(uint32_t){word}' for word in _words(group))}}};"


def _results(group: str) -> str:
    return " ".join(f"{word} = d_[{i}];" for i, word in enumerate(_words(group)))


SHAPES = {
    ("8", "16", "8"),
    ("16", "16", "8"),
    ("16", "32", "8"),
    ("8", "32", "4"),
    ("16", "32", "4"),
    ("16", "64", "4"),
}


def _mma(match: re.Match, d: str, a: str, b: str, c: str) -> str:
    m, k, saturate, a_sign, bits, b_sign = match.groups()
    if (m, k, bits) not in SHAPES:
        raise SimtError(f"there is no {match[0]!r}: no such shape of {bits}-bit operands")
    kind = f"{m}, {k}, {bits}, {int(a_sign == 's')}, {int(b_sign == 's')}, {int(bool(saturate))}"
    return (
        f"uint32_t d_[{len(_words(d))}]; {_array('a_', a)} {_array('b_', b)} {_array('c_', c)} "
        f'simt::simt_mma("{match[0]}", {kind}, d_, a_, b_, c_); {_results(d)}'
    )


def _ldmatrix(match: re.Match, d: str, address: str) -> str:
    call = f'simt::simt_ldmatrix("{match[0]}", {match[1]}, {int(bool(match[2]))}, d_, {_address(address)});'
    return f"uint32_t d_[{match[1]}]; {call} {_results(d)}"


def _cp_async(_: re.Match, to: str, source: str, size: str, kept: str | None = None) -> str:
    kept = size if kept is None else f"{kept} ? 0 : {size}" if re.fullmatch(r"p\w*", kept) else kept
    return f"simt::simt_copy({_address(to)}, (const void*)({_address(source)}), {size}, {kept});"


def _barrier(_: re.Match, number: str) -> str:
    if number != "0":
        raise SimtError(f"the kernel has barrier {number}, this harness knows only 0, that of __syncthreads")
    return "simt::simt_barrier();"


def _predicate(_: re.Match, declared: str) -> str:
    kind, name = declared.split()
    if kind != ".pred":
        raise SimtError(f"the kernel declares a register of type {kind} in PTX, which this harness does not know")
    return f"bool {name};"


# mnemonic -> C++ of the match and the operands. Destinations come first, as in PTX.
INSTRUCTIONS: dict[str, Callable[..., str]] = {
    r"mma\.sync\.aligned\.m(\d+)n8k(\d+)\.row\.col(\.satfinite)?\.s32\.([us])([48])\.([us])\5\.s32": _mma,
    r"ldmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?(?:\.shared(?:::cta)?)?\.b16": _ldmatrix,
    r"cp\.async\.c[ag]\.shared(?:::cta)?\.global(?:\.L2::(?:64|128|256)B)?": _cp_async,
    r"cp\.async\.commit_group": lambda _: "simt::simt_commit();",
    r"cp\.async\.wait_group": lambda _, groups: f"simt::simt_wait({groups});",
    r"cp\.async\.wait_all": lambda _: "simt::simt_commit(); simt::simt_wait(0);",
    r"(?:bar|barrier)\.sync(?:\.aligned)?": _barrier,
    r"bar\.warp\.sync": lambda _, mask: f"simt::simt_meet({mask});",
    r"\.reg": _predicate,
    r"setp\.ne\.b32": lambda _, p, a, b: f"{p} = {a} != {b};",
    r"lop3\.b32": lambda _, d, *inputs: f"{d} = simt::lop3({', '.join(inputs)});",
    r"prmt\.b32": lambda _, d, *inputs: f"{d} = simt::prmt({', '.join(inputs)});",
    r"dp4a\.([us])32\.([us])32": lambda match, d, a, b, c: (
        f"{d} = simt::dp4a<simt::{match[1]}8, simt::{match[2]}8>({a}, {b}, {c});"
    ),
    r"cvt\.pack\.sat\.([us])(2|4|8|16)\.s32(?:\.b32)?": lambda match, d, a, b, c="0": (
        f"{d} = simt::pack({a}, {b}, {c}, {match[2]}, {int(match[1] == 's')});"
    ),
    r"mul\.wide\.s32": lambda _, d, a, b: f"{d} = (int64_t)(int32_t)({a}) * (int32_t)({b});",
    r"mul\.hi\.s32": lambda _, d, a, b: f"{d} = __mulhi({a}, {b});",
    r"mul\.hi\.u32": lambda _, d, a, b: f"{d} = __umulhi({a}, {b});",
}


# ---- tools -------------------------------------------------------------------------------------------------------


@cache
def _runtime() -> tuple[Path, Path]:
    """(folder for what is built, the machinery as a shared library); both go with the process."""
    folder = tempfile.TemporaryDirectory(prefix="simt-")
    _FOLDERS.append(folder)
    library = Path(folder.name) / "simt.so"
    _gpp("-shared", HERE / "simt.cpp", "-o", library, "-O3", "-march=native", tvm_ffi.libinfo.find_libtvm_ffi())
    return Path(folder.name), library


_FOLDERS: list[tempfile.TemporaryDirectory] = []


def _gpp(*arguments: object) -> None:
    if which("g++") is None:
        raise SimtError("CUDA source is built for the CPU by g++, which is not installed (package g++)")
    include = f"-I{tvm_ffi.libinfo.find_include_path()}"
    command = ["g++", "-std=c++17", "-fPIC", include, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SimtError(f"g++ does not take the kernels:\n{run.stderr[:4000]}")


def _settings(order: int, arrays: list[np.ndarray]) -> None:
    """Tells the machinery the order of the lanes and where its tensors lie; none: any address goes."""
    if len(arrays) > MOST_TENSORS:
        raise ValueError(f"{len(arrays)} tensors are more than the {MOST_TENSORS} that simt.cpp keeps the bounds of")
    begins = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
    sizes = (ctypes.c_size_t * len(arrays))(*(a.nbytes for a in arrays))
    set_ = ctypes.CDLL(str(_runtime()[1])).simt_settings
    set_(ctypes.c_int64(order), ctypes.c_uint(len(arrays)), begins, sizes)


def _located(message: str) -> str:
    """An error with the line of generated source in place of the address of its machine code ("@library+0x123")."""
    text, _, place = message.partition("\n@")
    if not place:
        return text
    library, _, offset = place.rpartition("+")
    command = ["addr2line", "-i", "-e", library, offset]
    run = subprocess.run(command, capture_output=True, text=True, check=False) if which("addr2line") else None
    lines = re.findall(r"(\S+\.cc):(\d+)", run.stdout if run else "")
    if not lines:
        return text
    file, number = lines[-1]  # the outermost of inlined functions: the kernel
    return f"{text}\n    {Path(file).read_text().splitlines()[int(number) - 1].strip()}"


@contextmanager
def _registered(name: str, function: Callable) -> Iterator[None]:
    """A global function of TVM's, replaced and put back."""
    before = tvm_ffi.get_global_func(name, allow_missing=True)
    tvm_ffi.register_global_func(name, function, override=True)
    try:
        yield
    finally:
        if before is None:
            tvm_ffi.registry.remove_global_func(name)
        else:
            tvm_ffi.register_global_func(name, before, override=True)
