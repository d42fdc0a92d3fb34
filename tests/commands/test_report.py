import base64
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camguide_fast import report as report_module
from camguide_fast.data import VOC_PALETTE, write_mask
from camguide_fast.errors import UserError
from camguide_fast.pictures.curves import last_epochs, loss_curves, read_metrics
from camguide_fast.pictures.overlays import jpeg, overlay
from camguide_fast.pictures.superpixels import superpixel_picture, write_superpixels
from camguide_fast.runs.report import write_report

CLASSES = ("cat", "<b>&dog")


class Page(HTMLParser):
    """Balanced tags, text, and the sources of pictures."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.text, self.images = "", []
        self.feed(path.read_text())
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert not {"href", "srcset"} & set(attrs) and tag not in ("script", "link", "b-dog")
        if tag == "img":
            self.images.append(attrs["src"])
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def make_data(root: Path, count: int = 10) -> Path:
    root.mkdir()
    (root / "masks").mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (20, 300, 3), dtype=np.uint8)).save(root / f"{i}.jpg")
        write_mask(root / "masks" / f"{i}.png", np.full((20, 300), 1 if i else 255))
    (root / "classes.txt").write_text("\n".join(CLASSES))
    lines = [f"{i}.jpg,cat,{split}" for i, split in zip(range(count), ["val"] * count, strict=True)]
    (root / "tags.csv").write_text("\n".join(["image,tags,split", *lines]))
    return root


def make_row(stage: str, miou: float, **more) -> dict:
    row = {"stage": stage, "split": "val", "labels": "given", "threshold_mode": "global", "thresholds": 0.25}
    row |= {"fitted_on": "val", "images": 10, "miou": miou, "iou": {"background": 80.0, "cat": miou, "<b>&dog": None}}
    return row | more


@pytest.fixture
def run(tmp_path) -> Path:
    """A run's folder that has everything."""
    data = make_data(tmp_path / "data")
    folder = tmp_path / "a <run>"
    folder.mkdir()
    rows = [make_row("teacher", 40.0), make_row("stage1", 51.5), make_row("stage1", 48.25, fitted_on="train:4")]
    (folder / "results.json").write_text(json.dumps(rows))
    config = {"data": str(data), "preset": "demo", "seed": 3, "config": {"stage1": {"optimizer": {"lr": 0.125}}}}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [
        {"stage": "stage1", "epoch": 0, "step": i, "loss": 3 / i, "cls": 2 / i, "images_per_s": i} for i in (1, 2, 3)
    ]
    lines.append({"stage": "stage1", "epoch": 0, "step": 3, "event": "epoch", "map": 0.875})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for stage in ("aaa", "stage1", "teacher"):
        (folder / "masks" / stage / "val").mkdir(parents=True)
        for i in range(10):
            write_mask(folder / "masks" / stage / "val" / f"{i}.png", np.full((20, 300), 2))
    return folder


def test_whole_page(run):
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path)
    assert "a <run>" in page.text and "preset demo, seed 3" in page.text
    assert "51.5" in page.text and "48.2" in page.text and "from train:4" in page.text and "global 0.25" in page.text
    assert "optimizer.lr = 0.125" in page.text
    assert "0.875" in page.text
    assert "<b>&dog" in page.text  # as text, not as a tag
    assert "8 of 10 images of split val" in page.text
    assert len(page.images) == 8 * 5 + 1  # photograph, truth, three stages; the curves
    assert all(source.startswith("data:image/") for source in page.images)
    assert not re.search(r"https?://(?!www\.w3\.org)", path.read_text().replace("\n", " "))


def test_no_score_is_a_dash_and_never_the_best(run):
    row = make_row("teacher", None) | {"iou": {"background": None}}
    (run / "results.json").write_text(json.dumps([row]))
    page = write_report(run).read_text()
    assert page.count('<td class="n">&ndash;</td>') == 2 and 'class="n best"' not in page


def test_columns_come_in_the_order_of_training(run):
    text = Page(write_report(run)).text
    columns = ["photograph", "truth", "teacher", "stage1", "aaa"]
    assert "".join(columns) in text


def test_pictures_are_small_and_show_the_mask(run):
    sources = Page(write_report(run)).images[:5]
    pictures = [Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) for source in sources]
    assert all(picture.size == (240, 16) for picture in pictures)
    photo, mask = (np.asarray(pictures[i], float).mean((0, 1)) for i in (0, 2))
    assert np.allclose(mask, 0.4 * photo + 0.6 * VOC_PALETTE[2], atol=4)


def test_same_run_same_page(run):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


@pytest.mark.parametrize(
    "missing, said",
    [
        ("results.json", "results.json: no scores yet"),
        ("config.json", "config.json: cannot be read"),
        ("metrics.jsonl", "metrics.jsonl: cannot be read"),
        ("masks", "masks: no masks yet"),
    ],
)
def test_parts_that_are_missing_are_named(run, missing, said):
    (run / missing).rename(run.parent / "away")
    text = Page(write_report(run)).text
    assert said in text
    for title in ("Scores", "Masks", "Training", "Settings"):
        assert title in text


def test_empty_run(tmp_path):
    page = Page(write_report(tmp_path))
    assert page.images == [] and page.text.count("cannot be read") == 3 and "no scores yet" in page.text


def test_broken_pictures_are_named(run):
    data = run.parent / "data"
    (data / "0.jpg").write_bytes(b"nothing")
    (run / "masks/teacher/val/1.png").write_bytes(b"nothing")
    (run / "masks/teacher/val/3.png").unlink()
    page = Page(write_report(run))
    assert "0.jpg: not a readable image" in page.text and "1.png: not a readable mask" in page.text
    assert len(page.images) == 8 * 5 + 1 - 5 - 1 - 1


def test_data_set_that_moved(run):
    (run.parent / "data").rename(run.parent / "elsewhere")
    page = Page(write_report(run))
    assert "data: no such folder" in page.text and len(page.images) == 1


def test_masks_of_a_sample(run):
    for stage in (run / "masks").iterdir():
        (stage / "val").rename(stage / "val_4")
    assert "4 of 4 images of split val:4" in Page(write_report(run)).text


def test_refuses(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="no such run"):
        write_report(tmp_path / "none")
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as stop:
        report_module.run_cli(report_module.main)
    assert stop.value.code == 2 and capsys.readouterr().err == f"error: {tmp_path / 'none'}: no such run\n"
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path)])
    report_module.run_cli(report_module.main)
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"


def test_metrics_of_a_killed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "a", "loss": 1, "step": 1}\n{"stage": "a", "lo')
    assert read_metrics(path) == [{"stage": "a", "loss": 1, "step": 1}]
    path.write_text('{"stage": "a"\n{"stage": "a"}\n')
    with pytest.raises(UserError, match="line 1 is not JSON"):
        read_metrics(path)


def test_last_epochs():
    lines = [
        {"stage": "a", "step": 1, "loss": 1.0, "images_per_s": 10.0},
        {"stage": "a", "step": 2, "loss": 1.0, "images_per_s": 30.0},
        {"stage": "a", "epoch": 0, "step": 2, "event": "epoch", "map": 0.5},
        {"stage": "a", "epoch": 1, "step": 4, "event": "epoch", "map": 0.75},
        {"stage": "b", "step": 1, "loss": 1.0},
    ]
    assert last_epochs(lines) == {"a": {"epoch": 1, "map": 0.75, "images_per_s": 20.0}, "b": {}}


def test_curves_of_a_long_run_stay_small():
    lines = [{"stage": "s", "step": i, "loss": 1.0, "cls": 0.5, "rw": 0.5} for i in range(20000)]
    assert len(loss_curves(lines)) < 150_000
    assert loss_curves([]) is None


def test_overlay_and_jpeg():
    photo = np.full((2, 2, 3), 100, np.uint8)
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    mixed = overlay(photo, labels, opacity=0.5)
    assert mixed[0, 0].tolist() == [100, 100, 100] and mixed[0, 1].tolist() == [114, 50, 50]
    assert mixed[1, 1].tolist() == [162, 162, 146]
    assert Image.open(io.BytesIO(jpeg(np.zeros((1, 900, 3), np.uint8), 100))).size == (100, 1)


def command(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    report_module.run_cli(report_module.main)


def test_superpixels_of_an_image(tmp_path, monkeypatch, capsys):
    """A disc on flat ground: lines along its edge, and a spot that keeps to it."""
    y, x = np.mgrid[:120, :160]
    disc = (y - 60) ** 2 + (x - 80) ** 2 < 40**2
    Image.fromarray(np.where(disc[..., None], np.uint8([200, 30, 30]), np.uint8([30, 90, 200]))).save(
        tmp_path / "a.b.png"
    )
    monkeypatch.chdir(tmp_path)
    command(monkeypatch, "--superpixels", tmp_path / "a.b.png")
    assert capsys.readouterr().out == "a.b_superpixels.png\n"
    sheet = np.array(Image.open(tmp_path / "a.b_superpixels.png"))
    height, width = 4 * 120, 4 * 160  # enlarged
    assert sheet.shape == (2 * (height + 28) + 8, 2 * (width + 8) + 8, 3)
    panel = {
        (i, j): sheet[28 + i * (height + 28) :, 8 + j * (width + 8) :][:height, :width] for i in (0, 1) for j in (0, 1)
    }
    lines = (panel[0, 0] == (255, 220, 0)).all(2)
    assert 0.02 < lines.mean() < 0.6
    edge = disc[:, 1:] != disc[:, :-1]
    assert lines[::4, 4::4][edge].all()
    before, after = (np.ptp(panel[1, j].astype(int), 2)[::4, ::4] for j in (0, 1))  # of red over grey
    r = np.hypot(y - 60, x - 80)
    steps = [heat[(r > 35) & (r < 39)].mean() - heat[(r > 41) & (r < 45)].mean() for heat in (before, after)]
    assert steps[1] > 60 and steps[1] > 2 * steps[0]
    assert np.abs(panel[0, 1][::4, ::4][disc].astype(int) - (200, 30, 30)).max() <= 3


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 700)])
def test_superpixels_of_a_tiny_image(tmp_path, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert superpixel_picture(image).size[0] > 2 * size[1]
    Image.fromarray(image).save(tmp_path / "x.png")
    assert write_superpixels(tmp_path / "x.png", tmp_path / "new" / "y.png").is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give the folder of a run, or --superpixels IMAGE"),
        (["run", "--superpixels", "a.png"], "not both"),
        (["run", "--out", "a.png"], "--out goes with --superpixels"),
        (["--superpixels", "none.png"], "none.png: not a readable image"),
    ],
)
def test_superpixels_errors(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, *arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
