"""Proves and measures everything on a GPU that is at hand for some minutes:

    python bench/gpu.py --out DIR [--minutes 9]

The most telling first, each step in a process of its own: one that raises, crashes, hangs or leaves the GPU in an error
costs its own share of the minutes, and the next goes on. DIR gets report.json and report.md, rewritten after every
step, log.txt, and plots. Without a GPU the steps do what they can on tensors without values and on the emulation of the
kernels, and say so.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from math import inf
from pathlib import Path

from _gpu_report import write
from _gpu_step import START, Context

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
LAST = 8.0  # seconds of the minutes that are kept for the plots
LEAST = 0.5  # seconds below which a step is not started


@dataclass(frozen=True)
class Step:
    name: str
    function: str
    """By its dotted name: nothing is imported here that a broken machine could break."""
    share: float
    """Of the minutes. What it leaves goes to the later ones."""
    argument: str = ""
    most: float = inf
    """Seconds."""
    needs_gpu: bool = False


FIRST = "guided_filter losses local_consistency edge_consistency slic superpixel_walk dense_crf label_closing".split()
LEFT_OUT = {"train_step", "under_load"}  # of the CPU


def benches(wanted: str = "") -> list[str]:
    """Names of the benches whose text has this in it, the most telling first."""
    texts = {path.stem.removeprefix("bench_"): path.read_text() for path in sorted(BENCH.glob("bench_*.py"))}
    names = [name for name, text in texts.items() if wanted in text and name not in LEFT_OUT]
    return sorted(names, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


def bench_steps(share: float, rows: str, wanted: str = "") -> list["Step"]:
    """A step for each of them, with the rows whose names have one of these words in them."""
    names = benches(wanted)
    each = share / len(names)
    return [Step(f"bench_{n}, {rows}", "_gpu_steps.bench", each, f"bench_{n}.py {rows}", needs_gpu=True) for n in names]


STEPS = [
    Step("machine", "_gpu_steps.machine", 0.06),
    Step("ceilings", "_gpu_steps.ceilings", 0.04),
    Step("kernels", "_gpu_steps.kernels", 0.09),
    Step("tests", "_gpu_steps.tests", 0.25),
    Step("waiting blocks", "_gpu_steps.waiting_blocks", 0.04, most=60, needs_gpu=True),
    Step("stage 3", "_gpu_steps.stage3", 0.1),
    Step("synchronisation", "_gpu_steps.synchronisation", 0.04),
    Step("floors", "_gpu_steps.floors", 0.02),
    Step("memcheck", "_gpu_steps.sanitizer", 0.05, "memcheck", needs_gpu=True),
    *bench_steps(0.26, "ours eager"),
    Step("racecheck", "_gpu_steps.sanitizer", 0.03, "racecheck", needs_gpu=True),
    Step("synccheck", "_gpu_steps.sanitizer", 0.02, "synccheck", needs_gpu=True),
    *bench_steps(0.07, "ours compiled", "compiled("),  # seconds each to compile: whatever is left
]


def run(todo: list[Step], out: Path, minutes: float, data: Path | None = None) -> dict:
    """The report, which lies in `out` as well."""
    start, device = time.monotonic(), "cuda" if shutil.which("nvidia-smi") else "cpu"  # until the machine has told
    report: dict = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "minutes": minutes,
        "commit": commit(),
        "gpu": None,
        "steps": [],
    }
    for i, step in enumerate(todo):
        left = 60 * minutes - min(LAST, 3 * minutes) - (time.monotonic() - start)
        kept = [later for later in todo[i:] if device == "cuda" or not later.needs_gpu]
        limit = min(step.most, left * step.share / sum(later.share for later in kept)) if step in kept else 0.0
        print(f"{step.name}: ", end="", flush=True)
        if step not in kept:
            done = {"status": "left out", "seconds": 0.0, "result": {"left_out": "no GPU"}}
        elif limit < LEAST:
            done = {"status": "no time left", "seconds": 0.0, "result": {}}
        else:
            context = Context(device, limit, step.argument, str(data.resolve()) if data else None)
            done = in_a_process(step, context, out)
        if "gpu" in done["result"]:
            report["gpu"] = done["result"]["gpu"]
            device = "cuda" if report["gpu"] else "cpu"
        report["steps"].append({"name": step.name, "limit": limit, **done})
        report["spent"] = time.monotonic() - start
        print(f"{done['status']}, {done['seconds']:.0f} s", flush=True)
        write(report, out)
    write(report, out, plots=True)
    return report


def in_a_process(step: Step, context: Context, out: Path) -> dict:
    """Its status, seconds, result as far as it came, and the end of what it said where it did not come to its end."""
    file = out / ".step.json"
    file.unlink(missing_ok=True)
    told = [step.function, str(file), json.dumps(asdict(context))]
    path = os.pathsep.join(map(str, [ROOT, BENCH, ROOT / "tests", *sys.path]))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    begin = time.monotonic()
    with open(out / "log.txt", "ab") as log:
        log.write(f"\n===== {step.name}\n".encode())
        log.flush()
        before = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-c", START, *told],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # what it starts in turn is stopped with it
        )
        try:
            code = process.wait(context.seconds)
            status = "done" if code == 0 else f"crashed ({signal.Signals(-code).name})" if code < 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "out of time"
        finally:
            stop(process)
    result = json.loads(file.read_text()) if file.exists() else {}
    file.unlink(missing_ok=True)
    status = "left out" if status == "done" and "left_out" in result else status
    said = (out / "log.txt").read_bytes()[before:].decode(errors="replace").strip().splitlines()
    error = {} if status in ("done", "left out") else {"error": said[-12:]}
    return {"status": status, "seconds": time.monotonic() - begin, "result": result, **error}


def stop(process: subprocess.Popen) -> None:
    """With all that it started. A process that the driver holds is left behind, and the next step goes on."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass


def commit() -> str | None:
    command = ["git", "-C", str(BENCH), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the report")
    parser.add_argument("--minutes", type=float, default=9.0, help="all of it takes no longer (default: 9)")
    parser.add_argument("--data", type=Path, help="pictures of the stage-3 step, a data set (default: generated ones)")
    known = list(dict.fromkeys(step.name.partition(",")[0] for step in STEPS))
    parser.add_argument("--only", nargs="+", metavar="STEP", help=f"of: {', '.join(known)}")
    args = parser.parse_args(arguments)
    wrong = set(args.only or ()) - {*known}
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "log.txt").write_bytes(b"")
    except OSError as error:
        raise SystemExit(f"error: --out {args.out}: {error.strerror}") from None
    if wrong:
        raise SystemExit(f"error: --only {' '.join(sorted(wrong))}: expected some of {' | '.join(known)}")
    if not args.minutes > 0:
        raise SystemExit(f"error: --minutes {args.minutes:g}: must be above 0")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the step that runs is stopped, too
    todo = [step for step in STEPS if not args.only or step.name.partition(",")[0] in ("machine", *args.only)]
    report = run(todo, args.out, args.minutes, args.data)
    print(f"\n{args.out / 'report.md'}: {report['gpu'] or 'no GPU'}, {report['spent'] / 60:.1f} minutes")


if __name__ == "__main__":
    main()
