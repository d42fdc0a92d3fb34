"""The plots of gpu.py's report: shares of a copy's bandwidth, and where a training step goes."""

from pathlib import Path

import matplotlib
from _gpu_report import measured

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of where it draws)


def plots(report: dict, out: Path) -> list[str]:
    """Names of the files; none of what was not measured on a GPU."""
    results = {step["name"]: step["result"] for step in report["steps"]} if report["gpu"] else {}
    names = []
    rows = [x for x in measured(results) if x["row"] == "ours" and x.get("copy_share")]
    if rows:
        labels = [f"{x['op']}, {x['case']}, {x['mode']}" for x in rows]
        figure, axes = plt.subplots(figsize=(10, 1 + 0.25 * len(rows)), layout="constrained")
        axes.barh(labels, [100 * x["copy_share"] for x in rows])
        axes.invert_yaxis()
        axes.set_xlabel("compulsory bytes by time, % of a copy's bandwidth")
        names.append(saved(figure, out, "shares.png"))
    if groups := results.get("stage 3", {}).get("groups"):
        figure, axes = plt.subplots(figsize=(10, 2.5), layout="constrained")
        before = [0.0] * len(groups)
        for part in next(iter(groups.values())):
            spent = [1e3 * group[part] for group in groups.values()]
            axes.barh(list(groups), spent, left=before, label=part)
            before = [a + b for a, b in zip(before, spent, strict=True)]
        axes.set_xlabel("ms")
        axes.legend(ncols=3)
        names.append(saved(figure, out, "step.png"))
    return names


def saved(figure, out: Path, name: str) -> str:
    figure.savefig(out / name, dpi=110)
    plt.close(figure)
    return name
