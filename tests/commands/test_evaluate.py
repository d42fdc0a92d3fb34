"""The command `evaluate`: a checkpoint scored on a split."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.cams import CLASSES

from camguide_fast import evaluate as evaluate_module
from camguide_fast.cams import evaluate_cams
from camguide_fast.data import open_split, write_mask
from camguide_fast.errors import DataError, UserError
from camguide_fast.evaluate import Args, evaluate
from camguide_fast.models.checkpoint import ModelCard, save_model


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


def test_masks_that_contradict_the_tags(data, checkpoint, tmp_path, capsys):
    """In `data` every mask shows cat and dog, which are the tags."""
    args = Args(checkpoint, data, scales=(1.0,), device="cpu", cams=tmp_path / "cams")
    evaluate(args)
    assert "warning" not in capsys.readouterr().out
    other = tmp_path / "data"
    shutil.copytree(data, other)
    (other / "tags.csv").write_text((data / "tags.csv").read_text().replace("cat;dog", "cow"))
    with pytest.raises(DataError, match=r"in 2 of 2 images of split 'val' the mask contradicts .*--trust-masks"):
        evaluate(replace(args, data=other))
    evaluate(replace(args, data=other, trust_masks=True, cams=None))
    said = capsys.readouterr().out
    assert said.startswith(f"warning: {other}: in 2 of 2 images of split 'val'") and "mIoU" in said
    with pytest.raises(DataError, match=r"in 2 of 2 images of split 'train' the mask"):  # where thresholds are fitted
        evaluate(replace(args, data=mixed(data, tmp_path / "mixed"), fit_split="train"))
    evaluate(replace(args, data=other, labels="predicted", cams=None, trust_masks=True))  # known tags are compared too


def mixed(data: Path, root: Path) -> Path:
    shutil.copytree(data, root)
    lines = (data / "tags.csv").read_text().splitlines()
    (root / "tags.csv").write_text("\n".join(line.replace("cat;dog,train", "cow,train") for line in lines))
    return root
