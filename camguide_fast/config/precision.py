"""Mixed precision where it is faster: fp16 on CUDA, bf16 on a CPU that multiplies bf16 in hardware."""

from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal

import torch

Amp = Literal["auto", "on", "off"]


def bf16_is_fast() -> bool:
    """Whether this CPU has instructions for bf16 (AVX-512 BF16 or AMX) and oneDNN may use them. Without them oneDNN
    emulates bf16, seven to nine times slower than fp32."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # false too where ONEDNN_MAX_CPU_ISA forbids AVX-512
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def is_fast(device: torch.device) -> bool:
    """Whether mixed precision is faster than fp32 on the device."""
    return device.type == "cuda" or bf16_is_fast()


def enabled(amp: Amp, device: torch.device) -> bool:
    """Whether a setting means mixed precision on the device."""
    return amp == "on" or (amp == "auto" and is_fast(device))


def settle(settings: Any, device: torch.device) -> Any:
    """A dataclass of settings in which every `amp: auto`, at any depth, is "on" or "off" as it suits the device."""
    changed = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name == "amp":
            changed["amp"] = "on" if enabled(value, device) else "off"
        elif is_dataclass(value):
            changed[field.name] = settle(value, device)
    return replace(settings, **changed)


def reason(device: torch.device) -> str:
    """Why `auto` chooses as it does on the device, in words."""
    if device.type == "cuda":
        return "fp16 is faster on a GPU"
    if bf16_is_fast():
        return "this CPU multiplies bf16 in hardware"
    return "this CPU has no instructions for bf16, and emulating them is 7 to 9 times slower than fp32"
