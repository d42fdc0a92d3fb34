import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from camguide_fast import evaluate as evaluate_module
from camguide_fast import ops
from camguide_fast.cams import evaluate_cams, format_table, score, sweep
from camguide_fast.cams.results import merge_rows, read_rows
from camguide_fast.cams.thresholds import THRESHOLDS, iou, label_map
from camguide_fast.config import to_dict
from camguide_fast.config.presets import default
from camguide_fast.data import Record, Split, open_split, write_mask
from camguide_fast.errors import DataError, UserError
from camguide_fast.evaluate import Args, evaluate
from camguide_fast.files import write_json
from camguide_fast.models.checkpoint import ModelCard, save_model
from camguide_fast.runs.paper_tables import paper_tables

CLASSES = ("cat", "dog", "cow")


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
    with pytest.raises(DataError, match=r"0\.jpg: this image of split 'val' has no mask"):
        evaluate_cams(cams, one_less, "s", "given")
    assert evaluate_cams(cams, one_less, "s", "given", skip_bad=True)[0]["images"] == 2
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


def row(stage="stage1", mode="global", fitted_on="val", miou=50.0, classes=CLASSES, **more) -> dict:
    thresholds = 0.2 if mode == "global" else dict.fromkeys(classes, 0.2)
    base = {"stage": stage, "split": "val", "labels": "given", "threshold_mode": mode, "thresholds": thresholds}
    scores = {"miou": miou, "iou": {"background": 80.0, **dict.fromkeys(classes, 40.0)}}
    return {**base, "fitted_on": fitted_on, "images": 7, **scores, **more}


def test_merge_replaces_only_the_same_row():
    old = [row(), row(mode="class-wise"), row(stage="stage2"), row(fitted_on="train")]
    new = merge_rows(old, [row(miou=60.0), row(split="train")])
    assert [r["miou"] for r in new] == [60.0, 50.0, 50.0, 50.0, 50.0] and new[1:4] == old[1:]


def test_read_rows(tmp_path):
    assert read_rows(tmp_path / "none.json") == []
    for broken in ({}, [1], [{"stage": "a"}]):
        write_json(tmp_path / "r.json", broken)
        with pytest.raises(UserError, match=r"r\.json: not a list of results"):
            read_rows(tmp_path / "r.json")


def test_table():
    rows = [
        row("baseline"),
        row("stage3", miou=61.24),
        row("baseline", "class-wise"),
        row("stage3", fitted_on="train:20"),
    ]
    rows[1]["iou"]["cow"] = None
    assert format_table(rows).splitlines() == [
        "val, 7 images, given labels: IoU in %",
        "stage     threshold    fit              mIoU  background   cat   dog   cow",
        "--------------------------------------------------------------------------",
        "baseline  global 0.20  fitted           50.0        80.0  40.0  40.0  40.0",
        "          class-wise   fitted           50.0        80.0  40.0  40.0  40.0",
        "stage3    global 0.20  fitted           61.2        80.0  40.0  40.0     -",
        "          global 0.20  from train:20    50.0        80.0  40.0  40.0  40.0",
    ]


def test_wide_table_breaks_between_classes():
    classes = tuple(f"class{i:02}" for i in range(20))
    text = format_table([row(classes=classes), row("stage2", classes=classes)], width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert all(text.count(name) == 1 for name in classes)
    assert text.count("stage2") >= 3


def test_tables_of_several_splits():
    text = format_table([row(), row(split="train"), row(labels="predicted")])
    assert text.count("IoU in %") == 3 and "\n\ntrain, 7 images, given" in text


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A tagged folder with masks: two splits of two images."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    (root / "masks").mkdir()
    lines = ["image,tags,split"]
    for i, split in enumerate(["val", "val", "train", "train"]):
        Image.fromarray(rng.integers(0, 256, (40, 52, 3), dtype=np.uint8)).save(root / f"{i}.jpg")
        mask = np.kron(rng.integers(0, 3, (4, 4)), np.ones((10, 13))).astype(np.uint8)
        write_mask(root / "masks" / f"{i}.png", mask)
        lines.append(f"{i}.jpg,cat;dog,{split}")
    (root / "tags.csv").write_text("\n".join(lines))
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    card = ModelCard("stage1", "resnet18", "none", 16, 2, 1e-2, CLASSES, (-9.0, -9.0, float("inf")))
    path = tmp_path_factory.mktemp("run") / "checkpoints/stage1.safetensors"
    save_model(path, card.build(), card)
    return path


def test_command(data, checkpoint, tmp_path, capsys):
    out, cams = tmp_path / "deep/results.json", tmp_path / "cams"
    args = Args(checkpoint, data, out=out, fit_split="train:1", scales=(1.0,), cams=cams, device="cpu")
    evaluate(args)
    said = capsys.readouterr().out
    assert "from train:1" in said and "val, 2 images, given labels" in said
    assert sorted(p.relative_to(cams).as_posix() for p in cams.rglob("*.npz")) == [
        "stage1/train_1/2.npz",
        "stage1/val/0.npz",
        "stage1/val/1.npz",
    ]
    rows = json.loads(out.read_text())
    assert len(rows) == 4 and rows == evaluate_cams(
        cams / "stage1/val",
        open_split(data, "val"),
        "stage1",
        "given",
        (cams / "stage1/train_1", open_split(data, "train:1")),
    )
    evaluate(replace(args, labels="predicted", fit_split=None, cams=None))
    again = json.loads(out.read_text())
    assert again[:4] == rows and [r["labels"] for r in again[4:]] == ["predicted"] * 2


def test_command_refuses(data, checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "results.json").write_text("{}")
    args = Args(checkpoint, data, scales=(1.0,), device="cpu")
    cases = [
        (dict(split="test"), "no split 'test'"),
        (dict(data=tmp_path / "none"), "no such folder"),
        (dict(fit_split="val"), "is the scored split"),
        (dict(out=tmp_path / "results.json"), "not a list of results"),
        (dict(checkpoint=tmp_path / "none"), "no such checkpoint"),
        (dict(scales=(-1.0,)), "scales"),
        (dict(workers=-1), '--workers: expected "auto" or at least 0, got -1'),
    ]
    for change, message in cases:
        with pytest.raises(UserError, match=message):
            evaluate(replace(args, **change))
    assert (tmp_path / "results.json").read_text() == "{}"
    monkeypatch.setattr(sys, "argv", ["e", "--checkpoint", str(checkpoint), "--data", str(tmp_path), "--split", "val"])
    with pytest.raises(SystemExit) as stop:
        evaluate_module.run_cli(evaluate_module.main)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.err.startswith(f"error: {tmp_path}: neither a VOC tree")
    assert captured.err.count("\n") == 1


def test_class_count_must_fit(data, checkpoint, tmp_path):
    other = tmp_path / "c.safetensors"
    card = ModelCard("stage1", "resnet18", "none", 16, 2, 1e-2, ("cat", "dog"))
    save_model(other, card.build(), card)
    with pytest.raises(UserError, match=r"has 3 classes \(cat, dog, cow\), the checkpoint 2 \(cat, dog\)"):
        evaluate(Args(other, data, scales=(1.0,), device="cpu"))


def test_run_cli(capsys):
    def raises(error):
        def function():
            raise error

        return function

    for error, code, text in (
        (DataError("x.jpg: broken"), 2, "error: x.jpg: broken\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ):
        with pytest.raises(SystemExit) as stop:
            evaluate_module.run_cli(raises(error))
        assert stop.value.code == code and capsys.readouterr().err == text
    with pytest.raises(ValueError):  # a bug keeps its traceback
        evaluate_module.run_cli(raises(ValueError("bug")))


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


def run_with_scores(folder: Path, **stage3) -> Path:
    config = default()
    config = replace(config, stage3=replace(config.stage3, **stage3))
    write_json(folder / "config.json", {"config": to_dict(config)})
    rows = []
    for i, (stage, split) in enumerate(
        itertools.product(("teacher", "baseline", "stage2", "stage3", "walk", "final"), ("train:4", "val"))
    ):
        for j, (mode, fitted_on) in enumerate(itertools.product(("global", "class-wise"), (split, "train", "default"))):
            rows.append(
                {
                    "stage": stage,
                    "split": split,
                    "labels": "given",
                    "threshold_mode": mode,
                    "thresholds": 0.3,
                    "fitted_on": fitted_on,
                    "images": 4,
                    "miou": 10 + i + j / 10,
                    "iou": {},
                }
            )
    write_json(folder / "results.json", rows)
    return folder


def test_paper_tables(tmp_path, capsys):
    run = run_with_scores(tmp_path / "run")
    card = ModelCard("stage3", "resnet18", "lean", 16, 2, 1e-2, CLASSES)
    save_model(run / "checkpoints/stage3.safetensors", card.build(), card)
    evaluate(Args(table=run))
    tables = capsys.readouterr().out.split("\n\n")
    assert tables[0].startswith("Tables IV and V: train (this run: train:4, 4 images, given labels)")
    assert tables[1].startswith("Table VI: val (this run: val, 4 images, given labels)")
    train, val = ([line.split() for line in table.splitlines()] for table in tables[:2])
    (final,) = [line for line in val if line[:6] == ["all", "stages", "+", "walk", "+", "dCRF"] and "global" in line]
    size = f"{sum(p.numel() for p in card.build().parameters()) / 1e6:.2f}"
    assert final[6:] == ["global", "ResNet18", "15.41", "57.55", "resnet18", size, "21.00", "21.10", "21.20"]
    (none,) = [line for line in train if "no" in line and "morphology" in line and "global" in line]
    assert none[-6:] == ["48.22", "-", "-", "-", "-", "-"]  # the run was made with morphology
    assert "Puzzle-CAM" in tables[0] and "64.70" in tables[0] and "72.20" in tables[2]
    assert "this run" in tables[2] and "21.30" in tables[2]  # the better of both modes
    ablated = run_with_scores(tmp_path / "ablated", closing=0)
    train, val = (
        line.split()
        for line in paper_tables(ablated).splitlines()
        if line.startswith("all stages, no morph") and "global" in line
    )
    assert train[-3:] == ["16.00", "16.10", "16.20"]
    assert val[-3:] == ["17.00", "17.10", "17.20"]  # without a figure of the paper's
    with pytest.raises(UserError, match="config.json"):
        paper_tables(tmp_path / "nowhere")
    with pytest.raises(UserError, match="expected both, or --table"):
        evaluate(Args())
