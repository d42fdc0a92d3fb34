"""One run: its folder, and the stages one after another, each trained unless it is there already, then scored.

A run's folder: config.json, checkpoints/<stage>.safetensors (and <stage>.state.pt while it trains), affinity/ (labels),
cams/, masks/, thresholds.json, results.json, metrics.jsonl, report.html.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch

from ..cams.pseudo_labels import Share, write_affinity_labels
from ..cams.results import format_table, merge_rows, read_rows
from ..cams.tags import best_f1_thresholds
from ..config import Classification, Config, Distillation, Refinement, Stage, to_dict
from ..config.precision import enabled, settle
from ..data import Split, TrainLoader, make_demo, open_split, train_loader
from ..errors import DataError, UserError
from ..files import read_json, write_json
from ..method.stages import AffinityStage, ClassificationStage, DistillationStage, PuzzleStage, RefinementStage
from ..method.target_quality import TargetQuality, scored_sample
from ..models import AffinityNet, CamGuideNet, CamNet, build_trunk
from ..models.checkpoint import ModelCard, load_model, save_model
from ..models.weights import WeightReport, load_weights
from ..training.fit import Job, fit, tag_scores
from ..training.optim import freeze_batchnorm, fresh_layers
from ..training.ranks import Where
from .announcement import announce
from .arguments import NAMES, Args, folder_of, holds_a_run, trunk_path
from .report import write_report
from .same_data import check_same_data
from .scores import RunScores


def needs(stage: str, config: Config) -> tuple[str, ...]:
    """The stages that must be there before this one."""
    before = {"stage1": ("teacher",), "stage2": ("teacher", "stage1"), "stage3": (config.stage3.start,)}
    source = config.affinity.source
    return before.get(stage, {"affinity": (source,), "walk": (source, "affinity"), "final": ("walk",)}.get(stage, ()))


def is_there(folder: Path, stage: str) -> bool:
    """Whether a run's folder holds what other stages need of this one."""
    return (
        (folder / "cams" / stage).is_dir()
        if stage == "walk"
        else (folder / "checkpoints" / f"{stage}.safetensors").exists()
    )


def prepare(args: Args, where: Where) -> Args:
    """Refuses a folder that holds a run, generates the demo set if no data is named."""
    out = folder_of(args.out, args.data)
    if holds_a_run(out) and not args.resume:
        raise UserError(f"{out}: holds a run; continue it with --resume, or name another folder with --out")
    data = args.data
    if data is None:
        data = (out / "data").resolve()
    with where.apart():
        if args.data is None and where.first:
            make_demo(data)
    return replace(args, out=out, data=data, config=settle(args.config, where.device))


def run(args: Args, where: Where) -> None:
    """Trains and scores what `args.stages` asks for and is not there yet."""
    out = folder_of(args.out, args.data)
    names = [NAMES[stage] for stage in NAMES if stage in args.stages]
    for name in names:
        for needed in needs(name, args.config):
            if needed not in names and not is_there(out, needed):
                raise UserError(f"{out}: {name} needs {needed}, which is neither there nor among --stages")
    started = time.monotonic()
    current = Run(args, where)
    with where.apart():
        if where.first:
            strange = current.compare_masks(names)
            check_same_data(out / "data.json", current.splits)
            if not (args.resume and holds_a_run(out)):  # where it was said already
                print(*strange, sep="\n", end="\n" if strange else "")
            write_json(out / "config.json", to_dict(args))
    if where.first:
        announce(args, current.split, where.device)
    for name in names:
        current.stage(name)
    if where.first:
        rows = read_rows(out / "results.json")
        page = write_report(out)
        print("\n" + (format_table(rows) if rows else "nothing was scored: no split of --inference.splits has masks"))
        minutes = (time.monotonic() - started) / 60
        print(f"\n{minutes:.1f} minutes. Checkpoints, masks and results are in {out}; look at {page}")


class Run:
    """One run's folder and what its stages share."""

    def __init__(self, args: Args, where: Where):
        self.args, self.config, self.where, self.folder = args, args.config, where, folder_of(args.out, args.data)
        data = cast(Path, args.data)  # `prepare` has named it
        self.split: Split = open_split(data, args.split)
        if not any(record.tags for record in self.split):
            raise DataError(f"{data}: no image of split {args.split!r} has a tag; there is nothing to learn")
        self.scores = RunScores(self.folder, data, self.split.classes, args.config, where, args.skip_bad)

    @property
    def splits(self) -> list[Split]:
        """All that the run reads: what is trained on, scored, and fitted on."""
        return [self.split, *self.scores.splits]

    def checkpoint(self, name: str) -> Path:
        return self.scores.checkpoint(name)

    def compare_masks(self, stages: Sequence[str]) -> list[str]:
        """What is strange about the masks that these stages are scored by. Raises DataError as `compare_with_tags`."""
        targets = scored_sample(self.split, self.config.inference.target_sample)
        more = [targets] if "stage3" in stages and targets.records else []
        return self.scores.compare_with_tags(self.args.trust_masks, more)

    def stage(self, name: str) -> None:
        """Trains a stage unless its checkpoint is there, then makes and scores its CAMs unless its rows are there."""
        twin = self._twin(name)
        if twin and self.checkpoint(twin).exists():
            with self.where.apart():
                if self.where.first:
                    self._copy(twin, name)
            return
        if name == "affinity":
            if not self.checkpoint(name).exists():
                self._train_affinity()
            return
        steps = {"walk": self.scores.walk, "final": self.scores.final}
        if name not in steps and not self.checkpoint(name).exists():
            self._train(name)
        if not self.scores.has(name):
            steps.get(name, partial(self.scores.cam_stage, name))()

    def _train_affinity(self) -> None:
        """AffinityNet, on the certain parts of the source stage's CAMs of the training images."""
        settings, source = self.config.affinity, self.config.affinity.source
        _, card = load_model(self.checkpoint(source))
        self._check_classes(card, source)
        self.scores.make_cams(source, [self.split], "given")
        labels = self.folder / "affinity" / self.split.name.replace(":", "_")
        share = Share(self.where.rank, self.where.world, self.config.data.workers, self.args.skip_bad)
        with self.where.apart():
            cams = self.scores.cams(source, self.split)
            write_affinity_labels(cams, self.split, labels, settings, self.where.device, share)
        paths = [(record, labels / f"{record.name}.png") for record in self.split]
        known = tuple(replace(record, mask=path) for record, path in paths if path.is_file())  # less what was skipped
        loader = self._loader(replace(self.split, records=known), settings, with_masks=True)
        net, trunk = self._affinity_net(source, card.arch)
        if self.where.first:
            print(f"{'affinity':<8} {len(known)} labels from the CAMs of {source}; trunk: {trunk}")
        net.to(self.where.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] stubs lack it
        job = Job("affinity", settings, AffinityStage(net, settings), net)
        fit(job, loader, self.folder, self.where, seed=self.args.seed, save_every=self.args.save_every)
        self._save(net, replace(card, stage="affinity", head="edges", tag_thresholds=()))

    def _affinity_net(self, source: str, arch: str) -> tuple[AffinityNet, str]:
        """With the pretrained trunk, or that of the source stage where no weight file holds all of it."""
        torch.manual_seed(self.args.seed)
        net = AffinityNet(build_trunk(arch))
        path = self._trunk_path(source)
        if path and not any(name.startswith("backbone.") for name in load_weights(net, path).missing):
            return net, path.name
        trained, _ = load_model(self.checkpoint(source))
        net.backbone.load_state_dict(trained.backbone.state_dict())
        return net, source

    def _train(self, name: str) -> None:
        settings: Classification | Distillation | Refinement = getattr(self.config, name)
        loader = self._loader(self.split, settings)
        job = self._job(name, settings)
        on_epoch = None
        if isinstance(job.module, RefinementStage) and self.config.inference.target_sample:
            amp = enabled(settings.amp, self.where.device)
            on_epoch = TargetQuality(
                job.module, self.split, self.config.inference.target_sample, self.where.device, amp
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
        scores, label = tag_scores(cast(CamNet, job.net), loader, settings, self.where)
        self._save(job.net, self._card(name, best_f1_thresholds(scores, label)))

    def _loader(self, split: Split, settings: Stage, with_masks: bool = False) -> TrainLoader:
        return train_loader(
            split,
            batch_size=settings.batch_size,
            crop=settings.crop or self.config.data.crop,
            long_side=settings.long_side or self.config.data.long_side,
            seed=self.args.seed,
            workers=self.config.data.workers,
            skip_bad=self.args.skip_bad,
            with_masks=with_masks,
            rank=self.where.rank,
            world=self.where.world,
        )

    def _save(self, net: CamNet | AffinityNet, card: ModelCard) -> None:
        """The trained network, in place of its training state."""
        with self.where.apart():
            if self.where.first:
                save_model(self.checkpoint(card.stage), net, card)
                (self.folder / "checkpoints" / f"{card.stage}.state.pt").unlink(missing_ok=True)

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
        if self.scores.has(name):
            return
        print(f"{name:<8} has the network and settings of the {twin}: one training serves both")
        net, card = load_model(self.checkpoint(twin))
        save_model(self.checkpoint(name), net, replace(card, stage=name))
        if (self.folder / "masks" / twin).exists():
            shutil.copytree(self.folder / "masks" / twin, self.folder / "masks" / name, dirs_exist_ok=True)
        if self.scores.thresholds.exists():
            write_json(self.scores.thresholds, (saved := read_json(self.scores.thresholds)) | {name: saved[twin]})
        rows = read_rows(self.scores.results)
        write_json(
            self.scores.results, merge_rows(rows, [row | {"stage": name} for row in rows if row["stage"] == twin])
        )

    def _card(self, name: str, tag_thresholds: tuple[float, ...] = ()) -> ModelCard:
        n = self.config.network
        arch = n.teacher if name == "teacher" else n.student
        head = n.head if name == "stage3" else "none"
        return ModelCard(name, arch, head, n.width, n.radius, n.eps, self.split.classes, tag_thresholds)

    def _job(self, name: str, settings: Classification | Distillation | Refinement) -> Job:
        """The stage's network from pretrained weights, or from the stage before, and the module that trains it."""
        torch.manual_seed(self.args.seed)
        net = cast(CamNet, self._card(name).build())
        found = self._load_trunk(net, name)
        new = fresh_layers(found.missing)  # from scratch nothing is newer than the rest
        if name in ("stage2", "stage3"):
            earlier = needs(name, self.config)[-1]
            before, card = load_model(self.checkpoint(earlier))
            self._check_classes(card, earlier)
            net.load_state_dict(before.state_dict(), strict=False)
            new = ["head"] if name == "stage3" else []
        net.to(self.where.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] stubs lack it
        freeze_batchnorm(net, settings.batchnorm, found.loaded)
        if isinstance(settings, Classification):
            puzzle = settings.method == "puzzle"
            return Job(name, settings, (PuzzleStage if puzzle else ClassificationStage)(net, settings), net, new)
        if isinstance(settings, Refinement):
            net = cast(CamGuideNet, net)
            net.dropout.p = self.config.network.dropout
            return Job(name, settings, RefinementStage(net, settings, settings.crop or self.config.data.crop), net, new)
        teacher, card = load_model(self.checkpoint("teacher"), self.where.device)
        self._check_classes(card, "teacher")
        teacher.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] stubs lack it
        return Job(name, settings, DistillationStage(net, teacher, settings), net, new, select=True)

    def _load_trunk(self, net: CamNet, name: str) -> WeightReport:
        path = self._trunk_path(name)
        return load_weights(net, path) if path else WeightReport([], [], [])

    def _trunk_path(self, name: str) -> Path | None:
        return trunk_path(self.args, teacher=name == "teacher")

    def _check_classes(self, card: ModelCard, name: str) -> None:
        if card.classes != self.split.classes:
            raise UserError(
                f"{self.checkpoint(name)}: has {len(card.classes)} classes ({', '.join(card.classes)}), "
                f"the data has {len(self.split.classes)} ({', '.join(self.split.classes)})"
            )
