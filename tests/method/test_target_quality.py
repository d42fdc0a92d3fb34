"""What stage 3 measures of itself, with masks and without."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch

from camguide_fast.config import Refinement
from camguide_fast.data import Record, Split, write_mask
from camguide_fast.method.stages import RefinementStage
from camguide_fast.method.target_quality import TargetQuality, scored_sample
from camguide_fast.models import build_model

CPU = torch.device("cpu")


@pytest.fixture
def split(tmp_path) -> Split:
    from PIL import Image

    records = []
    for i in range(4):
        picture = np.random.default_rng(i).integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
        write_mask(tmp_path / f"{i}_mask.png", np.full((40, 48), i % 3, np.uint8))
        records.append(Record(str(i), tmp_path / f"{i}.png", (i % 2,), tmp_path / f"{i}_mask.png"))
    return Split(tmp_path, "train", ("cat", "dog"), tuple(records))


def quality(split: Split) -> tuple[TargetQuality, torch.nn.Module]:
    torch.manual_seed(0)
    net = build_model("resnet18", 2, "lean", width=8, radius=2, eps=1e-2)
    return TargetQuality(RefinementStage(net, Refinement(closing=0), 48), split, 3, CPU, False), net


AGREE = {"agree_rw", "agree_crf", "foreground"}


def test_with_masks_and_without(split):
    measure, net = quality(split)
    measured, remark = measure(net)
    assert set(measured) == AGREE | {"miou_cam", "miou_rw", "miou_crf"} and not remark
    assert all(0 <= value <= 100 for value in measured.values())
    bare = replace(split, records=tuple(replace(record, mask=None) for record in split))
    without, _ = quality(bare)[0](net)
    assert without == {name: measured[name] for name in AGREE}


def test_masks_come_first(split):
    one = replace(split, records=(*(replace(r, mask=None) for r in split.records[:3]), split.records[3]))
    assert [record.name for record in scored_sample(one, 3)] == ["3"]


@pytest.mark.parametrize(
    "shares, said",
    [
        ([12.0, 10.0, 15.0], ["", "", ""]),
        ([12.0, 9.0, 7.9], ["", "", "warning: the maps shrink, from 12 to 7.9 % of the pictures"]),
        ([12.0, 17.0], ["", "warning: the maps grow, from 12 to 17 % of the pictures"]),
        ([0.0, 0.0, 5.0, 9.0], ["", "", "", "warning: the maps grow, from 5 to 9 % of the pictures"]),
    ],
)
def test_maps_that_run_away_are_warned_of(split, shares, said):
    measure, net = quality(split)
    with mock.patch.object(measure, "_measured", side_effect=[{"foreground": share} for share in shares]):
        remarks = [measure(net)[1] for _ in shares]
    assert [remark.partition(";")[0] for remark in remarks] == said
