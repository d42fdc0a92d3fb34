"""The training loop that all stages share: one process or several, stopped and resumed anywhere with the same result.

Nothing random carries over from one iteration to the next: views come from (seed, epoch, image), and the generators
are seeded from (seed, stage, iteration, rank) before each step. So position, weights, optimiser, schedule and scaler
are the whole state.
"""

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import config
from ..cams.tags import mean_average_precision
from ..config.precision import enabled
from ..data import TrainLoader
from ..method.stages import Batch, network_input
from ..models import AffinityNet, CamGuideNet, CamNet, evaluating, logits
from .average import MovingAverage
from .interrupts import Interrupts
from .optim import Schedule, build_optimizer
from .ranks import Where
from .runlog import RunLog
from .state import load_state, save_state

SELECTION_EPOCH = 2**31
"""Number of the pass whose fixed views of the training images rank the checkpoints: far past any epoch that trains."""


@dataclass
class Job:
    """One stage, ready to be trained."""

    name: str
    settings: config.Stage
    module: nn.Module  # of stages.py; `net` is its trainable part
    net: CamNet | AffinityNet
    new: list[str] = field(default_factory=list)  # layers without pretrained weights
    select: bool = False  # keep the epoch with the best tag mAP on the training images; else the last


def fit(
    job: Job, loader: TrainLoader, folder: Path, where: Where, *, seed: int, save_every: int, on_epoch=None
) -> None:
    """Trains `job.net` in place; its state is `folder/checkpoints/<name>.state.pt`, taken up if there and left for
    the caller to remove.

    `on_epoch(net) -> dict, str` adds measurements to each epoch's line, and a line if it is not empty (evaluation
    only). Ctrl-C saves the state and raises.
    What is measured, selected and ended with is the average of the weights where the settings ask for one.
    """
    settings, steps = job.settings, len(loader)
    total = settings.epochs * steps
    optimizer = build_optimizer(job.net, job.new, settings.optimizer, fused=where.device.type == "cuda")
    schedule = Schedule(optimizer, settings.optimizer, total)
    amp = enabled(settings.amp, where.device)
    scaler = torch.amp.GradScaler(where.device.type, enabled=amp and where.device.type == "cuda")
    stateful = {"optimizer": optimizer, "schedule": schedule, "scaler": scaler, "net": job.net}
    average = None
    if settings.average:
        average = MovingAverage(job.net, settings.average)
        stateful["average"] = average
    result = cast(CamNet, average.module if average else job.net)  # AffinityNet is not selected by tags
    path = folder / "checkpoints" / f"{job.name}.state.pt"
    step, epoch, best = 0, 0, {"map": -1.0, "net": {}}  # epochs count when they are measured
    if path.exists():
        state = load_state(path)
        for name, part in stateful.items():
            part.load_state_dict(state[name])
        step, best = state["step"], state["best"]
        epoch = state.get("epoch", step // steps)  # older states lack it: none of them was saved between the two
    module = DistributedDataParallel(job.module) if where.world > 1 else job.module
    log = RunLog(
        folder,
        job.name,
        start=step,
        total=total,
        batch=settings.batch_size * where.world,
        enabled=where.first,
    )

    def save() -> None:
        log.flush(step, step // steps, optimizer.param_groups[0]["lr"])
        if where.first:
            save_state(
                path,
                {"step": step, "epoch": epoch, "best": best}
                | {name: part.state_dict() for name, part in stateful.items()},
            )

    with Interrupts(save) as interrupts:
        while epoch < settings.epochs:
            job.module.train()
            skipped: list[str] = []
            for batch in interrupts.between(loader.epoch(epoch, step - epoch * steps)):
                _seed(seed, job.name, step, where.rank)
                skipped += batch["skipped"]
                with _autocast(settings, where.device):
                    parts = module(_to(batch, where.device), step, step / total)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(parts["loss"]).backward()
                lr = optimizer.param_groups[0]["lr"]
                scaler.step(optimizer)
                scaler.update()
                schedule.step(parts["loss"].detach())
                if average:
                    average.update(job.net)
                step += 1
                losses = {n: p.detach() for n, p in parts.items() if n != "logits"}
                log.iteration(step, epoch, losses, lr, batch["name"])
                if step % steps and step % save_every == 0:
                    save()
            with interrupts.welcome():
                measured, remark = on_epoch(result) if on_epoch else ({}, "")
                if job.select:
                    measured["map"] = mean_average_precision(*tag_scores(result, loader, settings, where))
            if job.select and measured["map"] >= best["map"]:  # ties: the later
                best = {
                    "map": measured["map"],
                    "net": {name: value.clone() for name, value in result.state_dict().items()},
                }
            if skipped:
                measured["skipped"] = len(skipped)
                log.say(f"epoch {epoch + 1}: {len(skipped)} broken images skipped: {', '.join(skipped)}")
            epoch += 1
            save()
            log.event(step, epoch - 1, event="epoch", **measured)
            shown = {**log.last, **measured}
            log.say(f"epoch {epoch}/{settings.epochs}  " + "  ".join(f"{n} {v:.4g}" for n, v in shown.items()))
            if remark:
                log.say(remark)
    log.close()
    job.net.load_state_dict(best["net"] or result.state_dict())


@torch.no_grad()
def tag_scores(net: CamNet, loader: TrainLoader, settings: config.Stage, where: Where) -> tuple[Tensor, Tensor]:
    """Logits and tags [N, K] of one fixed view of the training images, those of all ranks."""
    pairs = []
    with evaluating(net), _autocast(settings, where.device):
        for batch in loader.epoch(SELECTION_EPOCH):
            batch = _to(batch, where.device)
            pairs.append(torch.stack([tag_logits(net, batch).float(), batch["label"]]))
    both = torch.cat(where.gather(torch.cat(pairs, 1).cpu()), 1)  # [2, N, K]
    scores, label = both.unbind(0)
    return scores, label


def tag_logits(net: CamNet, batch: Batch) -> Tensor:  # [B, K]
    x = network_input(net, batch)
    return logits(net(x, batch["image"].float() / 255) if isinstance(net, CamGuideNet) else net(x))


def _seed(seed: int, stage: str, step: int, rank: int) -> None:
    torch.manual_seed(zlib.crc32(f"{seed} {stage} {step} {rank}".encode()))


def _to(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items() if isinstance(value, Tensor)}


def _autocast(settings: config.Stage, device: torch.device):
    return torch.autocast(device.type, enabled=enabled(settings.amp, device))  # fp16 on CUDA, bf16 on CPU
