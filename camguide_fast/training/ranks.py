"""The processes of a torchrun: the place of this one, and how they wait for one another."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ..cli import pick_device
from ..errors import UserError


@dataclass(frozen=True)
class Where:
    """The process's place: its device, and its rank among the processes of a torchrun."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, value) -> list:
        """The values of all ranks, in their order."""
        if self.world == 1:
            return [value]
        values: list = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Work in which no rank needs another. At its end all have done it, or all raise: the rank that failed its own
        error, the others one that names it. Without this they would wait for a rank that is gone."""
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        errors = self.gather(None if error is None else str(error))
        if error is not None:
            raise error
        for rank, what in enumerate(errors):
            if what is not None:
                raise UserError(f"process {rank} of {self.world} failed: {what}")


def place(device: str) -> Where:
    """This process's device, as `cli.pick_device` finds it, and its rank under torchrun."""
    cuda = pick_device(device).type == "cuda"
    rank, world, local = (
        int(os.environ.get(name, value)) for name, value in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    if cuda:
        torch.cuda.set_device(local)
    return Where(torch.device("cuda", local) if cuda else torch.device("cpu"), rank, world)
