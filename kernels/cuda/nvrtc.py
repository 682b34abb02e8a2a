"""CUDA C++ to a GPU's machine code, by NVRTC: NVIDIA's compiler as a library.

It is the compiler inside nvcc without nvcc's preprocessor, so no C++ compiler has to be installed, and two small
kernels take 0.09 s where nvcc takes 0.75 s.
"""

from __future__ import annotations

import ctypes
import re
from functools import cache

from intq.errors import IntqError
from intq.kernels.cuda import toolkit

# No fast mathematics, no line information, no virtual code beside the machine's. The warnings are of variables that TVM
# declares and does not use.
OPTIONS = ("--device-int128", "--disable-warnings")

# TVM's source begins with these two files of CUDA's C++ library, of which integer kernels use the fixed widths alone.
_TYPES = ("signed char", "short", "int", "long long")
_WIDTHS = "".join(
    f"typedef {name} int{8 << i}_t; typedef unsigned {name.removeprefix('signed ')} uint{8 << i}_t;\n"
    for i, name in enumerate(_TYPES)
)
_TRAITS = """
template <class, class> struct is_same { static constexpr bool value = false; };
template <class T> struct is_same<T, T> { static constexpr bool value = true; };
template <class A, class B> constexpr bool is_same_v = is_same<A, B>::value;
template <class> struct is_integral;
template <class> struct is_signed;
template <class> struct is_unsigned;
template <class> struct is_floating_point;
template <bool, class = void> struct enable_if;
template <bool, class, class> struct conditional;
"""
HEADERS = {
    f"cuda/std/{name}": f"#pragma once\nnamespace cuda {{ namespace std {{\n{text}}} }}\n"
    for name, text in (("cstdint", _WIDTHS), ("type_traits", _TRAITS))
}


def compile(source: str, arch: str) -> bytes:
    """The machine code (a cubin) of CUDA C++ for an architecture such as "sm_75".

    Raises IntqError when NVRTC is not installed, when it does not know the architecture, and with NVRTC's own words
    when the source does not compile.
    """
    nvrtc = _library()
    known = architectures()
    if int(re.sub(r"\D", "", arch) or 0) not in known:
        raise IntqError(
            f"NVRTC {version()} compiles for {', '.join(f'sm_{number}' for number in known)} and not for {arch}; "
            f"choose one of these or install another version of nvidia-cuda-nvrtc"
        )
    program = ctypes.c_void_p()
    texts, names = _strings(HEADERS.values()), _strings(HEADERS)
    arguments = (source.encode(), b"kernels.cu", len(HEADERS), texts, names)
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), *arguments))
    try:
        options = _strings((f"--gpu-architecture={arch}", *OPTIONS))
        if nvrtc.nvrtcCompileProgram(program, len(options), options):
            log = _text(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
            raise IntqError(f"NVRTC {version()} cannot compile the kernels for {arch}:\n{log}")
        return _text(program, "CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def version() -> str:
    """NVRTC's version, such as "13.0"."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def architectures() -> tuple[int, ...]:
    """What NVRTC compiles for: 75 stands for sm_75."""
    count = ctypes.c_int()
    _check(_library().nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    found = (ctypes.c_int * count.value)()
    _check(_library().nvrtcGetSupportedArchs(found))
    return tuple(found)


@cache
def _library() -> ctypes.CDLL:
    nvrtc = toolkit.library(f"libnvrtc.so.{toolkit.MAJOR}", "nvidia-cuda-nvrtc")
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    # NVRTC asks the system for its second half, and the system does not look into wheels.
    toolkit.library(f"libnvrtc-builtins.so.{major.value}.{minor.value}", "nvidia-cuda-nvrtc")
    return nvrtc


def _strings(texts) -> ctypes.Array:
    encoded = [text.encode() for text in texts]
    return (ctypes.c_char_p * len(encoded))(*encoded)


def _text(program: ctypes.c_void_p, what: str) -> bytes:
    """What NVRTC has to give of a program: "CUBIN" or "ProgramLog"."""
    size = ctypes.c_size_t()
    _check(getattr(_library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(_library(), f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def _check(code: int) -> None:
    if code:
        raise IntqError(f"NVRTC failed with error {code}; install nvidia-cuda-nvrtc anew: {toolkit.INSTALL}")
