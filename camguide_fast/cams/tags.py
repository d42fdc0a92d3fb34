"""Image-tag metrics: what checkpoints are selected by, and how tags are predicted. No mask is looked at."""

import torch
from torch import Tensor


def average_precision(scores: Tensor, label: Tensor) -> Tensor:
    """Average precision of each class: scores [N, K], label [N, K] -> [K]; NaN for a class that no image has.

    The mean, over the images that have the class, of the precision among the images scored at least as high (ties
    counted together).
    """
    present = label > 0
    result = []
    for s, p in zip(scores.double().T, present.T, strict=True):
        positives = s[p]
        ranked, ranked_positives = s.sort().values, positives.sort().values
        above = len(s) - torch.searchsorted(ranked, positives)
        hits = len(positives) - torch.searchsorted(ranked_positives, positives)
        result.append((hits / above).mean())
    return torch.stack(result)


def mean_average_precision(scores: Tensor, label: Tensor) -> float:
    """Mean over the classes that some image has."""
    return average_precision(scores, label).nanmean().item()


def best_f1_thresholds(scores: Tensor, label: Tensor) -> tuple[float, ...]:
    """For each class the logit threshold with the best F1 on these tags: a tag is predicted where its logit exceeds it.

    Halfway between two neighbouring scores; infinite for a class that no image has, which is then never predicted.
    """
    thresholds = []
    for s, p in zip(scores.double().T, (label > 0).T, strict=True):
        order = s.argsort(descending=True)
        s, p = s[order], p[order]
        hits, taken = p.cumsum(0), torch.arange(1, len(s) + 1)
        f1 = 2 * hits / (taken + p.sum())
        f1[:-1][s[:-1] == s[1:]] = -1  # no threshold separates equal scores
        if not p.any():
            thresholds.append(float("inf"))
            continue
        cut = int(f1.argmax())
        below = s[cut + 1] if cut + 1 < len(s) else s[cut] - 2
        thresholds.append(((s[cut] + below) / 2).item())
    return tuple(thresholds)
