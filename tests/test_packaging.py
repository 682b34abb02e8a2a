"""The same package four ways: a plain checkout (the other tests), editable (scripts/setup), a wheel and an sdist.

The wheel is built from the unpacked sdist, so that a file which the sdist lacks is missed here and not by a user.
"""

import importlib.metadata
import json
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

FOLDERS = {"intq": "intq", **{name: f"intq.{name}" for name in ("vision", "nlp", "speech", "kernels")}}


def sources(root: Path) -> dict[str, Path]:
    """Every Python file of the package by the name it has in a wheel: vision/data.py is intq/vision/data.py."""
    return {
        "/".join((*package.split("."), path.relative_to(root / folder).as_posix())): path
        for folder, package in FOLDERS.items()
        for path in sorted((root / folder).rglob("*.py"))
    }


def build(kind: str, source: Path, into: Path) -> Path:
    """Build `source` with setuptools itself, offline, and return the path of what was built."""
    code = f"import sys, setuptools.build_meta as b; print(b.build_{kind}(sys.argv[1]))"
    run = subprocess.run([sys.executable, "-c", code, into], cwd=source, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return into / run.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory) -> Path:
    """A wheel, built from an sdist, built from a copy of the checkout's files (a build leaves traces in its tree)."""
    folder = tmp_path_factory.mktemp("build")
    copy = folder / "copy"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((root / name).read_bytes())
    for top in FOLDERS:
        for path in (root / top).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".json", ".css"):
                target = copy / path.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    sdist = build("sdist", copy, folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The Python of a fresh environment that has the wheel and, for its dependencies, sees this one's packages."""
    folder = tmp_path_factory.mktemp("fresh") / "env"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_list_of_packages_is_the_tree(root):
    declared = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    tree = {name.rsplit("/", 1)[0].replace("/", ".") for name in sources(root)}
    assert sorted(declared["packages"]) == sorted(tree)
    assert {declared["package-dir"][package]: package for package in declared["package-dir"]} == FOLDERS
    for top in set(FOLDERS) - {"intq"}:
        assert not (root / top / "__init__.py").exists(), f"{top}/__init__.py would make a top-level package of {top}/"


def test_the_wheel_holds_every_source_and_nothing_else(root, wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert {name for name in held if name.endswith(".py")} == set(sources(root))
    assert {Path(name).suffix for name in held} <= {".py", ".json", ".css"} and "intq/report.css" in held
    assert licences


def test_a_fresh_environment_with_the_wheel_imports_every_module(root, installed, tmp_path):
    names = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in sources(root)]
    code = (
        "import importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "import intq; print(intq.__file__)\n"
    )
    run = subprocess.run(
        [installed, "-W", "error", "-c", code, json.dumps(names)], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).is_relative_to(installed.parent.parent), "the wheel, not the checkout, is tested"


def test_the_installed_command_answers(installed, tmp_path):
    run = subprocess.run([installed.parent / "intq", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "quantize" in run.stdout


def test_constraints_pin_what_runs_here(root):
    pins = [line.partition("==") for line in (root / "constraints.txt").read_text().splitlines() if "==" in line]
    for name, _, version in pins:
        assert importlib.metadata.version(name).partition("+")[0] == version, f"{name}: run scripts/setup"
