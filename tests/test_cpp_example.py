"""examples/cpp: a network without Python gives the reference's integers."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import tvm_ffi
from commandline import answer
from graphs import random_graph
from text_graphs import random_text_graph

from intq.backends import reference
from intq.value import bind_shape

PACKAGES = Path(tvm_ffi.__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory, root) -> Path:
    program = tmp_path_factory.mktemp("cpp") / "run"
    libraries = [PACKAGES / "tvm" / "lib", PACKAGES / "tvm_ffi" / "lib"]
    command = ["g++", "-std=c++17", "-Wall", "-Werror", root / "examples" / "cpp" / "run.cpp", "-o", program]
    command += ["-isystem", PACKAGES / "tvm_ffi" / "include", *(f"-L{folder}" for folder in libraries)]
    command += ["-ltvm_runtime", "-ltvm_ffi", "-ldl", f"-Wl,-rpath,{':'.join(map(str, libraries))}"]
    subprocess.run(command, check=True)
    return program


@pytest.mark.parametrize(
    ("make", "sizes"), [(random_graph, {"n": 3}), (random_text_graph, {"n": 2, "s": 7})], ids=["images", "texts"]
)
def test_it_runs_a_compiled_network(make, sizes, run, tmp_path):
    graph = make(1)
    graph.save(tmp_path / "net")
    library = answer("compile", tmp_path / "net", "--constants")["library"]
    rng = np.random.default_rng(0)
    inputs = [rng.integers(v.low, v.high, bind_shape(v.shape, sizes)).astype(v.dtype) for v in graph.inputs]
    what = [f"{'x'.join(map(str, x.shape))}:{x.dtype}" for x in inputs]
    command = [run, tmp_path / "net" / library, tmp_path / "net" / "constants.params", *what, "cpu"]
    found = subprocess.run(command, input=b"".join(x.tobytes() for x in inputs), capture_output=True, check=True)
    assert found.stdout == b"".join(out.tobytes() for out in reference.run(graph, *inputs))


def test_what_it_says_of_mistakes(run, tmp_path):
    """One line, and no output."""
    for arguments, words in [((), "usage: run"), (("no.so", "none", "1x2:uint8"), "run: ")]:
        found = subprocess.run([run, *arguments], input=b"", capture_output=True, check=False)
        assert found.returncode and not found.stdout and words in found.stderr.decode()
