"""bench/quality.py: variants change what they name, runs share what they have in common, the table is right."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mask_sheet
import numpy as np
import pytest
import quality
from _quality_runs import note, read_done, stage_keys
from _quality_table import markdown
from _variants import VARIANTS, changed
from PIL import Image

from camguide_fast.cams.results import read_rows
from camguide_fast.config import Config, to_dict
from camguide_fast.config.presets import PRESETS
from camguide_fast.data import make_demo, open_split, read_image, write_mask
from camguide_fast.errors import UserError
from camguide_fast.runs.arguments import Args


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_what_it_names(name):
    base = PRESETS["small"]()
    config = changed(base, VARIANTS[name])
    assert (config == base) == (name == "base")


@pytest.mark.parametrize("name", ["stage3.speed", "stage4.low", "stage3.low.high"])
def test_an_unknown_setting_is_refused(name):
    with pytest.raises(KeyError, match="no such setting"):
        changed(Config(), {name: 1})


@pytest.mark.parametrize(
    "changes, again",
    [
        ({"baseline.epochs": 1}, "baseline"),
        ({"teacher.epochs": 1}, "teacher stage1 stage2 stage3 affinity walk final"),
        ({"stage2.low": 0.3}, "stage2 stage3 affinity walk final"),
        ({"stage2.low": 0.3, "stage3.start": "stage1"}, "stage2 stage3 affinity walk final"),
        ({"network.width": 8}, "stage3 affinity walk final"),
        ({"affinity.source": "baseline"}, "affinity walk final"),
        ({"walk.beta": 3.0}, "walk final"),
        ({"inference.target_sample": 0}, ""),
    ],
)
def test_what_depends_on_a_change_is_made_again(changes, again):
    before, after = (
        stage_keys(Args(data=Path("x"), config=changed(PRESETS["small"](), c)), quality.STAGES) for c in ({}, changes)
    )
    assert [stage for stage in quality.STAGES if before[stage].key != after[stage].key] == again.split()


@pytest.mark.parametrize(
    "changes, trained",
    [
        ({"inference.fit_split": "train:9"}, ""),
        ({"inference.splits": ("train",)}, ""),
        ({"inference.flip": False}, "affinity walk final"),
    ],
)
def test_other_scores_need_no_other_training(changes, trained):
    before, after = (
        stage_keys(Args(data=Path("x"), config=changed(PRESETS["small"](), c)), quality.STAGES) for c in ({}, changes)
    )
    assert all(before[stage].scoring != after[stage].scoring for stage in quality.STAGES)
    assert [stage for stage in quality.STAGES if before[stage].key != after[stage].key] == trained.split()


def tiny() -> Config:
    config = PRESETS["demo"]()
    for stage in ("baseline", "teacher", "stage1", "stage2", "stage3"):
        config = replace(config, **{stage: replace(getattr(config, stage), epochs=1, batch_size=4)})
    return changed(
        config,
        {
            "data.crop": 48,
            "data.long_side": (40, 60),
            "data.workers": 0,
            "network.width": 16,
            "inference.scales": (1.0,),
            "inference.target_sample": 2,
        },
    )


def test_runs_share_what_they_have_in_common(tmp_path, monkeypatch, capsys):
    data = make_demo(tmp_path / "set", train=8, val=4, size=48)
    monkeypatch.setitem(PRESETS, "tiny", tiny)
    monkeypatch.setitem(VARIANTS, "no-edge", {"stage3.lambda_edge": 0.0})
    results = tmp_path / "quality.jsonl"
    study = quality.Study(
        data=data, preset="tiny", until="stage3", fit_split="train:4", out=tmp_path / "runs", results=results
    )
    quality.main(replace(study, variants=("base", "no-edge")))
    said = capsys.readouterr().out
    assert "base-s0: stage2" in said and "no-edge-s0: stage3" in said and "no-edge-s0: stage2" not in said
    assert results.with_suffix(".md").read_text().strip() in said
    base, other = (json.loads(line) for line in results.read_text().splitlines())
    assert {row["stage"] for row in base["rows"]} == {"baseline", "teacher", "stage1", "stage2", "stage3"}
    assert [row for row in base["rows"] if row["stage"] != "stage3"] == [
        row for row in other["rows"] if row["stage"] != "stage3"
    ]
    assert set(base["map"]) == set(quality.HAS_TAGS) and set(base["targets"][0]) == {"miou_cam", "miou_rw", "miou_crf"}
    trained = json.loads((tmp_path / "runs/tiny-no-edge-s0/config.json").read_text())["config"]["stage3"]
    assert trained["lambda_edge"] == 0 and to_dict(tiny())["stage3"]["lambda_edge"] > 0

    quality.main(replace(study, variants=("no-edge",)))  # again: nothing is trained, no line is said twice
    assert "no-edge-s0:" not in capsys.readouterr().out
    assert len(results.read_text().splitlines()) == 2

    before = results.read_text()
    quality.main(replace(study, variants=("base", "no-edge"), until="stage1"))
    assert results.read_text() == before  # a shorter run loses nothing of a longer one
    begun = tmp_path / "runs/tiny-no-edge-s0/done.json"
    entries = json.loads(begun.read_text())
    del entries["stage3"]["done"]
    begun.write_text(json.dumps(entries))
    quality.main(replace(study, variants=("no-edge",), until="stage1"))
    other = json.loads(results.read_text().splitlines()[1])  # what was only begun is not in it
    assert {row["stage"] for row in other["rows"]} == set(other["minutes"]) == set(quality.STAGES[:4])
    assert not other["targets"]


def test_what_is_made_again_is_said(tmp_path, monkeypatch, capsys):
    """Thresholds from another split cost no training, and the minutes of a stage add up."""
    data = make_demo(tmp_path / "set", train=8, val=4, size=48)
    monkeypatch.setitem(PRESETS, "tiny", tiny)
    folder, results = tmp_path / "runs/tiny-base-s0", tmp_path / "quality.jsonl"
    study = quality.Study(
        data=data, preset="tiny", until="baseline", fit_split="train:4", out=tmp_path / "runs", results=results
    )
    quality.main(study)
    checkpoint = folder / "checkpoints/baseline.safetensors"
    trained, before = checkpoint.stat().st_mtime_ns, read_done(folder)["baseline"]["minutes"]
    note(folder, "baseline", minutes=before + 100)
    capsys.readouterr()

    quality.main(replace(study, fit_split="train:6"))
    said = capsys.readouterr().out
    assert "tiny-base-s0: baseline was scored with other settings and is scored again" in said
    assert checkpoint.stat().st_mtime_ns == trained
    assert {row["fitted_on"] for row in read_rows(folder / "results.json")} == {"val", "train:6"}
    (line,) = map(json.loads, results.read_text().splitlines())
    assert line["minutes"]["baseline"] >= before + 100

    monkeypatch.setitem(VARIANTS, "base", {"baseline.average": 0.5})
    quality.main(study)
    said = capsys.readouterr().out
    assert "tiny-base-s0: baseline was made with other settings and is dropped" in said
    assert checkpoint.stat().st_mtime_ns != trained


def test_lines_of_other_data_and_presets_are_kept(tmp_path, monkeypatch):
    line = {"data": "set", "preset": "tiny", "variant": "base", "seed": 0}
    lines = [line | change for change in ({}, {"data": "other"}, {"preset": "small"}, {"seed": 1}, {"variant": "v"})]
    lines = [one | {"rows": [], "map": {}, "targets": [], "minutes": {}} for one in lines]
    results = tmp_path / "quality.jsonl"
    results.write_text("".join(json.dumps(one) + "\n" for one in lines))
    monkeypatch.setitem(PRESETS, "tiny", tiny)
    monkeypatch.setattr(quality, "one_run", lambda *_: lines[0] | {"torch": "new"})
    quality.main(quality.Study(data=tmp_path / "set", preset="tiny", results=results))
    assert quality.read_lines(results) == [*lines[1:], lines[0] | {"torch": "new"}]


@pytest.mark.parametrize(
    "asked, said",
    [
        (["--variants", "bas"], "error: --variants: expected base | crop-224"),
        (["--preset", "tiny"], "error: --preset: expected default | paper | small | demo | demo-scratch, got tiny"),
        (["--data", "nowhere"], "error: nowhere"),
        (["--until", "stage4"], "invalid choice"),
        (["--variants"], "error: --variants: expected some of base | crop-224"),
        (["--fit-split", "val:20"], "error: --fit-split val:20: must not be of the scored split, val"),
        (["--results", __file__], f"error: --results {__file__}: expected the lines of an earlier study"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_what_cannot_run_is_said_in_one_line(asked, said, tmp_path):
    command = [sys.executable, quality.__file__, "--data", str(tmp_path), "--out", str(tmp_path / "runs"), *asked]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_table():
    def void(rows):
        return [row | {"miou": None} for row in rows]

    def line(seed, miou):
        row = {"stage": "stage3", "threshold_mode": "global", "miou": miou}
        rows = [row | {"fitted_on": "train:4"}, row | {"fitted_on": "val", "miou": 99.0}]
        rows += [r | {"threshold_mode": "class-wise", "miou": r["miou"] + 1} for r in rows]
        targets = [{"miou_cam": 1.0}, {"miou_cam": 40.0, "miou_rw": 41.0, "miou_crf": 42.0}]
        return {
            "data": "set",
            "preset": "small",
            "variant": "v",
            "seed": seed,
            "scored": "val",
            "rows": rows,
            "map": {"stage3": 80.0},
            "targets": targets,
            "minutes": {"stage3": 2.0},
        }

    assert "| 50.0 / 51.0 |" in markdown([line(0, 50.0), line(1, 0.0) | {"rows": void(line(1, 0.0)["rows"])}])
    title, *tables = markdown([line(0, 50.0), line(1, 52.0)]).split("\n\n")
    scores, targets = (table.splitlines()[-1] for table in tables)
    assert title == "set, --preset small"
    assert scores == "| v | 2 |  |  |  | 51.0 ±1.4 / 52.0 ±1.4 |  |  | 80.0 ±0.0 | 2 |"
    assert targets == "| v | 1.0 / – / – | 40.0 / 41.0 / 42.0 |"

    no_walk = line(0, 50.0) | {"targets": [{"miou_cam": 40.0, "miou_crf": 42.0}]}
    assert "| 40.0 / – / 42.0 |" in markdown([no_walk])  # a loss that is off has no target


def test_mask_sheet(tmp_path):
    """One row an image, six cells each; a name that the split does not have is refused."""
    data = make_demo(tmp_path / "set", train=2, val=2, size=48)
    split = open_split(data, "val")
    for stage in mask_sheet.COLUMNS:
        folder = tmp_path / "run/masks" / stage / "val"
        folder.mkdir(parents=True)
        for record in split:
            write_mask(folder / f"{record.name}.png", np.zeros(read_image(record.image).shape[:2], np.uint8))
    sheet = mask_sheet.Sheet(tmp_path / "run", data, tuple(record.name for record in split), tmp_path / "sheet.png")
    mask_sheet.main(sheet)
    with Image.open(sheet.out) as picture:
        assert picture.size == (6 * 254 - 4, 22 + 2 * 174 - 4)
    with pytest.raises(UserError, match="--names: split val of .* has no x"):
        mask_sheet.main(replace(sheet, names=("x",)))
