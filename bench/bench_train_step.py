"""A step of stage 3, and where its time goes, beside the same step on what people use.

    python bench/bench_train_step.py --data voc_animals

prints the breakdown; as a bench (`pytest bench/bench_train_step.py`) whole steps are compared, on generated pictures.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from _breakdown import LOSSES, Stopwatch, parts_timed
from _check import close
from _harness import compare
from _inputs import photographs, tags
from _rows import Row
from _usual_stack import MODULES, usual_stack
from torch import Tensor

from camguide_fast.config.presets import small
from camguide_fast.method.stages import Batch, RefinementStage
from camguide_fast.models import build_model

ARCH, BATCH, SIDE, CLASSES = "efficientnet_lite0", 8, 320, 5
OPS = ("threshold_labels", "slic", "superpixel_random_walk", "dense_crf_labels", *LOSSES)  # `small` closes no labels


def generated() -> Batch:
    valid = torch.ones(BATCH, 1, SIDE, SIDE, dtype=torch.bool)
    return {"image": photographs(BATCH, SIDE), "valid": valid, "label": tags(BATCH, CLASSES).float()}


def make_step(batch: Batch, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    """step() -> loss, the CRF included. The rate is 0, so that every step has the same loss."""
    torch.manual_seed(0)
    settings = small().stage3
    net = build_model(ARCH, batch["label"].shape[1], "lean", width=128, radius=4, eps=1e-2).to(dtype)
    net = net.to(memory_format=torch.channels_last)
    net.dropout.p = 0.0
    net.freeze_bn([""])  # or each step would begin elsewhere
    module = RefinementStage(net, settings, SIDE).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.0)

    @torch.enable_grad()  # the bench checks results without
    def step() -> Tensor:
        torch.manual_seed(0)  # tau
        optimizer.zero_grad()
        loss = module(batch, 0, 0.0)["loss"]
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def on_the_usual_stack(step: Callable[[], Tensor]) -> Tensor:
    with usual_stack():
        return step()


bench_stage3_step = compare(
    OPS,
    f"a step of stage 3 with the CRF: {ARCH}, fp32, {BATCH}x3x{SIDE}x{SIDE}, {CLASSES} classes",
    inputs=lambda: (make_step(generated()),),
    oracle=lambda step: step(),
    check=close(0.05),  # scikit-image connects segments by its own rule
    rows={
        "ours": Row(lambda step: step(), on_cpu=True),
        "usual stack": Row(on_the_usual_stack, on_cpu=True, needs=MODULES[0], note="scikit-image, pydensecrf, eager"),
    },
)


def breakdown(step: Callable[[], Tensor], repeats: int) -> tuple[float, Counter]:
    """Seconds of a step, and of its parts."""
    step()
    watch = Stopwatch(torch.device("cpu"))
    with parts_timed(watch):
        begin = time.perf_counter()
        for _ in range(repeats):
            step()
        whole = (time.perf_counter() - begin) / repeats
    return whole, Counter({name: seconds / repeats for name, seconds in watch.seconds().items()})


@dataclass(frozen=True)
class Args:
    """Prints where the time of a stage-3 step goes, on our ops and on the usual stack."""

    data: Path | None = None
    """Its training images; without it generated pictures."""
    threads: int = 2
    repeats: int = 5


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    batch = generated()
    if args.data:
        from camguide_fast.data import open_split, train_loader

        loader = train_loader(
            open_split(args.data, "train"), batch_size=BATCH, crop=SIDE, long_side=(320, 560), seed=0, workers=0
        )
        batch = {k: v for k, v in next(iter(loader.epoch(0))).items() if isinstance(v, Tensor)}
    step = make_step(batch)
    ours, parts = breakdown(step, args.repeats)
    with usual_stack():
        theirs, usual = breakdown(step, max(1, args.repeats // 3))
    print("| part (forward) | ours, ms | usual stack, ms | faster by |\n|---|---:|---:|---:|")
    for name in sorted({*parts, *usual}, key=lambda name: -usual[name]):
        ratio = usual[name] / parts[name] if parts[name] else float("nan")
        print(f"| `{name}` | {parts[name] * 1e3:.1f} | {usual[name] * 1e3:.1f} | {ratio:.1f}x |")
    for title, whole, times in (("ours", ours, parts), ("usual stack", theirs, usual)):
        own = sum(times.values())
        print(f"\n{title}: {whole * 1e3:.0f} ms a step, {100 * own / whole:.0f} % in these parts' forward passes")
    print(f"\nThe whole step is {theirs / ours:.1f}x faster.")


if __name__ == "__main__":
    import tyro  # here, as the data above: the bench itself needs neither

    main(tyro.cli(Args))
