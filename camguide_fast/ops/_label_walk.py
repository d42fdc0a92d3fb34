"""The walk of labels: of their one-hot maps, without the maps."""

import torch
from torch import Tensor


def walk_labels(
    labels: Tensor, graph: tuple[Tensor, ...], iterations: int, num_labels: int, ignore: int
) -> Tensor:  # integers [B, H, W] -> like labels
    """argmax_l u_l of Eq. 13-16, u_l starting as the share of label l in each superpixel. Integers are counted, in any
    order the same; then a superpixel walks as an image's pixel would that is one by itself."""
    segments, counts, offsets, neighbours, transition = graph
    where, nodes = segments.flatten(1).long(), counts.shape[1]  # [B, HW], N
    given = labels.flatten(1).int()  # num_labels need not fit into their type
    unknown = (given == ignore) | (given < 0) | (given >= num_labels)  # out of range: where no value is checked
    slot = given.masked_fill(unknown, num_labels) + where * (num_labels + 1)
    found = torch.zeros((len(labels), nodes * (num_labels + 1)), dtype=torch.int32, device=labels.device)
    found.scatter_add_(1, slot, torch.ones_like(found[:, :1]).expand(slot.shape))
    share = (
        found.view(-1, nodes, num_labels + 1)[..., :num_labels] / counts.clamp(min=1)[..., None]
    )  # [B, N, L], Eq. 13
    maps = share.to(transition.dtype).movedim(2, 1)[:, :, None]  # [B, L, 1, N]
    alone = torch.arange(nodes, dtype=torch.int32, device=labels.device).expand(len(labels), 1, nodes)
    walked = torch.ops.camguide_fast.superpixel_random_walk(
        maps, alone, torch.ones_like(counts), offsets, neighbours, transition, iterations
    )
    best = walked.argmax(1)[:, 0].to(labels.dtype)  # [B, N]; of equal ones the first
    return best.gather(1, where).masked_fill(unknown, ignore).view_as(labels)
