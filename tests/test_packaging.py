"""The ways to run the package - installed, editable, from the checkout - with and without the C++ extension."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
OFFLINE = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
NOT_CLONED = shutil.ignore_patterns("__pycache__", "*.so", "_build_error.txt")
PROBE = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import camguide_fast.kernels
    from camguide_fast import ops
    from camguide_fast.kernels import _cuda
import torch
row = ops.backends()["confusion_matrix"]["cpu"]
labels = torch.tensor([0, 1, 1])
print(json.dumps({
    "package": camguide_fast.__file__,
    "kernels": camguide_fast.kernels.__file__,
    "cuda": sorted(p.name for p in _cuda.SOURCES.rglob("*.cu*")),
    "row": row.backend,
    "why": row.why,
    "warnings": [str(w.message) for w in caught if "camguide_fast" in str(w.message)],
    "result": ops.confusion_matrix(labels, labels, 2).tolist(),
}))
"""


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CAMGUIDE_FAST", "PYTHON"))}
    process = subprocess.run(command, cwd=cwd, env=environment | variables, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def copy_of_the_checkout(to: Path) -> Path:
    """Sources alone, as a fresh clone has them."""
    for folder in ("camguide_fast", "kernels", "csrc"):
        shutil.copytree(ROOT / folder, to / folder, ignore=NOT_CLONED)
    for file in (f for f in ROOT.iterdir() if f.is_file()):
        shutil.copy(file, to)
    return to


def sources_of_one_op(to: Path) -> Path:
    """A checkout whose extension holds confusion_matrix alone: where it lands and whether it is found needs no other.
    All of them are compiled for the tests of the ops."""
    tree = copy_of_the_checkout(to)
    for file in (tree / "csrc/cpu").rglob("*.cpp"):
        if file.stem not in ("confusion_matrix", "company"):  # the second shares work out among threads
            file.unlink()
    return tree


def fresh_python(folder: Path) -> Path:
    """A virtual environment that finds torch and the build tools here, but not this environment's own camguide_fast."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin/python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # A plain path in a .pth file comes last, and the .pth files over there (editable installs) are not followed.
    Path(site, "outer.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    return python


def broken_sources(to: Path) -> Path:
    """A checkout that does not compile, with what an earlier build has left."""
    tree = sources_of_one_op(to)
    (tree / "csrc/module.cpp").write_text("#error no such luck\n")
    (tree / "camguide_fast/_C.abi3.so").write_bytes(b"stale")
    return tree


def build_wheel(folder: Path, **variables: str) -> Path:
    tree = sources_of_one_op(folder / "tree")
    run(*PIP, "wheel", ".", *OFFLINE, "-w", folder, cwd=tree, **variables)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def native_wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def plain_wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("plain"), CAMGUIDE_FAST_NATIVE="0")


def install(what: str | Path, folder: Path, *options: str, **variables: str) -> Path:
    """pip install into a fresh environment, whose python is returned."""
    python = fresh_python(folder / "venv")
    run(*PIP, "--python", python, "install", *OFFLINE, *options, what, cwd=folder, **variables)
    return python


def check(found: str, row: str, package: Path) -> None:
    probe = json.loads(found)
    assert probe["row"] == row
    assert len(probe["warnings"]) == (row == "reference"), probe["warnings"]
    assert probe["result"] == [[1, 0], [0, 2]]
    assert Path(probe["package"]).is_relative_to(package)
    assert Path(probe["kernels"]).is_relative_to(package)
    assert probe["cuda"] == sorted(path.name for path in (ROOT / "csrc/cuda").rglob("*.cu*"))


def test_regular_install(native_wheel, tmp_path):
    assert "-cp310-abi3-" in native_wheel.name  # one binary for every CPython >= 3.10
    python = install(native_wheel, tmp_path)
    check(run(python, "-c", PROBE, cwd=tmp_path), "native", tmp_path / "venv")
    backend = json.loads(run(python, "-c", PROBE, cwd=tmp_path, CAMGUIDE_FAST_BACKEND="reference"))
    assert (backend["row"], backend["why"]) == ("reference", "CAMGUIDE_FAST_BACKEND=reference")
    assert backend["warnings"] == [] and backend["result"] == [[1, 0], [0, 2]]
    # From the repository's root python finds the sources before the installed package.
    tree = copy_of_the_checkout(tmp_path / "tree")
    check(run(python, "-c", PROBE, cwd=tree), "reference", tree)


def test_regular_install_without_the_extension(plain_wheel, tmp_path):
    assert plain_wheel.name.endswith("-py3-none-any.whl")
    python = install(plain_wheel, tmp_path)
    check(run(python, "-c", PROBE, cwd=tmp_path), "reference", tmp_path / "venv")


def test_editable_install_and_checkout(tmp_path):
    tree = sources_of_one_op(tmp_path / "tree")
    nothing_installed = fresh_python(tmp_path / "other")
    check(run(nothing_installed, "-c", PROBE, cwd=tree), "reference", tree)
    python = install(tree, tmp_path, "-e")
    check(run(python, "-c", PROBE, cwd=tmp_path), "native", tree)
    check(run(nothing_installed, "-c", PROBE, cwd=tree), "native", tree)  # the extension now lies in the checkout


def test_editable_install_without_the_extension(tmp_path):
    tree = copy_of_the_checkout(tmp_path / "tree")
    python = install(tree, tmp_path, "-e", CAMGUIDE_FAST_NATIVE="0")
    check(run(python, "-c", PROBE, cwd=tmp_path), "reference", tree)


@pytest.mark.parametrize(
    ("compiler", "reason"), [("c++", "error: #error no such luck"), ("/no/such/c++", "no C++ compiler found")]
)
def test_editable_install_whose_build_fails(tmp_path, compiler, reason):
    tree = broken_sources(tmp_path / "tree")
    python = install(tree, tmp_path, "-e", CXX=compiler)
    found = run(python, "-c", PROBE, cwd=tmp_path)
    check(found, "reference", tree)
    (warning,) = json.loads(found)["warnings"]
    assert reason in warning and "slower" in warning
    (line,) = (x for x in run(python, "-m", "camguide_fast.info", cwd=tmp_path).split("\n") if x.startswith("C++"))
    assert reason in line and "slower" in line
    assert not list((tree / "camguide_fast").glob("_C*"))


def test_wheel_whose_build_fails(tmp_path):
    tree = broken_sources(tmp_path / "tree")
    run(*PIP, "wheel", ".", *OFFLINE, "-w", tmp_path, cwd=tree)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "camguide_fast/_build_error.txt" in names and not any(name.endswith(".so") for name in names)


def test_a_build_that_must_succeed(tmp_path):
    tree = broken_sources(tmp_path / "tree")
    with pytest.raises(AssertionError, match="no such luck"):
        run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=tree, CAMGUIDE_FAST_NATIVE="1")


def test_a_later_build_that_succeeds_removes_the_reason(tmp_path):
    tree = sources_of_one_op(tmp_path / "tree")
    build = (sys.executable, "setup.py", "build_ext", "--inplace")
    run(*build, cwd=tree, CXX="/no/such/c++")
    assert (tree / "camguide_fast/_build_error.txt").exists()
    run(*build, cwd=tree)
    assert not (tree / "camguide_fast/_build_error.txt").exists()
    assert (tree / "camguide_fast/_C.abi3.so").exists()


def test_wheel_holds_every_module(plain_wheel, native_wheel):
    """And every CUDA source. The list of packages in pyproject.toml is written by hand."""
    tree = {path.relative_to(ROOT).as_posix() for path in (ROOT / "camguide_fast").rglob("*.py")}
    tree |= {f"camguide_fast/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "kernels").rglob("*.py")}
    tree |= {f"camguide_fast/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "csrc/cuda").rglob("*.cu*")}
    for wheel, extension in [(plain_wheel, set()), (native_wheel, {"camguide_fast/_C.abi3.so"})]:
        names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        assert names == tree | extension


def test_source_distribution_holds_what_a_build_needs(tmp_path):
    tree = copy_of_the_checkout(tmp_path / "tree")
    build = "from setuptools.build_meta import build_sdist; build_sdist('..')"
    run(sys.executable, "-c", build, cwd=tree, CAMGUIDE_FAST_NATIVE="0")
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    needed = {path.relative_to(tree).as_posix() for path in (tree / "csrc").rglob("*") if path.is_file()}
    assert needed | {"setup.py", "pyproject.toml", "LICENSE", "kernels/cam_normalize.py"} <= names


def test_the_lowest_versions_are_those_declared():
    declared = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)[1]
    declared = dict(re.findall(r'"([\w-]+)>=([\d.]+)', declared))
    lowest = (ROOT / "tests/constraints-lowest.txt").read_text()
    lowest = dict(re.findall(r"^([\w-]+)==([\d.]+)$", lowest, re.M))
    assert "torch" in declared and declared.keys() == lowest.keys()
    for name, version in declared.items():
        assert re.fullmatch(re.escape(version) + r"(\.0)*", lowest[name]), name
