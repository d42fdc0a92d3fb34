"""Twin of ops/confusion_matrix.py."""

import torch
from torch import Tensor


def confusion_matrix(pred: Tensor, target: Tensor, num_classes: int, ignore: int) -> tuple[Tensor, Tensor]:
    """Label maps of one shape -> (counts [C, C], rows are target; number of pixels outside [0, C))."""
    p, t = pred.flatten().long(), target.flatten().long()
    counted = t != ignore
    inside = counted & (t >= 0) & (t < num_classes) & (p >= 0) & (p < num_classes)
    cell = torch.where(inside, t * num_classes + p, num_classes**2)  # one more cell for what is not counted
    table = cell.new_zeros(num_classes**2 + 1).scatter_add_(0, cell, torch.ones_like(cell))
    return table[:-1].reshape(num_classes, num_classes).clone(), (counted & ~inside).sum()
