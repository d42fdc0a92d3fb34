"""The emulation that runs CUDA kernels on the CPU: it computes what a GPU would, and catches what must be caught."""

from pathlib import Path

import cuda_host
import pytest
import torch
from camguide_fast.kernels import _cuda
from cuda_host import KernelError

SOURCE = Path(__file__).with_name("cuda_host.cu")


@pytest.fixture(scope="module", autouse=True)
def source(tmp_path_factory):
    """SOURCE as a kernel's file beside the house's header."""
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "host.cu").write_text(SOURCE.read_text())
    (folder / "common").mkdir()
    (folder / "common/camguide.cuh").write_text((_cuda.SOURCES / "common/camguide.cuh").read_text())
    patch = pytest.MonkeyPatch()
    patch.setattr(_cuda, "SOURCES", folder)
    yield
    patch.undo()


def run(kernel, threads, *args, blocks=1, shared=0, order=0):
    cuda_host.run(_cuda.source("host", {}), kernel, blocks, threads, args, shared=shared, order=order)
    return next((a for a in reversed(args) if isinstance(a, torch.Tensor)), None)


def ints(n, value=0):
    return torch.full((n,), value, dtype=torch.int32)


def outcomes(kernel, *args, orders=range(8), **launch):
    return {tuple(run(kernel, 64, *args, order=order, **launch).tolist()) for order in orders}


@pytest.mark.parametrize("order", range(4))
def test_a_barrier_makes_it_right(order):
    x = torch.arange(3 * 64, dtype=torch.int32)
    assert torch.equal(run("reversed", 64, x, ints(192), 64, 1, blocks=3, order=order), x.view(3, 64).flip(1).flatten())


def test_a_missing_barrier_is_seen():
    results = outcomes("reversed", torch.arange(64, dtype=torch.int32), ints(64), 64, 0)
    assert len(results) > 2
    assert any(-1 in result for result in results)  # the poison


def test_a_missing_warp_barrier_is_seen():
    assert len({tuple(run("reversed_in_warp", 64, ints(64), 1, shared=256, order=o).tolist()) for o in range(4)}) == 1
    assert len({tuple(run("reversed_in_warp", 64, ints(64), 0, shared=256, order=o).tolist()) for o in range(4)}) > 1


def test_a_lost_update_is_seen():
    assert {run("lost_updates", 64, ints(2), 1, order=o)[0].item() for o in range(4)} == {64}
    assert len({run("lost_updates", 64, ints(2), 0, order=o)[0].item() for o in range(4)}) > 1


def test_every_order_compares():
    def launch(kernel, *args):
        out = ints(64)
        _cuda.launch("host", kernel, 1, 64, (out, *args), defines={}, shared=256)
        return out

    assert torch.equal(cuda_host.every_order(lambda: launch("reversed_in_warp", 1)), torch.arange(64).int() ^ 31)
    with pytest.raises(AssertionError, match="gives another result"):
        cuda_host.every_order(lambda: launch("reversed_in_warp", 0))


def test_memory_is_poisoned():
    for dynamic in (0, 1):
        assert run("uninitialised", 32, torch.zeros(32), dynamic, shared=128).isnan().all()
    with cuda_host.on_cpu():
        assert torch.empty(3).isnan().all()
        assert (torch.empty_like(ints(3)) == -1).all() and torch.zeros(2).new_empty((2, 2)).isnan().all()


@pytest.mark.parametrize("order", [0, 1])  # which end of a tensor lies at the inaccessible page
def test_what_lies_outside_is_caught(order):
    page = ints(1024)  # fills a page, so that both of its ends are guarded
    for i in (0, 1023):
        run("touch", 1, page, page.clone(), i, 0, order=order)
    for i in (-1, 1024):
        for write in (0, 1):
            with pytest.raises(KernelError, match="out of bounds"):
                run("touch", 1, page, page.clone(), i, write, order=order)
    few = ints(3)  # the last element does not end at the page
    with pytest.raises(KernelError, match="outside the tensor of argument 1|out of bounds"):
        run("touch", 1, few, few.clone(), 3, 1, order=order)
    with pytest.raises(KernelError, match="read-only input"):
        run("touch", 1, few, few.clone(), 0, 2, order=order)
    for i in (-1, 1024):
        with pytest.raises(KernelError, match="out of bounds"):
            run("touch_shared", 1, ints(1), i, shared=4096, order=order)
    with pytest.raises(KernelError, match="outside the dynamic shared memory|out of bounds"):
        run("touch_shared", 1, ints(1), 3, shared=12, order=order)


def test_undefined_behaviour_is_caught():
    with pytest.raises(KernelError, match="array index"):
        run("touch_static", 1, ints(1), 8)
    assert run("by_fours", 1, torch.arange(12.0), torch.zeros(4), 4).tolist() == [4, 5, 6, 7]
    with pytest.raises(KernelError, match="misaligned"):
        run("by_fours", 1, torch.arange(12.0), torch.zeros(4), 3)
    with pytest.raises(KernelError, match="stack overflow"):
        run("recurse", 1, ints(1), 10**6)
    assert run("recurse", 1, ints(1), 3).item() == 6  # the emulation lives on


def test_threads_that_return_are_not_waited_for():
    for order in range(4):
        assert run("some_return", 64, ints(64), 20, order=order).tolist() == [0] * 20 + [44] * 44


@pytest.mark.parametrize(
    "how, message", [(0, "deadlock"), (1, "different operations"), (2, "deadlock"), (3, "does not name it")]
)
def test_waiting_in_different_places_is_caught(how, message):
    for order in range(3):
        with pytest.raises(KernelError, match=message):
            run("divergent", 32, ints(32), how, order=order)


@pytest.mark.parametrize("order", range(4))
def test_barriers_with_a_predicate(order):
    assert set(run("barriers", 96, ints(96), order=order).tolist()) == {1 + 4 + 16 * 32}


@pytest.mark.parametrize("order", range(4))
def test_warp_operations(order):
    out = run("warps", 64, torch.zeros(64 * 16, dtype=torch.int64), order=order).view(64, 16)
    for t in range(64):
        base, lane, eight = t // 32 * 32, t % 32, t // 8 * 8
        expected = [
            base + 3,
            t - 2 if lane >= 2 else t,
            t + 5 if lane < 27 else t,
            t ^ 6,
            eight + 1,
            t - 3 if t % 8 >= 3 else t,
            t + 3 if t % 8 < 5 else t,
            t + 1 if lane < 31 else t,
            sum(1 << i for i in range(0, 32, 3)),
            1,
            0,
            sum(1 << i for i in range(32) if i % 4 == lane % 4),
            sum(range(base, base + 32)),
            base + 31,
        ]
        if lane != 15 and lane != 16:  # else the source lies in the other half
            expected.append(t + 1 if lane < 16 else t - 1)
            expected.append(base + (0 if lane < 16 else 16))
        assert out[t, : len(expected)].tolist() == expected, t


@pytest.mark.parametrize("order", range(4))
def test_atomics(order):
    out, total, wide, lock = ints(7), torch.zeros(1), torch.zeros(1, dtype=torch.int64), ints(1)
    run("atomics", 64, out, total, wide, lock, blocks=3, order=order)
    bits = 0
    for t in range(192):
        bits ^= 1 << t % 31
    assert out.tolist() == [sum(range(192)), 191, -191, 2**31 - 1, bits, 7, 192]
    assert (total.item(), wide.item(), lock.item()) == (96.0, 191 << 33, 0)


@pytest.mark.parametrize("x", [1, 0x00F0A0, 0x7FFFFFFF])
def test_integer_intrinsics(x):
    binary = f"{x:032b}"
    reversed_ = int(binary[::-1], 2)
    expected = [binary.count("1"), binary.index("1"), 32 - binary.rindex("1")]
    expected += [reversed_ - (reversed_ >> 31 << 32), binary.count("1") + 1, binary.index("1") + 32, (x << 30) >> 32]
    out = run("integers", 1, ints(12), x)
    assert out[:7].tolist() == expected
    assert out[7].item() % 2**32 == (((1 << 32) | x) << 4 >> 32) % 2**32
    assert out[8].item() % 2**32 == (((1 << 32) | x) >> 4) % 2**32
    assert out[9:10].view(torch.float32).item() == float(torch.tensor(x, dtype=torch.float32))
    assert out[10].item() == round(x % 5 + 0.5)
    assert out[11].item() == 0x4B000000 | (x >> 8 & 255)


def test_half_types():
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    h, b = every.view(torch.float16), every.view(torch.bfloat16)
    wide_h, wide_b = torch.zeros(65536), torch.zeros(65536)
    run("from_half", 256, h, b, wide_h, wide_b, blocks=256)
    torch.testing.assert_close(wide_h, h.float(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(wide_b, b.float(), rtol=0, atol=0, equal_nan=True)
    ties = (wide_h[:-1] + wide_h[1:]) / 2  # halfway between two halves, subnormal ones too
    x = torch.cat([wide_h, ties, wide_b, torch.randn(65536), torch.tensor([65519.0, 65520.0, 3.5e38, 1e-46])])
    x = torch.cat([x, x.new_zeros(-len(x) % 256)])
    h, b = torch.zeros(len(x), dtype=torch.float16), torch.zeros(len(x), dtype=torch.bfloat16)
    run("to_half", 256, x, h, b, blocks=len(x) // 256)
    torch.testing.assert_close(h, x.half(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(b, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "args",
    [(ints(1),), (ints(1), 1.0), (torch.zeros(1), 1), (torch.zeros(1, dtype=torch.int64), 1), (ints(1), 1, 1)],
    ids=["too few", "float for int", "float tensor", "int64 tensor", "too many"],
)
def test_arguments_of_another_type_are_refused(args):
    with pytest.raises(AssertionError, match="touch_static"):
        run("touch_static", 1, *args)
