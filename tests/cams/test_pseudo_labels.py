"""From CAMs to final labels: edges, walk and CRF on files; other methods' CAMs; the command's stages."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from camguide_fast import infer as infer_module
from camguide_fast.cams import pseudo_labels
from camguide_fast.cams.cam_files import ImageCams, cam_made_by, read_cam, save_cam
from camguide_fast.cams.irn_files import export_cams
from camguide_fast.cams.pseudo_labels import edge_map, walked, write_affinity_labels, write_final_masks, write_walks
from camguide_fast.cams.thresholds import label_map
from camguide_fast.config import Affinity, Config, Crf, Walk, to_dict
from camguide_fast.data import Split, mask_made_by, open_images, read_mask
from camguide_fast.errors import DataError, UserError
from camguide_fast.files import write_json
from camguide_fast.infer import Args, infer
from camguide_fast.models.checkpoint import ModelCard, save_model

CLASSES = ("cat", "dog", "cow")
CARD = ModelCard("affinity", "resnet18", "edges", 16, 2, 1e-2, CLASSES)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return CARD.build().eval()


@pytest.fixture
def data(tmp_path) -> tuple[Split, Path]:
    """Three photographs of two halves, and CAMs of dog and cow; the last image has no class."""
    folder, cams = tmp_path / "images", tmp_path / "cams"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, name in enumerate("abc"):
        pixels = np.full((30 + i, 45, 3), 50) + rng.integers(0, 20, (30 + i, 45, 3))
        pixels[:, 20:] += 120
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}.png")
        keys = np.array([1, 2] if name != "c" else [], np.int64)
        ramp = np.linspace(1, 0, 45) * np.ones((30 + i, 1))
        cam = np.stack([ramp, 0.5 * ramp])[: len(keys)].astype(np.float16)
        save_cam(cams / f"{name}.npz", ImageCams(name, torch.zeros(0), keys, cam), f"made by {name}")
    return open_images(folder, CLASSES), cams


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (41, 18), (64, 64)], ids=str)
def test_edges_of_any_size(net, size):
    edge = edge_map(net, torch.randint(0, 256, (3, *size), dtype=torch.uint8))
    assert edge.shape == (1, 1, -(-size[0] // 4), -(-size[1] // 4))
    assert (0 < edge).all() and (edge < 1).all()


def test_edges_are_those_of_both_views(net):
    image = torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8)
    torch.testing.assert_close(edge_map(net, image), edge_map(net, image.flip(2)).flip(3), atol=1e-4, rtol=1e-4)
    assert edge_map(net, image, max_side=24).shape == (1, 1, 4, 6)  # larger images are shrunk


def test_one_maximum_for_all_classes():
    cam = torch.rand(2, 21, 33)
    cam[1] *= 0.1
    result = walked(cam, torch.zeros(1, 1, 6, 9), Walk())
    assert result.shape == cam.shape and 0.99 < result[0].max() < 1 and result[1].max() < 0.3
    assert walked(cam[:0], torch.zeros(1, 1, 6, 9), Walk()).shape == (0, 21, 33)


def test_walk_files_are_kept_until_something_changes(net, data, tmp_path, monkeypatch):
    split, cams = data
    out, calls = tmp_path / "walk", []
    whole = pseudo_labels.walk_image
    monkeypatch.setattr(pseudo_labels, "walk_image", lambda *a, **k: calls.append(a[1].name) or whole(*a, **k))

    def write(settings: Walk) -> list[str]:
        calls.clear()
        write_walks(net, CARD, split, cams, out, settings)
        return list(calls)

    assert write(Walk()) == ["a", "b", "c"] and write(Walk()) == []
    keys, cam = read_cam(out / "a.npz", 3, (30, 45))
    assert keys.tolist() == [1, 2] and 0 <= cam.min() and cam.max() <= 1
    assert read_cam(out / "c.npz", 3)[1].shape == (0, 32, 45)
    (out / "b.npz").write_bytes((out / "b.npz").read_bytes()[:99])  # cut off
    assert write(Walk()) == ["b"]
    save_cam(cams / "a.npz", ImageCams("a", torch.zeros(0), keys, cam), "made anew")
    assert write(Walk()) == ["a"]
    assert write(replace(Walk(), beta=8.0)) == ["a", "b", "c"]
    assert write(replace(Walk(), beta=8.0, threshold=0.2, crf=Crf(0))) == []  # which the walk does not use


def test_final_masks_and_affinity_labels(data, tmp_path):
    split, cams = data
    report = write_final_masks(cams, split, tmp_path / "final", 0.5, Crf(iterations=0), CPU)
    assert report.written == 3
    for name in "ab":
        keys, cam = read_cam(cams / f"{name}.npz", 3)
        assert np.array_equal(read_mask(tmp_path / "final" / f"{name}.png", 3), label_map(cam, keys, 0.5))
    refined = write_final_masks(cams, split, tmp_path / "final", 0.5, Crf(iterations=5), CPU)
    assert refined.written == 3  # other settings
    assert write_final_masks(cams, split, tmp_path / "final", 0.5, Crf(iterations=5), CPU).kept == 3
    mask = read_mask(tmp_path / "final/a.png", 3)
    assert (mask == 2).any() and not (mask == label_map(*read_cam(cams / "a.npz", 3)[::-1], 0.5)).all()
    write_affinity_labels(cams, split, tmp_path / "labels", Affinity(), CPU)
    labels = read_mask(tmp_path / "labels/a.png", 3)
    assert set(np.unique(labels)) == {0, 2, 255} and (read_mask(tmp_path / "labels/c.png", 3) == 0).all()


def test_what_is_wrong_with_cams_is_said_or_left_out(net, data, tmp_path):
    split, cams = data
    np.savez(cams / "a.npz", keys=np.array([0]), cam=np.zeros((1, 8, 12), np.float32))
    with pytest.raises(DataError, match=r"a\.npz: CAMs of \[8, 12\] pixels, the image has \[30, 45\]"):
        write_walks(net, CARD, split, cams, tmp_path / "walk", Walk())
    np.savez(cams / "a.npz", keys=np.array([0]), cam=np.full((1, 30, 45), 7, np.float32))
    with pytest.raises(DataError, match=r"a\.npz: CAMs from 7 to 7, expected 0 to 1"):
        write_walks(net, CARD, split, cams, tmp_path / "walk", Walk())
    report = write_walks(net, CARD, split, cams, tmp_path / "walk", Walk(), pseudo_labels.Share(skip_bad=True))
    assert report.skipped == ["a"] and report.written == 2
    assert cam_made_by(cams / "a.npz") != "" and cam_made_by(tmp_path / "none.npz") == ""


def test_irn_layout(data, tmp_path):
    split, cams = data
    assert export_cams(cams, split, tmp_path / "irn") == 3
    with np.load(tmp_path / "irn/a.npz", allow_pickle=False) as file:
        assert set(file) == {"keys", "cam", "high_res"}
        assert file["cam"].shape == (2, 8, 12) and file["high_res"].shape == (2, 30, 45)
        assert file["cam"].dtype == np.float32 and file["keys"].tolist() == [1, 2]
    for name in "abc":
        keys, cam = read_cam(tmp_path / "irn" / f"{name}.npz", 3)
        expected_keys, expected = read_cam(cams / f"{name}.npz", 3)
        assert np.array_equal(keys, expected_keys) and np.array_equal(cam, expected)


@pytest.fixture
def foreign(net, data, tmp_path) -> dict:
    """Arguments for refining another method's CAMs."""
    split, cams = data
    export_cams(cams, split, tmp_path / "irn")
    save_model(tmp_path / "affinity.safetensors", net, CARD)
    affinity = tmp_path / "affinity.safetensors"
    return {"images": split.root, "out": tmp_path / "out", "affinity": affinity, "cams": tmp_path / "irn"}


@pytest.mark.parametrize("stage", ["walk", "final"])
def test_command_refines_cams_of_other_methods(foreign, capsys, stage):
    out = foreign["out"]
    infer(Args(**foreign, stage=stage, scores=True, device="cpu"))
    said = capsys.readouterr().out
    assert f"3 masks of {stage} from" in said and "threshold: 0.35, the default" in said
    for name, size in zip("abc", (30, 31, 32), strict=True):
        mask = read_mask(out / f"{name}.png", 3)
        keys, scores = read_cam(out / "scores" / f"{name}.npz", 3, (size, 45))
        assert mask.shape == (size, 45) and set(np.unique(mask)) <= {0, *(keys + 1)}
        if stage == "walk":
            assert np.array_equal(mask, label_map(scores, keys, 0.35))
        else:
            assert len(keys) == len(set(np.unique(mask)) - {0}) and scores.size == 0 or scores.max() <= 1
    marks = {name: mask_made_by(out / f"{name}.png") for name in "abc"}
    (out / "b.png").unlink()
    infer(Args(**foreign, stage=stage, scores=True, device="cpu"))
    assert "2 of them from before" in capsys.readouterr().out  # stopped anywhere, it goes on
    assert {name: mask_made_by(out / f"{name}.png") for name in "abc"} == marks
    infer(Args(**foreign, stage=stage, scores=True, device="cpu", threshold=0.6))
    assert "from before" not in capsys.readouterr().out


def test_command_goes_from_checkpoint_to_final(net, data, tmp_path, capsys):
    split, _ = data
    run = tmp_path / "run"
    card = replace(CARD, stage="stage3", head="none", tag_thresholds=(0.0, 0.0, 0.0))
    save_model(run / "checkpoints/stage3.safetensors", card.build(), card)
    arguments = {"checkpoint": run / "checkpoints/stage3.safetensors", "images": split.root, "scales": (1.0,)}
    with pytest.raises(UserError, match=r"affinity\.safetensors: no such checkpoint"):
        infer(Args(**arguments, out=tmp_path / "out", stage="final", device="cpu"))
    save_model(run / "checkpoints/affinity.safetensors", net, CARD)
    infer(Args(**arguments, out=tmp_path / "out", stage="final", device="cpu"))
    said = capsys.readouterr().out
    assert "3 masks of final from stage3" in said and "threshold: 0.35, the default" in said
    thresholds = {"global": 0.3, "class-wise": [0.2, 0.3, 0.4], "fitted_on": "val"}
    write_json(run / "thresholds.json", {"final": thresholds})
    write_json(run / "config.json", {"config": {"affinity": {"source": "stage3"}, "inference": {"scales": [1.0]}}})
    infer(Args(**arguments, out=tmp_path / "out", stage="final", device="cpu"))
    assert "threshold: class-wise, fitted on val" in capsys.readouterr().out


def test_the_command_walks_as_the_run_did(net, data, tmp_path, monkeypatch, capsys):
    split, _ = data
    card = replace(CARD, stage="stage3", head="none", tag_thresholds=(0.0, 0.0, 0.0))
    for name in ("run", "bare"):
        save_model(tmp_path / name / "checkpoints/stage3.safetensors", card.build(), card)
        save_model(tmp_path / name / "checkpoints/affinity.safetensors", net, CARD)
    write_json(tmp_path / "run/config.json", {"config": to_dict(Config(walk=Walk(radius=3, beta=8.0, log2_steps=2)))})

    def said(name: str, *more: str) -> str:
        checkpoint = str(tmp_path / name / "checkpoints/stage3.safetensors")
        where = ["--checkpoint", checkpoint, "--images", str(split.root), "--out", str(tmp_path / name / "out")]
        monkeypatch.setattr(sys, "argv", ["infer", *where, "--scales", "1", "--stage", "walk", *more])
        infer_module.main()
        return capsys.readouterr().out

    assert "walk: 4 steps, radius 3, beta 8" in said("run")
    assert "walk: 8 steps, radius 3, beta 8" in said("run", "--walk.log2-steps", "3")
    assert "walk: 256 steps, radius 5, beta 10" in said("bare")


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(checkpoint=Path("x")), "expected one of them"),
        (dict(cams=None), "expected one of them"),
        (dict(stage="cam"), "are refined by --stage walk or final"),
        (dict(affinity=None), "--affinity must name an AffinityNet"),
        (dict(labels="given"), "hold the classes of their images"),
    ],
)
def test_command_refuses(foreign, change, message):
    with pytest.raises(UserError, match=message):
        infer(Args(**{**foreign, "stage": "walk"} | change, device="cpu"))
