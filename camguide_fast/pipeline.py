"""One run: its folder, and the stages one after another, each trained unless it is there already, then scored.

A run's folder: config.json, checkpoints/<stage>.safetensors (and <stage>.state.pt while it trains), cams/, masks/,
thresholds.json, results.json, metrics.jsonl, report.html.
"""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.distributed as dist
import tyro

from .cam_files import write_cams, write_masks
from .checkpoint import ModelCard, load_model, read_json, save_model, write_json
from .config import Config, Stage
from .data import Split, open_split, train_loader
from .errors import UserError
from .evaluate import check_masks, evaluate_cams
from .fit import Job, Where, fit, tag_scores
from .infer import DEFAULT_THRESHOLD
from .models import CamNet
from .models.weights import WeightReport, load_weights
from .optim import freeze_batchnorm, fresh_layers
from .results import merge_rows, read_rows
from .stages import ClassificationStage, DistillationStage, PuzzleStage, RefinementStage
from .tags import best_f1_thresholds
from .target_quality import TargetQuality

StageName = Literal["baseline", "teacher", "1", "2", "3"]
NAMES = {"baseline": "baseline", "teacher": "teacher", "1": "stage1", "2": "stage2", "3": "stage3"}
NEEDS = {"stage1": ("teacher",), "stage2": ("teacher", "stage1"), "stage3": ("stage2",)}


@dataclass(frozen=True)
class Args:
    """What to train, on what, and where to."""

    data: Path | None = None
    """Tagged images: a VOC tree, or a folder with tags.csv / tags.json. Without it the demo set is generated."""
    out: Path | None = None
    """The run's folder [runs/<name of the data>]."""
    preset: Literal["default", "paper", "small", "demo"] | None = None
    """Where all settings below start from [demo without --data, else default]."""
    stages: tuple[StageName, ...] = ("baseline", "teacher", "1", "2", "3")
    """Which stages to run; earlier ones must be in the run's folder."""
    split: str = "train"
    """The split that is trained on."""
    weights: Path | None = None
    """Pretrained trunk of the student and the baseline: torchvision/timm .pth, .safetensors, or a folder of folded
    .npy."""
    teacher_weights: Path | None = None
    """Pretrained trunk of the teacher [--weights if both have the same architecture]."""
    seed: int = 0
    resume: bool = False
    """Continue the run in --out with the settings it was started with."""
    skip_bad: bool = False
    """Leave broken images out, counted and reported, instead of stopping."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_every: int = 100
    """Iterations between two saved states, besides the end of each epoch."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


class Run:
    """One run's folder and what its stages share."""

    def __init__(self, args: Args, where: Where):
        self.args, self.config, self.where, self.folder = args, args.config, where, args.out
        self.split: Split = open_split(args.data, args.split)
        self.shown = [open_split(args.data, name) for name in self.config.inference.splits]
        self.scored = [split for split in self.shown if any(record.mask for record in split)]
        fit_split = self.config.inference.fit_split
        self.fit_split = open_split(args.data, fit_split) if fit_split else None
        for scored in [*self.scored, *filter(None, [self.fit_split])]:
            check_masks(scored, args.skip_bad)

    def checkpoint(self, name: str) -> Path:
        return self.folder / "checkpoints" / f"{name}.safetensors"

    def stage(self, name: str) -> None:
        """Trains a stage unless its checkpoint is there, then makes and scores its CAMs unless its rows are there."""
        twin = self._twin(name)
        if twin and self.checkpoint(twin).exists():
            if self.where.first:
                self._copy(twin, name)
            self._wait()
            return
        if not self.checkpoint(name).exists():
            self._train(name)
        if name not in {row["stage"] for row in read_rows(self._results)}:
            self._score(name)

    def _train(self, name: str) -> None:
        settings: Stage = getattr(self.config, name)
        loader = train_loader(
            self.split,
            batch_size=settings.batch_size,
            crop=self.config.data.crop,
            long_side=self.config.data.long_side,
            seed=self.args.seed,
            workers=self.config.data.workers,
            skip_bad=self.args.skip_bad,
            rank=self.where.rank,
            world=self.where.world,
        )
        job = self._job(name, settings)
        on_epoch = None
        if name == "stage3" and self.config.inference.target_sample:
            on_epoch = TargetQuality(
                job.module, self.split, self.config.inference.target_sample, self.where.device, settings.amp
            )
        fit(
            job,
            loader,
            self.folder,
            self.where,
            seed=self.args.seed,
            save_every=self.args.save_every,
            on_epoch=on_epoch,
        )
        scores, label = tag_scores(job.net, loader, settings, self.where)
        if self.where.first:
            save_model(self.checkpoint(name), job.net, self._card(name, best_f1_thresholds(scores, label)))
            (self.folder / "checkpoints" / f"{name}.state.pt").unlink(missing_ok=True)
        self._wait()

    def _twin(self, name: str) -> str | None:
        """The one of baseline and teacher that is trained for both, if network, weights and settings are the same."""
        c, a = self.config, self.args
        same = (
            c.network.student == c.network.teacher
            and c.baseline == c.teacher
            and a.teacher_weights in (None, a.weights)
        )
        if not same or name not in ("baseline", "teacher"):
            return None
        owner = "teacher" if "baseline" not in a.stages else "baseline"
        return None if name == owner else owner

    def _copy(self, twin: str, name: str) -> None:
        """Everything that `twin` left, under the name of `name`; the rows last, as the sign that all is there."""
        if name in {row["stage"] for row in read_rows(self._results)}:
            return
        print(f"{name:<8} has the network and settings of the {twin}: one training serves both")
        net, card = load_model(self.checkpoint(twin))
        save_model(self.checkpoint(name), net, replace(card, stage=name))
        if (self.folder / "masks" / twin).exists():
            shutil.copytree(self.folder / "masks" / twin, self.folder / "masks" / name, dirs_exist_ok=True)
        if self._thresholds.exists():
            write_json(self._thresholds, (saved := read_json(self._thresholds)) | {name: saved[twin]})
        rows = read_rows(self._results)
        write_json(self._results, merge_rows(rows, [row | {"stage": name} for row in rows if row["stage"] == twin]))

    def _card(self, name: str, tag_thresholds: tuple[float, ...] = ()) -> ModelCard:
        n = self.config.network
        arch = n.teacher if name == "teacher" else n.student
        head = n.head if name == "stage3" else "none"
        return ModelCard(name, arch, head, n.width, n.radius, n.eps, self.split.classes, tag_thresholds)

    def _job(self, name: str, settings: Stage) -> Job:
        """The stage's network from pretrained weights, or from the stage before, and the module that trains it."""
        torch.manual_seed(self.args.seed)
        net = self._card(name).build()
        found = self._load_trunk(net, name)
        new = fresh_layers(found.missing)  # from scratch nothing is newer than the rest
        if name in ("stage2", "stage3"):
            before, card = load_model(self.checkpoint(NEEDS[name][-1]))
            self._check_classes(card, NEEDS[name][-1])
            net.load_state_dict(before.state_dict(), strict=False)
            new = ["head"] if name == "stage3" else []
        net = net.to(self.where.device, memory_format=torch.channels_last)
        freeze_batchnorm(net, settings.batchnorm, found.loaded)
        if name in ("baseline", "teacher"):
            puzzle = settings.method == "puzzle"
            return Job(name, settings, (PuzzleStage if puzzle else ClassificationStage)(net, settings), net, new)
        if name == "stage3":
            net.dropout.p = self.config.network.dropout
            return Job(name, settings, RefinementStage(net, settings, self.config.data.crop), net, new)
        teacher, card = load_model(self.checkpoint("teacher"), self.where.device)
        self._check_classes(card, "teacher")
        teacher = teacher.to(memory_format=torch.channels_last)
        return Job(name, settings, DistillationStage(net, teacher, settings), net, new, select=True)

    def _load_trunk(self, net: CamNet, name: str) -> WeightReport:
        path = self.args.weights
        if name == "teacher":
            same = self.config.network.teacher == self.config.network.student
            path = self.args.teacher_weights or (path if same else None)
        return load_weights(net, path) if path else WeightReport([], [], [])

    def _check_classes(self, card: ModelCard, name: str) -> None:
        if card.classes != self.split.classes:
            raise UserError(
                f"{self.checkpoint(name)}: has {len(card.classes)} classes ({', '.join(card.classes)}), "
                f"the data has {len(self.split.classes)} ({', '.join(self.split.classes)})"
            )

    @property
    def _results(self) -> Path:
        return self.folder / "results.json"

    @property
    def _thresholds(self) -> Path:
        return self.folder / "thresholds.json"

    def _score(self, name: str) -> None:
        """CAMs and palette PNGs of the named splits; rows and frozen thresholds of those that can be scored."""
        if not self.shown:
            return
        net, card = load_model(self.checkpoint(name), self.where.device)
        i = self.config.inference
        cams = {}
        for split in [*self.shown, *filter(None, [self.fit_split])]:
            cams[split.name] = self.folder / "cams" / name / split.name.replace(":", "_")
            write_cams(
                net,
                card,
                split,
                cams[split.name],
                scales=i.scales,
                flip=i.flip,
                labels=i.labels,
                device=self.where.device,
                amp=getattr(self.config, name).amp,
                rank=self.where.rank,
                world=self.where.world,
                skip_bad=self.args.skip_bad,
            )
        self._wait()
        if not self.where.first:
            return
        rows, transfer = [], (cams[self.fit_split.name], self.fit_split) if self.fit_split else None
        for split in self.scored:
            rows += evaluate_cams(cams[split.name], split, name, i.labels, transfer, skip_bad=self.args.skip_bad)
        chosen: float | list[float] = DEFAULT_THRESHOLD  # without a single mask nothing can be fitted
        if rows:
            fitted_on = self.fit_split.name if self.fit_split else self.scored[0].name
            thresholds = _frozen(rows, self.split.classes, fitted_on)
            chosen = thresholds["class-wise"]
            saved = read_json(self._thresholds) if self._thresholds.exists() else {}
            write_json(self._thresholds, saved | {name: thresholds})
        for split in self.shown:
            write_masks(
                cams[split.name],
                split,
                self.folder / "masks" / name / split.name.replace(":", "_"),
                chosen,
                skip_bad=self.args.skip_bad,
            )
        write_json(self._results, merge_rows(read_rows(self._results), rows))

    def _wait(self) -> None:
        if self.where.world > 1:
            dist.barrier()


def _frozen(rows: list[dict], classes: tuple[str, ...], fitted_on: str) -> dict:
    """Thresholds fitted on one named split, for later use on other images."""
    mode = {row["threshold_mode"]: row["thresholds"] for row in rows if row["fitted_on"] == fitted_on}
    return {
        "global": mode["global"],
        "class-wise": [mode["class-wise"][name] for name in classes],
        "fitted_on": fitted_on,
    }
