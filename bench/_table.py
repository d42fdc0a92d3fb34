"""Results as Markdown that also reads well in a terminal, and as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

MODES = ("forward", "backward", "full")


@dataclass
class Line:
    """One line of a table. Without `median`, `status` says why."""

    mode: str
    row: str
    status: str  # "ok", "FAILED", "not installed"
    found: str = ""  # what the check found, or what is missing
    note: str = ""
    median: float | None = None  # seconds, as p20 and p80
    p20: float | None = None
    p80: float | None = None
    runs: int = 0
    peak: int | None = None  # bytes
    bandwidth: float | None = None  # compulsory bytes / median
    ratio: float | None = None  # median / median of "ours": how many times faster ours is


@dataclass
class Table:
    op: str
    case: str
    served: dict[str, str]  # op -> backend behind "ours"
    lines: list[Line] = field(default_factory=list)

    def losing(self) -> list[Line]:
        """Peers that are faster than ours."""
        return [x for x in self.lines if x.ratio is not None and x.ratio < 1 and not x.row.startswith("ours")]

    def best_peers(self) -> list[Line]:
        """The fastest peer of each mode, "ours" having been measured there."""
        peers = [x for x in self.lines if x.ratio is not None and not x.row.startswith("ours")]
        by_mode = [[x for x in peers if x.mode == mode] for mode in MODES]
        return [min(lines, key=lambda x: x.ratio) for lines in by_mode if lines]


HEADER = ("mode", "row", "median ms", "p20 - p80", "runs", "ours faster by", "peak MiB", "GB/s (of copy)", "error")


def markdown(table: Table, copy_bandwidth: float) -> str:
    body = [_cells(line, copy_bandwidth) for line in table.lines]
    backends = sorted(set(table.served.values()))
    notes = {line.row: line.note for line in table.lines if line.note}
    parts = [f"### {table.op}, {table.case}", f"ours: {', '.join(backends)}", _grid(body)]
    if best := table.best_peers():
        parts.append("Against the best peer: " + ", ".join(f"{x.mode} {times(x.ratio)} ({x.row})" for x in best) + ".")
    if losing := table.losing():
        parts.append("**Slower than** " + ", ".join(f"{x.row} ({x.mode}, {times(x.ratio)})" for x in losing) + ".")
    if notes:
        parts.append("\n".join(f"- {row}: {note}." for row, note in notes.items()))
    return "\n\n".join(parts)


def _cells(line: Line, copy_bandwidth: float) -> tuple[str, ...]:
    if line.median is None:
        return (
            line.mode,
            line.row,
            f"**{line.status}**" if line.status == "FAILED" else line.status,
            *[""] * 5,
            line.found,
        )
    ratio = "" if line.ratio is None else times(line.ratio)
    if line.bandwidth is None:
        speed = ""
    else:
        speed = f"{_figure(line.bandwidth / 1e9)} ({100 * line.bandwidth / copy_bandwidth:.2g} %)"
    return (
        line.mode,
        line.row,
        _figure(line.median * 1e3),
        f"{_figure(line.p20 * 1e3)} - {_figure(line.p80 * 1e3)}",
        str(line.runs),
        f"**{ratio}**" if ratio and line.ratio < 1 and not line.row.startswith("ours") else ratio,
        "" if line.peak is None else _figure(line.peak / 2**20),
        speed,
        line.found,
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


def times(ratio: float) -> str:
    return f"{_figure(ratio)}x"


def _figure(x: float) -> str:
    """Three significant digits without an exponent."""
    return f"{x:.0f}" if x >= 100 else np.format_float_positional(x, 3, fractional=False, trim="-")


def as_json(tables: list[Table], machine: Mapping) -> dict:
    """Everything measured: seconds, bytes, bytes per second."""
    return {"machine": dict(machine), "tables": [asdict(table) for table in tables]}
