"""CAMs scored against masks: the rows of results, thresholds fitted here or elsewhere."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.cams import CLASSES

from camguide_fast import ops
from camguide_fast.cams import evaluate_cams, format_table, score, sweep
from camguide_fast.cams.thresholds import DEFAULT_THRESHOLD, THRESHOLDS, iou, label_map
from camguide_fast.data import Record, Split, write_mask
from camguide_fast.errors import DataError


def make_split(folder: Path, name: str, count: int, seed: int) -> tuple[Path, Split]:
    """Random blocky masks and noisy CAMs of them: class 2 ("cow") is never there."""
    rng = np.random.default_rng(seed)
    cams, masks = folder / "cams" / name, folder / "masks" / name
    cams.mkdir(parents=True)
    masks.mkdir(parents=True)
    records = []
    for i in range(count):
        mask = np.kron(rng.integers(0, 3, (4, 5)), np.ones((6, 5))).astype(np.uint8)
        keys = np.unique(mask[mask > 0]).astype(np.int64) - 1
        cam = np.stack(
            [np.clip((mask == k + 1) * (0.3 + 0.3 * k) + rng.normal(0.2, 0.1, mask.shape), 0, 1) for k in keys]
        )
        mask[0] = 255
        np.savez(cams / f"{i}.npz", keys=keys, cam=cam.astype(np.float16))
        write_mask(masks / f"{i}.png", mask)
        records.append(Record(str(i), folder / f"{i}.jpg", tuple(keys.tolist()), masks / f"{i}.png"))
    return cams, Split(folder, name, CLASSES, tuple(records))


def by_mode(rows: list[dict], fitted_on: str) -> dict[str, dict]:
    return {row["threshold_mode"]: row for row in rows if row["fitted_on"] == fitted_on}


def test_rows(tmp_path):
    cams, split = make_split(tmp_path, "val", 4, 0)
    rows = evaluate_cams(cams, split, "stage1", "given")
    assert [(r["threshold_mode"], r["fitted_on"], r["images"]) for r in rows] == [
        ("global", "val", 4),
        ("class-wise", "val", 4),
    ]
    both = by_mode(rows, "val")
    assert {key: both["global"][key] for key in ("stage", "split", "labels")} == {
        "stage": "stage1",
        "split": "val",
        "labels": "given",
    }
    assert list(both["global"]["iou"]) == ["background", *CLASSES]
    assert both["global"]["iou"]["cow"] is None  # neither there nor predicted
    defined = [v for v in both["global"]["iou"].values() if v is not None]
    assert len(defined) == 3 and both["global"]["miou"] == pytest.approx(np.mean(defined), abs=1e-2)
    assert 50 < both["global"]["miou"] <= 100
    assert set(both["class-wise"]["thresholds"]) == set(CLASSES)
    assert both["class-wise"]["thresholds"]["cat"] < both["class-wise"]["thresholds"]["dog"]
    json.dumps(rows, allow_nan=False)


def test_global_row_is_the_best_of_the_sweep_and_equals_scoring_it(tmp_path):
    cams, split = make_split(tmp_path, "val", 3, 1)
    confusions = sweep(cams, split)
    row = by_mode(evaluate_cams(cams, split, "s", "given"), "val")["global"]
    best = max(range(len(THRESHOLDS)), key=lambda t: np.nanmean(iou(confusions[t])))
    assert row["thresholds"] == THRESHOLDS[best]
    assert row["miou"] == pytest.approx(100 * np.nanmean(iou(confusions[best])), abs=1e-3)
    (confusion,), images = score(cams, split, [THRESHOLDS[best]])
    assert images == 3 and np.array_equal(confusion, confusions[best])


def test_score_is_the_confusion_of_the_labels(tmp_path):
    cams, split = make_split(tmp_path, "val", 2, 2)
    thresholds = (0.3, 0.45, 0.2)
    expected = 0
    for record in split:
        with np.load(cams / f"{record.name}.npz") as file:
            labels = label_map(file["cam"], file["keys"], thresholds)
        with Image.open(record.mask) as mask:
            expected += ops.confusion_matrix(torch.from_numpy(labels), torch.from_numpy(np.array(mask)), 4)
    (confusion,), _ = score(cams, split, [thresholds])
    assert torch.equal(torch.from_numpy(confusion), expected)


def test_transfer(tmp_path):
    cams, split = make_split(tmp_path / "a", "val", 3, 3)
    other_cams, other = make_split(tmp_path / "b", "train", 3, 4)
    rows = evaluate_cams(cams, split, "s", "given", fit=(other_cams, other))
    assert len(rows) == 4 and {row["split"] for row in rows} == {"val"}
    fitted, transferred = by_mode(rows, "val"), by_mode(rows, "train")
    there = by_mode(evaluate_cams(other_cams, other, "s", "given"), "train")
    for mode in ("global", "class-wise"):
        assert transferred[mode]["thresholds"] == there[mode]["thresholds"]
    assert transferred["global"]["miou"] <= fitted["global"]["miou"]
    limits = tuple(transferred["class-wise"]["thresholds"].values())
    (confusion,), _ = score(cams, split, [limits])
    assert transferred["class-wise"]["miou"] == pytest.approx(100 * np.nanmean(iou(confusion)), abs=1e-3)
    assert len(evaluate_cams(cams, split, "s", "given", fit=(cams, split))) == 2  # nothing to transfer


def test_refuses(tmp_path):
    cams, split = make_split(tmp_path, "val", 3, 5)
    bare = replace(split, records=tuple(replace(r, mask=None) for r in split))
    with pytest.raises(DataError, match="split 'val' has no masks"):
        evaluate_cams(cams, bare, "s", "given", skip_bad=True)
    one_less = replace(split, records=(bare.records[0], *split.records[1:]))
    assert evaluate_cams(cams, one_less, "s", "given")[0]["images"] == 2
    write_mask(split.records[1].mask, np.zeros((24, 26), np.uint8))
    with pytest.raises(DataError, match=r"1\.png: the mask is 26x24"):
        evaluate_cams(cams, split, "s", "given")
    (cams / "1.npz").unlink()
    with pytest.raises(DataError, match=r"1\.npz: no such CAM file"):
        evaluate_cams(cams, split, "s", "given")
    assert evaluate_cams(cams, split, "s", "given", skip_bad=True)[0]["images"] == 2
    for file in cams.iterdir():
        file.unlink()
    with pytest.raises(DataError, match="not one image"):
        evaluate_cams(cams, split, "s", "given", skip_bad=True)


def test_default_threshold_row(tmp_path):
    cams, split = make_split(tmp_path, "val", 3, 8)
    rows = evaluate_cams(cams, split, "walk", "given", default=0.35)
    assert [(r["threshold_mode"], r["fitted_on"]) for r in rows[2:]] == [("global", "default")]
    (confusion,), _ = score(cams, split, [0.35])
    assert rows[2]["miou"] == pytest.approx(100 * np.nanmean(iou(confusion)), abs=1e-3)
    assert "by default" in format_table(rows)


def test_refine_has_the_last_word(tmp_path):
    cams, split = make_split(tmp_path, "val", 2, 9)
    seen = []
    refine = lambda record, labels: seen.append(record.name) or np.zeros_like(labels)  # noqa: E731
    (confusion,), images = score(cams, split, [0.3], refine=refine)
    assert seen == ["0", "1"] and images == 2 and confusion[:, 1:].sum() == 0


def test_masks_that_are_void_everywhere_have_no_score(tmp_path):
    cams, split = make_split(tmp_path / "a", "val", 3, 10)
    for record in split:
        write_mask(record.mask, np.full((24, 25), 255, np.uint8))
    rows = evaluate_cams(cams, split, "s", "given", default=0.35)
    assert [(row["miou"], set(row["iou"].values())) for row in rows] == [(None, {None})] * 3
    assert rows[0]["thresholds"] == DEFAULT_THRESHOLD  # and not the first of the sweep
    assert rows[1]["thresholds"] == dict.fromkeys(CLASSES, DEFAULT_THRESHOLD)
    json.dumps(rows, allow_nan=False)
    assert "0.0" not in format_table(rows)
    write_mask(split.records[1].mask, np.zeros((24, 25), np.uint8))  # one pixel suffices
    assert evaluate_cams(cams, split, "s", "given")[0]["miou"] is not None
