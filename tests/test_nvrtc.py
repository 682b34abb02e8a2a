"""CUDA C++ becomes machine code on a machine that has neither a GPU nor a toolkit, and lies in the library."""

import struct
import subprocess
import sys

import pytest
from small_cuda import PRODUCT4, PRODUCT8, QUOTIENT, bare, compiled

from intq.errors import IntqError
from intq.kernels.cuda import binary, nvrtc, sass, toolkit
from intq.kernels.library import Library

KERNEL = 'extern "C" __global__ void twice(int* a) { a[threadIdx.x] *= 2; }'


def is_cubin(data: bytes) -> bool:
    return data[:4] == b"\x7fELF" and struct.unpack_from("<H", data, 18)[0] == 190


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A library of three kernels for a T4, and their machine code."""
    executable, cubin, chosen = compiled()
    path = tmp_path_factory.mktemp("library") / "t4.so"
    Library(executable, chosen, "", {}, cubin).save(path)
    return path, cubin


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a"])
def test_a_kernel_compiles(arch):
    cubin = nvrtc.compile(KERNEL, arch)
    assert is_cubin(cubin) and cubin == nvrtc.compile(KERNEL, arch), "the same source gives the same bytes"


def test_no_toolkit_and_no_c_compiler_is_needed(root):
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from small_cuda import compiled\n"
        "assert compiled()[1][:4] == b'\\x7fELF'\n"
        "loaded = [line.split()[-1] for line in open('/proc/self/maps') if 'nvrtc' in line]\n"
        "assert loaded and all('/nvidia/cu13/lib/' in path for path in loaded), loaded\n"
    )
    run = subprocess.run([sys.executable, "-c", code], env=bare(), cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_errors_of_a_source():
    with pytest.raises(IntqError, match=r"(?s)cannot compile the kernels for sm_75:\n.*expected a .;"):
        nvrtc.compile("__global__ void broken() { int x }", "sm_75")
    with pytest.raises(IntqError, match=r"cannot compile the kernels for sm_75:\n.*needs_a_header\.h"):
        nvrtc.compile("#include <needs_a_header.h>", "sm_75")
    with pytest.raises(
        IntqError, match=r"NVRTC 13\.\d compiles for sm_75, .* and not for sm_70; choose one of these or"
    ):
        nvrtc.compile(KERNEL, "sm_70")


def test_no_nvrtc(monkeypatch):
    monkeypatch.setattr(toolkit, "homes", lambda: [])
    with pytest.raises(
        IntqError, match=r"libnvrtc\.so\.99 of CUDA 13 is not installed: pip install 'intq\[cuda\]' brings it"
    ):
        toolkit.library("libnvrtc.so.99", "nvidia-cuda-nvrtc")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(IntqError, match=r"cuobjdump of CUDA 13 .*nvidia-cuda-cuobjdump"):
        toolkit.program("cuobjdump", "nvidia-cuda-cuobjdump")


def test_a_toolkit_of_the_machine_serves_too(tmp_path, monkeypatch):
    monkeypatch.setattr(toolkit.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "cuobjdump"
    tool.write_text("")
    tool.chmod(0o755)
    monkeypatch.setenv("CUDA_PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "none"))
    assert toolkit.homes() == [tmp_path]
    assert toolkit.program("cuobjdump", "nvidia-cuda-cuobjdump") == tool


def test_a_library_holds_machine_code_and_no_source(library):
    path, cubin = library
    data = path.read_bytes()
    assert is_cubin(cubin) and sass.read(path) == cubin
    assert data.count(cubin) == 1 and b"__global__" not in data
    for name in (PRODUCT4, PRODUCT8, QUOTIENT):
        assert f"__tvm_ffi_{name}".encode() in data, "the processor's part, which starts the kernel"


def test_a_library_for_a_processor_holds_none(tmp_path):
    (tmp_path / "cpu.so").write_bytes(b"\x7fELF" + bytes(60))
    assert sass.read(tmp_path / "cpu.so") is None
    (tmp_path / "cut.so").write_bytes(compiled()[1][:100])  # no length before it
    assert sass.read(tmp_path / "cut.so") is None


def test_a_record_that_is_not_as_expected_is_not_changed():
    def string(data: bytes) -> bytes:
        return struct.pack("<Q", len(data)) + data

    module = string(b"cuda") + string(string(b"cuda") + b"table" + string(b"source"))
    new = string(b"cuda") + string(string(b"cubin") + b"table" + string(b"code"))
    before, after = b"tree" + string(b"_lib"), string(b"relax.VMExecutable") + string(b"cuda source")
    assert binary.replace_source(string(before + module + after), b"source", b"code") == string(before + new + after)
    for damaged in (before + module, string(before + module.replace(b"cuda", b"cude") + after), string(before + after)):
        with pytest.raises(IntqError, match="in a way that intq does not know"):
            binary.replace_source(damaged, b"source", b"code")
