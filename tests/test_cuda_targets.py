"""A GPU as a target: what the kernels learn of it, what is refused, and what a machine must have to run a library."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from shutil import which

import pytest
from small_cuda import PRODUCT8, compiled

from intq.errors import IntqError
from intq.kernels.cuda import nvrtc, sass
from intq.kernels.cuda.arch import ARCHS, arch_of
from intq.kernels.library import Library
from intq.kernels.targets import choose


@pytest.mark.parametrize(
    "target, name",
    [
        ("nvidia/nvidia-t4", "sm_75"),
        ("nvidia/nvidia-a100", "sm_80"),
        ("nvidia/nvidia-h100", "sm_90a"),
        ("cuda -arch=sm_75", "sm_75"),
        ({"kind": "cuda", "arch": "sm_86"}, "sm_86"),
        ('{"tag": "nvidia/nvidia-t4"}', "sm_75"),
    ],
)
def test_a_gpu_is_a_target(target, name):
    chosen = choose(target)
    assert chosen.gpu and chosen.isa.name == name and chosen.target.kind.name == "cuda"
    assert chosen.triple == choose("cpu").triple and not chosen.target.host.attrs.get("mcpu"), "any machine of the kind"


def test_a_gpu_in_another_machine():
    host = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "neoverse-n1"}
    chosen = choose({"kind": "cuda", "arch": "sm_87", "host": host})
    assert chosen.triple == "aarch64-linux-gnu" and str(chosen.target.host.attrs["mcpu"]) == "neoverse-n1"


def test_a_processor_is_a_target_as_before():
    chosen = choose("llvm -mcpu=icelake-server -mtriple=x86_64-linux-gnu")
    assert (chosen.gpu, chosen.isa.name, chosen.triple) == (False, "vnni", "x86_64-linux-gnu")


@pytest.mark.parametrize(
    "target, words",
    [
        ("cuda", "say which GPU, by 'cuda -arch=sm_75'"),
        ("cuda -arch=sm_61", "sm_61 has no tensor cores, .* came with sm_75: choose one of sm_75, sm_80"),
        ("nvidia/nvidia-v100", "sm_70 has no mma.sync on 8-bit integers"),
        ("cuda -arch=sm_72", "sm_72 has no mma.sync on 8-bit integers"),
        ("cuda -arch=sm_999", "the kernels do not know sm_999: choose one of"),
        ("nvidia/no-such-gpu", "TVM does not know the target nvidia/no-such-gpu: .*Unknown target tag"),
        ("opencl", "must be a CPU or a GPU, of kind llvm or cuda; got opencl"),
        ({"kind": "cuda", "arch": "sm_75", "host": "c"}, "the host of a GPU must be a CPU"),
        ({"kind": "cuda", "arch": "sm_75", "host": {"kind": "llvm", "mtriple": "z80-none"}}, "no architecture 'z80'"),
    ],
)
def test_a_target_is_refused(target, words):
    with pytest.raises(IntqError, match=words):
        choose(target)


def test_a_gpu_has_no_instruction_set_to_choose():
    with pytest.raises(IntqError, match="nvidia-t4 has no instruction set to choose, got 'vnni'"):
        choose("nvidia/nvidia-t4", "vnni")
    with pytest.raises(IntqError, match="'turing' is no GPU architecture"):
        arch_of("turing")


def mma(arch, bits: int) -> str:
    """A kernel of one ``mma.sync`` of the shape that ``arch`` names for operands of so many bits."""
    m, n, k = getattr(arch, f"int{bits}")
    outputs, counts = m * n // 32, (m * n // 32, m * k * bits // 1024, n * k * bits // 1024)  # registers of a thread
    numbers = (f"%{i}" for i in range(sum(counts)))
    c, a, b = ("{" + ", ".join(next(numbers) for _ in range(count)) + "}" for count in counts)
    operands = [f'"{"+" if i < outputs else ""}r"(p[{i}])' for i in range(sum(counts))]
    return f"""extern "C" __global__ void mma{bits}(unsigned* p) {{
        asm volatile("mma.sync.aligned.m{m}n{n}k{k}.row.col.s32.s{bits}.s{bits}.s32 {c}, {a}, {b}, {c};"
            : {", ".join(operands[:outputs])} : {", ".join(operands[outputs:])});
    }}"""


@pytest.mark.parametrize("name", [*ARCHS, "sm_90a"])
def test_tensor_cores_compute_the_shapes_that_an_architecture_names(name):
    arch = arch_of(name)
    for bits in (8, 4) if arch.int4 else (8,):
        found = sass.facts(nvrtc.compile(mma(arch, bits), name))[f"mma{bits}"]
        assert (found.int8, found.int4) == ((1, 0) if bits == 8 else (0, 1))
    assert arch.capability in ((7, 5), (12, 1)) or arch.capability[0] in (8, 9, 10, 12)
    assert arch.shared_block <= arch.shared_sm and arch.cp_async == (name != "sm_75")


def test_where_no_4_bit_shape_is_named_tensor_cores_have_none():
    wide = ARCHS["sm_80"]
    for name in ("sm_90", "sm_100", "sm_120"):
        found = sass.facts(nvrtc.compile(mma(wide, 4), name))["mma4"]
        assert arch_of(name).int4 is None and (found.int8, found.int4) == (2, 0), "taken apart into 8 bits"


# ---- a driver that is not there ----------------------------------------------------------------------------------

DRIVER = r"""
#include <stdlib.h>
#include <string.h>
static int number(const char* name, int otherwise) { const char* s = getenv(name); return s ? atoi(s) : otherwise; }
int cuDriverGetVersion(int* version) { *version = number("VERSION", 13000); return 0; }
int cuInit(unsigned flags) { return number("INIT", 0); }
int cuDeviceGetCount(int* count) { *count = number("COUNT", 1); return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return ordinal < number("COUNT", 1) ? 0 : 101; }
int cuDeviceGetName(char* name, int size, int device) { strncpy(name, "Pretended GPU", size); return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? number("MAJOR", 7) : attribute == 76 ? number("MINOR", 5) : attribute == 16 ? 40
    : attribute == 13 ? 1590000 : -1;
  return 0;
}
int cuGetErrorName(int code, const char** text) { *text = "CUDA_ERROR_INVALID_DEVICE"; return 0; }
int cuFuncSetAttribute() { return 1; } int cuGetErrorString() { return 1; } int cuLaunchKernelEx() { return 1; }
int cuModuleGetFunction() { return 1; } int cuModuleLoadData() { return 1; } int cuModuleUnload() { return 1; }
int cuTensorMapEncodeTiled() { return 1; } int cuGetExportTable() { return 1; }
"""


@dataclass(frozen=True)
class Machine:
    """Python on a machine whose driver is the library in ``folder``; variables say what the driver says."""

    folder: Path
    root: Path

    def __call__(self, code: str, **says: object) -> str:
        """What an expression of the module ``driver`` gives, or the text of its IntqError."""
        return self.run(
            "from intq.errors import IntqError\nfrom intq.kernels.cuda import driver\n"
            f"try:\n  print({code})\nexcept IntqError as error: print(error)",
            **says,
        )

    def run(self, code: str, **says: object) -> str:
        env = {name: str(value) for name, value in says.items()}
        env |= {"LD_LIBRARY_PATH": str(self.folder), "PYTHONPATH": str(self.root), "PATH": ""}
        run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout.strip()


@pytest.fixture(scope="module")
def driver(tmp_path_factory, root) -> Machine:
    folder = tmp_path_factory.mktemp("driver")
    (folder / "cuda.c").write_text(DRIVER)
    compiler = which("cc") or which("gcc")
    assert compiler, "tests need a C compiler (package g++)"
    command = [compiler, "-shared", "-fPIC", "-w", "-o", folder / "libcuda.so.1", folder / "cuda.c"]
    subprocess.run(command, check=True)
    return Machine(folder, root)


def test_the_driver_describes_the_gpu(driver):
    expected = "Device(number=0, name='Pretended GPU', capability=(7, 5), multiprocessors=40, clock=1590000000)"
    assert driver("driver.device()") == expected
    assert driver("driver.check('sm_75')") == expected
    assert driver("driver.check('sm_80')", MAJOR=8, MINOR=6) == expected.replace("(7, 5)", "(8, 6)")
    assert "CUDA_ERROR_INVALID_DEVICE" in driver("driver.device(1)")


@pytest.mark.parametrize(
    "arch, major, minor",
    [("sm_75", 8, 0), ("sm_80", 7, 5), ("sm_86", 8, 0), ("sm_90a", 10, 0), ("sm_80", 9, 0), ("sm_100", 9, 0)],
)
def test_a_library_for_another_gpu(driver, arch, major, minor):
    said = driver(f"driver.check('{arch}')", MAJOR=major, MINOR=minor)
    assert said.startswith(
        f"this library was compiled for {arch} and the GPU here, Pretended GPU, is sm_{major}{minor}; "
    )
    assert said.endswith(f"--target 'cuda -arch=sm_{major}{minor}'")


def test_what_a_machine_may_lack(driver):
    none = Machine(driver.folder / "none", driver.root)
    none.folder.mkdir()
    (none.folder / "libcuda.so.1").touch()  # no library, found before any that this machine has
    assert "this machine has none (no libcuda.so.1): install version 580 or later" in none("driver.load()")
    old = driver("driver.load()", VERSION=12080)
    assert old.startswith("NVIDIA's driver here is of CUDA 12.8 and compiled networks need one of CUDA 13.0 or later")
    for says in ({"COUNT": 0}, {"INIT": 100}):
        assert driver("driver.load()", **says).startswith("NVIDIA's driver finds no GPU that it can use")


def test_tvms_runtime_reads_the_library(driver, tmp_path):
    executable, cubin, chosen = compiled()
    Library(executable, chosen, "", {}, cubin).save(tmp_path / "t4.so")
    code = (
        "import sys\nfrom intq.kernels import runtime\nfrom intq.kernels.cuda import driver\n"
        "tvm = runtime._runtime()\ndriver.load()\n"
        f"gpu = tvm.load_module('{tmp_path / 't4.so'}').imports[0]\n"
        f"print(gpu.kind, gpu['{PRODUCT8}_kernel'] is not None, 'tvm' in sys.modules)"
    )
    assert driver.run(code) == "cuda True False"


def test_the_same_library_where_a_driver_is(driver, tmp_path, root):
    """TVM would compile at once where its CUDA runtime loads."""
    code = (
        f"import sys, tvm\nsys.path.insert(0, '{root / 'tests'}')\nfrom small_cuda import compiled\n"
        "print(tvm.get_global_func('ffi.Module.create.cuda') is not None, compiled()[1].hex())"
    )
    assert driver.run(code) == f"True {compiled()[1].hex()}"
