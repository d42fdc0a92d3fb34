"""What a run makes of its stages: CAMs, walked CAMs and masks of the splits it is asked for, thresholds, and rows."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from ..cams.making import Labels, write_cams
from ..cams.masks import write_masks
from ..cams.pseudo_labels import Share, write_final_masks, write_walks
from ..cams.results import Row, merge_rows, read_rows
from ..cams.scoring import Thresholds, check_masks, evaluate_cams, make_row, score
from ..cams.thresholds import DEFAULT_THRESHOLD
from ..config import Config
from ..config.precision import enabled
from ..data import Record, Split, compare_with_tags, open_split, read_image
from ..files import read_json, write_json
from ..method.targets import refine_labels
from ..models.checkpoint import load_model
from ..training.ranks import Where


class RunScores:
    """The results in a run's folder: cams/, masks/, thresholds.json, results.json."""

    def __init__(
        self, folder: Path, data: Path, classes: tuple[str, ...], config: Config, where: Where, skip_bad: bool
    ):
        self.folder, self.classes, self.config, self.where, self.skip_bad = folder, classes, config, where, skip_bad
        inference = config.inference
        self.shown = [open_split(data, name) for name in inference.splits]
        self.scored = [split for split in self.shown if any(record.mask for record in split)]
        self.fit_split = open_split(data, inference.fit_split) if inference.fit_split else None
        for scored in [*self.scored, *self._fit_splits]:
            check_masks(scored)

    def compare_with_tags(self, trust: bool, more: Sequence[Split] = ()) -> list[str]:
        """What is strange about the masks that are scored or that thresholds are fitted on, and those of `more` splits;
        see `mask_check`."""
        splits = {split.name: split for split in [*more, *self.scored, *self._fit_splits]}  # of one name the larger
        compared = (compare_with_tags(s, trust=trust, skip_bad=self.skip_bad) for s in splits.values())
        return [line for lines in compared for line in lines]

    @property
    def splits(self) -> list[Split]:
        return [*self.shown, *([self.fit_split] if self.fit_split else [])]

    @property
    def results(self) -> Path:
        return self.folder / "results.json"

    @property
    def thresholds(self) -> Path:
        return self.folder / "thresholds.json"

    def has(self, stage: str) -> bool:
        return stage in {row["stage"] for row in read_rows(self.results)}

    def checkpoint(self, stage: str) -> Path:
        return self.folder / "checkpoints" / f"{stage}.safetensors"

    def cams(self, stage: str, split: Split) -> Path:
        return self.folder / "cams" / stage / split.name.replace(":", "_")

    def masks(self, stage: str, split: Split) -> Path:
        return self.folder / "masks" / stage / split.name.replace(":", "_")

    def make_cams(self, stage: str, splits: Iterable[Split], labels: Labels) -> None:
        """CAMs of a stage's network on each split; what is there already stays."""
        with self.where.apart():
            net, card = load_model(self.checkpoint(stage), self.where.device)
            for split in splits:
                write_cams(
                    net,
                    card,
                    split,
                    self.cams(stage, split),
                    scales=self.config.inference.scales,
                    flip=self.config.inference.flip,
                    labels=labels,
                    device=self.where.device,
                    amp=enabled(getattr(self.config, stage).amp, self.where.device),
                    rank=self.where.rank,
                    world=self.where.world,
                    workers=self.config.data.workers,
                    skip_bad=self.skip_bad,
                )

    def cam_stage(self, stage: str) -> None:
        """CAMs, rows and masks of a stage that has a network of its own."""
        if self.shown:
            self.make_cams(stage, [*self.shown, *self._fit_splits], self.config.inference.labels)
            self._conclude(stage)

    def walk(self) -> None:
        """CAMs of the source stage after the walk over AffinityNet's edges, their rows and masks."""
        if not self.shown:
            return
        source, splits = self.config.affinity.source, [*self.shown, *self._fit_splits]
        self.make_cams(source, splits, self.config.inference.labels)
        with self.where.apart():
            net, card = load_model(self.checkpoint("affinity"), self.where.device, affinity=True)
            net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] stubs lack it
            amp = enabled(self.config.affinity.amp, self.where.device)
            for split in splits:
                folders = self.cams(source, split), self.cams("walk", split)
                write_walks(net, card, split, *folders, self.config.walk, self._share, amp=amp)
        self._conclude("walk", self.config.walk.threshold)

    def final(self) -> None:
        """The walk's labels refined by the CRF: one row for each of the walk's, with its thresholds, and masks."""
        if not self.shown:
            return
        rows: list[Row] = []
        for split in self.scored:
            wanted = [r for r in read_rows(self.results) if r["stage"] == "walk" and r["split"] == split.name]
            rows += self._final_rows(split, wanted)
        with self.where.apart():
            frozen = read_json(self.thresholds).get("walk") if self.thresholds.exists() else None
            chosen = frozen["class-wise"] if frozen else self.config.walk.threshold
            for split in self.shown:
                folders = self.cams("walk", split), self.masks("final", split)
                write_final_masks(
                    folders[0], split, folders[1], chosen, self.config.walk.crf, self.where.device, self._share
                )
        with self.where.apart():
            if self.where.first:
                if frozen:
                    write_json(self.thresholds, read_json(self.thresholds) | {"final": frozen})
                write_json(self.results, merge_rows(read_rows(self.results), rows))

    def _final_rows(self, split: Split, walk_rows: list[Row]) -> list[Row]:
        device, crf, size = self.where.device, self.config.walk.crf, len(self.classes) + 1
        settings = list(dict.fromkeys(self._thresholds_of(row) for row in walk_rows))  # equal ones are refined once

        def refine(record: Record, labels: np.ndarray) -> np.ndarray:
            image = torch.from_numpy(read_image(record.image)).permute(2, 0, 1).to(device)
            return refine_labels(torch.from_numpy(labels).to(device), image, size, crf).cpu().numpy()

        mine = split.shard(self.where.rank, self.where.world)
        made = [np.zeros((size, size), np.int64)] * len(settings), 0
        with self.where.apart():
            if any(record.mask for record in mine):
                made = score(self.cams("walk", split), mine, settings, refine=refine, skip_bad=self.skip_bad)
        parts = self.where.gather(made)
        images = sum(count for _, count in parts)
        confusion = {t: np.sum([matrices[i] for matrices, _ in parts], 0) for i, t in enumerate(settings)}
        return [
            make_row(
                "final",
                split,
                row["labels"],
                row["threshold_mode"],
                self._thresholds_of(row),
                row["fitted_on"],
                confusion[self._thresholds_of(row)],
                images,
            )
            for row in walk_rows
        ]

    def _thresholds_of(self, row: Row) -> Thresholds:
        t = row["thresholds"]
        return t if row["threshold_mode"] == "global" else tuple(t[name] for name in self.classes)

    def _conclude(self, stage: str, default: float | None = None) -> None:
        with self.where.apart():
            if self.where.first:
                self._write_results(stage, default)

    def _write_results(self, stage: str, default: float | None) -> None:
        """Rows, frozen thresholds and masks from the CAMs of a stage."""
        rows: list[Row] = []
        for split in self.scored:
            transfer = (self.cams(stage, self.fit_split), self.fit_split) if self.fit_split else None
            labels = self.config.inference.labels
            rows += evaluate_cams(
                self.cams(stage, split), split, stage, labels, transfer, default=default, skip_bad=self.skip_bad
            )
        # without a single mask nothing can be fitted
        chosen: float | Sequence[float] = DEFAULT_THRESHOLD if default is None else default
        if rows:
            fitted_on = self.fit_split.name if self.fit_split else self.scored[0].name
            frozen = _frozen(rows, self.classes, fitted_on)
            chosen = frozen["class-wise"]
            saved = read_json(self.thresholds) if self.thresholds.exists() else {}
            write_json(self.thresholds, saved | {stage: frozen})
        for split in self.shown:
            write_masks(self.cams(stage, split), split, self.masks(stage, split), chosen, skip_bad=self.skip_bad)
        write_json(self.results, merge_rows(read_rows(self.results), rows))

    @property
    def _fit_splits(self) -> list[Split]:
        return [self.fit_split] if self.fit_split else []

    @property
    def _share(self) -> Share:
        return Share(self.where.rank, self.where.world, self.config.data.workers, self.skip_bad)


def _frozen(rows: list[Row], classes: tuple[str, ...], fitted_on: str) -> dict:
    """Thresholds fitted on one named split, for later use on other images."""
    mode = {row["threshold_mode"]: row["thresholds"] for row in rows if row["fitted_on"] == fitted_on}
    return {
        "global": mode["global"],
        "class-wise": [mode["class-wise"][name] for name in classes],
        "fitted_on": fitted_on,
    }
