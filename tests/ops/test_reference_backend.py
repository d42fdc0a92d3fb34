"""Every op without C++ extension, as where none could be built: the same results, from the twins."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from camguide_fast import ops

CALLS = {
    "affinity_random_walk": lambda x: ops.affinity_random_walk(x["cam"], x["edge"]),
    "cam_normalize": lambda x: ops.cam_normalize(x["cam"]),
    "confusion_matrix": lambda x: ops.confusion_matrix(x["labels"], x["target"], 4),
    "dense_crf": lambda x: ops.dense_crf(x["prob"], x["image"]),
    "dense_crf_labels": lambda x: ops.dense_crf_labels(x["target"], x["image"], 4),
    "edge_consistency_loss": lambda x: ops.edge_consistency_loss(x["cam"], x["edge"] / 5, x["tags"]),
    "edge_support": lambda x: ops.edge_support(x["image"], (9, 8)),
    "guided_filter": lambda x: ops.guided_filter(x["cam"], x["image"] / 255),
    "label_closing": lambda x: ops.label_closing(x["target"], kernel_size=3),
    "local_consistency_loss": lambda x: ops.local_consistency_loss(x["cam"]),
    "path_affinity_loss": lambda x: torch.hstack(ops.path_affinity_loss(x["edge"], x["target"], radius=4)),
    "slic": lambda x: ops.slic(x["image"], 12),
    "stochastic_mask": lambda x: ops.stochastic_mask(x["cam"], x["tags"], 0.3, 0.3, torch.Generator().manual_seed(0)),
    "superpixel_random_walk": lambda x: ops.superpixel_random_walk(x["cam"], x["segments"], x["image"]),
    "target_nll": lambda x: ops.target_nll(x["cam"], x["target"], x["tags"]),
    "threshold_labels": lambda x: ops.threshold_labels(x["cam"], x["tags"], 0.6, (41, 30)),
}


def inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "cam": torch.rand(2, 3, 18, 16),
        "edge": torch.rand(2, 1, 18, 16),
        "prob": torch.rand(2, 4, 18, 16).softmax(1),
        "image": torch.randint(0, 256, (2, 3, 18, 16), dtype=torch.uint8),
        "labels": torch.randint(0, 4, (2, 18, 16)),
        "target": torch.randint(0, 4, (2, 18, 16), dtype=torch.uint8),
        "segments": torch.arange(18 * 16, dtype=torch.int32)
        .view(1, 18, 16)
        .div(24, rounding_mode="floor")
        .repeat(2, 1, 1),
        "tags": torch.tensor([[1, 0, 1], [0, 1, 1]]),
    }


def results() -> dict[str, torch.Tensor]:
    found = inputs()
    return {name: call(found) for name, call in CALLS.items()}


@pytest.fixture(scope="module")
def of_twins(tmp_path_factory) -> dict[str, torch.Tensor]:
    file = tmp_path_factory.mktemp("results") / "twins.pt"
    code = f"import sys; sys.path[:0] = {sys.path!r}\nimport torch, test_reference_backend as t\n"
    code += "assert {row['cpu'].backend for row in t.ops.backends().values()} == {'reference'}\n"
    code += f"torch.save(t.results(), {str(file)!r})"
    environment = os.environ | {"CAMGUIDE_FAST_BACKEND": "reference"}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=Path(__file__).parent, check=True)
    return torch.load(file)


@pytest.mark.parametrize("name", CALLS)
def test_same_result_as_here(name, of_twins):
    torch.testing.assert_close(of_twins[name], CALLS[name](inputs()), rtol=2e-4, atol=1e-5)


STEEP = """
import torch
import camguide_fast.ops
local, edge = torch.ops.camguide_fast.local_consistency_loss, torch.ops.camguide_fast.edge_consistency_loss
x = torch.rand(1, 3, 6, 7)
_, grad, _ = local((x * 5e-7).half(), 3, 1e-5, None, True)
assert grad.isfinite().all() and grad.any()
_, grad, _ = edge((x * 1e-5).half(), x[:, :1] * 0, torch.ones(1, 3), 0.1, 0.05, 2.0, 0.35, 2.0, None, True)
assert grad.isfinite().all() and grad.any()
"""


def test_no_infinity_in_fp16_gradients():
    """Of classes that sum to little, and of maps that are nearly flat: no loss scale could mend it."""
    environment = os.environ | {"CAMGUIDE_FAST_BACKEND": "reference", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", STEEP], env=environment, check=True)


def test_every_op_is_called():
    public = {name for name in vars(ops) if callable(getattr(ops, name)) and not name.startswith("_")}
    helpers = {"backends", "build_error", "load_native", "crf_settings", "max_segments", "SuperpixelGraph"}
    helpers |= {"superpixel_graph", "scale_gradient_"}  # called by a walk, by the losses' backward
    helpers |= {f"label_{kind}" for kind in ("opening", "erosion", "dilation")}  # beside label_closing
    assert public - helpers == set(CALLS)
