"""Running a deployed artifact needs NumPy, safetensors and TVM: everything else is absent here."""

import importlib.metadata
import re
import subprocess
import sys

import numpy as np
import pytest
from text_graphs import random_text_graph, sentences

import intq
from intq import artifact
from intq.backends import reference
from intq.vision import domain
from intq.vision.synthetic import random_images

# What the other process runs: only the top-level modules it is told of can be imported.
DEPLOYED = """
import sys
folder, allowed = sys.argv[1], set(sys.argv[2:]) | sys.stdlib_module_names

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"{name} is not installed on the device", name=name)

sys.meta_path.insert(0, Absent())
import numpy as np
import intq
network = intq.compile(folder)
np.save(folder + "/scores.npy", network(np.load(folder + "/input.npy")))
"""


def closure(*distributions: str) -> set[str]:
    """The distributions that these need, themselves included."""
    found: set[str] = set()
    waiting = list(distributions)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            needs = importlib.metadata.requires(name) or []
            waiting += [re.split(r"[^\w.-]", need)[0].lower() for need in needs if "extra ==" not in need]
    return found


def images():
    checkpoint = domain.random("small_resnet", 0)
    pixels = random_images(3, checkpoint.input_size, seed=5, channels=1)
    return domain.prepare(checkpoint, None, samples=4, seed=0).quantize(), pixels


def texts():
    return random_text_graph(0, layers=1), sentences(3, 17)


@pytest.fixture(scope="module", params=[images, texts])
def deployed(request, tmp_path_factory):
    """A compiled artifact with an input beside it."""
    folder = tmp_path_factory.mktemp("deployed") / "net"
    graph, array = request.param()
    artifact.save(graph, folder)
    intq.compile(folder)
    np.save(folder / "input.npy", array)
    return folder


def test_a_deployed_network_runs_on_numpy_safetensors_and_tvm_alone(deployed):
    modules = importlib.metadata.packages_distributions()
    needed = closure("numpy", "safetensors", "apache-tvm")
    allowed = {top for top, owners in modules.items() if needed & {owner.lower() for owner in owners}} | {"intq"}
    assert not allowed & {"torch", "transformers", "typer", "rich", "PIL", "scipy"}
    run = subprocess.run([sys.executable, "-c", DEPLOYED, deployed, *allowed], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    expected, *_ = reference.run(artifact.load(deployed), np.load(deployed / "input.npy"))
    assert np.array_equal(np.load(deployed / "scores.npy"), expected)
