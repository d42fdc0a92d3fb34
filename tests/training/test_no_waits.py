"""A step reads no value of a tensor on the device: on tensors without values (of the device "meta", which is not the
CPU to the ops either) whatever reads one raises, in the launchers of our kernels too. And it launches few."""

import pytest
import torch
from support.launches import Launches

from camguide_fast.config import Distillation, Optimizer, Refinement
from camguide_fast.method.stages import DistillationStage, RefinementStage
from camguide_fast.models import build_model
from camguide_fast.training.average import MovingAverage
from camguide_fast.training.optim import Schedule, build_optimizer

BATCH, SIDE, CLASSES = 32, 512, 20  # the paper's; "meta" computes nothing


def batch() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        image = torch.zeros(BATCH, 3, SIDE, SIDE, dtype=torch.uint8)
        valid = torch.ones(BATCH, 1, SIDE, SIDE, dtype=torch.bool)
        return {"image": image, "valid": valid, "label": torch.ones(BATCH, CLASSES)}


def network(head: str = "none") -> torch.nn.Module:
    return build_model("resnet18", CLASSES, head, width=16, radius=4, eps=1e-2).to("meta")


def distillation(**settings) -> DistillationStage:
    return DistillationStage(network(), network(), Distillation(**settings))


STAGES = {
    "stage1": (lambda: distillation(), 0, 100),
    "stage2": (lambda: distillation(lambda_cls=0.0, lambda_reg=1.0, teacher_scales=(1.0, 2.0)), 0, 80),
    "stage3 with the CRF": (lambda: RefinementStage(network("lean"), Refinement(), SIDE), 0, 250),
    "stage3": (lambda: RefinementStage(network("lean"), Refinement(), SIDE), 1, 215),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_reads_nothing(stage):
    make, step, most = STAGES[stage]
    module, settings = make(), Optimizer("sgd", schedule="plateau")
    optimizer = build_optimizer(module.net, [], settings)
    schedule, average = Schedule(optimizer, settings, 100), MovingAverage(module.net, 0.9)
    with Launches() as launches:
        parts = module(batch(), step, 0.0)
        parts["loss"].backward()
    optimizer.step()
    schedule.step(parts["loss"].detach())
    average.update(module.net)
    assert ("crf" in parts) == ("CRF" in stage)
    assert all(weight.grad is not None for weight in module.net.parameters() if weight.requires_grad)
    assert launches.counts.total() <= most, launches.counts


def test_reading_is_noticed():
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(1, device="meta").item()
