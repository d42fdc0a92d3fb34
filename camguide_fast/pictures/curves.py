"""Training curves from a run's metrics.jsonl."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError

_NOT_LOSSES = {"stage", "epoch", "step", "lr", "images_per_s", "event"}
_POINTS = 300  # a line has at most this many, each the mean of its neighbours
_COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#e09f3e", "#7d5ba6", "#00798c", "#a44a3f")

Line = dict[str, Any]


def read_metrics(path: Path) -> list[Line]:
    """The lines of a metrics.jsonl. The last may be half written, by a killed run; any other must be JSON."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    read = []
    for number, line in enumerate(lines, 1):
        try:
            read.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise UserError(f"{path}: line {number} is not JSON") from None
    return [line for line in read if isinstance(line, dict) and "stage" in line]


def last_epochs(lines: list[Line]) -> dict[str, dict[str, float | int]]:
    """For each stage its last epoch line's numbers and, as `images_per_s`, the median speed."""
    result: dict[str, dict[str, float | int]] = {}
    for stage in dict.fromkeys(str(line["stage"]) for line in lines):
        own = [line for line in lines if line["stage"] == stage]
        speeds = [line["images_per_s"] for line in own if "images_per_s" in line]
        epochs = [line for line in own if line.get("event") == "epoch"]
        last = epochs[-1] if epochs else {}
        numbers = {
            k: v for k, v in last.items() if isinstance(v, int | float) and k not in ("step", "lr", "images_per_s")
        }
        result[stage] = numbers | ({"images_per_s": float(np.median(speeds))} if speeds else {})
    return result


def loss_curves(lines: list[Line]) -> bytes | None:
    """An SVG with the loss and its parts over the iterations, one panel a stage; None if there is nothing to draw."""
    panels = {}
    for line in lines:
        if "loss" in line:
            panels.setdefault(str(line["stage"]), []).append(line)
    if not panels:
        return None
    # Imported late: half a second that no other command has to wait for. Without pyplot, which keeps global state.
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "camguide", "font.size": 9, "axes.edgecolor": "#99a3ab"}):
        columns = min(3, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(3.9 * columns, 2.7 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, (stage, own) in zip(axes, panels.items(), strict=False):
            _panel(axis, stage, own)
        for axis in axes[len(panels) :]:
            axis.axis("off")
        buffer = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()


def _panel(axis, stage: str, lines: list[Line]) -> None:
    names = dict.fromkeys(
        k for line in lines for k, v in line.items() if k not in _NOT_LOSSES and isinstance(v, int | float)
    )
    if len(names) == 2:  # a loss of one part: twice the same
        names = ["loss"]
    for i, name in enumerate(names):
        x, y = np.array([(line["step"], line[name]) for line in lines if name in line], float).T
        total = name == "loss"
        colour = "#22303a" if total else _COLOURS[i % len(_COLOURS)]
        axis.plot(*_thinned(x, y), label=name, color=colour, linewidth=1.8 if total else 1.1)
    axis.set_title(stage, loc="left", fontweight="bold", fontsize=10)
    axis.set_xlabel("iteration")
    axis.set_ylim(bottom=0)
    axis.grid(color="#e6eaed", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    if len(names) > 1:
        axis.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = min(len(x), _POINTS)
    x, y = (np.array([part.mean() for part in np.array_split(values, parts)]) for values in (x, y))
    return x, y
