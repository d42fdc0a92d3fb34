"""What a run tells while it trains: a progress bar, `metrics.jsonl`, and TensorBoard events if TensorBoard is
installed."""

import json
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import UserError
from ..files import write_atomic

EVERY = 10
"""Iterations between two lines. Losses are read from the device only then."""


class RunLog:
    """The lines of one stage. Only the first rank writes; resuming at `start` drops the lines that will be written
    again."""

    def __init__(self, folder: Path, stage: str, *, start: int, total: int, batch: int, enabled: bool):
        self.stage, self.batch, self.enabled = stage, batch, enabled
        self.path = folder / "metrics.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self.window: list[dict[str, Tensor]] = []
        self.images: list[list[str]] = []  # of the window's iterations
        self.last: dict[str, float] = {}  # what the last line said of the losses
        self.since = time.monotonic()
        self.bar = tqdm(
            total=total * batch,
            initial=start * batch,
            unit="img",
            desc=f"{stage:<8}",
            disable=None if enabled else True,  # None: no bar where stderr is no terminal
            dynamic_ncols=True,
            smoothing=0.05,
        )
        self.board = _tensorboard(folder) if enabled else None
        if enabled and self.path.exists():
            self._drop_after(start)

    def _drop_after(self, step: int) -> None:
        lines = [json.loads(line) for line in self.path.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in lines if line["stage"] != self.stage or line["step"] <= step]
        write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def iteration(self, step: int, epoch: int, parts: dict[str, Tensor], lr: float, images: list[str]) -> None:
        """Counts one iteration, of these images; every `EVERY` it writes the mean of the loss parts and refuses a loss
        that is not finite."""
        self.window.append(parts)
        self.images.append(images)
        if step % EVERY == 0:
            self.flush(step, epoch, lr)
        self.bar.update(self.batch)

    def flush(self, step: int, epoch: int, lr: float) -> None:
        """Writes the window's means. Called before a state is saved too, so that no state with a NaN loss ever is."""
        if not self.window:
            return
        seconds = time.monotonic() - self.since
        values = _means(self.window)
        if not all(map(_finite, values.values())):
            raise UserError(self._not_finite(step))
        rate = len(self.window) * self.batch / max(seconds, 1e-9)
        self.last = values
        self.event(step, epoch, **values, lr=lr, images_per_s=round(rate, 2))
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()}, refresh=False)
        self.window, self.images, self.since = [], [], time.monotonic()

    def _not_finite(self, step: int) -> str:
        """Of the window that ends with this iteration: the first one that is not, its parts and images."""
        for i, (parts, images) in enumerate(zip(self.window, self.images, strict=True)):
            broken = [name for name, value in parts.items() if not _finite(value.item())]
            if broken:
                return (
                    f"{self.stage}: the loss is not finite at iteration {step - len(self.window) + i + 1}"
                    f" ({', '.join(broken)}), of the images {', '.join(images)}; look at these, or start in another"
                    f" folder with a lower --{self.stage}.optimizer.lr (--resume goes on with the same settings, from"
                    " the last state that was saved)"
                )
        return f"{self.stage}: the losses are finite at iteration {step}, but too large to be added up"

    def event(self, step: int, epoch: int, **values: float | str) -> None:
        if not self.enabled:
            return
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps({"stage": self.stage, "epoch": epoch, "step": step, **values}) + "\n")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror or error}") from error
        if self.board:
            for name, value in values.items():
                if not isinstance(value, str):
                    self.board.add_scalar(f"{self.stage}/{name}", value, step)

    def say(self, text: str) -> None:
        if self.enabled:
            tqdm.write(f"{self.stage:<8} {text}")

    def close(self) -> None:
        self.bar.close()
        if self.board:
            self.board.close()


def _means(parts: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean of each part over the iterations that have it (L_crf enters only every n-th), all in one copy."""
    names = list(dict.fromkeys(name for part in parts for name in part))
    means = [torch.stack([part[name] for part in parts if name in part]).mean() for name in names]
    return dict(zip(names, torch.stack(means).tolist(), strict=True))


def _finite(value: float) -> bool:
    return value - value == 0


def _tensorboard(folder: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
