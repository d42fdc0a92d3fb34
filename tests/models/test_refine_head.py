import pytest
import torch
import torch.nn.functional as F

from camguide_fast.layers import GuidedFilter
from camguide_fast.models import RefineHead
from camguide_fast.ops import guided_filter


def inputs(k=3, size=(19, 22), coarse=(5, 6), dtype=torch.float32):
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(2, k, *coarse, generator=gen, dtype=dtype)
    stage1 = torch.randn(2, 64, *size, generator=gen, dtype=dtype).relu()
    return x, stage1, torch.rand(2, 3, *size, generator=gen, dtype=dtype)


def randomise(head):
    """Away from the zero start, BatchNorm statistics included."""
    gen = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.randn(p.shape, generator=gen) * 0.2)
        for name, b in head.named_buffers():
            if b.is_floating_point():
                b.copy_(torch.rand(b.shape, generator=gen) + 0.5 * name.endswith("var"))
    return head


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parity_has_the_papers_parameters():
    head = RefineHead(20, width=512, gate="separate")
    assert count(head.phi) + count(head.psi) == 667_156
    assert count(head.residual) == count(head.gate) == 372_244
    assert count(head) == 1_411_644
    assert count(RefineHead(20, width=512)) == 1_039_400  # Eq. 21 as printed


@pytest.mark.parametrize("gate", ["shared", "separate"])
@pytest.mark.parametrize("training", [False, True])
def test_starts_as_the_upsampled_coarse_map(gate, training):
    x, stage1, guide = inputs()
    head = RefineHead(3, width=16, gate=gate).train(training)
    expected = F.interpolate(x, size=(19, 22), mode="bilinear", align_corners=False)
    assert torch.equal(head(x, stage1, guide), expected)


@pytest.mark.parametrize("gate", ["shared", "separate"])
def test_every_parameter_learns(gate):
    x, stage1, guide = inputs()
    head = RefineHead(3, width=8, gate=gate)
    optimiser = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(3):  # the zero layers first, then what lies before them, then the gate
        optimiser.zero_grad()
        (head(x, stage1, guide) - guide).square().mean().backward()
        optimiser.step()
    still = [name for name, p in head.named_parameters() if not p.grad.abs().sum() > 0]
    assert still == []


@pytest.mark.parametrize("gate", ["shared", "separate"])
def test_equations_17_to_22(gate):
    """In fp64 and eval, from the state_dict alone: no module of the head is called for the expected value."""
    x, stage1, guide = inputs(dtype=torch.float64)
    head = randomise(RefineHead(3, width=8, gate=gate, radius=2, eps=0.05)).double().eval()
    state = head.state_dict()

    def layer(t, name, groups=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(t, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2, groups=groups)

    def mix(t, name):
        for i, groups in ((0, 1), (3, 8), (6, 1)):
            t = layer(t, f"{name}.{i}", groups)
            mean, var, weight, bias = (
                state[f"{name}.{i + 1}.{key}"][:, None, None]
                for key in ("running_mean", "running_var", "weight", "bias")
            )
            t = ((t - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)
        return t

    x_up = F.interpolate(x, size=(19, 22), mode="bilinear", align_corners=False)
    z0 = x_up + layer(mix(torch.cat([x_up, stage1], 1), "phi"), "psi")
    g = guided_filter(z0, guide, 2, 0.05)
    r = layer(mix(g, "residual"), "residual.9")
    a = torch.sigmoid(r if gate == "shared" else layer(mix(g, "gate"), "gate.9"))
    torch.testing.assert_close(head(x, stage1, guide), z0 + a * r, rtol=1e-10, atol=1e-10)
    assert (r.abs() > 1e-3).any() and (z0 - x_up).abs().max() > 1e-3  # off the zero start


def test_gradients_reach_both_inputs():
    x, stage1, guide = inputs()
    head = randomise(RefineHead(3, width=8))
    x.requires_grad_(), stage1.requires_grad_()
    head(x, stage1, guide).sum().backward()
    assert x.grad.abs().sum() > 0 and stage1.grad.abs().sum() > 0


def test_bf16_autocast_is_near_fp32():
    x, stage1, guide = inputs()
    head = randomise(RefineHead(3, width=16)).eval()
    expected = head(x, stage1, guide)
    with torch.autocast("cpu", torch.bfloat16):
        got = head(x, stage1, guide)
    error = (got.float() - expected).norm() / expected.norm()
    assert error < 0.03


def test_batches_do_not_mix_in_eval():
    x, stage1, guide = inputs()
    head = randomise(RefineHead(3, width=8)).eval()
    both = head(x, stage1, guide)
    torch.testing.assert_close(both[1:], head(x[1:], stage1[1:], guide[1:]))


def test_guided_filter_layer_is_the_op():
    layer = GuidedFilter(radius=3, eps=0.02)
    z, _, guide = inputs(size=(5, 6))
    assert torch.equal(layer(z, guide), guided_filter(z, guide, 3, 0.02))
    assert repr(layer) == "GuidedFilter(radius=3, eps=0.02)"
    assert not list(layer.parameters()) and not layer.state_dict()


def test_unknown_gate():
    with pytest.raises(ValueError, match="gate must be 'shared' or 'separate', got 'both'"):
        RefineHead(3, gate="both")
