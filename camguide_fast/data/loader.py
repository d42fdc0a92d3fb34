"""Batches for training and whole images for inference, prepared by worker processes.

A training item is a function of (seed, epoch, index) alone. So the number of workers changes nothing, and an
epoch can be taken up again at any batch.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from .augment import View
from .images import read_image, read_mask
from .split import Split


class TrainSet(Dataset):
    """Random views of the images of a split. An item's key is (epoch, index).

    An item is a dict, or the DataError of a broken file: as a value it crosses the process border as it is,
    where a raised one would arrive wrapped in a worker's traceback.
    """

    def __init__(
        self, split: Split, crop: int, long_side: tuple[int, int], seed: int, with_masks: bool = False
    ) -> None:
        if crop < 1 or not 1 <= long_side[0] <= long_side[1]:
            raise ValueError(f"expected crop >= 1 and 1 <= low <= high, got crop={crop}, long_side={long_side}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.split, self.crop, self.long_side, self.seed = split, crop, long_side, seed
        self.with_masks = with_masks
        self.labels = split.labels  # [N, K]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any] | DataError:
        epoch, index = key
        record = self.split.records[index]
        try:
            image = read_image(record.image)
            mask = read_mask(record.mask, len(self.split.classes), image.shape[:2]) if self.with_masks else None
        except DataError as error:
            return error
        view = View.draw(np.random.default_rng([self.seed, epoch, index]), self.crop, self.long_side)
        pixels, valid = view.image(image)
        item = {"image": pixels, "valid": valid, "index": index}
        return item if mask is None else item | {"mask": view.mask(mask)}

    def collate(self, items: list[dict[str, Any] | DataError], keys: list[tuple[int, int]]) -> dict[str, Any]:
        """The batch of the readable items, with the names of the others and the first of their errors."""
        good = [item for item in items if isinstance(item, dict)]
        bad = {keys[i][1]: item for i, item in enumerate(items) if isinstance(item, DataError)}  # error by index
        skipped = [self.split.records[index].name for index in bad]
        batch: dict[str, Any] = {"skipped": skipped, "error": str(next(iter(bad.values()), ""))}
        if good:
            index = torch.tensor([item["index"] for item in good])  # [B]
            images = torch.from_numpy(np.stack([item["image"] for item in good]))  # [B, S, S, 3]
            batch["image"] = images.permute(0, 3, 1, 2).contiguous()  # [B, 3, S, S]
            batch["valid"] = torch.from_numpy(np.stack([item["valid"] for item in good]))[:, None]  # [B, 1, S, S]
            batch["label"] = self.labels[index]  # [B, K]
            if self.with_masks:
                batch["mask"] = torch.from_numpy(np.stack([item["mask"] for item in good]))  # [B, S, S]
            batch["index"] = index
        return batch

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, Any]:
        """A whole batch, which is how a DataLoader asks for one."""
        return self.collate([self[key] for key in keys], keys)


class _Positions:
    """Sampler of the batches of one epoch, from one batch on; set before each pass over the loader."""

    def __init__(self, images: int, batch_size: int, seed: int, rank: int, world: int) -> None:
        self.images, self.batch_size, self.seed, self.rank, self.world = images, batch_size, seed, rank, world
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.images // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # The last number is none of the indices, so that no item shares this stream.
        order = np.random.default_rng([self.seed, self.epoch, self.images]).permutation(self.images)
        step = self.batch_size * self.world
        for first in range(self.start * step, len(self) * step, step):
            yield [(self.epoch, int(index)) for index in order[first + self.rank : first + step : self.world]]


class TrainLoader:
    """Batches of random views; made by :func:`train_loader`. ``len()``: batches in an epoch."""

    def __init__(self, dataset: TrainSet, positions: _Positions, workers: int, skip_bad: bool) -> None:
        self._positions, self._skip_bad = positions, skip_bad
        self._loader = _loader(dataset, workers, batch_sampler=positions, pin_memory=torch.cuda.is_available())

    def __len__(self) -> int:
        return len(self._positions)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """The batches of one epoch, beginning with number `start`, as an uninterrupted epoch would have them.

        A batch: image uint8 [B, 3, S, S] RGB, valid bool [B, 1, S, S] (False where the border is repeated
        outwards), label float32 [B, K], index int64 [B] into the split, skipped list of names; with masks also
        mask uint8 [B, S, S], 255 where valid is False.
        """
        if epoch < 0 or not 0 <= start <= len(self):
            raise ValueError(f"expected epoch >= 0 and start in 0..{len(self)}, got epoch={epoch}, start={start}")
        self._positions.epoch, self._positions.start = epoch, start
        for batch in self._loader:
            error = batch.pop("error")
            if error and not self._skip_bad:
                raise DataError(error)
            if "image" not in batch:
                raise DataError(f"all {len(batch['skipped'])} images of a batch are broken; the first: {error}")
            yield batch


def train_loader(
    split: Split,
    *,
    batch_size: int,
    crop: int,
    long_side: tuple[int, int],
    seed: int,
    workers: int,
    skip_bad: bool = False,
    with_masks: bool = False,
    rank: int = 0,
    world: int = 1,
) -> TrainLoader:
    """Shuffled batches of random views of a split; the images that do not fill a last batch sit an epoch out.

    Args:
        split: every image needs tags.
        batch_size: images in a batch of one process; `world` processes share an epoch, `rank` is this one.
        crop, long_side: see :func:`~camguide_fast.data.augment.train_view`.
        seed: with epoch and index it determines an item, with the epoch the order.
        workers: processes that read; 0 reads in this one. Changes no result.
        skip_bad: leave a broken file out of its batch and name it in ``batch["skipped"]``; otherwise, or if
            nothing of a batch is left, it is a DataError.
        with_masks: read each image's mask too, which must be there.
    """
    if batch_size < 1 or workers < 0 or not 0 <= rank < world:
        raise ValueError(
            f"expected batch_size >= 1, workers >= 0 and 0 <= rank < world, "
            f"got batch_size={batch_size}, workers={workers}, rank={rank}, world={world}"
        )
    if len(split) < batch_size * world:
        ranks = f" on each of {world} ranks" if world > 1 else ""
        raise DataError(
            f"{split.root}: split {split.name!r} has {len(split)} images, "
            f"too few for a batch size of {batch_size}{ranks}"
        )
    positions = _Positions(len(split), batch_size, seed, rank, world)
    return TrainLoader(TrainSet(split, crop, long_side, seed, with_masks), positions, workers, skip_bad)


class FullImages(Dataset):
    """The images of a split at full size, one at a time and in order; made by :func:`full_images`.

    After an iteration ``skipped`` lists the names that were left out.
    """

    def __init__(self, split: Split, workers: int, skip_bad: bool) -> None:
        self.split, self.workers, self.skip_bad = split, workers, skip_bad
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any] | DataError:
        record = self.split.records[index]
        try:
            image = read_image(record.image)
            mask = self._read_mask(record.mask, image)
        except DataError as error:
            return error
        label = None
        if record.tags is not None:
            label = torch.zeros(len(self.split.classes))  # [K]
            label[list(record.tags)] = 1.0
        pixels = torch.from_numpy(image).permute(2, 0, 1).contiguous()  # [3, H, W]
        return {"name": record.name, "image": pixels, "label": label, "mask": mask}

    def _read_mask(self, path: Path | None, image: np.ndarray) -> torch.Tensor | None:
        if path is None:
            return None
        return torch.from_numpy(read_mask(path, len(self.split.classes), image.shape[:2]))  # [H, W]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.skipped = []
        items = _loader(self, self.workers, batch_size=None, sampler=range(len(self)), collate_fn=_same)
        for record, item in zip(self.split.records, items, strict=True):
            if not isinstance(item, DataError):
                yield item
            elif self.skip_bad:
                self.skipped.append(record.name)
            else:
                raise item


def full_images(split: Split, workers: int = 0, skip_bad: bool = False) -> FullImages:
    """Iterate a split at full resolution, read ahead by `workers` processes.

    An item: name, image uint8 [3, H, W] RGB, label float32 [K] or None, mask uint8 [H, W] (0..K and 255) or
    None. A broken image or mask, or a mask of another size, is a DataError, or left out with `skip_bad`.
    """
    if workers < 0:
        raise ValueError(f"workers must not be negative, got {workers}")
    return FullImages(split, workers, skip_bad)


def _loader(dataset: Dataset, workers: int, **kwargs: Any) -> DataLoader:
    kwargs.setdefault("collate_fn", _same)
    return DataLoader(
        dataset,
        num_workers=workers,
        worker_init_fn=_single_threaded,
        # Each pass over a DataLoader draws a seed. Drawn from the global generator, it would shift every
        # later draw of a run that was resumed in the middle of an epoch.
        generator=torch.Generator(),
        persistent_workers=workers > 0 and "batch_sampler" in kwargs,
        **kwargs,
    )


def _same(item: Any) -> Any:
    return item


def _single_threaded(worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C reaches the whole group; the main process ends the workers
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)  # the workers are the parallelism; a pool of threads in each only slows them down
