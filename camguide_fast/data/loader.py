"""Batches for training and whole images for inference, prepared by threads.

A training item is a function of (seed, epoch, index) alone. So the number of threads changes nothing, and an
epoch can be taken up again at any batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..errors import DataError
from .augment import View
from .images import read_image
from .mask_files import read_mask
from .split import Record, Split
from .threads import Workers, loading_threads, read_ahead


class TrainSet:
    """Random views of the images of a split."""

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

    def view(self, epoch: int, index: int) -> dict[str, np.ndarray]:
        """image uint8 [S, S, 3] and valid bool [S, S], with masks also mask uint8 [S, S]. A broken file is a
        DataError."""
        record = self.split.records[index]
        image = read_image(record.image)
        mask = None
        if self.with_masks:
            if record.mask is None:
                raise DataError(f"{record.image}: has no mask")
            mask = read_mask(record.mask, len(self.split.classes), image.shape[:2])
        view = View.draw(np.random.default_rng([self.seed, epoch, index]), self.crop, self.long_side)
        pixels, valid = view.image(image)
        item = {"image": pixels, "valid": valid}
        return item if mask is None else item | {"mask": view.mask(mask)}


class _Batch:
    """Memory of a batch, which threads fill: one image each, at its slot."""

    def __init__(self, dataset: TrainSet, epoch: int, indices: list[int]) -> None:
        self.dataset, self.epoch, self.indices = dataset, epoch, indices
        size = len(indices), dataset.crop, dataset.crop
        pinned = torch.cuda.is_available()
        self.tensors = {
            "image": torch.empty(size[0], 3, *size[1:], dtype=torch.uint8, pin_memory=pinned),  # [B, 3, S, S]
            "valid": torch.empty(size[0], 1, *size[1:], dtype=torch.bool, pin_memory=pinned),  # [B, 1, S, S]
        }
        if dataset.with_masks:
            self.tensors["mask"] = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)  # [B, S, S]
        self.arrays = {name: tensor.numpy() for name, tensor in self.tensors.items()}

    def fill(self, slot: int) -> DataError | None:
        """Reads an image into its slot, or returns why it cannot be read."""
        try:
            view = self.dataset.view(self.epoch, self.indices[slot])
        except DataError as error:
            return error
        self.arrays["image"][slot] = view.pop("image").transpose(2, 0, 1)
        for name, pixels in view.items():
            self.arrays[name][slot] = pixels
        return None

    def of(self, slots: list[int]) -> dict[str, torch.Tensor]:
        """The batch without its other slots."""
        index = torch.tensor([self.indices[slot] for slot in slots])  # [B]
        tensors = self.tensors
        if len(slots) < len(self.indices):
            tensors = {name: tensor[slots] for name, tensor in tensors.items()}
        return tensors | {"label": self.dataset.labels[index], "index": index}


class TrainLoader:
    """Batches of random views; made by :func:`train_loader`. ``len()``: batches in an epoch."""

    def __init__(
        self, dataset: TrainSet, batch_size: int, threads: int, skip_bad: bool, rank: int = 0, world: int = 1
    ) -> None:
        self._dataset, self._batch_size, self._threads, self._skip_bad = dataset, batch_size, threads, skip_bad
        self._rank, self._world = rank, world

    def __len__(self) -> int:
        return len(self._dataset.split) // (self._batch_size * self._world)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """The batches of one epoch, beginning with number `start`, as an uninterrupted epoch would have them.

        A batch: image uint8 [B, 3, S, S] RGB, valid bool [B, 1, S, S] (False where the border is repeated
        outwards), label float32 [B, K], index int64 [B] into the split, name and skipped lists of names; with masks
        also mask uint8 [B, S, S], 255 where valid is False.
        """
        if epoch < 0 or not 0 <= start <= len(self):
            raise ValueError(f"expected epoch >= 0 and start in 0..{len(self)}, got epoch={epoch}, start={start}")
        batches: deque[_Batch] = deque()  # those that are being filled

        def places() -> Iterator[tuple[_Batch, int]]:
            for indices in self._indices(epoch, start):
                batches.append(_Batch(self._dataset, epoch, indices))
                yield from ((batches[-1], slot) for slot in range(len(indices)))

        def fill(place: tuple[_Batch, int]) -> DataError | None:
            batch, slot = place
            return batch.fill(slot)

        with closing(read_ahead(fill, places(), self._threads, ahead=2 * self._batch_size)) as filled:
            for _ in range(start, len(self)):
                errors = list(islice(filled, self._batch_size))
                yield self._readable(batches.popleft(), errors)

    def _indices(self, epoch: int, start: int) -> Iterator[list[int]]:
        """The images of each batch of this process."""
        images, step = len(self._dataset.split), self._batch_size * self._world
        # The last number is none of the indices, so that no item shares this stream.
        order = np.random.default_rng([self._dataset.seed, epoch, images]).permutation(images)
        for first in range(start * step, len(self) * step, step):
            yield order[first + self._rank : first + step : self._world].tolist()

    def _readable(self, batch: _Batch, errors: list[DataError | None]) -> dict[str, Any]:
        """The batch without its broken images, and their names."""
        broken = [error for error in errors if error]
        if broken and not self._skip_bad:
            raise broken[0]
        if len(broken) == len(errors):
            raise DataError(f"all {len(errors)} images of a batch are broken; the first: {broken[0]}")
        names = [self._dataset.split.records[index].name for index in batch.indices]
        whole = [slot for slot, error in enumerate(errors) if not error]
        skipped = [name for name, error in zip(names, errors, strict=True) if error]
        return batch.of(whole) | {"name": [names[slot] for slot in whole], "skipped": skipped}


def train_loader(
    split: Split,
    *,
    batch_size: int,
    crop: int,
    long_side: tuple[int, int],
    seed: int,
    workers: Workers,
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
        workers: threads that read ahead, see :func:`~camguide_fast.data.threads.loading_threads`; 0 reads when asked.
            Changes no result.
        skip_bad: leave a broken file out of its batch and name it in ``batch["skipped"]``; otherwise, or if
            nothing of a batch is left, it is a DataError.
        with_masks: read each image's mask too, which must be there.
    """
    threads = loading_threads(workers)
    if batch_size < 1 or threads < 0 or not 0 <= rank < world:
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
    dataset = TrainSet(split, crop, long_side, seed, with_masks)
    return TrainLoader(dataset, batch_size, threads, skip_bad, rank, world)


class FullImages:
    """The images of a split at full size, one at a time and in order; made by :func:`full_images`.

    After an iteration ``skipped`` lists the names that were left out.
    """

    def __init__(self, split: Split, threads: int, skip_bad: bool) -> None:
        self.split, self.threads, self.skip_bad = split, threads, skip_bad
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self.split)

    def _read(self, record: Record) -> tuple[np.ndarray, np.ndarray | None] | DataError:
        """Pixels [3, H, W] and mask [H, W], or why they cannot be read."""
        try:
            image = read_image(record.image)
            mask = read_mask(record.mask, len(self.split.classes), image.shape[:2]) if record.mask else None
        except DataError as error:
            return error
        return np.ascontiguousarray(image.transpose(2, 0, 1)), mask

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.skipped = []
        with closing(read_ahead(self._read, self.split, self.threads, ahead=2 * self.threads)) as pairs:
            for record, pair in zip(self.split, pairs, strict=True):
                if not isinstance(pair, DataError):
                    yield self._item(record, *pair)
                elif self.skip_bad:
                    self.skipped.append(record.name)
                else:
                    raise pair

    def _item(self, record: Record, pixels: np.ndarray, mask: np.ndarray | None) -> dict[str, Any]:
        label = None
        if record.tags is not None:
            label = torch.zeros(len(self.split.classes))  # [K]
            label[list(record.tags)] = 1.0
        truth = None if mask is None else torch.from_numpy(mask)  # [H, W]
        return {"name": record.name, "image": torch.from_numpy(pixels), "label": label, "mask": truth}


def full_images(split: Split, workers: Workers = 0, skip_bad: bool = False) -> FullImages:
    """Iterate a split at full resolution, read ahead by `workers` threads.

    An item: name, image uint8 [3, H, W] RGB, label float32 [K] or None, mask uint8 [H, W] (0..K and 255) or
    None. A broken image or mask, or a mask of another size, is a DataError, or left out with `skip_bad`.
    """
    threads = loading_threads(workers)
    if threads < 0:
        raise ValueError(f"workers must not be negative, got {workers}")
    return FullImages(split, threads, skip_bad)
