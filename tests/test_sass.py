"""The machine code of a GPU's kernels, read: tensor cores, registers, spills, and whatever is of floating point."""

from types import SimpleNamespace

import pytest
from small_cuda import PRODUCT4, PRODUCT8, QUOTIENT, compiled

from intq.errors import IntqError
from intq.kernels import audit
from intq.kernels.cuda import nvrtc, sass, toolkit
from intq.kernels.library import Library


@pytest.fixture(scope="module", params=["nvidia/nvidia-t4", "nvidia/nvidia-a100", "nvidia/nvidia-h100"])
def products(request):
    return sass.facts(compiled(request.param)[1]), request.param


def test_tensor_cores_in_the_inner_loop(products):
    facts, target = products
    int8, int4 = facts[f"{PRODUCT8}_kernel"], facts[f"{PRODUCT4}_kernel"]
    assert int8.int8 and not int8.int4 and int8.int_in_loop
    if target == "nvidia/nvidia-h100":  # takes 4 bits apart into 8, in a function of its own
        assert int4.int8 == 2 and int4.int4 == 0
    else:
        assert int4.int4 and not int4.int8 and int4.int_in_loop
    for fact in (int8, int4):
        assert 16 <= fact.registers <= 255 and fact.local == fact.spills == 0 and not fact.floats
        assert set(fact.loads) == {32}


def test_a_division_shows_as_floating_point(products):
    fact = products[0][f"{QUOTIENT}_kernel"]
    assert sorted(name.partition(".")[0] for name in fact.floats) == ["F2I", "I2F", "MUFU"]
    assert (fact.int8, fact.int4, fact.int_in_loop) == (0, 0, False)


SOURCE = """
#define KERNEL extern "C" __global__ void
KERNEL __launch_bounds__(1024, 1) spilled(int* a, const int* b, int n) {
  int r[100];
  #pragma unroll
  for (int i = 0; i < 100; ++i) r[i] = b[i * 1024 + threadIdx.x];
  for (int k = 0; k < n; ++k) {
    #pragma unroll
    for (int i = 0; i < 100; ++i) r[i] = r[i] * r[(i + 1) % 100] + k;
  }
  #pragma unroll
  for (int i = 0; i < 100; ++i) a[i * 1024 + threadIdx.x] = r[i];
}
KERNEL shared(int4* a, const int4* b, const char* c, const short* d, const int2* e) {
  __shared__ int4 s[32];
  s[threadIdx.x] = b[threadIdx.x];
  __syncthreads();
  int4 v = s[31 - threadIdx.x];
  v.x += c[threadIdx.x] + d[threadIdx.x] + e[threadIdx.x].y + e[threadIdx.x].x;
  a[threadIdx.x] = v;
}
KERNEL matrices(unsigned* a) {
  __shared__ unsigned s[256];
  s[threadIdx.x] = a[threadIdx.x];
  __syncthreads();
  unsigned at = __cvta_generic_to_shared(s + threadIdx.x % 32 * 4), x, y;
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(x), "=r"(y) : "r"(at));
  a[threadIdx.x] = x ^ y;
}
KERNEL integers(int* a, const int* b, long long m, int n) {
  int x = b[threadIdx.x], y = (int)((x * m + (1ll << 33)) >> 34), z = 0;
  for (int i = 0; i < n; ++i) z += __clz(x + i) + __popc(y ^ i);
  a[threadIdx.x] = min(max(x < 0 ? y : x, -7), 255) + z + 0x3ff00000;
}
KERNEL chained(float* a, const double* b, int n) {
  a[threadIdx.x] = a[threadIdx.x] * (float)n + (float)(b[threadIdx.x] * 0.5);
}
KERNEL added(float* a) { atomicAdd(a, 1.0f); }
KERNEL counted(int* a) { atomicAdd(a, 1); atomicMax(a + 1, (int)threadIdx.x); }
"""


@pytest.fixture(scope="module", params=["sm_75", "sm_80", "sm_90", "sm_120"])
def facts(request):
    return sass.facts(nvrtc.compile(SOURCE, request.param))


def test_spills(facts):
    spilled = facts["spilled"]
    assert spilled.registers == 64 and spilled.local >= 100 and spilled.spills > 100 and not spilled.floats
    assert all(fact.local == fact.spills == 0 for name, fact in facts.items() if name != "spilled")


def test_memory(facts):
    assert facts["shared"].shared in (512, 1536), "1536: with the KB that is the system's from sm_90 on"
    assert facts["shared"].loads == {8: 1, 16: 1, 64: 1, 128: 1}
    assert facts["matrices"].ldsm == 1 and facts["shared"].ldsm == 0


def test_floating_point_is_told_from_integers(facts):
    def names(kernel):
        return {name.partition(".")[0].removeprefix("U") for name in facts[kernel].floats}

    assert names("integers") == names("counted") == set()
    assert {"DMUL", "F2F"} <= names("chained") and names("chained") & {"I2F", "I2FP"} and "FFMA" in names("chained")
    assert len(facts["added"].floats) == 1


def test_a_constant_in_a_register_is_no_arithmetic():
    usage = "Function k:\n  REG:8 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:360\n"
    code = [
        "HFMA2.MMA R5, -RZ, RZ, 0, 5.9604644775390625e-08",
        "HFMA2 R4, -RZ, RZ, 1.875, 0",
        "HFMA2 R4, -RZ, RZ, R3, R5",
        "FSEL R3, R4, R5, P0",
        "FLO.U32 R3, R4",
        "@!P0 HFMA2.MMA R5, R4, RZ, 0, 1",
        "@P1 FADD.FTZ R1, R2, R3",
        "MUFU.RCP R0, R0",
        "IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28]",
        "RED.E.ADD.F32.FTZ.RN.STRONG.GPU [R2.64], R5",
        "RED.E.ADD.STRONG.GPU [R2.64], R5",
    ]
    lines = "".join(f"        /*{16 * i:04x}*/    {text} ;  /* 0x00 */\n" for i, text in enumerate(code))
    floats = sass.parse(f"{usage}\t\tFunction : k\n{lines}")["k"].floats
    assert floats == {"FADD.FTZ": 1, "HFMA2": 1, "HFMA2.MMA": 1, "MUFU.RCP": 1, "RED.E.ADD.F32.FTZ.RN.STRONG.GPU": 1}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    executable, cubin, chosen = compiled()
    path = tmp_path_factory.mktemp("library") / "t4.so"
    Library(executable, chosen, "", {}, cubin).save(path)
    return path


def test_the_audit_of_a_library_for_a_gpu(library):
    kernels = [SimpleNamespace(kernel=name) for name in (PRODUCT8, QUOTIENT, PRODUCT4, "")]
    found = audit.audit(SimpleNamespace(path=library, instruction_set="sm_75", layers=kernels))
    assert found.instruction_set == "sm_75"
    assert found.kernels == {PRODUCT8: 0, PRODUCT4: 0, QUOTIENT: 3}
    assert set(found.gpu) == {f"{name}_kernel" for name in found.kernels}
    assert found.gpu[f"{PRODUCT8}_kernel"].int_in_loop


def test_a_kernel_that_a_library_lacks(library):
    with pytest.raises(IntqError, match="holds no machine code of conv2d_0123456789ab; compile it again"):
        audit.audit_library(library, "sm_75", {PRODUCT8, "conv2d_0123456789ab"})


def test_errors(monkeypatch):
    with pytest.raises(IntqError, match="cuobjdump cannot read the kernels' machine code"):
        sass.facts(b"no machine code")
    monkeypatch.setattr(toolkit, "homes", lambda: [])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(IntqError, match="cuobjdump of CUDA 13 is not installed"):
        sass.facts(b"")
