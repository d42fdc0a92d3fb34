"""What every data source becomes: a named list of images with their tags and, where there are any, masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import DataError


@dataclass(frozen=True)
class Record:
    """One image. ``tags`` are sorted class indices 0..K-1 (mask value minus one); None: no tags are known."""

    name: str  # unique in its split, no suffix; subfolders with "/"
    image: Path
    tags: tuple[int, ...] | None
    mask: Path | None


@dataclass(frozen=True)
class Split:
    """A named part of a data set, in a fixed order."""

    root: Path
    name: str
    classes: tuple[str, ...]  # without the background
    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    @property
    def labels(self) -> torch.Tensor:
        """Multi-hot tags, float32 [N, K]. An image without known tags is a DataError."""
        labels = torch.zeros(len(self), len(self.classes))  # [N, K]
        for row, record in zip(labels, self.records, strict=True):
            if record.tags is None:
                raise DataError(f"{record.image}: no tags are known for this image of split {self.name!r}")
            row[list(record.tags)] = 1.0
        return labels

    def sample(self, n: int) -> Split:
        """``n`` evenly spaced records, named ``name:n``. More than there are is a DataError."""
        if not 1 <= n <= len(self):
            raise DataError(f"{self.root}: split '{self.name}:{n}' wants {n} of {len(self)} images")
        records = tuple(self.records[i * len(self) // n] for i in range(n))
        return replace(self, name=f"{self.name}:{n}", records=records)

    def shard(self, rank: int, world: int) -> Split:
        """Every ``world``-th record, beginning with ``rank``: what one process of several works on."""
        return replace(self, records=self.records[rank::world])
