"""mIoU of CAMs against masks: one threshold for all, and one for each class.

    python -m camguide_fast.evaluate --checkpoint runs/x/checkpoints/stage3.safetensors --data VOC2012 --split val

The rows it writes are described in `camguide_fast.cams.results`. `--table RUN` prints a run's rows beside the paper's.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from .cams.making import Labels, write_cams
from .cams.results import format_table, merge_rows, read_rows
from .cams.scoring import check_masks, evaluate_cams
from .cli import option, parse, pick_device, run_cli
from .config import Data
from .config.checks import check_settings
from .data import Workers, compare_with_tags, open_split
from .errors import UserError
from .files import write_json
from .models.checkpoint import load_model
from .runs.paper_tables import paper_tables
from .runs.settings import SCALES_OPTION, run_amp, run_flip, run_scales


@dataclass(frozen=True)
class Args:
    """Score a checkpoint against masks: IoU by class and mIoU, thresholds global and class-wise."""

    checkpoint: Annotated[Path | None, option("FILE", "required without --table")] = None
    """A .safetensors of a run."""
    data: Annotated[Path | None, option("DIR", "required without --table")] = None
    """The data set: a VOC tree, or a folder with tags.csv / tags.json and masks/."""
    table: Annotated[Path | None, option("RUN", "default: none")] = None
    """Print what is scored already in this run's folder as the paper's tables IV to VII, beside the paper's figures."""
    split: str = "val"
    """Split that is scored; name:N is an evenly spaced sample of N images."""
    fit_split: Annotated[str | None, option("SPLIT", "default: none")] = None
    """Also fit thresholds here and report them as transferred."""
    labels: Labels = "given"
    """Classes of an image: its tags, or those the network predicts."""
    out: Annotated[Path | None, option("FILE", "default: results are only printed")] = None
    """JSON file of results; its rows of other stages, splits, labels and fits are kept."""
    scales: Annotated[tuple[float, ...] | None, SCALES_OPTION] = None
    """Scales that are merged."""
    cams: Annotated[Path | None, option("DIR", "default: they are not kept")] = None
    """Keep the CAMs here, <stage>/<split>/<name>.npz, and use those of this checkpoint that are there."""
    skip_bad: bool = False
    """Leave out broken images and those without mask, counted, instead of stopping."""
    trust_masks: bool = False
    """Go on, with a warning, where the masks of most images contradict their tags."""
    workers: Workers = "auto"
    """Threads that read images ahead; 0 reads when asked. Does not change the result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: CUDA if there is a GPU."""


def evaluate(args: Args) -> None:
    """What the command does."""
    if args.table is not None:
        print(paper_tables(args.table))
        return
    if args.checkpoint is None or args.data is None:
        raise UserError("--checkpoint and --data: expected both, or --table")
    check_settings(Data(workers=args.workers))
    device = pick_device(args.device)
    if args.fit_split == args.split:
        raise UserError(f"--fit-split {args.fit_split}: is the scored split, on which thresholds are fitted anyway")
    split = open_split(args.data, args.split, require_tags=args.labels == "given")
    fit_split = None
    if args.fit_split is not None:
        fit_split = open_split(args.data, args.fit_split, require_tags=args.labels == "given")
    splits = [split] + ([fit_split] if fit_split else [])
    for each in splits:
        check_masks(each)
        for line in compare_with_tags(each, trust=args.trust_masks, skip_bad=args.skip_bad):
            print(line)
    before = read_rows(args.out) if args.out else []
    model, card = load_model(args.checkpoint, device)
    scales = args.scales if args.scales is not None else run_scales(args.checkpoint)
    amp = run_amp(args.checkpoint, card.stage, device)
    with _folder(args.cams) as folder:
        made = {}
        for each in splits:
            made[each.name] = folder / card.stage / each.name.replace(":", "_")
            report = write_cams(
                model,
                card,
                each,
                made[each.name],
                scales=scales,
                flip=run_flip(args.checkpoint),
                labels=args.labels,
                device=device,
                amp=amp,
                workers=args.workers,
                skip_bad=args.skip_bad,
            )
            if report.skipped:
                print(f"{each.name}: {len(report.skipped)} images left out, not readable: {', '.join(report.skipped)}")
        fit = (made[fit_split.name], fit_split) if fit_split else None
        rows = evaluate_cams(made[split.name], split, card.stage, args.labels, fit, skip_bad=args.skip_bad)
    if args.out:
        write_json(args.out, merge_rows(before, rows))
    print(format_table(rows))
    if args.out:
        print(f"\nThe results are in {args.out}")


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    """`kept`, or a folder that is gone afterwards."""
    if kept is not None:
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="camguide-cams-") as folder:
        yield Path(folder)


def main() -> None:
    evaluate(parse(Args, "evaluate"))


if __name__ == "__main__":
    run_cli(main)
