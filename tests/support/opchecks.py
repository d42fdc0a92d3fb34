"""`torch.library.opcheck` of the losses."""

import torch

WITHOUT_BACKWARD = ("test_schema", "test_autograd_registration", "test_faketensor")


def check_loss(op, *args) -> None:
    """All checks without gradient, and those with it but the comparison with AOT autograd: that one holds on to the
    gradient among the outputs of the raw op, which belongs to backward and is scaled in place. Tests of
    `torch.compile` stand for it."""
    x, *others = args
    for need_grad in (True, False):
        torch.library.opcheck(op, (x.detach(), *others, need_grad))
    torch.library.opcheck(op, (x.detach().requires_grad_(), *others, True), test_utils=WITHOUT_BACKWARD)
