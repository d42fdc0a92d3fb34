"""Rows of results: merged, read, and shown as tables."""

import pytest
from support.cams import CLASSES

from camguide_fast.cams import format_table
from camguide_fast.cams.results import merge_rows, read_rows
from camguide_fast.errors import UserError
from camguide_fast.files import write_json


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


def test_no_score_is_a_dash():
    rows = [row(miou=None) | {"iou": dict.fromkeys(("background", *CLASSES))}]
    assert format_table(rows).splitlines()[-1].split() == ["stage1", "global", "0.20", "fitted", *"-" * 5]


def test_wide_table_breaks_between_classes():
    classes = tuple(f"class{i:02}" for i in range(20))
    text = format_table([row(classes=classes), row("stage2", classes=classes)], width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert all(text.count(name) == 1 for name in classes)
    assert text.count("stage2") >= 3


def test_tables_of_several_splits():
    text = format_table([row(), row(split="train"), row(labels="predicted")])
    assert text.count("IoU in %") == 3 and "\n\ntrain, 7 images, given" in text
