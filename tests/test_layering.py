"""House rules, read from the sources: imports point down, an op has one name everywhere, ops alone reach backends."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "camguide_fast"

# The rooms from the bottom up: a folder with its files, or a file. A file imports what lies in a lower row, and what
# its own room holds. In the top row nobody imports anybody.
ROWS = [
    {"errors", "rules"},
    {"files", "cli", "data"},
    {"config"},
    {"reference", "kernels", "_C"},
    {"ops"},
    {"layers", "losses", "compat"},
    {"models"},
    {"method"},
    {"pictures"},
    {"cams"},
    {"training"},
    {"runs"},
    {"train", "infer", "evaluate", "export", "report", "info"},
]
COMMANDS = ROWS[-1]
ROW = {room: i for i, names in enumerate(ROWS) for room in names}


def sources() -> dict[str, Path]:
    """{"ops.guided_filter": path}: every file of the package, kernels/ included, under its dotted name."""
    files = {path.relative_to(PACKAGE): path for path in PACKAGE.rglob("*.py")}
    files |= {Path("kernels") / path.relative_to(ROOT / "kernels"): path for path in (ROOT / "kernels").rglob("*.py")}
    return {".".join(name.with_suffix("").parts).removesuffix(".__init__"): path for name, path in files.items()}


SOURCES = sources()


def room(module: str) -> str:
    return module.split(".")[0]


def imported(module: str) -> list[list[str]]:
    """The dotted name of everything that the file imports anywhere in it, from the top package on."""
    path, found = SOURCES[module], []
    package = ["camguide_fast", *module.split(".")]
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            found += [[*base, alias.name] for alias in node.names]
    return found


def names(module: str) -> list[list[str]]:
    """What of ours it imports, less the package's name."""
    return [name[1:] for name in imported(module) if name[0] == "camguide_fast" and len(name) > 1]


def imports(module: str) -> tuple[set[str], set[str]]:
    """(modules of ours, top-level names of others) that the file imports."""
    ours = {_module(name) for name in names(module)}
    others = {name[0] for name in imported(module) if name[0] != "camguide_fast"}
    return ours - {module, "__init__"}, others


def _module(name: list[str]) -> str:
    """The file that holds a dotted name, which may end with something defined in it."""
    while name and ".".join(name) not in SOURCES:
        name = name[:-1]
    return ".".join(name) or "__init__"


def test_every_file_has_a_room():
    assert {room(module) for module in SOURCES} - {"__init__"} == set(ROW) - {"_C"}


def test_the_house_is_small_from_outside():
    """What lies beside `__init__` is a command, or what users import."""
    files = {module for module, path in SOURCES.items() if path.parent == PACKAGE} - {"__init__"}
    assert files == COMMANDS | {"errors", "files", "cli", "losses", "layers"}


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_imports_point_down(module):
    for other in imports(module)[0]:
        below = module == "__init__" or ROW[room(other)] < ROW[room(module)]
        assert below or (room(other) == room(module) and module not in COMMANDS), f"{module} imports {other}"


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_nobody_reaches_into_another_room(module):
    """What begins with an underscore, a file or a name in it, is its room's own."""
    for path in names(module):
        private = [part for part in path if part.startswith("_") and not part.startswith("__") and part != "_C"]
        assert not private or path[0] == room(module), f"{module} takes {'.'.join(path)}"


@pytest.mark.parametrize("folder", sorted({room(module) for module in SOURCES if "." in module}))
def test_no_circles(folder):
    """In a room either; the package itself, which hands on what its files hold, left out."""
    files = {module for module in SOURCES if room(module) == folder and module != folder}
    TopologicalSorter({module: imports(module)[0] & files for module in files}).prepare()


def test_data_stands_alone():
    for module in SOURCES:
        if room(module) == "data":
            assert all(other == "errors" or room(other) == "data" for other in imports(module)[0]), module


def test_rules_need_python_alone():
    for module in SOURCES:
        if room(module) == "rules":
            ours, others = imports(module)
            assert not ours and others <= sys.stdlib_module_names, module


def test_reference_needs_torch_and_numpy_alone():
    for module in SOURCES:
        if room(module) == "reference":
            assert imports(module)[1] <= {"torch", "numpy", *sys.stdlib_module_names}, module


def test_kernels_need_torch_and_a_compiler_alone():
    for module in SOURCES:
        if room(module) == "kernels":
            assert imports(module)[1] <= {"torch", "triton", "cupy", *sys.stdlib_module_names}, module


def test_only_ops_reach_the_backends():
    for module in SOURCES:
        if room(module) not in ("ops", "kernels"):
            assert not any(room(other) in ("kernels", "_C") for other in imports(module)[0]), module


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
    assert {f"test_{op}" for op in ops} <= stems("tests/ops", ".py")
    others = {
        "conftest",
        "bench_losses",
        "bench_train_step",
        "bench_under_load",
        "gpu",
        "quality",
        "mask_sheet",
    }  # of several ops together
    assert {f"bench_{op}" for op in ops} == stems("bench", ".py") - others
    assert stems("kernels", ".py") <= ops
    assert stems("csrc/cpu", ".cpp") <= ops
    assert stems("csrc/cuda", ".cu") <= ops


def test_this_file_sees_imports():
    """Guards the guard: what the walk must find in files that are known."""
    assert imports("ops.cam_normalize")[0] >= {"ops._checks", "ops._register", "reference"}
    assert "reference._common" in imports("reference.cam_normalize")[0]
    assert "triton" in imports("kernels.cam_normalize")[1]


def test_tests_have_the_rooms_of_what_they_test():
    """A folder for each room with several files; what is of no room lies on top."""
    rooms = {room(module) for module in SOURCES if "." in module} | {"commands", "bench", "docs"}
    shared = {"support", "cuda_host"}
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("*.py")} - {"."}
    assert folders - shared <= rooms, f"tests of no room: {folders - shared - rooms}"
    of_commands = {path.stem.removeprefix("test_") for path in (ROOT / "tests/commands").glob("*.py")}
    assert COMMANDS <= of_commands
