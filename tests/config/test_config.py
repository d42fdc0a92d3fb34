"""Presets: tables I-III of the paper, cell by cell."""

import pytest

from camguide_fast.config import from_dict, to_dict
from camguide_fast.config.presets import PRESETS, paper
from camguide_fast.models import build_model

TABLE_I = {
    "network.teacher": "resnet50",
    "network.student": "resnet26",  # named resnet18; its parameter count is that of Bottleneck [2, 2, 2, 2]
    "stage1.batch_size": 32,
    "stage1.amp": "off",
    "data.crop": 512,
    "stage1.optimizer.name": "adam",
    "stage1.optimizer.lr": 0.1,
    "stage1.optimizer.new_scale": 1,
    "stage1.optimizer.weight_decay": 1e-4,
    "stage1.optimizer.schedule": "plateau",
    "stage1.optimizer.patience": 500,
    "stage1.optimizer.factor": 0.5,
    "stage1.lambda_cls": 0.35,
    "stage1.lambda_reg": 0.65,
    "stage1.epochs": 15,
    "stage1.low": 0.1,
    "stage1.high": 0.45,
    "stage1.cls_loss": "hinge",  # Eq. 23
    "stage1.reg": "raw",  # Eq. 24
}
TABLE_II = {name.replace("stage1", "stage2"): value for name, value in TABLE_I.items()} | {
    "stage2.lambda_cls": 0.0,
    "stage2.lambda_reg": 1.0,
}
TABLE_III = {
    "stage3.batch_size": 32,
    "stage3.amp": "auto",
    "stage3.optimizer.name": "sgd",
    "stage3.optimizer.momentum": 0.9,
    "stage3.optimizer.lr": 0.009,
    "stage3.optimizer.new_scale": 1,
    "stage3.optimizer.weight_decay": 1e-4,
    "stage3.optimizer.schedule": "poly",
    "network.radius": 4,
    "stage3.lambda_cls": 1.00,
    "stage3.lambda_crf": 0.80,
    "stage3.lambda_edge": 0.70,
    "stage3.lambda_rw": 0.40,
    "stage3.lambda_loc": 0.45,
    "stage3.closing": 15,
    "stage3.window": 7,
    "stage3.crf_iterations": 5,
    "stage3.segments": 1100,
    "stage3.walk_iterations": 12,
    "stage3.crf_every": 4,
    "network.dropout": 0.5,
    "stage3.epochs": 10,
    "stage3.low": 0.05,
    "stage3.high": 0.30,
    "stage3.cls_loss": "hinge",
    "data.long_side": (320, 640),  # III.A
}


@pytest.mark.parametrize("table", [TABLE_I, TABLE_II, TABLE_III], ids=["I", "II", "III"])
def test_paper_cell_by_cell(table):
    config = paper()
    for cell, expected in table.items():
        value = config
        for name in cell.split("."):
            value = getattr(value, name)
        assert value == expected, cell


def test_paper_network_has_the_paper_parameters():
    network = paper().network
    net = build_model(network.student, 20, network.head, width=network.width)
    assert sum(p.numel() for p in net.parameters()) == 15_398_780  # the paper: 15.41 M


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name):
    config = PRESETS[name]()
    assert from_dict(type(config), to_dict(config)) == config
