"""The paper's tables beside a run's figures."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from support.cams import CLASSES

from camguide_fast.config import to_dict
from camguide_fast.config.presets import default
from camguide_fast.errors import UserError
from camguide_fast.evaluate import Args, evaluate
from camguide_fast.files import read_json, write_json
from camguide_fast.models.checkpoint import ModelCard, save_model
from camguide_fast.runs.paper_tables import paper_tables


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
    void = [row | {"miou": None} for row in read_json(run / "results.json")]
    write_json(run / "results.json", void)
    assert paper_tables(run).split("\n\n")[2].splitlines()[-1].split() == ["this", "run", "-", "-"]
    with pytest.raises(UserError, match="config.json"):
        paper_tables(tmp_path / "nowhere")
    with pytest.raises(UserError, match="expected both, or --table"):
        evaluate(Args())
