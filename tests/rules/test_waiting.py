"""Commands bound the spinning of OpenMP's threads before torch is loaded; the library leaves the environment alone."""

import os
import subprocess
import sys

import pytest

from camguide_fast.rules import waiting

REPORT = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch finds", os.environ.get("GOMP_SPINCOUNT"))
            sys.meta_path.remove(self)

sys.meta_path.insert(0, Watch())
"""  # as sitecustomize, so that it watches from the start


def run(tmp_path, *command: str, **variables: str) -> str:
    """What the first import of torch finds in the variable, and what the command itself prints."""
    (tmp_path / "sitecustomize.py").write_text(REPORT)
    clean = {k: v for k, v in os.environ.items() if k not in waiting.CHOICES}
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = clean | {"PYTHONPATH": path} | variables
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True).stdout


@pytest.mark.parametrize("command", ["train", "infer", "evaluate", "info"])
def test_a_command_chooses_before_torch_is_loaded(tmp_path, command):
    assert run(tmp_path, "-m", f"camguide_fast.{command}", "--help").startswith(f"torch finds {waiting.SPINS}\n")


def test_the_choice_of_the_user_stands(tmp_path):
    assert run(tmp_path, "-m", "camguide_fast.info", GOMP_SPINCOUNT="7").startswith("torch finds 7\n")
    assert run(tmp_path, "-m", "camguide_fast.info", OMP_WAIT_POLICY="active").startswith("torch finds None\n")


def test_the_library_leaves_the_environment_alone(tmp_path):
    script = "import os; before = dict(os.environ); import camguide_fast.infer; print(before == dict(os.environ))"
    assert run(tmp_path, "-c", script) == "torch finds None\nTrue\n"


def test_parts_come_when_they_are_asked_for(tmp_path):
    script = "import sys, camguide_fast; print('torch' in sys.modules); camguide_fast.ops.slic, camguide_fast.losses"
    assert run(tmp_path, "-c", script) == "False\ntorch finds None\n"
    assert run(tmp_path, "-c", "from camguide_fast import *; print(ops.__name__)").endswith("camguide_fast.ops\n")
    assert run(tmp_path, "-c", "import camguide_fast; print(hasattr(camguide_fast, 'nothing'))") == "False\n"


def test_processes_that_a_command_starts_inherit_it(monkeypatch):
    for name in waiting.CHOICES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "")  # so that it is as before when the test is over
    monkeypatch.delenv("GOMP_SPINCOUNT")
    waiting.wait_briefly()
    script = "import os; print(os.environ['GOMP_SPINCOUNT'])"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert child.stdout == f"{waiting.SPINS}\n"


def test_what_a_command_is():
    assert waiting.is_command(["-m"], ["python", "-u", "-m", "camguide_fast.train", "--data", "x"])
    assert waiting.is_command(["-m"], ["python", "-mcamguide_fast.infer"])
    assert not waiting.is_command(["-m"], ["python", "-m", "pytest"])
    assert not waiting.is_command(["-c"], ["python", "-c", "import camguide_fast.train"])
    assert not waiting.is_command(["tool.py", "-m"], ["python", "tool.py", "-m", "camguide_fast.train"])
