"""CAMs in the layout of IRN and those that follow it, as `.npz`, which needs no pickle.

A file `<image>.npz` holds `keys` [P], class indices from 0 without background; `cam` [P, ceil(H/4), ceil(W/4)], the
CAMs at stride 4; `high_res` [P, H, W], the CAMs at the image's size. Values are in [0, 1]. `cam_files.read_cam` reads
it, so that `infer --stage walk` and `final` refine such CAMs. IRN's own files are pickled dicts in `.npy`; who trusts
them converts them with NumPy: `np.savez(name, **np.load(file, allow_pickle=True).item())`.
"""

import io
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from ..data import Split
from ..files import write_atomic
from .cam_files import read_cam

STRIDE = 4


def export_cams(cam_dir: Path, split: Split, out_dir: Path) -> int:
    """CAMs of `write_cams` or `write_walks` in IRN's layout, fp32; returns how many. Raises DataError as `read_cam`."""
    for record in tqdm(split, f"CAMs {split.name}", unit="img", disable=None):
        keys, cam = read_cam(Path(cam_dir) / f"{record.name}.npz", len(split.classes))
        high_res = cam.astype(np.float32)
        size = [-(-side // STRIDE) for side in high_res.shape[1:]]
        coarse = np.zeros((0, *size), np.float32)
        if len(keys):
            coarse = F.interpolate(torch.from_numpy(high_res)[None], size, mode="bilinear", antialias=True)[0].numpy()
        buffer = io.BytesIO()
        np.savez(buffer, keys=keys, cam=coarse, high_res=high_res)
        write_atomic(Path(out_dir) / f"{record.name}.npz", buffer.getbuffer())
    return len(split)
