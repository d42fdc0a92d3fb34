"""Optimisers and schedules of the stages; both move once an iteration."""

import re

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from ..config import Optimizer
from ..models import CamNet, param_groups

SMOOTHING = 0.98
"""Of the loss that the plateau schedule watches: single batches are noise."""
TOGETHER = 10
"""Losses that it reads from the device at a time: the rate may fall so many iterations late, of `patience` 500."""


def build_optimizer(net: nn.Module, new: list[str], settings: Optimizer, fused: bool = False) -> torch.optim.Optimizer:
    """`new` names the layers without pretrained weights, which learn at `new_scale` times the rate. A `fused` optimiser
    skips a step whose gradients overflowed without asking the device."""
    groups = param_groups(
        net,
        settings.lr,
        settings.weight_decay,
        new=new,
        new_scale=settings.new_scale,
        bias_scale=settings.bias_scale,
    )
    if settings.name == "adam":
        return torch.optim.Adam(groups, settings.lr, fused=fused or None)
    nesterov = settings.momentum > 0
    return torch.optim.SGD(groups, settings.lr, momentum=settings.momentum, nesterov=nesterov, fused=fused or None)


class Schedule:
    """`poly`: rate * (1 - t/T)^power. `plateau`: halved (`factor`) after `patience` iterations without a better
    smoothed loss."""

    def __init__(self, optimizer: torch.optim.Optimizer, settings: Optimizer, total: int):
        self.smooth: float | None = None
        self.unread: list[torch.Tensor | float] = []
        if settings.schedule == "plateau":
            self.scheduler = ReduceLROnPlateau(optimizer, factor=settings.factor, patience=settings.patience)
        else:
            self.scheduler = LambdaLR(optimizer, lambda t: max(0.0, 1 - t / total) ** settings.power)

    def step(self, loss: torch.Tensor) -> None:
        if isinstance(self.scheduler, LambdaLR):
            self.scheduler.step()
            return
        self.unread.append(loss)
        if len(self.unread) < TOGETHER:
            return
        for value in _numbers(self.unread):
            self.smooth = value if self.smooth is None else SMOOTHING * self.smooth + (1 - SMOOTHING) * value
            self.scheduler.step(self.smooth)
        self.unread = []

    def state_dict(self) -> dict:
        return {"scheduler": self.scheduler.state_dict(), "smooth": self.smooth, "unread": _numbers(self.unread)}

    def load_state_dict(self, state: dict) -> None:
        self.scheduler.load_state_dict(state["scheduler"])
        self.smooth, self.unread = state["smooth"], state.get("unread", [])


def _numbers(losses: list[torch.Tensor | float]) -> list[float]:
    """Those on the device in one copy. Those from a saved state, numbers already, come first."""
    tensors = [loss for loss in losses if isinstance(loss, torch.Tensor)]
    read = torch.stack(tensors).tolist() if tensors else []
    return [loss for loss in losses if isinstance(loss, float)] + read


def fresh_layers(missing: list[str]) -> list[str]:
    """What learns at the rate of new layers: the entries that a weight file lacks, and whole residual blocks of them.

    The loaded branch of such a block has to follow the fresh one, so the block is taken as one.
    """
    blocks = (re.match(r"(.*(?:layer\d|blocks\.\d+)\.\d+)\.", name) for name in missing)
    return sorted({*missing, *(block[1] for block in blocks if block)})


def freeze_batchnorm(net: CamNet, mode: str, loaded: list[str]) -> None:
    """`mode` of `config.Stage.batchnorm`; `loaded` names the entries that came from a weight file."""
    net.freeze_bn({"train": [], "eval": [""], "eval-loaded": loaded}[mode])
