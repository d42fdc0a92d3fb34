"""House rules, read from the sources: imports point down, an op has one name everywhere, ops alone reach backends."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "camguide_fast"

# From the bottom up. A file may import what lies in a lower row, and its own package. What is not named is in the top
# row, where files may import one another, but not in a circle.
ROWS = [
    {"errors", "waiting"},
    {"files", "cli", "data"},
    {"config"},
    {"reference", "kernels", "_C"},
    {"ops"},
    {"layers", "losses", "compat"},
    {"models"},
    {"method"},
    {"cams"},
    {"pictures"},
    {"training"},
]
TOP = len(ROWS)


def sources() -> dict[str, Path]:
    """{"ops.guided_filter": path}: every file of the package, kernels/ included, under its dotted name."""
    files = {path.relative_to(PACKAGE): path for path in PACKAGE.rglob("*.py")}
    files |= {Path("kernels") / path.relative_to(ROOT / "kernels"): path for path in (ROOT / "kernels").rglob("*.py")}
    return {".".join(name.with_suffix("").parts).removesuffix(".__init__"): path for name, path in files.items()}


SOURCES = sources()


def row(module: str) -> int:
    return next((i for i, names in enumerate(ROWS) if module.split(".")[0] in names), TOP)


def imports(module: str) -> tuple[set[str], set[str]]:
    """(modules of ours, top-level names of others) that the file imports anywhere in it."""
    path, ours, others = SOURCES[module], set(), set()
    package = ["camguide_fast", *module.split(".")]
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] == "camguide_fast":
                ours.add(_module(name[1:]))
            else:
                others.add(name[0])
    return ours - {module, "__init__"}, others


def _module(name: list[str]) -> str:
    """The file that holds a dotted name, which may end with something defined in it."""
    while name and ".".join(name) not in SOURCES:
        name = name[:-1]
    return ".".join(name) or "__init__"


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_imports_point_down(module):
    for other in imports(module)[0]:
        same = other.split(".")[0] == module.split(".")[0]
        assert same or row(other) < row(module) or row(module) == TOP, f"{module} imports {other}"


def test_no_circles():
    TopologicalSorter({module: imports(module)[0] for module in SOURCES if module.count(".") == 0}).prepare()


def test_data_stands_alone():
    for module in SOURCES:
        if module.split(".")[0] == "data":
            assert all(other == "errors" or other.split(".")[0] == "data" for other in imports(module)[0]), module


def test_reference_needs_torch_and_numpy_alone():
    for module in SOURCES:
        if module.split(".")[0] == "reference":
            assert imports(module)[1] <= {"torch", "numpy", *sys.stdlib_module_names}, module


def test_kernels_need_torch_and_a_compiler_alone():
    for module in SOURCES:
        if module.split(".")[0] == "kernels":
            assert imports(module)[1] <= {"torch", "triton", "cupy", *sys.stdlib_module_names}, module


def test_only_ops_reach_the_backends():
    for module in SOURCES:
        if module.split(".")[0] not in ("ops", "kernels"):
            assert not any(other.split(".")[0] in ("kernels", "_C") for other in imports(module)[0]), module


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_the_dispatcher_picks_the_device(module):
    tree = ast.parse(SOURCES[module].read_text())
    lines = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "is_cuda"]
    assert not lines, f"{module} asks for .is_cuda in line {lines}"


def stems(folder: str, suffix: str) -> set[str]:
    return {path.stem for path in (ROOT / folder).glob(f"*{suffix}") if not path.stem.startswith("_")}


def test_an_op_has_one_name():
    ops = stems("camguide_fast/ops", ".py")
    assert ops == stems("camguide_fast/reference", ".py")
    assert {f"test_{op}" for op in ops} <= stems("tests", ".py")
    others = {"conftest", "bench_losses", "bench_under_load", "quality", "mask_sheet"}  # of several ops together
    assert {f"bench_{op}" for op in ops} == stems("bench", ".py") - others
    assert stems("kernels", ".py") <= ops
    assert stems("csrc/cpu", ".cpp") <= ops
    assert stems("csrc/cuda", ".cu") <= ops


def test_this_file_sees_imports():
    """Guards the guard: what the walk must find in files that are known."""
    assert imports("ops.cam_normalize")[0] >= {"ops._checks", "ops._register", "reference"}
    assert "reference._common" in imports("reference.cam_normalize")[0]
    assert "triton" in imports("kernels.cam_normalize")[1]
