"""The networks: class maps alone (teacher, baseline, stages 1-2), and with the refine head (stage 3)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError
from .refine_head import RefineHead
from .trunks import Trunk, build_trunk


class CamNet(nn.Module):
    """Trunk and 1x1 classifier without bias: the output is the class maps (Eq. 1)."""

    def __init__(self, backbone: Trunk, num_classes: int):
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Conv2d(backbone.channels, num_classes, 1, bias=False)
        nn.init.kaiming_normal_(self.classifier.weight)
        self._frozen_bn: frozenset[str] = frozenset()

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, 3, H, W] -> stage1 [B, C1, H/4, W/4] and class maps [B, K, H/16, W/16], sizes rounded up."""
        stage1, last = self.backbone(x)
        return stage1, self.classifier(last)

    def forward(self, x: Tensor) -> Tensor:
        """Raw, signed class maps [B, K, ceil(H/16), ceil(W/16)] of normalised images [B, 3, H, W]."""
        return self.features(x)[1]

    def freeze_bn(self, names: Iterable[str]) -> None:
        """Keep BatchNorms in eval (running statistics used, never updated), now and through every `train()`.

        Args:
            names: which ones: names of modules ("backbone", "backbone.layer1"), everything below them
                included, or of single entries ("backbone.bn1.weight"), so that `WeightReport.loaded` can be
                passed as it is. "" means all of them; an empty list thaws. Weight and bias keep training. Not
                part of the state_dict: call it again after loading.

        Raises:
            ValueError: a name that is neither a module nor an entry of the state_dict.
        """
        names = _known(self, "names", names)
        norms = [(name, module) for name, module in self.named_modules() if isinstance(module, _BatchNorm)]
        self._frozen_bn = frozenset(
            name
            for name, module in norms
            if names.intersection(_ancestors(name))
            or names.intersection(f"{name}.{key}" for key in module.state_dict())
        )
        self.train(self.training)

    def train(self, mode: bool = True) -> "CamNet":
        super().train(mode)
        for name in self._frozen_bn:
            self.get_submodule(name).eval()
        return self


class CamGuideNet(CamNet):
    """`CamNet` with dropout on its map and the refine head. A `CamNet` state_dict lacks only `head.*`."""

    def __init__(self, backbone: Trunk, num_classes: int, head: RefineHead, dropout: float = 0.5):
        super().__init__(backbone, num_classes)
        self.dropout = nn.Dropout(dropout)  # elementwise
        self.head = head

    def forward(self, x: Tensor, image01: Tensor) -> Tensor:
        """Refined class maps z1 (Eq. 22).

        Args:
            x: normalised images [B, 3, H, W].
            image01: the same images as RGB in [0, 1], float; the guide, area-downsampled to the stage-1 grid.
                No gradient.

        Returns:
            [B, K, ceil(H/4), ceil(W/4)]

        Raises:
            ValueError, TypeError: shapes of x and image01 differ, or image01 is not floating point.
        """
        stage1, coarse = self.features(x)
        return self.head(self.dropout(coarse), stage1, _guide(x, image01, stage1))

    def forward_pair(self, x: Tensor, image01: Tensor) -> tuple[Tensor, Tensor]:
        """z1 as `forward` gives it, and the map that stage 3 makes its targets from.

        The second pass of the head runs on the same trunk features, without gradient, without dropout and
        with the head's BatchNorm in eval. Running statistics and training flags are left as the first pass
        leaves them.

        Returns:
            z1 [B, K, ceil(H/4), ceil(W/4)] and the same without gradient.
        """
        stage1, coarse = self.features(x)
        guide = _guide(x, image01, stage1)
        # z1 first: some versions of autocast keep half copies made without gradient and would reuse them.
        z1 = self.head(self.dropout(coarse), stage1, guide)
        with torch.no_grad(), evaluating(self.head):
            target = self.head(coarse, stage1, guide)
        return z1, target


def logits(maps: Tensor) -> Tensor:
    """Class logits (Eq. 9): the mean of class maps [B, K, h, w] over space, [B, K]."""
    return maps.mean(dim=(2, 3))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`module` in eval inside the block; afterwards every submodule has the training flag it had."""
    before = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in before:
            m.training = training


def build_model(
    arch: str,
    num_classes: int,
    head: str = "none",
    width: int = 128,
    radius: int = 4,
    eps: float = 1e-2,
    dropout: float = 0.5,
) -> CamNet:
    """A freshly initialised network; `models.weights.load_weights` fills it.

    Args:
        arch: one of `TRUNKS`.
        num_classes: K, without background.
        head: "none": `CamNet`. "lean": `CamGuideNet`, a head of `width` channels with the gate of Eq. 21.
            "parity": `CamGuideNet`, 512 channels (`width` is not used) and a gate branch of its own: the
            paper's 1.41 M parameters at K = 20.
        radius, eps: of the head's guided filter.
        dropout: of the coarse map before the head (table III).

    Raises:
        UserError: a name that does not exist, or num_classes < 1.
    """
    if num_classes < 1:
        raise UserError(f"num_classes must be at least 1, got {num_classes}")
    if head not in ("none", "lean", "parity"):
        raise UserError(f"head: {head!r} is not one of none, lean, parity")
    backbone = build_trunk(arch)
    if head == "none":
        return CamNet(backbone, num_classes)
    width, gate = (512, "separate") if head == "parity" else (width, "shared")
    refine = RefineHead(num_classes, backbone.stage1_channels, width=width, gate=gate, radius=radius, eps=eps)
    return CamGuideNet(backbone, num_classes, refine, dropout)


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    new: Iterable[str] = (),
    new_scale: float = 10.0,
    bias_scale: float = 1.0,
) -> list[dict]:
    """Parameter groups for an optimiser: what was loaded learns at `lr`, what is new at `lr * new_scale`.

    Biases (of BatchNorm too) get no weight decay and `bias_scale` times their group's rate; weights,
    BatchNorm's included, decay. With `bias_scale=2` these are the four groups of Puzzle-CAM.

    Args:
        new: names of what starts fresh: modules ("classifier", "head") or state_dict entries, so that
            `WeightReport.missing` can be passed as it is.

    Returns:
        Dicts `name, params, lr, weight_decay` in the order loaded.weight, loaded.bias, new.weight, new.bias,
        empty ones left out; parameters in the model's order, those without requires_grad left out.

    Raises:
        ValueError: an entry of `new` that the model does not have.
    """
    new = _known(model, "new", new)
    groups = [
        {"name": f"{age}.{kind}", "params": [], "lr": lr * scale * rate, "weight_decay": decay}
        for age, scale in (("loaded", 1.0), ("new", new_scale))
        for kind, rate, decay in (("weight", 1.0, weight_decay), ("bias", bias_scale, 0.0))
    ]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            index = 2 * bool(new.intersection(_ancestors(name))) + name.endswith(".bias")
            groups[index]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def _known(model: nn.Module, argument: str, names: Iterable[str]) -> frozenset[str]:
    names = frozenset(names)
    unknown = names - {name for name, _ in model.named_modules()} - model.state_dict().keys()
    if unknown:
        raise ValueError(f"{argument}: {min(unknown)!r} is neither a module nor a parameter of this network")
    return names


def _ancestors(name: str) -> list[str]:  # "a.b.c" -> ["", "a", "a.b", "a.b.c"]
    parts = name.split(".")
    return [""] + [".".join(parts[: i + 1]) for i in range(len(parts))]


@torch.no_grad()
def _guide(x: Tensor, image01: Tensor, stage1: Tensor) -> Tensor:  # I_down of Eq. 19, [B, 3, H/4, W/4]
    if image01.shape != x.shape:
        raise ValueError(f"image01 must have the shape of x, {list(x.shape)}, got {list(image01.shape)}")
    if not image01.is_floating_point():
        raise TypeError(f"image01 must be floating point in [0, 1], got {image01.dtype}")
    height, width = stage1.shape[-2:]
    return F.adaptive_avg_pool2d(image01, (height, width))
