"""A training step in a process of its own, whose threads wait as its environment says: `python _step.py THREADS`. A
line on stdin runs one step; its loss comes back."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from _inputs import class_maps, label_map, tags
from torch import Tensor

from camguide_fast import ops
from camguide_fast.models.trunks import build_trunk

BATCH, CLASSES, SIDE, CELLS = 4, 20, 224, 14


def make_step(dtype: torch.dtype = torch.float32):
    """step() -> loss: ResNet-18, normalised CAMs, local consistency, likelihood of a target, SGD. The rate is 0, so
    that every step has the same loss."""
    torch.manual_seed(0)
    trunk = build_trunk("resnet18").to(dtype, memory_format=torch.channels_last)
    head = torch.nn.Conv2d(512, CLASSES, 1, bias=False).to(dtype)
    optimizer = torch.optim.SGD([*trunk.parameters(), *head.parameters()], lr=0.0, momentum=0.9)
    image = class_maps(BATCH, 3, SIDE, SIDE).to(dtype, memory_format=torch.channels_last)
    label, target = tags(BATCH, CLASSES), label_map(BATCH, CLASSES, CELLS, CELLS)

    @torch.enable_grad()  # the bench checks results without
    def step() -> Tensor:
        optimizer.zero_grad()
        cam = ops.cam_normalize(head(trunk(image)[1]))
        loss = ops.local_consistency_loss(cam) + ops.target_nll(cam, target, label)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


@contextmanager
def process(threads: int, **variables: str) -> Iterator:
    """step() as above, made by a process with these environment variables and no others for OpenMP."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    path = os.pathsep.join(sys.path)
    child = subprocess.Popen(
        [sys.executable, Path(__file__), str(threads)],
        env=ours | {"PYTHONPATH": path} | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def step() -> float:
        child.stdin.write("\n")
        child.stdin.flush()
        return float(child.stdout.readline())

    try:
        yield step
    finally:
        child.kill()
        child.wait()


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    run = make_step()
    for _ in sys.stdin:
        print(run().item(), flush=True)
