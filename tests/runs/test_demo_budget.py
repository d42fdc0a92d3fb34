"""The demo must end in minutes on two cores of a laptop: its multiplications are counted, so that it stays so."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from camguide_fast.config import Config
from camguide_fast.config.presets import PRESETS
from camguide_fast.data.demo import make_demo
from camguide_fast.models import AffinityNet, CamGuideNet, CamNet, build_model, build_trunk

TRAIN, VAL, SIDE, CLASSES = (*make_demo.__kwdefaults__.values(),)[1:4] + (5,)


def forward(net: nn.Module, side: int) -> int:
    """Floating-point operations of one image's forward pass; the counter is wrong about backward passes of depthwise
    convolutions, which it takes for whole ones. Training is three forward passes."""
    x = torch.zeros(1, 3, side, side, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x, x) if isinstance(net, CamGuideNet) else net(x)
    return counter.get_total_flops()


def operations(config: Config) -> Iterator[tuple[str, float]]:
    """(what, operations) of everything that the demo does with a network."""
    n, inference = config.network, config.inference

    def net(arch: str, head: str = "none") -> CamNet:
        return build_model(arch, CLASSES, head, width=n.width).eval()

    def cams(model: CamNet, images: int) -> int:
        views = 1 + inference.flip
        return images * views * sum(forward(model, round(SIDE * scale)) for scale in inference.scales)

    student, teacher, refined = net(n.student), net(n.teacher), net(n.student, n.head)
    scored = VAL + int(inference.fit_split.partition(":")[2] or 0)
    for name in ("baseline", "teacher"):
        model, stage = (student, config.baseline) if name == "baseline" else (teacher, config.teacher)
        if name == "teacher" and n.student == n.teacher and config.baseline == config.teacher:
            continue  # one training serves both
        yield name, TRAIN * (3 * stage.epochs + 1) * forward(model, config.data.crop)  # + 1: tag thresholds
        yield f"{name}'s CAMs", cams(model, scored)
    for name, views in (("stage1", 2), ("stage2", 1)):
        stage = getattr(config, name)
        crop = stage.crop or config.data.crop
        taught = sum(forward(teacher, round(crop * scale)) for scale in stage.teacher_scales)
        step = 3 * views * forward(student, crop) + taught + forward(student, crop)  # + selection
        yield name, TRAIN * (stage.epochs * step + forward(student, crop))
        yield f"{name}'s CAMs", cams(student, scored)
    stage = config.stage3
    crop = stage.crop or config.data.crop
    head = forward(refined, crop) - forward(student, crop)
    yield "stage3", TRAIN * ((3 * stage.epochs + 1) * forward(refined, crop) + stage.epochs * head)
    yield "stage3's targets", stage.epochs * inference.target_sample * forward(refined, crop)
    yield "stage3's CAMs", cams(refined, scored + TRAIN)
    edges = AffinityNet(build_trunk(n.student)).eval()
    yield "affinity", 1.1 * TRAIN * config.affinity.epochs * forward(edges, config.data.crop)  # a frozen trunk
    yield "walk", scored * 2 * forward(edges, SIDE)


@pytest.mark.parametrize(("preset", "most"), [("demo", 12), ("demo-scratch", 21)])  # ResNet's are twice as fast
def test_tera_operations_of_the_demo(preset, most):
    with torch.device("meta"):  # shapes alone
        parts = dict(operations(PRESETS[preset]()))
    total = sum(parts.values()) / 1e12
    print(f"{preset}: {total:.1f}", {name: round(value / 1e12, 2) for name, value in parts.items()})
    assert most / 2 < total <= most, parts
