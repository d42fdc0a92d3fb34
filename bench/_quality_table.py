"""The tables of bench/quality.py: for each variant the mean over its seeds, and the standard deviation (n - 1)."""

from collections.abc import Iterable
from statistics import mean, stdev

COLUMNS = ("baseline", "stage1", "stage2", "stage3", "walk", "final")


def markdown(lines: Iterable[dict]) -> str:
    """mIoU by stage, global / class-wise, thresholds fitted elsewhere and transferred, with the minutes of all stages
    together; then the targets of stage 3 by epoch, mIoU as CAM / walk / CRF."""
    groups: dict[tuple[str, str], dict[str, list[dict]]] = {}
    for line in lines:
        groups.setdefault((line["data"], line["preset"]), {}).setdefault(line["variant"], []).append(line)
    return "\n\n".join(f"{data}, --preset {preset}\n\n{_tables(group)}" for (data, preset), group in groups.items())


def _tables(variants: dict[str, list[dict]]) -> str:
    scores = [["variant", "seeds", *COLUMNS, "tag mAP", "minutes"]]
    for name, group in variants.items():
        cells = [_both(group, stage) for stage in COLUMNS]
        tags = _spread([line["map"]["stage3"] for line in group if "stage3" in line["map"]])
        minutes = mean(sum(line["minutes"].values()) for line in group)
        scores.append([name, str(len(group)), *cells, tags, f"{minutes:.0f}"])
    trained = {
        name: found for name, group in variants.items() if (found := [x["targets"] for x in group if x["targets"]])
    }
    if not trained:
        return _table(scores)
    last = max(len(epochs) for found in trained.values() for epochs in found)
    targets = [["targets of stage 3", *(f"epoch {i + 1}" for i in range(last))]]
    for name, found in trained.items():
        by_epoch = [[epochs[i] for epochs in found if i < len(epochs)] for i in range(last)]
        targets.append([name, *map(_targets, by_epoch)])
    return f"{_table(scores)}\n\n{_table(targets)}"


def _table(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def _both(group: list[dict], stage: str) -> str:
    modes = [_spread(_scores(group, stage, mode)) for mode in ("global", "class-wise")]
    return " / ".join(modes) if all(modes) else ""


def _scores(group: list[dict], stage: str, mode: str) -> list[float]:
    """Of each run, with thresholds that were fitted on another split than the scored one."""
    wanted = [(row, line["scored"]) for line in group for row in line["rows"] if row["stage"] == stage]
    return [
        row["miou"]
        for row, scored in wanted
        if row["threshold_mode"] == mode and row["fitted_on"] not in (scored, "default") and row["miou"] is not None
    ]


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ±{stdev(values):.1f}" if len(values) > 1 else "")


def _targets(seeds: list[dict]) -> str:
    """Of one epoch."""
    if not seeds:
        return ""
    found = [[epoch[name] for epoch in seeds if name in epoch] for name in ("miou_cam", "miou_rw", "miou_crf")]
    return " / ".join(f"{mean(values):.1f}" if values else "–" for values in found)  # –: its loss is off
