"""What a run made, in the layouts that others read.

    python -m camguide_fast.export voc --run runs/x --split train --out pseudo
    python -m camguide_fast.export irn --run runs/x --split train --out cams
    python -m camguide_fast.export server --run runs/x --split test --out submission

The run must hold the split's masks or CAMs: name it in --inference.splits of `camguide_fast.train`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .cli import option, parse, run_cli
from .errors import UserError
from .runs.exports import export_irn, export_server, export_voc, find_made

StageName = Literal["baseline", "teacher", "stage1", "stage2", "stage3", "walk", "final"]


@dataclass(frozen=True)
class Args:
    """Masks or CAMs of a run in the layouts that others read."""

    kind: Annotated[Literal["voc", "irn", "server"], tyro.conf.Positional]
    """voc: a VOC tree with SegmentationClassPseudo, to train any segmentation network on. irn: CAMs in IRN's layout.
    server: the archive that VOC's test server takes."""
    run: Annotated[Path, option("DIR")]
    """The run's folder."""
    out: Annotated[Path, option("DIR")]
    """Folder for the export."""
    split: str = "train"
    """Split of the run's data set; name:N is a sample."""
    data: Annotated[Path | None, option("DIR", "default: where it was when the run ran")] = None
    """The run's data set."""
    stage: StageName = "final"
    """Whose masks; for irn whose CAMs (final: the walk's)."""
    void: Annotated[tuple[float, float] | None, option("LOW HIGH", "default: nothing is left open")] = None
    """voc: pixels that get different labels at these two thresholds become 255."""


def export(args: Args) -> None:
    """What the command does."""
    made = find_made(args.run, args.split, args.stage, args.data)
    if args.void is not None and (args.kind != "voc" or not 0 <= args.void[0] <= args.void[1] <= 1):
        raise UserError(f"--void: expected two thresholds from 0 to 1, ascending, and kind voc; got {args.void}")
    if args.kind == "voc":
        export_voc(made, args.out, args.void)
    else:
        {"irn": export_irn, "server": export_server}[args.kind](made, args.out)


def main() -> None:
    export(parse(Args, "export"))


if __name__ == "__main__":
    run_cli(main)
