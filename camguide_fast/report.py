"""One page about a run, with pictures: `report.html`, complete in itself. Or the superpixels of one image.

python -m camguide_fast.report runs/x
python -m camguide_fast.report --superpixels photo.jpg
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .cli import option, parse, run_cli
from .errors import UserError
from .pictures.superpixels import write_superpixels
from .runs.report import write_report


@dataclass(frozen=True)
class Args:
    """Write RUN_DIR/report.html, a run on one page; or draw superpixels and random walk of one image."""

    run_dir: Annotated[Path | None, option("[RUN_DIR]", "or --superpixels"), tyro.conf.Positional] = None
    """Folder of a run."""
    data: Annotated[Path | None, option("DIR", "default: where it was when the run ran")] = None
    """The run's data set, whose photographs are shown."""
    superpixels: Annotated[Path | None, option("IMAGE", "default: a report of RUN_DIR")] = None
    """An image; no run is needed."""
    out: Annotated[Path | None, option("FILE", "default: <image's name>_superpixels.png here")] = None
    """Where the picture of --superpixels goes, a PNG."""


def main() -> None:
    args = parse(Args, "report")
    if args.superpixels and not args.run_dir:
        print(write_superpixels(args.superpixels, args.out))
    elif args.run_dir and not args.superpixels:
        if args.out:
            raise UserError("--out goes with --superpixels; a run's page is written to RUN_DIR/report.html")
        print(write_report(args.run_dir, args.data))
    else:
        raise UserError("give the folder of a run, or --superpixels IMAGE" + (", not both" if args.run_dir else ""))


if __name__ == "__main__":
    run_cli(main)
