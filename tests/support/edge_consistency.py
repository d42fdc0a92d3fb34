"""Cases of edge_consistency_loss, and its rows: the op and the twin."""

import torch

from camguide_fast import ops, reference

DEFAULTS = dict(tau=0.1, delta=0.05, gamma=2.0, tau_hard=0.35, lambda_hard=2.0)
OP = ops.edge_consistency_loss


def twin(cam, support, label, valid=None, **options):
    """As autograd differentiates it."""
    return reference.edge_consistency_loss(cam, support, label, *(DEFAULTS | options).values(), valid)


IMPLEMENTATIONS = {"op": OP, "reference": twin}  # the row that the dispatcher chooses, and the twin


def case(shape, dtype=torch.float64):
    b, k, h, w = shape
    label = torch.rand(b, k) < 0.5
    label[0, 0] = True
    return torch.rand(shape, dtype=dtype), torch.rand(b, 1, h, w) * 0.15, label
