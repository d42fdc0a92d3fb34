"""The moving average of a network's weights, which a stage may be measured, selected and ended with."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn


class MovingAverage:
    """`module` holds decay * average + (1 - decay) * weights after each update; after the first, the weights.

    Buffers that are not floats are those of the network. Nothing waits for the device
    (`torch.optim.swa_utils.AveragedModel` counts its updates there).
    """

    def __init__(self, net: nn.Module, decay: float):
        self.module, self.decay, self.updates = deepcopy(net), decay, 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        pairs = [
            (mine.detach(), theirs.detach()) for mine, theirs in zip(_tensors(self.module), _tensors(net), strict=True)
        ]
        floats = [pair for pair in pairs if self.updates and pair[0].is_floating_point()]
        if floats:
            mine, theirs = map(list, zip(*floats, strict=True))
            torch._foreach_lerp_(mine, theirs, 1 - self.decay)  # pyright: ignore[reportPrivateImportUsage]
        for mine, theirs in pairs:
            if not self.updates or not mine.is_floating_point():
                mine.copy_(theirs)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        weights = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        return {"n_averaged": torch.tensor(self.updates), **weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = int(state["n_averaged"])
        weights = {name.removeprefix("module."): value for name, value in state.items() if name != "n_averaged"}
        self.module.load_state_dict(weights)


def _tensors(net: nn.Module) -> list[torch.Tensor]:
    return [*net.parameters(), *net.buffers()]
