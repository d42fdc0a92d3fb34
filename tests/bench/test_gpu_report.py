"""bench/gpu.py goes on whatever a step does, keeps to its minutes, and its report says what was measured where."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu
import pytest
from _gpu_report import TARGET, markdown
from gpu import Step

HERE = Path(__file__).stem


# Steps, run by name in processes of their own.


def finds_nothing(context):
    yield {"gpu": None}


def tells(context):
    yield {"said": [context.device, context.argument]}


def raises(context):
    yield {"said": "before"}
    raise RuntimeError("out of luck")


def hangs(context):
    yield {"said": "before"}
    subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"])


def crashes(context):
    yield {"said": "before"}
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves_out(context):
    yield {"left_out": "the tool is missing"}


def steps(*names: str, **options) -> list[Step]:
    return [Step(name, f"{HERE}.{name}", 1.0, **options) for name in names]


def test_goes_on_after_a_step_that_fails(tmp_path):
    todo = steps("finds_nothing", "raises", "crashes", "leaves_out")
    todo += steps("hangs", most=2) + steps("tells", argument="so") + steps("never", needs_gpu=True)
    report = gpu.run(todo, tmp_path, 10)
    done = {step["name"]: step for step in report["steps"]}
    assert {name: step["status"] for name, step in done.items()} == {
        "finds_nothing": "done",
        "raises": "failed",
        "crashes": "crashed (SIGSEGV)",
        "leaves_out": "left out",
        "hangs": "out of time",
        "tells": "done",
        "never": "left out",
    }
    assert all(done[name]["result"] == {"said": "before"} for name in ("raises", "crashes"))
    assert done["raises"]["error"][-1] == "RuntimeError: out of luck"
    assert done["tells"]["result"] == {"said": ["cpu", "so"]}
    assert json.loads((tmp_path / "report.json").read_text()) == report
    text = (tmp_path / "report.md").read_text()
    assert "There is no GPU here" in text and "step `hangs`: out of time" in text and "the tool is missing" in text
    assert "RuntimeError: out of luck" in text


def test_keeps_to_its_minutes(tmp_path):
    report = gpu.run(steps(*["hangs"] * 3), tmp_path, 0.1)
    assert [step["status"] for step in report["steps"]] == ["out of time"] * 3
    assert sum(step["limit"] for step in report["steps"]) < 6
    report = gpu.run(steps(*["hangs"] * 9), tmp_path, 0.01)
    assert {step["status"] for step in report["steps"][:-1]} == {"no time left"}


def test_what_a_step_leaves_goes_to_the_later(tmp_path):
    first, second = gpu.run(steps("tells", "tells"), tmp_path, 1)["steps"]
    assert first["seconds"] < first["limit"] < second["limit"]


def test_a_killed_run_leaves_what_it_had(tmp_path):
    # a shell's job in the background ignores SIGINT, and so does what it starts
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += f"import gpu; from pathlib import Path; from {HERE} import steps; "
    code += f"gpu.run(steps('tells', 'hangs'), Path({str(tmp_path)!r}), 10)"
    path = os.pathsep.join(sys.path)
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path})
    try:
        while not (tmp_path / "report.md").exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)  # the step that runs is stopped as well
        process.wait(20)
    finally:
        process.kill()
    assert [step["name"] for step in json.loads((tmp_path / "report.json").read_text())["steps"]] == ["tells"]


def test_every_step_is_there():
    import _gpu_steps

    for step in gpu.STEPS:
        module, _, function = step.function.rpartition(".")
        assert module == "_gpu_steps" and callable(getattr(_gpu_steps, function))
    assert {step.name for step in gpu.STEPS if step.needs_gpu} >= {"memcheck", "bench_slic, ours eager"}


def entry(row: str, mode: str, median: float, **more) -> dict:
    info = {"op": "guided_filter", "case": "32x20x128x128", "mode": mode, "row": row, "backend": "cuda", "ratio": None}
    info |= {"bytes": 84_000_000, "gbps": 1400.0, "copy_share": 0.5, "peak_bytes": 2**20, "error": "1e-6"} | more
    return {"group": "g", "name": "n", "stats": {"median": median}, "extra_info": info}


def report_of(**results) -> dict:
    done = [{"name": n, "status": "done", "seconds": 1.0, "limit": 2.0, "result": r} for n, r in results.items()]
    return {"gpu": "Some GPU", "started": "now", "commit": "abc", "minutes": 9, "spent": 60.0, "steps": done}


def test_benches_and_estimates():
    from _gpu_steps import read_bench

    rows = [entry("ours", "full", 6e-5), entry("eager", "full", 6e-3, ratio=100.0, copy_share=0.005)]
    found = read_bench({"machine_info": {"copy_bandwidth": 2.8e12}, "benchmarks": rows})
    floors = {"slic": {"bytes": 58_720_256, "gradient": False, "shape": [32, 3, 512, 512]}}
    floors["guided_filter"] = floors["slic"]
    text = markdown(report_of(**{"bench_guided_filter, ours eager": found, "floors": {"ops": floors}}))
    assert "| guided_filter | 32x20x128x128 | full | ours | cuda | 0.06 | 0.03 | 50 % |  | 1 |" in text
    assert "| eager |  | 6 | 0.03 | 0.5 % | 100x |" in text
    head, _, table = text.partition(f"## Estimates for an {TARGET}")
    assert "Nothing here was measured" in table and "Nothing here was measured" not in head
    assert "| guided_filter | 32x20x128x128 | full | 0.06 | 0.292 | 0.583 |" in table
    assert "| slic | 32x3x512x512 | forward |  | 0.204 | share not measured |" in table
    assert table.count("guided_filter") == 1  # no floor beside what was measured


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    from _gpu_plots import plots
    from _gpu_steps import read_bench

    groups = {"with the CRF": {"network": 0.1, "targets": 0.02}, "without the CRF": {"network": 0.1, "targets": 0.01}}
    found = read_bench({"benchmarks": [entry("ours", "full", 6e-5)]})
    report = report_of(**{"bench_guided_filter, ours eager": found, "stage 3": {"groups": groups}})
    assert plots(report, tmp_path) == ["shares.png", "step.png"]
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("shares.png", "step.png"))
    assert plots(report | {"gpu": None}, tmp_path) == []


def test_breakdown_of_a_tiny_step():
    import _stage3
    import torch

    step = _stage3.Step(_stage3.generated(1, 32, 3, torch.device("cpu")), 8)
    found = {}
    for more in _stage3.measure(step, 0.0):
        found |= more
    with_crf, without = (found["parts"][name] for name in _stage3.KINDS)
    assert {"network", "backward", "optimiser", "slic", "dense_crf_labels", "local_consistency_loss"} <= {*with_crf}
    assert "dense_crf_labels" not in without and "slic" in without
    grouped = found["groups"]["with the CRF"]
    assert sum(grouped.values()) == pytest.approx(sum(with_crf.values()))
    assert found["images_per_second"] == pytest.approx(1 / found["mean"])
    text = markdown(report_of(**{"stage 3": {"pictures": "generated", **found}}))
    assert "images/s" in text and "Losses and targets, forward, are" in text and "| targets |" in text


def test_every_case_runs_and_has_bytes_without_values():
    import torch
    from _cases import SMALL, cases

    on_cpu, on_meta = (dict(cases(SMALL, torch.device(device))) for device in ("cpu", "meta"))
    assert {*on_cpu} == {*on_meta}
    for name, case in on_cpu.items():
        assert all(result.isfinite().all() for result in case.results()), name
        assert case.bytes() == on_meta[name].bytes() > 0, name


def program(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, gpu.__file__, *arguments], capture_output=True, text=True)


def test_help_and_errors(tmp_path):
    assert "--minutes" in program("--help").stdout
    (tmp_path / "file").touch()
    wrong = program("--out", str(tmp_path / "file/deeper"))
    assert wrong.returncode and wrong.stderr.startswith("error: --out") and wrong.stderr.count("\n") == 1
    wrong = program("--out", str(tmp_path), "--only", "everything")
    assert wrong.returncode and "expected some of machine | ceilings" in wrong.stderr


def test_tests_are_told_one_by_one(tmp_path):
    """Also those that were running when pytest was killed."""
    from _gpu_steps import _pytest

    file = tmp_path / "test_three.py"
    file.write_text(
        "import os\nimport pytest\n\ndef test_right(): pass\ndef test_wrong(): assert 1 == 2, 'how odd'\n"
        "@pytest.mark.cuda\ndef test_on_a_gpu(): pass\ndef test_deadly(): os._exit(3)\n"
    )
    told = list(_pytest([str(file), "-c", str(Path(gpu.ROOT) / "pyproject.toml"), "-k", "not deadly"]))[-1]
    (failed,) = told["failed"].items()
    assert failed[0].endswith("::test_wrong") and "how odd" in failed[1] and told["passed"] == 1
    assert told["problems"] == [f"test fails: {failed[0]}"]
    told = list(_pytest([str(file), "-c", str(Path(gpu.ROOT) / "pyproject.toml"), "-k", "deadly"]))
    assert told[-1]["problems"] == ["pytest ended with exit code 3"]
    assert told[-1]["running"][0].endswith("::test_deadly")


def test_what_a_sanitizer_says(tmp_path, monkeypatch):
    from _gpu_step import Context
    from _gpu_steps import sanitizer

    tool = tmp_path / "compute-sanitizer"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for count, problems in ((0, []), (2, ["compute-sanitizer, memcheck: ERROR SUMMARY: 2 errors"])):
        tool.write_text(
            f"#!/bin/sh\necho '========= COMPUTE-SANITIZER'\necho '========= ERROR SUMMARY: {count} errors'\n"
        )
        tool.chmod(0o755)
        (found,) = sanitizer(Context("cuda", 60, "memcheck"))
        assert found["summary"] == f"ERROR SUMMARY: {count} errors" and found["problems"] == problems


def test_runs_where_little_is_installed():
    """Nothing but PyTorch, NumPy and pytest is needed, and the report says what is missing."""
    absent = ["tyro", "tqdm", "safetensors", "defusedxml", "PIL", "matplotlib", "cv2", "skimage", "scipy", "pydensecrf"]
    code = f"""import sys
sys.modules.update(dict.fromkeys({absent}))
import torch, _gpu_steps, _stage3
from _cases import SMALL, cases
from _gpu_report import draw
dict(cases(SMALL, torch.device("meta")))
print(draw(dict(gpu=None, steps=[]), None))"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [gpu.ROOT, *sys.path]))}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("([], 'none, ") and "matplotlib" in said.stdout
