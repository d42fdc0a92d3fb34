"""Train CamGuide from image tags: teacher -> stage 1 -> 2 -> 3 -> AffinityNet -> walk -> final labels, with scores.

Without --data a small set is generated first, so that the whole method can be watched in minutes.
"""

import sys

import torch.distributed as dist

from .cli import run_cli
from .runs.arguments import parse
from .runs.pipeline import prepare, run
from .training.ranks import place


def main() -> None:
    args = parse(sys.argv[1:], __doc__)
    where = place(args.device)
    try:
        run(prepare(args, where), where)
    except KeyboardInterrupt:
        print("\nstopped; the same command with --resume goes on from here", file=sys.stderr)
        raise
    finally:
        if where.world > 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    run_cli(main)
