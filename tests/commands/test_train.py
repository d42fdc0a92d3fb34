"""`python -m camguide_fast.train` as a person meets it: the whole method on a small set, and what is wrong with the
input."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camguide_fast import train
from camguide_fast.cli import run_cli
from camguide_fast.config import Network
from camguide_fast.data import make_demo, write_mask
from camguide_fast.errors import UserError
from camguide_fast.runs.arguments import parse, trunk_path
from camguide_fast.runs.exports import find_made
from camguide_fast.runs.report import write_report

TRAINED = ("stage1", "stage2", "stage3", "affinity")
TINY = (
    "--preset demo --data.crop 48 --data.long-side 40 60 --data.workers 0 --network.width 16 --inference.scales 1"
    " --inference.target-sample 2 --inference.fit-split train:4"
    + "".join(f" --{s}.epochs 1 --{s}.batch-size 4" for s in ("baseline", "teacher", *TRAINED))
).split()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("set"), train=12, val=4, size=48)


def call(monkeypatch, *argv) -> int:
    """The command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["train", *map(str, argv)])
    try:
        run_cli(train.main)
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture(scope="module")
def finished(demo, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert call(monkeypatch, "--data", demo, "--out", out, *TINY) == 0
    return out


def test_the_whole_method_leaves_everything_it_promises(finished):
    stages = ["baseline", "teacher", "stage1", "stage2", "stage3", "walk", "final"]
    rows = json.loads((finished / "results.json").read_text())
    assert list(dict.fromkeys(row["stage"] for row in rows)) == stages
    for stage in stages:
        found = {(r["split"], r["labels"], r["threshold_mode"], r["fitted_on"]) for r in rows if r["stage"] == stage}
        expected = {("val", "given", m, f) for m in ("global", "class-wise") for f in ("val", "train:4")}
        expected |= {("val", "given", "global", "default")} if stage in ("walk", "final") else set()
        assert found == expected
        assert (finished / f"checkpoints/{stage}.safetensors").exists() == (stage not in ("walk", "final"))
        assert not (finished / f"checkpoints/{stage}.state.pt").exists()
        masks = sorted((finished / f"masks/{stage}/val").glob("*.png"))
        assert len(masks) == 4 and Image.open(masks[0]).mode == "P"
    for row in rows:
        assert 0 <= row["miou"] <= 100 and set(row["iou"]) == {"background", *row["iou"]} and len(row["iou"]) == 6
        known = [value for value in row["iou"].values() if value is not None]
        assert row["miou"] == pytest.approx(np.mean(known), abs=0.01)
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["stage"] == "stage3" and line.get("event") == "epoch"]
    assert {"miou_cam", "miou_rw", "miou_crf"} <= set(last[0])
    trained = {"baseline", *TRAINED}  # which serves as teacher as well
    assert {line["stage"] for line in lines} == trained
    assert {"loss", "bg", "fg", "neg"} <= set(next(line for line in lines if line["stage"] == "affinity"))
    assert len(list((finished / "affinity/train").glob("*.png"))) == 12
    assert set(json.loads((finished / "thresholds.json").read_text())) == set(stages)
    assert (finished / "report.html").stat().st_size > 10_000


def test_a_finished_run_is_refused_and_resumed_without_training(finished, demo, monkeypatch, capsys):
    assert call(monkeypatch, "--data", demo, "--out", finished, *TINY) == 2
    assert "holds a run; continue it with --resume" in capsys.readouterr().err
    before = {p: p.read_bytes() for p in [*finished.glob("checkpoints/*"), finished / "results.json"]}
    assert call(monkeypatch, "--out", finished, "--resume") == 0  # every setting comes from the run
    assert "reading images between the steps" in capsys.readouterr().out
    assert call(monkeypatch, "--out", finished, "--resume", "--data.workers", "3") == 0  # changes no result
    assert "threads, reading images ahead on 3 more" in capsys.readouterr().out
    assert call(monkeypatch, "--out", finished, "--resume", "--data.workers", "auto") == 0
    assert json.loads((finished / "config.json").read_text())["config"]["data"]["workers"] == "auto"
    assert "mIoU" in capsys.readouterr().out
    assert all(p.read_bytes() == content for p, content in before.items())
    assert call(monkeypatch, "--out", finished, "--resume", "--stage3.lambda-rw", "0") == 2
    assert "stage3.lambda_rw (was 0.4, now 0.0)" in capsys.readouterr().err


def test_a_lost_stage_is_trained_again_to_the_same_bits(finished, demo, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    weights = copy / "checkpoints/stage3.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    assert call(monkeypatch, "--out", copy, "--resume") == 0
    assert weights.read_bytes() == before


def test_a_run_goes_on_where_its_data_has_moved_to(finished, demo, tmp_path, monkeypatch, capsys):
    run, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(finished, run)
    shutil.copytree(demo, moved)
    assert call(monkeypatch, "--out", run, "--resume", "--data", moved) == 0
    assert json.loads((run / "config.json").read_text())["data"] == str(moved)
    assert find_made(finished, "val", "final", moved).split.root == moved
    assert write_report(run, demo).stat().st_size > 10_000

    labels = json.loads((moved / "labels.json").read_text())
    first, second = list(labels)[:2]
    labels[first] = []
    (moved / "labels.json").write_text(json.dumps(labels))
    capsys.readouterr()
    assert call(monkeypatch, "--out", run, "--resume") == 2
    assert f"split 'train' is not what the run was started with: 1 images with other tags ({first})" in _error(capsys)
    labels["other"] = labels.pop(second)
    (moved / "labels.json").write_text(json.dumps(labels))
    listed = moved / "ImageSets/Segmentation/train.txt"
    listed.write_text(listed.read_text().replace(f"{second}\n", "other\n"))
    (moved / f"JPEGImages/{second}.jpg").rename(moved / "JPEGImages/other.jpg")
    assert call(monkeypatch, "--out", run, "--resume") == 2
    assert f"1 images missing ({second}); 1 images new (other); 1 images with other tags" in _error(capsys)


def _error(capsys) -> str:
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--split", "trian"], "trian"),
        (["--weights", "nowhere.pth"], "nowhere.pth: no such weight file"),
        (["--stages", "3"], "stage3 needs stage2"),
        (["--stages", "affinity"], "affinity needs stage3"),
        (["--stages", "final"], "final needs walk"),
        (["--stage1.batch-size", "64", "--stages", "teacher", "1"], "too few for a batch size of 64"),
        (["--inference.splits", "test"], "test"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(argv, message, demo, tmp_path, monkeypatch, capsys):
    data = [] if "--data" in argv else ["--data", demo]
    assert call(monkeypatch, *data, "--out", tmp_path / "run", *TINY, *argv) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--preset", "smal"], "smal"),
        (["--stage3.epochs", "0"], "--stage3.epochs: expected at least 1, got 0"),
        (["--baseline.batch-size", "0"], "--baseline.batch-size: expected at least 1"),
        (["--stage1.optimizer.lr", "-1"], "--stage1.optimizer.lr: expected a number above 0"),
        (["--stage2.average", "2"], "--stage2.average: expected at least 0 and less than 1"),
        (["--stage3.low", ".9"], "--stage3.low: expected at most --stage3.high"),
        (["--stage3.window", "4"], "--stage3.window: expected an odd number"),
        (["--data.long-side", "96", "64"], "--data.long-side: expected two numbers of pixels, the smaller first"),
        (["--data.crop", "1"], "--data.crop: expected at least 32"),
        (["--network.width", "0"], "--network.width: expected at least 1"),
        (["--inference.scales", "0"], "--inference.scales: expected one or more numbers above 0"),
        (["--walk.radius", "0"], "--walk.radius: expected at least 1"),
        (["--walk.crf.gaussian", "0", "3"], "--walk.crf.gaussian: expected sigmas above 0"),
        (["--seed", "-1"], "--seed: expected at least 0"),
        (["--save-every", "0"], "--save-every: expected at least 1"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_a_setting_that_cannot_work_is_refused_at_once(argv, message, demo, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "--data", demo, "--out", tmp_path / "run", *TINY, *argv) == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("there", [True, False])
def test_a_bare_command_takes_the_weights_that_are_installed(there, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "camguide_fast.runs.arguments.installed", lambda arch: tmp_path / f"{arch}.pth" if there else None
    )
    args = parse([])
    assert (args.preset, args.weights) == (("demo", "imagenet") if there else ("demo-scratch", None))
    assert parse(["--preset", "small", "--data", str(tmp_path)]).weights == "imagenet"
    assert parse(["--data", str(tmp_path)]).weights is None  # default
    named = parse(["--preset", "small", "--data", str(tmp_path), "--weights", "w.pth"])
    assert named.weights.name == "w.pth"


def test_weights_of_the_teacher():
    def paths(**settings):
        args = replace(parse(["--preset", "default"]), **settings)
        return [str(trunk_path(args, teacher=teacher)) for teacher in (False, True)]

    assert paths(weights=Path("a")) == ["a", "None"]  # ResNet-18 and ResNet-50
    assert paths(weights=Path("a"), teacher_weights=Path("b")) == ["a", "b"]
    small = parse(["--preset", "small"])
    same = replace(small, config=replace(small.config, network=Network(student="resnet18", teacher="resnet18")))
    assert str(trunk_path(replace(same, weights=Path("a")), teacher=True)) == "a"
    with pytest.raises(UserError, match="--weights imagenet: ImageNet weights of resnet18.*no pip package"):
        trunk_path(same, teacher=False)


def test_imagenet_stands_in_the_settings_of_the_run(demo, tmp_path, monkeypatch):
    arguments = ["--data", demo, "--out", tmp_path / "run", *TINY, "--stages", "baseline"]
    assert call(monkeypatch, *arguments) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["weights"] == "imagenet"
    assert call(monkeypatch, "--out", tmp_path / "run", "--resume") == 0
    assert call(monkeypatch, *arguments, "--resume") == 0
    assert parse(["--out", str(tmp_path / "run"), "--resume"]).weights == "imagenet"  # and no path of that name


@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["anew", "resumed"])
def test_a_start_that_failed_is_not_in_the_way(resume, demo, tmp_path, monkeypatch):
    """Nothing was trained: the corrected command runs, with --resume and without."""
    stage = ["--stages", "baseline"]
    assert call(monkeypatch, "--data", demo, "--out", tmp_path / "run", *TINY, *stage, "--weights", "nowhere.pth") == 2
    assert call(monkeypatch, "--data", demo, "--out", tmp_path / "run", *TINY, *stage, *resume) == 0


def test_a_bare_resume_of_a_failed_start_keeps_its_settings(demo, tmp_path, monkeypatch, capsys):
    stage = ["--stages", "baseline"]
    assert call(monkeypatch, "--data", demo, "--out", tmp_path / "run", *TINY, *stage, "--weights", "nowhere.pth") == 2
    capsys.readouterr()
    assert call(monkeypatch, "--out", tmp_path / "run", "--resume") == 2
    assert "nowhere.pth: no such weight file" in capsys.readouterr().err
    assert not (tmp_path / "run/data").exists()  # no demo set instead


def test_a_run_knows_its_data_from_anywhere(demo, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(demo.parent)
    stage = ["--stages", "baseline"]
    assert call(monkeypatch, "--data", demo.name, "--out", tmp_path / "run", *TINY, *stage) == 0
    assert call(monkeypatch, "--data", demo, "--out", tmp_path / "run", "--resume", *stage) == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert call(monkeypatch, "--out", tmp_path / "run", "--resume", *stage) == 0


def test_images_without_a_single_mask_get_theirs(demo, tmp_path, monkeypatch, capsys):
    data, out = tmp_path / "set", tmp_path / "run"
    shutil.copytree(demo, data, ignore=shutil.ignore_patterns("SegmentationClass"))
    stages = ["--stages", "baseline", "teacher", "--inference.fit-split", ""]
    assert call(monkeypatch, "--data", data, "--out", out, *TINY, *stages) == 0
    assert "nothing was scored" in capsys.readouterr().out
    for stage in ("baseline", "teacher"):
        assert len(list((out / f"masks/{stage}/val").glob("*.png"))) == 4
    assert not (out / "thresholds.json").exists() and (out / "report.html").exists()


@pytest.fixture
def broken(demo, tmp_path):
    copy = tmp_path / "set"
    shutil.copytree(demo, copy)
    first = (copy / "ImageSets/Segmentation/train.txt").read_text().split()[0]
    (image,) = (copy / "JPEGImages").glob(f"{first}.*")
    image.write_bytes(image.read_bytes()[:300])
    return copy, image


def test_a_broken_image_stops_the_run_or_is_counted(broken, tmp_path, monkeypatch, capsys):
    data, image = broken
    arguments = ["--data", data, "--out", tmp_path / "run", *TINY, "--stages", "teacher", "--inference.fit-split", ""]
    assert call(monkeypatch, *arguments) == 2
    assert image.name in capsys.readouterr().err
    assert call(monkeypatch, *arguments, "--resume", "--skip-bad") == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert any(line.get("skipped") == 1 for line in lines)


def test_a_checkpoint_of_other_classes_is_refused(finished, demo, tmp_path, monkeypatch, capsys):
    data = tmp_path / "set"
    shutil.copytree(demo, data)
    (data / "classes.txt").write_text((data / "classes.txt").read_text() + "unicorn\n")
    out = tmp_path / "run"
    shutil.copytree(finished / "checkpoints", out / "checkpoints", ignore=shutil.ignore_patterns("stage2*"))
    assert call(monkeypatch, "--data", data, "--out", out, *TINY, "--stages", "2", "--resume") == 2
    assert "has 5 classes" in capsys.readouterr().err


def test_two_processes_share_a_run(demo, tmp_path):
    """DDP over gloo: one checkpoint, all CAMs, the same files as one process leaves."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    stages = ["--stages", "teacher", "1", "affinity", "walk", "final", "--affinity.source", "stage1"]
    batches = ["--stage1.batch-size", "2", "--affinity.batch-size", "2"]
    arguments = ["--data", demo, "--out", tmp_path / "run", *TINY, *stages, "--device", "cpu", *batches]
    done = subprocess.run(
        [*launch, "-m", "camguide_fast.train", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr  # whole: what a process says stands above torchrun's summary
    names = {f"{stage}.safetensors" for stage in ("teacher", "stage1", "affinity")}
    assert {p.name for p in (tmp_path / "run/checkpoints").iterdir()} == names
    assert len(list((tmp_path / "run/cams/stage1/val").glob("*.npz"))) == 4
    assert len(list((tmp_path / "run/masks/final/val").glob("*.png"))) == 4
    rows = json.loads((tmp_path / "run/results.json").read_text())
    assert len(rows) == 18 and {row["images"] for row in rows} == {4}  # each rank's share of the final ones counts


@pytest.fixture
def renamed(demo, tmp_path):
    """The demo set with the classes of its masks in another order than classes.txt has."""
    data = tmp_path / "set"
    shutil.copytree(demo, data)
    (data / "classes.txt").write_text("\n".join(reversed((data / "classes.txt").read_text().split())))
    return data


def test_masks_that_contradict_the_tags_stop_a_run_before_it_begins(renamed, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    arguments = ["--data", renamed, "--out", out, *TINY, "--stages", "baseline"]
    assert call(monkeypatch, *arguments) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "images of split 'val' the mask contradicts the tags" in error and "--trust-masks" in error
    assert not out.exists()
    assert call(monkeypatch, *arguments, "--trust-masks") == 0
    assert sum(line.startswith("warning: ") for line in capsys.readouterr().out.splitlines()) == 2  # val and train:4
    assert json.loads((out / "config.json").read_text())["trust_masks"] is True
    assert call(monkeypatch, "--out", out, "--resume") == 0
    assert "warning" not in capsys.readouterr().out


def test_masks_that_stage_3_looks_at_are_compared_too(renamed, tmp_path, monkeypatch, capsys):
    """Two of the training images tell how good its targets are; here nothing else is scored."""
    arguments = ["--data", renamed, "--out", tmp_path / "run", *TINY, "--inference.fit-split", ""]
    for image in (renamed / "SegmentationClass").glob("demo_val*"):
        image.unlink()
    assert call(monkeypatch, *arguments) == 2
    assert "2 of 2 images of split 'train' the mask contradicts" in capsys.readouterr().err
    assert call(monkeypatch, *arguments, "--stages", "baseline") == 0
    assert "warning" not in capsys.readouterr().out


def test_a_run_can_be_told_later_to_trust_its_masks(renamed, demo, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    (renamed / "classes.txt").write_text((demo / "classes.txt").read_text())
    assert call(monkeypatch, "--data", renamed, "--out", out, *TINY, "--stages", "baseline") == 0
    for mask in (renamed / "SegmentationClass").iterdir():  # by now of other classes
        labels = np.asarray(Image.open(mask))
        write_mask(mask, np.where((labels > 0) & (labels < 255), labels % 5 + 1, labels).astype(np.uint8))
    assert call(monkeypatch, "--out", out, "--resume") == 2
    assert "contradicts the tags" in capsys.readouterr().err
    assert call(monkeypatch, "--out", out, "--resume", "--trust-masks") == 0
