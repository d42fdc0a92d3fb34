"""The table of bench/quality.py: for each variant the mean over its seeds, and the standard deviation."""

from collections.abc import Iterable
from statistics import mean, stdev

COLUMNS = ("baseline", "stage1", "stage2", "stage3", "walk", "final")


def markdown(lines: Iterable[dict]) -> str:
    """mIoU by stage, global / class-wise, thresholds fitted elsewhere and transferred; target quality of the last epoch
    of stage 3 as CAM / walk / CRF; minutes of the stages that are shown."""
    groups: dict[str, list[dict]] = {}
    for line in lines:
        groups.setdefault(line["variant"], []).append(line)
    rows = [["variant", "seeds", *COLUMNS, "tag mAP", "targets: CAM / walk / CRF", "minutes"]]
    for name, group in groups.items():
        cells = [_both(group, stage) for stage in COLUMNS]
        tags = _spread([line["map"]["stage3"] for line in group if "stage3" in line["map"]])
        minutes = mean(sum(line["minutes"].values()) for line in group)  # 0: not measured
        rows.append([name, str(len(group)), *cells, tags, _targets(group), f"{minutes:.0f}" if minutes else ""])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _both(group: list[dict], stage: str) -> str:
    modes = [_spread(_scores(group, stage, mode)) for mode in ("global", "class-wise")]
    return " / ".join(modes) if all(modes) else ""


def _scores(group: list[dict], stage: str, mode: str) -> list[float]:
    """Of each run, with thresholds that were fitted on another split than the scored one."""
    wanted = [(row, line["scored"]) for line in group for row in line["rows"] if row["stage"] == stage]
    return [
        row["miou"]
        for row, scored in wanted
        if row["threshold_mode"] == mode and row["fitted_on"] not in (scored, "default")
    ]


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ±{stdev(values):.1f}" if len(values) > 1 else "")


def _targets(group: list[dict]) -> str:
    last = [line["targets"][-1] for line in group if line["targets"]]
    if not last:
        return ""
    found = [[epoch[name] for epoch in last if name in epoch] for name in ("miou_cam", "miou_rw", "miou_crf")]
    return " / ".join(f"{mean(values):.1f}" if values else "–" for values in found)  # –: its loss is off
