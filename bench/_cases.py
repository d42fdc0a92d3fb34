"""Every op on inputs of one size, for what looks at all ops at once. `python bench/_cases.py` runs each of them once on
small ones, on the GPU where there is one: what a checker of memory or races is put around."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from _inputs import class_maps, label_map, photographs, tags
from torch import Tensor

from camguide_fast import ops


@dataclass(frozen=True)
class Size:
    batch: int
    classes: int
    side: int  # of the images
    maps: int  # side of the class maps
    segments: int


SMALL, PAPER = Size(2, 4, 64, 17, 30), Size(32, 20, 512, 128, 1100)


@dataclass(frozen=True)
class Case:
    run: Callable[..., Tensor]
    inputs: tuple
    gradient: bool = False
    """Of the first input."""

    def results(self) -> list[Tensor]:
        """What it returns, and the gradient where it has one."""
        if not self.gradient:
            return [self.run(*self.inputs)]
        leaf = self.inputs[0].detach().requires_grad_()
        with torch.enable_grad():
            result = self.run(leaf, *self.inputs[1:])
        return [result.detach(), *torch.autograd.grad(result, leaf, torch.ones_like(result))]

    def bytes(self) -> int:
        """What it must read and write: inputs and results once, with a gradient what comes from above too."""
        results = self.results()
        tensors = [*self.inputs, *results, *(results[:1] if self.gradient else [])]
        return sum(x.nbytes for x in tensors if isinstance(x, Tensor))


def cases(size: Size, device: torch.device) -> Iterator[tuple[str, Case]]:
    """(op, case). On the device "meta" they have shapes alone."""
    k, side, grid, n = size.classes, size.side, (size.maps, size.maps), size.segments

    def made(f: Callable[..., Tensor], *shape: int) -> Tensor:
        if device.type != "meta":
            return f(size.batch, *shape).to(device)
        return f(1, *shape).to(device).repeat_interleave(size.batch, 0)  # a second for each image saved

    cam, label, image = made(class_maps, k, *grid).sigmoid(), made(tags, k), made(photographs, side)
    target, labels = made(label_map, k, *grid), made(label_map, k, side, side)
    guide = torch.nn.functional.adaptive_avg_pool2d(image.float() / 255, grid)
    most = ops.max_segments(side, side, n)
    yield "cam_normalize", Case(ops.cam_normalize, (cam - 0.5,), True)
    yield "guided_filter", Case(ops.guided_filter, (cam, guide), True)
    yield "local_consistency_loss", Case(ops.local_consistency_loss, (cam,), True)
    yield "edge_support", Case(lambda x: ops.edge_support(x, grid), (image,))
    support = ops.edge_support(image, grid)
    yield "edge_consistency_loss", Case(ops.edge_consistency_loss, (cam, support, label), True)
    yield "target_nll", Case(ops.target_nll, (cam, target, label), True)
    tau = torch.full((size.batch,), 0.3, device=device)
    yield "threshold_labels", Case(lambda x, y, t: ops.threshold_labels(x, y, t, (side, side)), (cam, label, tau))
    yield "slic", Case(lambda x: ops.slic(x, n), (image,))
    segments = ops.slic(image, n)

    def walk(labels: Tensor, segments: Tensor, image: Tensor) -> Tensor:
        return ops.superpixel_random_walk(labels, segments, image, num_segments=most, num_labels=k + 1)

    yield "superpixel_random_walk", Case(walk, (labels, segments, image))
    yield "dense_crf_labels", Case(lambda x, y: ops.dense_crf_labels(x, y, k + 1), (labels, image))
    yield "label_closing", Case(ops.label_closing, (labels,))
    edge = class_maps(1, 1, *grid).sigmoid().to(device)
    yield "affinity_random_walk", Case(ops.affinity_random_walk, (cam[:1], edge))
    yield "path_affinity_loss", Case(lambda x, y: ops.path_affinity_loss(x, y, 5)[0], (edge, target[:1]), True)
    yield "confusion_matrix", Case(lambda x, y: ops.confusion_matrix(x, y, k + 1), (labels, labels.roll(1, 2)))
    yield "stochastic_mask", Case(lambda c, t: ops.stochastic_mask(c, t, 0.1, 0.45, seeded()), (cam, label))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


if __name__ == "__main__":
    gpu = torch.cuda.is_available()
    for name, one in cases(SMALL, torch.device("cuda" if gpu else "cpu")):
        one.results()
        print(name, flush=True)
    if gpu:
        torch.cuda.synchronize()
