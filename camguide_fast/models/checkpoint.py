"""Weights on disk with their card: what must be known to build the network again. Loading executes no code."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, overload

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from ..errors import UserError
from ..files import write_atomic
from .affinity_net import AffinityNet
from .camguide import CamNet, build_model
from .input_norm import InputNorm
from .trunks import build_trunk


@dataclass(frozen=True)
class ModelCard:
    """What must be known to build a network again and to use it."""

    stage: str
    arch: str
    head: str  # "none" | "lean" | "parity"; "edges": AffinityNet
    width: int
    radius: int
    eps: float
    classes: tuple[str, ...]
    tag_thresholds: tuple[float, ...] = ()  # [K] a tag is predicted where its logit exceeds this; empty: not fitted
    input_norm: tuple[tuple[float, ...], ...] = ()  # (mean, std) of RGB 0-255; empty: those of the architecture

    def build(self) -> CamNet | AffinityNet:
        if self.head == "edges":
            net = AffinityNet(build_trunk(self.arch))
        else:
            net = build_model(self.arch, len(self.classes), self.head, self.width, self.radius, self.eps)
        if self.input_norm:
            net.backbone.input = InputNorm(*self.input_norm)
        return net


def save_model(path: Path, model: CamNet | AffinityNet, card: ModelCard) -> None:
    """Weights of `model` as `.safetensors`, the card, with the model's input statistics, as JSON in its metadata."""
    card = replace(card, input_norm=model.backbone.input.statistics)
    weights = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    write_atomic(path, safetensors.torch.save(weights, {"card": json.dumps(asdict(card))}))


@overload
def load_model(
    path: Path, device: torch.device | str = "cpu", *, affinity: Literal[False] = False
) -> tuple[CamNet, ModelCard]: ...
@overload
def load_model(
    path: Path, device: torch.device | str = "cpu", *, affinity: Literal[True]
) -> tuple[AffinityNet, ModelCard]: ...
@overload
def load_model(
    path: Path, device: torch.device | str = "cpu", *, affinity: bool
) -> tuple[CamNet | AffinityNet, ModelCard]: ...
def load_model(
    path: Path, device: torch.device | str = "cpu", *, affinity: bool = False
) -> tuple[CamNet | AffinityNet, ModelCard]:
    """The network that `save_model` wrote, in eval mode on `device`, and its card.

    Raises UserError for a file that is missing, is no safetensors file, has no card, whose weights do not fit its
    card, or that holds an AffinityNet where a network of CAMs is wanted (with `affinity` the other way round).
    """
    card = read_card(path)
    if (card.head == "edges") != affinity:
        found, wanted = ("a network of CAMs", "an AffinityNet") if affinity else ("an AffinityNet", "a network of CAMs")
        raise UserError(f"{path}: is {found} ({card.stage}), expected {wanted}")
    model = card.build()
    try:
        model.load_state_dict(safetensors.torch.load_file(path, device="cpu"))
    except RuntimeError as error:
        raise UserError(f"{path}: weights do not fit its card ({card.arch}, head {card.head}): {error}") from error
    return model.to(device).eval(), card


def read_card(path: Path) -> ModelCard:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("card")
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file: {error}") from error
    if text is None:
        raise UserError(f"{path}: has no model card; expected a checkpoint written by camguide_fast.train")
    fields = json.loads(text)
    norm = tuple(map(tuple, fields.get("input_norm", ())))
    tuples = {name: tuple(fields[name]) for name in ("classes", "tag_thresholds")}
    return ModelCard(**fields | tuples | {"input_norm": norm})
