"""The pages of gpu.py, from its report.json alone: `python bench/_gpu_report.py DIR` makes them again."""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

TARGET, BANDWIDTH = "RTX 4060 Ti", 288e9  # bytes/s, by its data sheet
TITLES = {
    "machine": "Machine",
    "ceilings": "Ceilings",
    "kernels": "Kernels",
    "tests": "Tests",
    "waiting blocks": "Blocks that wait for one another",
    "stage 3": "A training step of stage 3",
    "synchronisation": "Waiting for the device",
}


def write(report: dict, out: Path, plots: bool = False) -> None:
    replace(out / "report.json", json.dumps(report, indent=1) + "\n")
    pictures, why = draw(report, out) if plots else ([], "made at the end")
    replace(out / "report.md", markdown(report, pictures, why))


def replace(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(text)
    os.replace(fresh, path)


def markdown(report: dict, pictures: list[str] = (), no_pictures: str = "") -> str:
    results = {step["name"]: step["result"] for step in report["steps"]}
    parts = [
        f"# {report['gpu'] or 'No GPU'}, {report['started']}",
        f"camguide_fast {report['commit'] or '(no commit)'}; {report.get('spent', 0) / 60:.1f} of "
        f"{report['minutes']:g} minutes. Times are the device's unless said otherwise.",
    ]
    if not report["gpu"]:
        parts.append(
            "**There is no GPU here.** What follows ran on tensors without values and on the emulation of the kernels "
            "on the CPU; no time in it is a GPU's."
        )
    if problems := list(wrong(report)):
        parts += ["## What is wrong", "\n".join(f"- {problem}" for problem in problems)]
    rows = [(s["name"], s["status"], f"{s['seconds']:.0f}", s["result"].get("left_out", "")) for s in report["steps"]]
    parts += ["## Steps", table(("step", "status", "seconds", "why left out"), rows)]
    for name, title in TITLES.items():
        if body := [line for line in SECTIONS[name](results.get(name, {})) if line]:
            parts += [f"## {title}", *body]
    parts += benches(results)
    parts += estimates(results)
    checked = [
        (tool, results[tool]["summary"])
        for tool in ("memcheck", "racecheck", "synccheck")
        if results.get(tool, {}).get("summary")
    ]
    if checked:
        parts += ["## compute-sanitizer", table(("tool", "what it says"), checked)]
    for step in report["steps"]:
        if step.get("error"):
            parts += [f"## The end of `{step['name']}`", "```\n" + "\n".join(step["error"]) + "\n```"]
    parts += [f"![]({name})" for name in pictures] or [f"Plots: {no_pictures}." if no_pictures else ""]
    return "\n\n".join(filter(None, parts)) + "\n"


def wrong(report: dict) -> Iterable[str]:
    for step in report["steps"]:
        if step["status"] not in ("done", "left out"):
            yield f"step `{step['name']}`: {step['status']}"
        yield from step["result"].get("problems", [])


def machine(found: dict) -> Iterable[str]:
    lines = [*found.get("versions", {}).items(), ("CPU", found.get("cpu"))]
    if p := found.get("properties"):
        memory, cache = p["total_memory"] / 2**30, (p["L2_cache_size"] or 0) / 2**20
        said = f"{found['gpu']}, sm_{p['major']}{p['minor']}, {p['multi_processor_count']} multiprocessors"
        lines += [("GPU", f"{said}, {memory:.1f} GiB, L2 {cache:.0f} MiB"), ("nvidia-smi", found.get("nvidia_smi"))]
    lines += [("missing", ", ".join(found.get("missing", [])) or "nothing")] if found else []
    lines += [(name, path or "missing") for name, path in found.get("tools", {}).items()]
    yield table(("what", "found"), [line for line in lines if line[1]])
    if served := found.get("served"):
        yield table(("op", "on a GPU served by"), sorted(served.items()))


def ceilings(found: dict) -> Iterable[str]:
    names = {"copy": ("a copy, read and written", 1e9, "GB/s"), "launch": ("a launch, the host's time", 1e-6, "us")}
    names |= {t: (f"matrix product, {t}", 1e12, "TFLOP/s") for t in ("fp32", "fp16")}
    yield table(
        ("ceiling", "measured"), [(t, f"{figure(found[k] / by)} {u}") for k, (t, by, u) in names.items() if k in found]
    )


def kernels(found: dict) -> Iterable[str]:
    if recorded := found.get("recorded"):
        yield f"{recorded} CUDA kernels are made by the launchers, seen on tensors without values."
    rows = [(x["op"], figure(x["first_seconds"]), f"{x['error']:.1e}") for x in found.get("ops", [])]
    yield table(("op, small shapes", "first call with its compiling, s", "error against the CPU"), rows)
    names = ("op", "kernel", "threads", "num_regs", "local_size_bytes", "shared_size_bytes", "dynamic_shared_bytes")
    names += ("max_dynamic_shared_size_bytes",)
    title = (
        "op",
        "kernel",
        "threads",
        "registers",
        "spilled, B",
        "static shared, B",
        "dynamic shared, B",
        "at most, B",
    )
    yield table(title, [tuple(str(x[name]) for name in names) for x in found.get("kernels", [])])


def tests(found: dict) -> Iterable[str]:
    if "passed" not in found:
        return
    how = "emulated on the CPU" if found["emulated"] else "on the GPU"
    yield (
        f"{found['files']} files, {how}, in {found['processes']} process(es): {found['passed']} passed, "
        f"{len(found['failed'])} failed, {found['skipped']} skipped."
    )
    if found["running"]:
        yield "Running when the time was up: " + ", ".join(f"`{name}`" for name in found["running"]) + "."
    alone = found.get("alone", {})
    rows = [
        (f"`{name}`", message.replace("|", "\\|"), alone.get(name, "")) for name, message in found["failed"].items()
    ]
    yield table(("failed", "with", "by itself"), rows)
    yield table(("slowest", "seconds"), [(f"`{name}`", f"{seconds:.1f}") for name, seconds in found["slowest"]])


def waiting_blocks(found: dict) -> Iterable[str]:
    for op, how in found.get("ran", {}).items():
        yield f"`{op}` ran {', '.join(how)}."


def stage3(found: dict) -> Iterable[str]:
    if "step" not in found:
        return
    yield f"{found['step']}; pictures: {found['pictures']}."
    if found.get("peak_bytes"):
        peak = f"{found['peak_bytes'] / 2**30:.2f} GiB"
        yield f"Memory at its peak: {peak}. The first four steps, kernels compiled: {found['warm_up']:.1f} s."
    if whole := found.get("whole"):
        rows = [(k, ms(x["median"]), ms(x["least"]), ms(x["host"]), str(x["runs"])) for k, x in whole.items()]
        yield table(("step", "median, ms", "least, ms", "launched by the host after, ms", "runs"), rows)
        yield (
            f"With the CRF in every {found['crf_every']}th step: {ms(found['mean'])} ms a step, "
            f"**{figure(found['images_per_second'])} images/s**."
        )
    for what, title in (("groups", "group"), ("parts", "part")):
        if spent := found.get(what):
            with_crf, without = spent.values()
            total = [sum(x.values()) for x in (with_crf, without)]
            names = sorted({*with_crf, *without}, key=lambda name: -with_crf.get(name, 0))
            cells = [[(x.get(name, 0.0), t) for x, t in zip((with_crf, without), total, strict=True)] for name in names]
            rows = [(n, *(f"{ms(s)} ({100 * s / t:.1f} %)" for s, t in c)) for n, c in zip(names, cells, strict=True)]
            yield table((title, "with the CRF, ms (of the step)", "without, ms (of the step)"), rows)
    for kind, x in found.get("groups", {}).items():
        own = 100 * (x["losses"] + x["targets"]) / sum(x.values())
        yield f"Losses and targets, forward, are {own:.1f} % of a step {kind}."
    for kind, x in found.get("launches", {}).items():
        yield f"A step {kind}: {x['kernels']} kernels and {x['copies']} copies; kernels run for {ms(x['seconds'])} ms."
        rows = [(f"`{y['kernel'][:70]}`", str(y["launches"]), ms(y["seconds"])) for y in x["longest"][:15]]
        yield table(("kernel", "launches", "ms"), rows)


def synchronisation(found: dict) -> Iterable[str]:
    if "waits" in found:
        yield f"Found with {found['how']}: {len(found['waits']) or 'no'} places where a step waits."
    for kind, x in found.get("counted", {}).items():
        moved = f"{x['bytes'] / 1e9:.1f} GB, the sums of residual blocks included"
        yield f"A step {kind} launches {x['launches']} kernels beside convolutions, BatchNorm and ReLU: {moved}."
        rows = [(f"`{op}`", str(y["launches"]), f"{y['bytes'] / 1e6:.0f}") for op, y in sorted(x["ours"].items())]
        yield table(("op of ours", "launches", "MB, inputs and results"), rows)


SECTIONS = {
    "machine": machine,
    "ceilings": ceilings,
    "kernels": kernels,
    "tests": tests,
    "waiting blocks": waiting_blocks,
    "stage 3": stage3,
    "synchronisation": synchronisation,
}


def measured(results: dict) -> list[dict]:
    """Rows of all benches, with the bandwidth of a copy in the same run. Of a row that ran twice the first."""
    rows = {}
    for name, found in results.items():
        for row in found.get("rows", []) if name.startswith("bench_") else []:
            key = tuple(row[k] for k in ("op", "case", "mode", "row"))
            rows.setdefault(key, row | {"copy": found.get("copy")})
    return list(rows.values())


def benches(results: dict) -> list[str]:
    rows = []
    for x in measured(results):
        floor = ms(x["bytes"] / x["copy"]) if x.get("bytes") and x.get("copy") else ""
        share = f"{100 * x['copy_share']:.2g} %" if x.get("copy_share") else ""
        ratio = f"{figure(x['ratio'])}x" if x.get("ratio") else ""
        peak = figure(x["peak_bytes"] / 2**20) if x.get("peak_bytes") is not None else ""
        backend = x.get("backend") or "" if x["row"].startswith("ours") else ""
        rows.append((x["op"], x["case"], x["mode"], x["row"], backend, ms(x["median"]), floor, share, ratio, peak))
    title = (
        "op",
        "case",
        "mode",
        "row",
        "backend",
        "median, ms",
        "floor, ms",
        "of a copy",
        "ours faster by",
        "peak, MiB",
    )
    if not rows:
        return []
    said = "Floor: the bytes that cannot be avoided, at the bandwidth of a copy here."
    return ["## Benches", said, table(title, rows)]


def estimates(results: dict) -> list[str]:
    """Of another GPU, from bytes: what is measured here is the share of a copy's bandwidth, which is assumed there."""
    rows = [
        (
            x["op"],
            x["case"],
            x["mode"],
            ms(x["median"]),
            ms(x["bytes"] / BANDWIDTH),
            ms(x["bytes"] / BANDWIDTH / x["copy_share"]),
        )
        for x in measured(results)
        if x["row"] == "ours" and x.get("bytes") and x.get("copy_share")
    ]
    covered = {name for x in measured(results) if x["row"] == "ours" for name in x["op"].split(" + ")}
    rows += [
        (
            op,
            "x".join(map(str, x["shape"])),
            "full" if x["gradient"] else "forward",
            "",
            ms(x["bytes"] / BANDWIDTH),
            "share not measured",
        )
        for op, x in results.get("floors", {}).get("ops", {}).items()
        if op not in covered
    ]
    if not rows:
        return []
    said = (
        f"**Nothing here was measured on an {TARGET}.** Floor: compulsory bytes at {BANDWIDTH / 1e9:.0f} GB/s, its "
        "data sheet's. Estimate: the floor over the share of a copy's bandwidth that was measured on the GPU above; "
        "small ones, and those that compute more than they move, will be off."
    )
    title = ("op", "case", "mode", "measured here, ms", f"floor, {TARGET}, ms", f"estimate, {TARGET}, ms")
    return [f"## Estimates for an {TARGET}", said, table(title, rows)]


def draw(report: dict, out: Path) -> tuple[list[str], str]:
    """(names of the plots, why there are none)."""
    try:
        from _gpu_plots import plots
    except ImportError as error:
        return [], f"none, {error}"
    names = plots(report, out)
    return names, "" if names else "none, nothing was measured on a GPU"


def table(title: tuple[str, ...], rows: list[tuple]) -> str:
    if not rows:
        return ""
    lines = [title, ("---",) * len(title), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def ms(seconds: float) -> str:
    return figure(seconds * 1e3)


def figure(x: float) -> str:
    """Three significant digits without an exponent."""
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}" if abs(x) >= 1e-3 else f"{x:.2g}"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write(json.loads((folder / "report.json").read_text()), folder, plots=True)
