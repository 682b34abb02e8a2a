"""NVIDIA's driver and TVM's CUDA runtime on the machine that runs a library: found, old enough, with the right GPU.

The driver is asked through ctypes, before TVM's runtime loads, because TVM would say only that a symbol is missing.
"""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from intq.errors import IntqError
from intq.kernels.cuda import toolkit
from intq.kernels.cuda.arch import arch_of

OLDEST = 13000  # the driver's number of CUDA 13.0
_MULTIPROCESSORS, _CLOCK, _MAJOR, _MINOR = 16, 13, 75, 76  # CU_DEVICE_ATTRIBUTE_...


@dataclass(frozen=True)
class Device:
    """A GPU: ``capability`` (7, 5) is of the architecture sm_75; ``clock``: cycles a second, the most it has."""

    number: int
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    clock: int


@cache
def load() -> None:
    """Load CUDA's and TVM's runtime for GPUs into this process, after TVM's runtime for CPUs, which they build on.

    Raises IntqError without a driver, with one older than CUDA 13.0, without a GPU, and without libcudart.
    """
    _driver()
    toolkit.library(f"libcudart.so.{toolkit.MAJOR}", "nvidia-cuda-runtime")
    spec = importlib.util.find_spec("tvm")
    if spec is None:
        raise IntqError("running a compiled network needs apache-tvm, which is not installed")
    path = Path(spec.origin).parent / "lib" / "libtvm_runtime_cuda.so"
    try:
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise IntqError(f"TVM's runtime for GPUs cannot be loaded: {error}") from None


def check(arch: str, number: int = 0) -> Device:
    """The GPU that a library compiled for ``arch`` ("sm_75") is to run on.

    Machine code of sm_80 runs on 8.0 and on every later 8.x, that of sm_90a on 9.0 alone.
    Raises IntqError as :func:`load` does, and when the GPU cannot run the library.
    """
    gpu, (major, minor) = device(number), arch_of(arch).capability
    if gpu.capability == (major, minor):
        return gpu
    if not arch[-1].isdigit() or gpu.capability[0] != major or gpu.capability[1] < minor:
        have = "sm_{}{}".format(*gpu.capability)
        raise IntqError(
            f"this library was compiled for {arch} and the GPU here, {gpu.name}, is {have}; compile for it: "
            f"--target 'cuda -arch={have}'"
        )
    return gpu


def device(number: int = 0) -> Device:
    """The GPU of this number, as the driver describes it. Raises IntqError as :func:`load` does."""
    driver = _driver()
    handle, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    _call(driver, "cuDeviceGet", ctypes.byref(handle), number)
    _call(driver, "cuDeviceGetName", name, len(name), handle)
    found = []
    for attribute in (_MAJOR, _MINOR, _MULTIPROCESSORS, _CLOCK):
        value = ctypes.c_int()
        _call(driver, "cuDeviceGetAttribute", ctypes.byref(value), attribute, handle)
        found.append(value.value)
    major, minor, multiprocessors, kilohertz = found
    return Device(number, name.value.decode(errors="replace"), (major, minor), multiprocessors, 1000 * kilohertz)


@cache
def _driver() -> ctypes.CDLL:
    """The driver, of a version that runs our libraries, with at least one GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise IntqError(
            "running on a GPU needs NVIDIA's driver, and this machine has none (no libcuda.so.1): install version 580 "
            "or later, or compile for the CPU"
        ) from None
    version, count = ctypes.c_int(), ctypes.c_int()
    _call(driver, "cuDriverGetVersion", ctypes.byref(version))
    if version.value < OLDEST:
        has, needs = (f"{number // 1000}.{number % 1000 // 10}" for number in (version.value, OLDEST))
        raise IntqError(
            f"NVIDIA's driver here is of CUDA {has} and compiled networks need one of CUDA {needs} or later: install "
            f"version 580 or later"
        )
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        raise IntqError(
            "NVIDIA's driver finds no GPU that it can use: see what nvidia-smi says, and CUDA_VISIBLE_DEVICES"
        )
    return driver


def _call(driver: ctypes.CDLL, name: str, *arguments) -> None:
    code = getattr(driver, name)(*arguments)
    if code:
        text = ctypes.c_char_p()
        driver.cuGetErrorName(code, ctypes.byref(text))
        raise IntqError(f"NVIDIA's driver failed in {name}: {(text.value or b'error %d' % code).decode()}")
