"""Mixed precision `auto`: on where the hardware has it, kept when a run is resumed, the same in every command."""

import json
from dataclasses import replace

import pytest
import torch

from camguide_fast.config import Config, Stage, from_dict, precision, to_dict
from camguide_fast.config.presets import PRESETS
from camguide_fast.runs.announcement import precision as announced
from camguide_fast.runs.arguments import with_amp_of
from camguide_fast.runs.settings import run_amp

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(params=[True, False], ids=["bf16", "no bf16"])
def fast(request, monkeypatch):
    monkeypatch.setattr(precision, "bf16_is_fast", lambda: request.param)
    return request.param


def amps(config):
    return {name: s.amp for name in vars(config) if isinstance(s := getattr(config, name), Stage)}


@pytest.mark.parametrize("preset", PRESETS)
def test_auto_everywhere_but_where_the_paper_says(preset):
    for stage, amp in amps(PRESETS[preset]()).items():
        assert amp == ("off" if preset == "paper" and stage in ("stage1", "stage2") else "auto"), stage


def test_auto_is_what_is_fast(fast):
    settled = precision.settle(PRESETS["small"](), CPU)
    assert set(amps(settled).values()) == {"on" if fast else "off"}
    assert set(amps(precision.settle(PRESETS["small"](), CUDA)).values()) == {"on"}
    asked = replace(PRESETS["small"](), stage1=replace(PRESETS["small"]().stage1, amp="on"))
    assert amps(precision.settle(asked, CPU))["stage1"] == "on"
    undone = {name: replace(getattr(settled, name), amp="auto") for name in amps(settled)}
    assert replace(settled, **undone) == PRESETS["small"]()  # nothing else has changed


def test_bf16_needs_its_instructions(monkeypatch):
    def machine(onednn: bool, avx512: bool, amx: bool) -> bool:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        return precision.bf16_is_fast()

    assert machine(True, True, False) and machine(True, False, True)
    assert not machine(True, False, False)  # AVX-512 alone: emulated
    assert not machine(False, True, True)  # ONEDNN_MAX_CPU_ISA=AVX2


def test_a_resumed_run_keeps_what_was_chosen(fast):
    saved = precision.settle(Config(), torch.device("cuda"))
    again = with_amp_of(saved, from_dict(Config, to_dict(Config())))
    assert set(amps(again).values()) == {"on"}
    off = replace(Config(), stage1=replace(Config().stage1, amp="off"))
    assert with_amp_of(saved, off).stage1.amp == "off"  # said on the command line: refused later
    text = announced(again, CPU, resumed=True)
    assert text.startswith("mixed precision on" if fast else "warning: mixed precision on, as the run was begun: ")


def test_what_is_said(fast):
    auto = precision.settle(Config(), CPU)
    word = "on" if fast else "off"
    assert announced(auto, CPU, resumed=False).startswith(f"mixed precision {word}: this CPU ")
    one = replace(auto, stage3=replace(auto.stage3, amp="off" if fast else "on"))
    said = announced(one, CPU, resumed=False)
    assert "asked for" in said and said.startswith("warning") == (not fast) and ("stage3" in said) == (not fast)


def test_settings_of_older_runs():
    tree = to_dict(Config())
    tree["stage1"]["amp"], tree["stage2"]["amp"] = True, False
    config = from_dict(Config, json.loads(json.dumps(tree)))
    assert (config.stage1.amp, config.stage2.amp, config.stage3.amp) == ("on", "off", "auto")


def test_commands_take_the_precision_of_the_run(fast, tmp_path, capsys):
    checkpoint = tmp_path / "checkpoints" / "stage1.safetensors"
    assert run_amp(checkpoint, "stage1", CPU) == fast  # no run: what is fast
    for amp, stage in (("on", "stage1"), ("off", "stage2")):
        config = precision.settle(replace(Config(), **{stage: replace(Config().stage1, amp=amp)}), CUDA)
        (tmp_path / "config.json").write_text(json.dumps({"config": to_dict(config)}))
        assert run_amp(checkpoint, stage, CPU) == (amp == "on" and fast)
    said = capsys.readouterr().out
    assert said == "" if fast else said.startswith("fp32, although stage1 was trained in mixed precision: this CPU")
