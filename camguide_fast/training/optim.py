"""Optimisers and schedules of the stages; both move once an iteration."""

import re

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from ..config import Optimizer
from ..models import CamNet, param_groups

SMOOTHING = 0.98
"""Of the loss that the plateau schedule watches: single batches are noise."""


def build_optimizer(net: nn.Module, new: list[str], settings: Optimizer) -> torch.optim.Optimizer:
    """`new` names the layers without pretrained weights, which learn at `new_scale` times the rate."""
    groups = param_groups(
        net,
        settings.lr,
        settings.weight_decay,
        new=new,
        new_scale=settings.new_scale,
        bias_scale=settings.bias_scale,
    )
    if settings.name == "adam":
        return torch.optim.Adam(groups, settings.lr)
    return torch.optim.SGD(groups, settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)


class Schedule:
    """`poly`: rate * (1 - t/T)^power. `plateau`: halved (`factor`) after `patience` iterations without a better
    smoothed loss."""

    def __init__(self, optimizer: torch.optim.Optimizer, settings: Optimizer, total: int):
        self.smooth: float | None = None
        if settings.schedule == "plateau":
            self.scheduler = ReduceLROnPlateau(optimizer, factor=settings.factor, patience=settings.patience)
        else:
            self.scheduler = LambdaLR(optimizer, lambda t: max(0.0, 1 - t / total) ** settings.power)

    def step(self, loss: torch.Tensor) -> None:
        if isinstance(self.scheduler, LambdaLR):
            self.scheduler.step()
            return
        value = loss.item()
        self.smooth = value if self.smooth is None else SMOOTHING * self.smooth + (1 - SMOOTHING) * value
        self.scheduler.step(self.smooth)

    def state_dict(self) -> dict:
        return {"scheduler": self.scheduler.state_dict(), "smooth": self.smooth}

    def load_state_dict(self, state: dict) -> None:
        self.scheduler.load_state_dict(state["scheduler"])
        self.smooth = state["smooth"]


def fresh_layers(missing: list[str]) -> list[str]:
    """What learns at the rate of new layers: the entries that a weight file lacks, and whole residual blocks of them.

    The loaded branch of such a block has to follow the fresh one, so the block is taken as one.
    """
    blocks = (re.match(r"(.*(?:layer\d|blocks\.\d+)\.\d+)\.", name) for name in missing)
    return sorted({*missing, *(block[1] for block in blocks if block)})


def freeze_batchnorm(net: CamNet, mode: str, loaded: list[str]) -> None:
    """`mode` of `config.Stage.batchnorm`; `loaded` names the entries that came from a weight file."""
    net.freeze_bn({"train": [], "eval": [""], "eval-loaded": loaded}[mode])
