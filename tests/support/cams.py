"""Networks of three classes and images for them, as the tests of CAMs and of their commands need them."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from camguide_fast.models.checkpoint import ModelCard
from camguide_fast.models.input_norm import InputNorm

CLASSES = ("cat", "dog", "cow")
CARD = ModelCard("stage3", "resnet18", "lean", 16, 2, 1e-2, CLASSES, (0.0, 0.0, 0.0))
COARSE = replace(CARD, head="none")


def built(card: ModelCard) -> torch.nn.Module:
    """Its network, with the random weights of seed 0, for inference."""
    torch.manual_seed(0)
    return card.build().eval()


class Colours(torch.nn.Module):
    """A network that knows what it sees: class k's map is channel k of the image, minus the other two, at stride 16."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.backbone = torch.nn.Module()
        self.backbone.input = InputNorm((0.0,) * 3, (255.0,) * 3)

    def forward(self, image):
        image = torch.nn.functional.avg_pool2d(image, 16, ceil_mode=True)
        return self.scale * (2 * image - image.sum(1, keepdim=True))


def photo(size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def folder_of_images(path, names=("a.jpg", "b.png", "c.jpg"), size=(40, 52)):
    path.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        pixels = photo((size[0] + i, size[1]), i).permute(1, 2, 0).numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(path / name)
    return path
