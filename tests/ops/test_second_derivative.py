"""The losses are differentiable once: what asks for more is told so, and gets no silent zero."""

import pytest
import torch

from camguide_fast import ops

LABEL, TARGET = torch.tensor([[1, 0, 1]]), torch.randint(0, 2, (1, 8, 9))
OPS = {
    "local_consistency_loss": lambda x: ops.local_consistency_loss(x, 3),
    "edge_consistency_loss": lambda x: ops.edge_consistency_loss(x, torch.zeros(1, 1, 8, 9), LABEL),
    "target_nll": lambda x: ops.target_nll(x, TARGET, LABEL),
    "path_affinity_loss": lambda x: ops.path_affinity_loss(x[:, :1], TARGET, 3)[0],
    "cam_normalize": lambda x: ops.cam_normalize(x).square().sum(),
}


@pytest.fixture
def x():
    return torch.rand(1, 3, 8, 9, requires_grad=True)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("factor", [lambda x: 1, lambda x: x.sum()], ids=["constant", "of the input"])
def test_a_penalty_on_the_gradient_raises(name, factor, x):
    (grad,) = torch.autograd.grad(factor(x) * OPS[name](x), x, create_graph=True)
    (plain,) = torch.autograd.grad(factor(x) * OPS[name](x), x)
    assert torch.equal(grad, plain) and grad.any()
    penalty = grad.square().sum() + x.sum()  # has a gradient to x beside the one that is missing
    with pytest.raises(RuntimeError, match=f"{name} has no second derivative"):
        torch.autograd.grad(penalty, x, retain_graph=True)
    with pytest.raises(RuntimeError, match=f"{name} has no second derivative"):
        penalty.backward()


@pytest.mark.parametrize("name", OPS)
def test_an_unused_graph_of_the_gradient_does_no_harm(name, x):
    loss = OPS[name](0.5 * x)
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    (plain,) = torch.autograd.grad(OPS[name](0.5 * x), x)
    assert torch.equal(grad, plain)


@pytest.mark.parametrize("name", OPS)
def test_a_batch_of_gradients_raises_too(name, x):
    loss = OPS[name](x)
    factors = torch.tensor([1.0, -2.0])
    (grads,) = torch.autograd.grad(loss, x, factors, is_grads_batched=True, create_graph=True)
    (plain,) = torch.autograd.grad(loss, x, retain_graph=True)
    torch.testing.assert_close(grads, torch.stack([plain, -2 * plain]))
    with pytest.raises(RuntimeError, match="no second derivative"):
        (grads.square().sum() + x.sum()).backward()


def test_a_penalty_on_the_gradient_of_something_else(x):
    """What the loss adds to it is found out there, too."""
    (grad,) = torch.autograd.grad(x.pow(3).sum() + OPS["local_consistency_loss"](x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.square().sum().backward()


def test_the_input_may_change_after_the_forward_pass(x):
    y = x * 1
    loss = OPS["local_consistency_loss"](y)
    y.zero_()
    loss.backward()
    assert x.grad.any()


def test_compiled(x):
    compiled = torch.compile(OPS["local_consistency_loss"], fullgraph=True)
    (grad,) = torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(grad, torch.autograd.grad(OPS["local_consistency_loss"](x), x)[0])
    with pytest.raises(RuntimeError):  # torch's own refusal
        (grad,) = torch.autograd.grad(compiled(x), x, create_graph=True)
        (grad.square().sum() + x.sum()).backward()
