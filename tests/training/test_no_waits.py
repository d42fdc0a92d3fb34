"""A step reads no value of a tensor on the device: on tensors without values (of the device "meta", which is not the
CPU to the ops either) whatever reads one raises. And it makes few calls: each is a launch or more on a GPU."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from camguide_fast.config import Distillation, Optimizer, Refinement
from camguide_fast.method.stages import DistillationStage, RefinementStage
from camguide_fast.models import build_model
from camguide_fast.training.average import MovingAverage
from camguide_fast.training.optim import Schedule, build_optimizer

SIDE, CLASSES = 96, 5
OF_THE_NETWORK = ("convolution", "batch_norm", "relu", "threshold_backward", "max_pool")
FREE = ("view", "detach", "expand", "select", "slice", "transpose", "permute", "squeeze", "alias", "unbind", "split")


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.counts[op.name()] += 1
        return op(*args, **(kwargs or {}))

    def launches(self) -> int:
        """Calls that compute, beside convolutions, BatchNorm, ReLU and pooling; an op of ours is one."""
        left_out = (*OF_THE_NETWORK, *FREE)
        return sum(n for name, n in self.counts.items() if not any(part in name for part in left_out))


def batch() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        image = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
        valid = torch.ones(2, 1, SIDE, SIDE, dtype=torch.bool)
        return {"image": image, "valid": valid, "label": torch.ones(2, CLASSES)}


def network(head: str = "none") -> torch.nn.Module:
    return build_model("resnet18", CLASSES, head, width=16, radius=4, eps=1e-2).to("meta")


def distillation(**settings) -> DistillationStage:
    return DistillationStage(network(), network(), Distillation(**settings))


STAGES = {
    "stage1": (lambda: distillation(), 0, 155),
    "stage2": (lambda: distillation(lambda_cls=0.0, lambda_reg=1.0, teacher_scales=(1.0, 2.0)), 0, 155),
    "stage3 with the CRF": (lambda: RefinementStage(network("lean"), Refinement(), SIDE), 0, 227),
    "stage3": (lambda: RefinementStage(network("lean"), Refinement(), SIDE), 1, 214),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_reads_nothing(stage):
    make, step, most = STAGES[stage]
    module, settings = make(), Optimizer("sgd", schedule="plateau")
    optimizer = build_optimizer(module.net, [], settings)
    schedule, average = Schedule(optimizer, settings, 100), MovingAverage(module.net, 0.9)
    with Calls() as calls:
        parts = module(batch(), step, 0.0)
        parts["loss"].backward()
    optimizer.step()
    schedule.step(parts["loss"].detach())
    average.update(module.net)
    assert ("crf" in parts) == ("CRF" in stage)
    assert all(weight.grad is not None for weight in module.net.parameters() if weight.requires_grad)
    assert calls.launches() <= most


def test_reading_is_noticed():
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(1, device="meta").item()
