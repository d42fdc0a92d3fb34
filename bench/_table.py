"""What pytest-benchmark recorded, as Markdown that also reads well in a terminal."""

from collections.abc import Iterable, Mapping
from itertools import groupby

import numpy as np

HEADER = ("mode", "row", "median ms", "q1 - q3", "runs", "ours faster by", "peak MiB", "GB/s (of copy)", "error")


def markdown(entries: Iterable[Mapping]) -> str:
    """A table for each op and case, with the losing rows; `entries` as in the JSON."""
    return "\n\n".join(_table(*case, list(lines)) for case, lines in groupby(entries, _case))


def _case(entry: Mapping) -> tuple[str, str]:
    return entry["extra_info"]["op"], entry["extra_info"]["case"]


def _table(op: str, case: str, entries: list[Mapping]) -> str:
    infos = [entry["extra_info"] for entry in entries]
    parts = [f"### {op}, {case}"]
    if served := {x["backend"] for x in infos if x["backend"]}:
        parts.append(f"ours: {served.pop()}")
    parts.append(_grid([_cells(entry) for entry in entries]))
    peers = [x for x in infos if x["ratio"] is not None and not x["row"].startswith("ours")]
    if losing := [f"{x['row']} ({x['mode']}, {_times(x['ratio'])})" for x in peers if x["ratio"] < 1]:
        parts.append(f"**Slower than** {', '.join(losing)}.")
    if notes := {x["row"]: x["note"] for x in infos if x["note"]}:
        parts.append("\n".join(f"- {row}: {note}." for row, note in notes.items()))
    return "\n\n".join(parts)


def _cells(entry: Mapping) -> tuple[str, ...]:
    stats, info = entry["stats"], entry["extra_info"]
    median, q1, q3 = (_figure(stats[name] * 1e3) for name in ("median", "q1", "q3"))
    ratio = "" if info["ratio"] is None else _times(info["ratio"])
    loses = ratio and info["ratio"] < 1 and not info["row"].startswith("ours")
    speed = "" if info["gbps"] is None else f"{_figure(info['gbps'])} ({_figure(100 * info['copy_share'])} %)"
    return (
        info["mode"],
        info["row"],
        median,
        f"{q1} - {q3}",
        str(stats["rounds"]),
        f"**{ratio}**" if loses else ratio,
        "" if info["peak_bytes"] is None else _figure(info["peak_bytes"] / 2**20),
        speed,
        info["error"],
    )


def _grid(body: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in [HEADER, *body]) for i in range(len(HEADER))]
    left = {0, 1, len(HEADER) - 1}  # text; figures are aligned to the right
    rule = ["-" * w if i in left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    padded = [
        [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        for row in [HEADER, *body]
    ]
    padded.insert(1, rule)
    return "\n".join("| " + " | ".join(row) + " |" for row in padded)


def _times(ratio: float) -> str:
    return f"{_figure(ratio)}x"


def _figure(x: float) -> str:
    """Three significant digits without an exponent."""
    return f"{x:.0f}" if x >= 100 else np.format_float_positional(x, 3, fractional=False, trim="-")
