"""Heuristic targets of stage 3."""

import conftest
import cv2
import numpy as np
import pytest
import torch

from camguide_fast.config import Refinement
from camguide_fast.data import read_image, read_mask
from camguide_fast.method.targets import TargetMaker, sample


def test_sample_takes_the_centre_of_each_cell():
    target = torch.arange(16).reshape(1, 4, 4)
    assert sample(target, (2, 2)).tolist() == [[[5, 7], [13, 15]]]
    assert sample(target == 7, (2, 2)).tolist() == [[[0, 1], [0, 0]]]


@pytest.mark.parametrize("crop, kernel", [(512, 15), (224, 7), (96, 3), (16, 1)])
def test_the_closing_kernel_scales_and_stays_odd(crop, kernel, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "camguide_fast.method.targets.ops.label_closing", lambda x, kernel_size: seen.append(kernel_size) or x
    )
    TargetMaker(Refinement(), crop).crf(
        torch.zeros(1, 8, 8, dtype=torch.int64), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 2
    )
    assert seen == [kernel]


@pytest.fixture(scope="module")
def photographs():
    """(image [1, 3, S, S], mask, class, seed as coarse as a CAM: the mask at 9 x 9 cells) of some photographs."""
    voc = conftest.VOC
    if not voc.is_dir():
        pytest.skip(f"{voc} is absent")
    examples, size = [], (224, 224)
    for stem in (voc / "ImageSets/Segmentation/val.txt").read_text().split()[::25]:
        photo = cv2.resize(read_image(voc / "JPEGImages" / f"{stem}.jpg"), size, interpolation=cv2.INTER_AREA)
        mask = read_mask(voc / "SegmentationClass" / f"{stem}.png", 5)
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        which = np.bincount(mask[(mask > 0) & (mask < 255)]).argmax()
        cells = cv2.resize((mask == which).astype(np.float32), (9, 9), interpolation=cv2.INTER_AREA)
        seed = torch.from_numpy((cv2.resize(cells, size) > 0.4) * which)[None]
        examples.append((torch.from_numpy(photo).permute(2, 0, 1)[None], mask, which, seed))
    return examples


def mean_iou(examples, make) -> float:
    scores = []
    for image, mask, which, seed in examples:
        labels, known = make(seed, image)[0].numpy(), mask != 255
        hit, either = (labels == which) & (mask == which), (labels == which) | (mask == which)
        scores.append((hit & known).sum() / (either & known).sum())
    return np.mean(scores)


def test_the_crf_target_is_nearer_to_the_object_than_a_coarse_map(photographs):
    before = mean_iou(photographs, lambda seed, image: seed)
    assert mean_iou(photographs, lambda seed, image: TargetMaker(Refinement(), 224).crf(seed, image, 5)) > before + 0.02


def test_the_walk_keeps_objects_only_if_segments_are_as_fine_as_the_crop_asks(photographs):
    """Twelve steps over 210 segments (1100 scaled with the area) mix the whole picture; over 1100 they do not."""
    before = mean_iou(photographs, lambda seed, image: seed)
    fine = mean_iou(photographs, lambda seed, image: TargetMaker(Refinement(), 224).walk(seed, image, 5))
    coarse = mean_iou(photographs, lambda seed, image: TargetMaker(Refinement(segments=210), 224).walk(seed, image, 5))
    assert fine > before - 0.08 and coarse < fine - 0.1
