"""What each step of gpu.py looks at. A step yields what it knows as soon as it knows it, so that one that is stopped
leaves what it had; {"left_out": why} where it cannot be done here."""

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import _stage3
import torch
from _cases import PAPER, SMALL, cases
from _gpu_step import Context
from _inputs import class_maps, photographs
from _measure import copy_bandwidth, laps

from camguide_fast import ops

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
NO_GPU = "no GPU"
USED = ("triton", "cupy", "pytest", "xdist", "pytest_benchmark", "tyro", "tqdm", "safetensors", "defusedxml", "PIL")
USED += ("matplotlib", "cv2", "skimage", "scipy", "pydensecrf")


def machine(context: Context) -> Iterator[dict]:
    gpu = torch.cuda.is_available()
    yield {"gpu": torch.cuda.get_device_name() if gpu else None}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "CUDA of torch": torch.version.cuda}
    yield {"versions": versions, "cpu": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"}
    yield {"missing": [name for name in USED if not importlib.util.find_spec(name)]}
    if gpu:
        properties = torch.cuda.get_device_properties(0)
        names = ("major", "minor", "total_memory", "multi_processor_count", "L2_cache_size")
        yield {"properties": {name: getattr(properties, name, None) for name in names}}
        yield {"nvidia_smi": _first_line("nvidia-smi", "--query-gpu=" + ",".join(SMI), "--format=csv,noheader")}
    yield {"tools": {name: shutil.which(name) for name in ("compute-sanitizer", "nvcc", "c++")}}
    yield {"served": {op: rows["cuda"].backend + ", " + rows["cuda"].why for op, rows in ops.backends().items()}}
    try:
        from camguide_fast import info
    except ImportError as error:
        yield {"info": [["camguide_fast.info", f"does not load here: {error}"]]}
    else:
        yield {"info": [list(line) for line in info.found()]}


SMI = ("name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.max.mem", "power.limit")


def _first_line(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip().split("\n")[0]
    except (OSError, subprocess.SubprocessError) as error:
        return f"{command[0]}: {error}"


def ceilings(context: Context) -> Iterator[dict]:
    """What the device can do: bytes/s of a copy, FLOP/s of matrix products, seconds that a launch costs the host."""
    device = torch.device(context.device)
    yield {"copy": copy_bandwidth(device)}
    side = 8192 if context.gpu else 512
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))  # zeros would be faster

        def product(mark, a=a, b=b) -> None:
            mark()
            a @ b
            mark()

        times = sorted(laps(product, device)[0] for _ in range(7 if context.gpu else 2))
        yield {name: 2 * side**3 / times[len(times) // 2]}
    x, calls = torch.zeros(1, device=device), 2000
    begin = time.perf_counter()
    for _ in range(calls):
        x.add_(1)
    yield {"launch": (time.perf_counter() - begin) / calls}


def kernels(context: Context) -> Iterator[dict]:
    """Every op once on small shapes, against the same op on the CPU; of its CUDA kernels what the compiler made."""
    if not context.gpu:
        from support import cuda_launches

        made = [f"{v.op}: {kernel}" for v in cuda_launches.recorded() for kernel in v.kernels]
        yield {"left_out": NO_GPU, "recorded": len(made)}
        return
    from camguide_fast.kernels import _cuda

    launched, prepare = {}, _cuda.prepare

    def recording(op, kernel, blocks, threads, args, *, defines, shared=0, cooperative=False):
        launched[op, kernel, tuple(defines.items()), shared] = threads
        return prepare(op, kernel, blocks, threads, args, defines=defines, shared=shared, cooperative=cooperative)

    found, wrong = [], []
    on_cpu = cases(SMALL, torch.device("cpu"))
    with mock.patch.object(_cuda, "prepare", recording):
        for (name, case), (_, expected) in zip(cases(SMALL, torch.device("cuda")), on_cpu, strict=True):
            begin = time.perf_counter()
            try:
                results = case.results()
                torch.cuda.synchronize()
            except Exception as error:  # the others are looked at all the same
                wrong.append(f"`{name}`: {type(error).__name__}: {str(error).splitlines()[0]}")
                continue
            first, error = time.perf_counter() - begin, _error(results, expected.results())
            found.append({"op": name, "first_seconds": first, "error": error})
            if not error < 1e-3:
                wrong.append(f"`{name}` differs from the CPU by {error:.1e}")
            yield {"ops": found, "problems": wrong}
        labels = torch.randint(0, 3, (1, 256, 512), dtype=torch.uint8)
        closed = [ops.label_closing(labels.to(device), 163).cpu() for device in ("cuda", "cpu")]
        if not torch.equal(*closed):
            wrong.append("`label_closing` with a kernel of 163 pixels differs from the CPU")
    table = []
    for (op, kernel, defines, shared), threads in launched.items():
        function = _cuda._function(op, kernel, defines, shared, torch.cuda.current_device())
        attributes = ("num_regs", "local_size_bytes", "shared_size_bytes", "max_dynamic_shared_size_bytes")
        made = {name: getattr(function, name) for name in attributes}
        table.append({"op": op, "kernel": kernel, "threads": threads, "dynamic_shared_bytes": shared, **made})
    yield {"kernels": table, "problems": wrong}


def _error(results: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Largest error by the largest value, or of whole numbers the share that differs."""
    errors = []
    for a, b in zip(results, expected, strict=True):
        a = a.cpu()
        if b.is_floating_point():
            errors.append(((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30)).item())
        else:
            errors.append((a != b).double().mean().item())
    return max(errors, key=lambda x: (x != x, x))  # NaN before all


def tests(context: Context) -> Iterator[dict]:
    """Without a GPU the same files, whose kernels are then emulated on the CPU. What failed is run again by itself."""
    if not importlib.util.find_spec("pytest"):
        yield {"left_out": "pytest is missing"}
        return
    folder = ROOT / "tests/ops"
    files = sorted(f for f in folder.glob("test_*.py") if "mark.cuda" in f.read_text() or "DEVICE" in f.read_text())
    processes = min(8, len(os.sched_getaffinity(0))) if importlib.util.find_spec("xdist") else 1
    parallel = ["-n", str(processes), "--dist", "worksteal"] if processes > 1 else []
    say = {"processes": processes, "files": len(files), "emulated": not context.gpu}
    begin = time.perf_counter()
    for counts in _pytest([*parallel, *map(str, files)]):
        yield say | counts
    failed, alone = counts["failed"], {}
    for name in list(failed)[:8]:
        left = context.seconds - (time.perf_counter() - begin)
        if left < 30:
            break
        again = list(_pytest([name]))[-1]
        alone[name] = "passes alone" if again["passed"] and not again["failed"] else "fails alone too"
        yield {"alone": alone}


def _pytest(arguments: list[str]) -> Iterator[dict]:
    """What is known of a run, every two seconds and at its end."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "tests.jsonl"
        lines.touch()
        command = [sys.executable, "-m", "pytest", "-q", "-p", "_gpu_tests", "-p", "no:cacheprovider", *arguments]
        with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"GPU_TESTS": str(lines)}) as process:
            while process.poll() is None:
                time.sleep(2)
                yield _counted(lines)
        counts = _counted(lines)
        if process.returncode not in (0, 1, 5) and not counts["failed"]:
            counts["failed"] = {"pytest": f"ended with exit code {process.returncode}, see log.txt"}
            counts["problems"] = [f"pytest ended with exit code {process.returncode}"]
        yield counts


def _counted(file: Path) -> dict:
    found = [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    ended = {x["test"]: x for x in found if x["outcome"] != "started"}
    outcomes = {k: {n: x for n, x in ended.items() if x["outcome"] == k} for k in ("passed", "failed", "skipped")}
    slowest = sorted(ended.values(), key=lambda x: -x["seconds"])[:5]
    failed = {name: x["message"] for name, x in outcomes["failed"].items()}
    return {
        "passed": len(outcomes["passed"]),
        "failed": failed,
        "skipped": len(outcomes["skipped"]),
        "running": sorted({x["test"] for x in found if x["outcome"] == "started"} - set(ended)),
        "slowest": [[x["test"], x["seconds"]] for x in slowest],
        "problems": [f"test fails: {name}" for name in failed],
    }


def waiting_blocks(context: Context) -> Iterator[dict]:
    """The kernels whose blocks wait for one another: alone, in a graph, and on two streams, where a wrong launch would
    hang for ever."""
    generator = torch.Generator().manual_seed(0)
    cam, edge = (torch.rand(1, k, 94, 125, generator=generator).cuda() for k in (3, 1))
    prob, image = class_maps(3, 5, 256, 256).softmax(1).cuda(), photographs(3, 256).cuda()
    ran, wrong = {}, []
    for name, run in {
        "affinity_random_walk": lambda: ops.affinity_random_walk(cam, edge),
        "dense_crf": lambda: ops.dense_crf(prob, image),
    }.items():
        expected, ran[name] = run(), ["alone"]
        torch.cuda.synchronize()
        yield {"ran": ran}
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run()
        graph.replay()
        torch.cuda.synchronize()
        if not torch.equal(captured, expected):
            wrong.append(f"`{name}`, replayed, has other bits")
        ran[name].append("captured and replayed")
        yield {"ran": ran, "problems": wrong}
        streams = [torch.cuda.Stream() for _ in range(2)]
        for _ in range(50):
            results = []
            for stream in streams:
                with torch.cuda.stream(stream):
                    results.append(run())
        torch.cuda.synchronize()
        if not all(torch.equal(result, expected) for result in results):
            wrong.append(f"`{name}` on two streams has other bits")
        ran[name].append("50 times on two streams at a time")
        yield {"ran": ran, "problems": wrong}


def _batch(context: Context) -> tuple[dict, str]:
    """A batch at the paper's setting, and of what."""
    device = torch.device(context.device)
    if not context.gpu:
        torch.set_num_threads(1)
        return _stage3.generated(2, 64, 5, device), f"generated; {NO_GPU}, so that it is tiny and tells no speed"
    if not context.data:
        return _stage3.generated(PAPER.batch, PAPER.side, PAPER.classes, device), "generated"
    try:
        from camguide_fast.data import open_split, train_loader

        split = open_split(context.data, "train")
        made = dict(batch_size=PAPER.batch, crop=PAPER.side, long_side=(320, 640), seed=0, workers=0)
        batch = next(iter(train_loader(split, **made).epoch(0)))
    except Exception as error:
        why = f"generated, as --data gave none: {type(error).__name__}: {error}"
        return _stage3.generated(PAPER.batch, PAPER.side, PAPER.classes, device), why
    batch = {name: x.to(device) for name, x in batch.items() if isinstance(x, torch.Tensor)}
    absent = max(0, PAPER.classes - batch["label"].shape[1])  # in no picture, and yet maps of the network
    return batch | {"label": torch.nn.functional.pad(batch["label"], (0, absent))}, Path(context.data).name


def stage3(context: Context) -> Iterator[dict]:
    batch, of = _batch(context)
    while True:
        try:
            for found in _stage3.measure(_stage3.Step(batch, None if context.gpu else 16), context.seconds / 2):
                yield {"pictures": of, **found}
            return
        except torch.cuda.OutOfMemoryError:
            if len(batch["image"]) == 1:
                raise
        half = len(batch["image"]) // 2  # here, where what was raised holds no memory any more
        batch, of = {name: x[:half] for name, x in batch.items()}, f"{of}; the memory is too small for {2 * half}"
        torch.cuda.empty_cache()


def synchronisation(context: Context) -> Iterator[dict]:
    if context.gpu:
        batch = _stage3.generated(8, 256, PAPER.classes, torch.device("cuda"))
        where, counted = _stage3.waits(_stage3.Step(batch)), {}
    else:
        where, counted = _stage3.without_a_gpu(PAPER.batch, PAPER.side, PAPER.classes)
    how = "torch.cuda.set_sync_debug_mode" if context.gpu else "tensors without values"
    where = [place.replace(f"{ROOT}/", "") for place in where]
    yield {
        "how": how,
        "waits": where,
        "counted": counted,
        "problems": [f"a step waits for the device: {place}" for place in where],
    }


def sanitizer(context: Context) -> Iterator[dict]:
    """`context.argument` of compute-sanitizer around every op on small shapes. Without PyTorch's pool of memory, which
    would hide what lies outside of a tensor."""
    if not (program := shutil.which("compute-sanitizer") or _found("/usr/local/cuda/bin/compute-sanitizer")):
        yield {"left_out": "compute-sanitizer is missing"}
    else:
        command = [program, "--tool", context.argument, sys.executable, str(BENCH / "_cases.py")]
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(done.stdout)
        said = [line.removeprefix("=========").strip() for line in done.stdout.splitlines() if line[:9] == "=" * 9]
        summary = next((line for line in reversed(said) if "SUMMARY" in line), "no summary")
        clean = " 0 errors" in summary or " 0 hazards" in summary
        problems = [] if clean else [f"compute-sanitizer, {context.argument}: {summary}"]
        yield {"summary": summary, "said": [] if clean else said[:60], "problems": problems}


def _found(path: str) -> str | None:
    return path if os.access(path, os.X_OK) else None


def floors(context: Context) -> Iterator[dict]:
    """Compulsory bytes of every op at the paper's setting, from tensors without values."""
    found = {}
    for name, case in cases(PAPER, torch.device("meta")):
        found[name] = {"bytes": case.bytes(), "gradient": case.gradient, "shape": list(case.inputs[0].shape)}
        yield {"ops": found}


def bench(context: Context) -> Iterator[dict]:
    """A bench and words of the rows to be timed, each a fraction of a second."""
    if not importlib.util.find_spec("pytest_benchmark"):
        yield {"left_out": "pytest-benchmark is missing"}
        return
    name, *words = context.argument.split()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.json"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(BENCH / name)]
        options = ["-k", " or ".join(words), "--device", "cuda", "--budget", "0.25", f"--benchmark-json={file}"]
        code = subprocess.run([*command, *options], cwd=ROOT).returncode
        if file.exists():
            yield read_bench(json.loads(file.read_text()))
        if code:
            yield {"problems": [f"{name} ended with exit code {code}, see log.txt"]}


def read_bench(found: dict) -> dict:
    """Of pytest-benchmark's JSON what the report shows. Times in seconds."""
    rows = [x["extra_info"] | {"median": x["stats"]["median"]} for x in found["benchmarks"]]
    return {"copy": found.get("machine_info", {}).get("copy_bandwidth"), "rows": rows}
