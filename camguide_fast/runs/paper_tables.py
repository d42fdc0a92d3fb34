"""Tables IV to VII of the paper, and a run's own figures beside them. `evaluate --table RUN` prints them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..cams.results import NOWHERE, Row, read_rows
from ..config import Config, from_dict
from ..errors import UserError
from ..files import read_json
from ..models.checkpoint import load_model


@dataclass(frozen=True)
class Line:
    """A line of tables IV to VI: {split: (global, class-wise)} in percent, None where the paper has no figure."""

    method: str
    stage: str  # of a run; "" for another method
    backbone: str
    parameters: float  # M
    miou: dict[str, tuple[float | None, float | None]]
    morphology: bool | None = None  # with or without; None: not said, or no matter
    local: bool | None = None


LINES = (
    Line("classification only", "teacher", "ResNet50", 23.56, {"train": (47.44, None), "val": (47.11, None)}),
    Line("classification only", "baseline", "ResNet18", 14.00, {"train": (45.01, None), "val": (43.59, None)}),
    Line("stages 1-2", "stage2", "ResNet18", 14.00, {"train": (47.59, 48.97), "val": (45.48, 46.77)}),
    Line(
        "all stages, no morphology", "stage3", "ResNet18", 15.41, {"train": (48.22, 50.00), "val": (None, None)}, False
    ),
    Line("all stages, no local consistency", "stage3", "ResNet18", 15.41, {"train": (49.14, 50.96)}, True, False),
    Line("all stages", "stage3", "ResNet18", 15.41, {"train": (49.34, 51.13), "val": (47.46, 49.09)}, True, True),
    # table V marks its walk as one of the stages without morphology, table VI as one of all stages
    Line("all stages + walk", "walk", "ResNet18", 15.41, {"train": (60.98, 64.31), "val": (57.13, 61.13)}),
    Line("all stages + walk + dCRF", "final", "ResNet18", 15.41, {"train": (61.46, 64.89), "val": (57.55, 61.63)}),
    Line("Puzzle-CAM + walk + dCRF", "", "ResNet50", 23.56, {"train": (64.70, None)}),
)
TABLES = {"train": "Tables IV and V: train", "val": "Table VI: val"}

CITED = (  # table VII: method, backbone, val, test
    ("CamGuide", "ResNet18", 61.6, 54.1),
    ("AffinityNet", "Wide-ResNet38", 61.7, 63.2),
    ("DSRG", "ResNet101", 61.4, 63.2),
    ("SeeNet", "ResNet101", 63.1, 62.8),
    ("SEAM", "Wide-ResNet38", 64.5, 65.7),
    ("Puzzle-CAM", "ResNeSt269", 71.9, 72.2),
)


def paper_tables(run: Path) -> str:
    """Tables IV to VII with the figures of the run in a folder; "-" where it, or the paper, has none.

    Raises:
        UserError: not the folder of a run, or one without scores.
    """
    saved = read_json(run / "config.json")
    try:
        config = from_dict(Config, saved["config"])
    except (KeyError, TypeError):
        raise UserError(f"{run / 'config.json'}: not the settings of a run") from None
    rows = read_rows(run / "results.json")
    if not rows:
        raise UserError(f"{run / 'results.json'}: no scores yet")
    sizes = _sizes(run, config)
    parts = [_table(split, rows, config, sizes) for split in TABLES]
    notes = (
        "mIoU in %. fitted: thresholds are best on the scored images themselves, as in the paper, which flatters;\n"
        "transferred: fitted on another split; default: fitted nowhere. M: millions of parameters. AffinityNet is not\n"
        "counted, as in the paper"
    )
    if "branch" in sizes:
        notes += f"; here its trunk is the student's, and its branch has {sizes['branch']:.2f} more"
    return "\n\n".join([*parts, _cited(rows), notes + "."])


def _sizes(run: Path, config: Config) -> dict[str, float]:
    """Parameters in M of each stage's network; walk and final have those of the stage they start with."""
    sizes = {}
    for path in sorted((run / "checkpoints").glob("*.safetensors")):
        affinity = path.stem == "affinity"
        net, _ = load_model(path, affinity=affinity)
        counted = (p.numel() for p in net.parameters() if p.requires_grad or not affinity)
        sizes["branch" if affinity else path.stem] = sum(counted) / 1e6
    source = sizes.get(config.affinity.source)
    return sizes | ({"walk": source, "final": source} if source else {})


def _table(split: str, rows: list[Row], config: Config, sizes: dict[str, float]) -> str:
    own = _rows_of(split, rows)
    name = f"{own[0]['split']}, {own[0]['images']} images, {own[0]['labels']} labels" if own else "not scored"
    head = ("method", "threshold", "paper", "M", "mIoU", "this run", "M", "fitted", "transferred", "default")
    body = []
    for line in LINES:
        if split not in line.miou:
            continue
        mine = [row for row in own if row["stage"] == line.stage] if _is_variant(line, config) else []
        for mode, figure in zip(("global", "class-wise"), line.miou[split], strict=True):
            found = {_kind(row): row["miou"] for row in mine if row["threshold_mode"] == mode}
            if figure is None and not found:
                continue
            arch = config.network.teacher if line.stage == "teacher" else config.network.student
            body.append(
                (
                    line.method,
                    mode,
                    line.backbone,
                    f"{line.parameters:.2f}",
                    _number(figure),
                    arch if mine else "-",
                    _number(sizes.get(line.stage)) if mine else "-",
                    *(_number(found.get(kind)) for kind in ("fitted", "transferred", "default")),
                )
            )
    return f"{TABLES[split]} (this run: {name})\n" + _columns(head, body)


def _rows_of(split: str, rows: list[Row]) -> list[Row]:
    """The rows of `split` itself, else of a sample of it; with given labels if there are such."""
    for wanted in (lambda name: name == split, lambda name: name.partition(":")[0] == split):
        for labels in ("given", "predicted"):
            found = [row for row in rows if wanted(row["split"]) and row["labels"] == labels]
            if found:
                return [row for row in found if row["split"] == found[0]["split"]]
    return []


def _is_variant(line: Line, config: Config) -> bool:
    """Whether the run was made as the line says."""
    has = {
        "morphology": config.stage3.closing > 0 and config.stage3.lambda_crf > 0,
        "local": config.stage3.lambda_loc > 0,
    }
    return all(getattr(line, part) in (None, present) for part, present in has.items())


def _kind(row: Row) -> str:
    if row["fitted_on"] == NOWHERE:
        return "default"
    return "fitted" if row["fitted_on"] == row["split"] else "transferred"


def _cited(rows: list[Row]) -> str:
    final = {split: [r for r in _rows_of(split, rows) if r["stage"] == "final"] for split in ("val", "test")}
    own = [row["miou"] for row in final["val"] if _kind(row) == "fitted" and row["miou"] is not None]
    test = [row["miou"] for row in final["test"] if row["miou"] is not None]
    body = [(*names, _number(val), _number(on_test)) for *names, val, on_test in CITED]
    body.append(("this run", "", _number(max(own, default=None)), _number(max(test, default=None))))
    return "Table VII: methods the paper cites\n" + _columns(("method", "backbone", "val", "test"), body)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _columns(head: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    lines = [head, *body]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_joined(lines, widths))


def _joined(lines: list[tuple[str, ...]], widths: list[int]) -> Iterator[str]:
    for number, cells in enumerate(lines):
        aligned = (c.rjust(w) if _is_number(c) else c.ljust(w) for c, w in zip(cells, widths, strict=True))
        yield "  ".join(aligned).rstrip()
        if number == 0:
            yield "-" * (sum(widths) + 2 * (len(widths) - 1))


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(".", "").isdecimal()
