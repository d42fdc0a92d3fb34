"""Every setting of a run; `camguide_fast.config.presets` has whole sets of them.

Where the paper is silent or contradicts itself the default is this project's choice (README, "Reading the paper").
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from .precision import Amp

Arch = Literal[
    "resnet18",
    "resnet26",
    "resnet34",
    "resnet50",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
]
Settings = TypeVar("Settings")
PAPER_CROP = 512
"""The crop that the paper's segments, kernels and sigmas are meant for; targets at another crop scale with it."""


@dataclass(frozen=True)
class Data:
    """Views of the training images."""

    crop: int = 512
    """Side of the square crop, pixels."""
    long_side: tuple[int, int] = (320, 640)
    """The image's long side is drawn from this range before the crop, pixels."""
    workers: int | Literal["auto"] = "auto"
    """Threads that read ahead; 0 reads between the steps. Does not change the result."""


@dataclass(frozen=True)
class Optimizer:
    """Optimiser and schedule of one stage."""

    name: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.1
    """Learning rate of the pretrained layers."""
    new_scale: float = 10.0
    """Factor on the rate of layers without pretrained weights: classifier, refine head, what a weight file lacks."""
    bias_scale: float = 1.0
    """Factor on the rate of biases (Puzzle-CAM: 2)."""
    weight_decay: float = 1e-4
    momentum: float = 0.9
    """SGD only. With momentum it is Nesterov's."""
    schedule: Literal["poly", "plateau"] = "poly"
    power: float = 0.9
    """poly: rate * (1 - t/T)^power, per iteration."""
    patience: int = 500
    """plateau: iterations without a better smoothed loss before the rate is multiplied by `factor`."""
    factor: float = 0.5


@dataclass(frozen=True)
class Stage:
    """What everything that is trained shares."""

    epochs: int = 15
    batch_size: int = 32
    optimizer: Optimizer = field(default_factory=Optimizer)
    amp: Amp = "auto"
    """Mixed precision: fp16 with a loss scaler on CUDA, bf16 on a CPU. auto: where it is faster; a resumed run keeps
    what was chosen, on another machine too."""
    average: float = 0.0
    """Decay, per iteration, of the moving average of the weights with which the stage ends; 0: the last weights."""
    crop: int | None = None
    """Side of the stage's own square crop, pixels [that of data]."""
    long_side: tuple[int, int] | None = None
    """The stage's own range of the image's long side, pixels [that of data]."""


@dataclass(frozen=True)
class CamStage(Stage):
    """What the stages share that make CAMs."""

    cls_loss: Literal["hinge", "softmargin"] = "softmargin"
    """Eq. 23 read as pairwise hinge, or the soft margin of Puzzle-CAM, which serves images without a pair either
    way."""
    batchnorm: Literal["train", "eval", "eval-loaded"] = "train"
    """BatchNorm statistics: of the batch, frozen, or frozen in the layers that the weight file filled (for folded
    weights)."""


@dataclass(frozen=True)
class Classification(CamStage):
    """Teacher and baseline: a network trained on tags alone (II.C)."""

    method: Literal["classification", "puzzle"] = "classification"
    puzzle_alpha: float = 4.0
    """puzzle: weight of the reconstruction term, reached half-way through the training."""


@dataclass(frozen=True)
class Distillation(CamStage):
    """Stages 1 and 2 (II.F, II.G; tables I, II)."""

    lambda_cls: float = 0.35
    lambda_reg: float = 0.65
    low: float = 0.10
    """Stochastic threshold, minimum (Eq. 6)."""
    high: float = 0.45
    """Stochastic threshold, maximum (Eq. 6)."""
    reg: Literal["relative", "raw"] = "relative"
    """L1 of Eq. 24-25 divided by the batch's mean |F_T|, or raw."""
    teacher_scales: tuple[float, ...] = (1.0,)
    """F_T is the mean of the teacher's maps of the view at these scales (Eq. 4: at 1 alone)."""


@dataclass(frozen=True)
class Refinement(CamStage):
    """Stage 3 (II.H, II.I; table III)."""

    start: Literal["baseline", "stage1", "stage2"] = "stage2"
    """The stage whose weights it goes on from."""
    lambda_cls: float = 1.00
    lambda_crf: float = 0.80
    lambda_edge: float = 0.70
    lambda_rw: float = 0.40
    lambda_loc: float = 0.45
    low: float = 0.15
    """Stochastic threshold, minimum: the background channel of the targets. PAPER: table III has .05, from which the
    maps grow from epoch to epoch."""
    high: float = 0.30
    crf_every: int = 4
    """L_crf enters every n-th iteration."""
    crf_iterations: int = 5
    crf_gt_prob: float = 0.7
    crf_gaussian: tuple[float, float] = (3.0, 3.0)
    """sxy, compatibility; sxy at a crop of 512."""
    crf_bilateral: tuple[float, float, float] = (50.0, 5.0, 10.0)
    """sxy, srgb, compatibility; sxy at a crop of 512."""
    closing: int = 15
    """Kernel of the closing at a crop of 512; 0: without morphology."""
    segments: int = 1100
    """SLIC segments in a crop, whatever its size (but at most one for every four pixels)."""
    walk_iterations: int = 12
    walk_sigma: float = 2.0
    walk_squared: bool = False
    """Eq. 14 with the norm squared."""
    local: Literal["background", "classes"] = "background"
    """Local consistency over [1 - max, CAM of present classes], or over the classes alone (literal)."""
    window: int = 7
    balance: bool = False
    """Average background and foreground separately in L_crf and L_rw."""
    smooth: float = 0.01
    """Smoothing of Eq. 27; 1e-5 is the literal reading."""


@dataclass(frozen=True)
class Crf:
    """Dense CRF on labels, at image resolution. Lengths are those for VOC's images, whose long side is 500; at another
    size they scale with it."""

    iterations: int = 10
    gt_prob: float = 0.7
    gaussian: tuple[float, float] = (3.0, 3.0)
    """sxy, compatibility."""
    bilateral: tuple[float, float, float] = (50.0, 5.0, 10.0)
    """sxy, srgb, compatibility."""


@dataclass(frozen=True)
class Affinity(Stage):
    """AffinityNet: learns edges from the certain parts of the CAMs (IRN, Puzzle-CAM)."""

    epochs: int = 3
    optimizer: Optimizer = field(default_factory=lambda: Optimizer("sgd", lr=0.1, new_scale=1, momentum=0.0))
    source: Literal["baseline", "teacher", "stage1", "stage2", "stage3"] = "stage3"
    """Whose CAMs it learns from, and the walk starts with."""
    radius: int = 10
    """Pairs of cells (of 4 pixels) nearer than this are compared."""
    foreground: float = 0.40
    """CAM above it, after the CRF: certainly the class."""
    background: float = 0.10
    """CAM below it, after the CRF: certainly background. Pixels between the two are not used."""
    crf: Crf = field(default_factory=Crf)


@dataclass(frozen=True)
class Walk:
    """From CAMs to final labels: random walk over AffinityNet's edges, threshold, dense CRF."""

    radius: int = 5
    beta: float = 10.0
    log2_steps: int = 8
    """The walk takes 2^log2_steps steps."""
    threshold: float = 0.35
    """Background score where no thresholds are fitted."""
    crf: Crf = field(default_factory=lambda: Crf(iterations=1))


@dataclass(frozen=True)
class Network:
    """Architectures."""

    student: Arch = "resnet18"
    teacher: Arch = "resnet50"
    head: Literal["lean", "parity"] = "lean"
    """Refine head: lean, or `parity` with the paper's 1.41 M parameters."""
    width: int = 128
    """Channels inside the lean head (parity: 512)."""
    dropout: float = 0.5
    """On the coarse class map in front of the head."""
    radius: int = 4
    """Guided filter, Eq. 19."""
    eps: float = 1e-2


@dataclass(frozen=True)
class Inference:
    """How CAMs are made and scored."""

    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    flip: bool = True
    splits: tuple[str, ...] = ("val",)
    """Splits whose masks are written after each stage, and scored where the data has masks to compare with; `name:N` is
    an evenly spaced sample of N images."""
    fit_split: str = ""
    """Also fit thresholds here and report them as transferred to `splits`; "" for none."""
    labels: Literal["given", "predicted"] = "given"
    """Image tags used at inference on the scored splits."""
    target_sample: int = 32
    """Training images with masks on which stage 3 logs the mIoU of its own targets after each epoch; 0 for none."""


@dataclass(frozen=True)
class Config:
    """A whole run: teacher -> stage 1 -> 2 -> 3 -> AffinityNet -> walk, and the baseline beside it."""

    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    baseline: Classification = field(default_factory=Classification)
    teacher: Classification = field(default_factory=Classification)
    stage1: Distillation = field(default_factory=Distillation)
    stage2: Distillation = field(default_factory=Distillation)
    stage3: Refinement = field(default_factory=Refinement)
    affinity: Affinity = field(default_factory=Affinity)
    walk: Walk = field(default_factory=Walk)
    inference: Inference = field(default_factory=Inference)


def to_dict(value: object) -> Any:
    """Dataclasses, tuples and paths as what JSON knows."""
    if is_dataclass(value):
        return {f.name: to_dict(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [to_dict(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def from_dict(kind: type[Settings], tree: dict[str, Any]) -> Settings:
    """The inverse of `to_dict` for the dataclass `kind`."""
    hints = get_type_hints(kind)
    return kind(**{name: restore(hints[name], value) for name, value in tree.items()})


def restore(hint: Any, value: Any) -> Any:
    """One value of `from_dict`, for the annotation `hint`."""
    if isinstance(value, dict):
        return from_dict(hint, value)
    if isinstance(value, list):
        return tuple(value)
    if hint is Amp and isinstance(value, bool):  # runs from before there was "auto"
        return "on" if value else "off"
    if any(value in get_args(kind) for kind in get_args(hint)):  # "imagenet", where a path may stand too
        return value
    return Path(value) if isinstance(value, str) and Path in (hint, *get_args(hint)) else value
