"""Images with tags: reading, random views, batches, and a generated set to try things on."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from .augment import train_view
from .demo import make_demo
from .images import is_turned, read_image
from .loader import FullImages, TrainLoader, TrainSet, full_images, train_loader
from .mask_check import compare_with_tags
from .mask_files import IGNORE, VOC_PALETTE, mask_made_by, read_mask, write_mask
from .split import Record, Split
from .tagged_folder import TAG_FILES, find_tag_file, left_out, open_images, open_tagged_folder, with_tags
from .threads import Workers, loading_threads
from .voc import VOC_CLASSES, is_voc, open_voc

__all__ = [
    "IGNORE",
    "VOC_CLASSES",
    "VOC_PALETTE",
    "FullImages",
    "Record",
    "Split",
    "TrainLoader",
    "TrainSet",
    "Workers",
    "compare_with_tags",
    "full_images",
    "is_turned",
    "loading_threads",
    "make_demo",
    "mask_made_by",
    "left_out",
    "open_images",
    "open_split",
    "read_image",
    "read_mask",
    "train_loader",
    "train_view",
    "with_tags",
    "write_mask",
]


def open_split(root: str | Path, name: str, *, require_tags: bool = True) -> Split:
    """Split `name` of the data set in the folder `root`.

    A folder with ``ImageSets/Segmentation`` is a VOC tree (see :func:`~camguide_fast.data.voc.open_voc`), a
    folder with a tag file a tagged folder (:func:`~camguide_fast.data.tagged_folder.open_tagged_folder`).
    ``train:200`` is an evenly spaced sample of 200 images of ``train``. With `require_tags` off, images
    without tags are taken too. Everything that is wrong is a DataError of one line.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    base, colon, count = name.partition(":")
    if colon and not (count.isascii() and count.isdecimal() and int(count) > 0):
        raise DataError(f"{root}: split {name!r}: expected a name and a number of images, such as 'train:200'")
    if is_voc(root):
        split = open_voc(root, base, require_tags=require_tags)
    elif find_tag_file(root):
        split = open_tagged_folder(root, base, require_tags=require_tags)
    else:
        raise DataError(f"{root}: neither a VOC tree (ImageSets/Segmentation) nor a tag file ({', '.join(TAG_FILES)})")
    return split.sample(int(count)) if colon else split
