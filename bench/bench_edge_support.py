"""edge_support: the peers are the twin, torch.compile of it, and OpenCV's filters image by image."""

import cv2
import numpy as np
import torch
from _check import close
from _harness import compare
from _inputs import photographs
from _rows import Row, compiled

from camguide_fast import ops, reference

SIZE = (128, 128)


def ours(image):
    return ops.edge_support(image, SIZE)


def eager(image):
    return reference.edge_support(image, SIZE)


def opencv(images):  # uint8 [B, H, W, 3]
    border = cv2.BORDER_REPLICATE
    out = []
    for image in images:
        blurred = cv2.GaussianBlur(image.astype(np.float32), (9, 9), 3.0, borderType=border)
        dx = cv2.Scharr(blurred, cv2.CV_32F, 1, 0, borderType=border)
        dy = cv2.Scharr(blurred, cv2.CV_32F, 0, 1, borderType=border)
        edges = np.sqrt(dx * dx + dy * dy).mean(2)
        edges = cv2.dilate(edges / max(edges.max(), 1e-12), np.ones((3, 3), np.uint8))
        out.append(cv2.resize(edges, SIZE[::-1], interpolation=cv2.INTER_AREA))
    return out


bench_edge_support = compare(
    "edge_support",
    "32x3x512x512 uint8 to 128x128",
    inputs=lambda: (photographs(32, 512),),
    oracle=lambda image: eager(image.double() / 255),
    check=close(1e-5),
    rows={
        "ours": ours,
        "eager": eager,
        "compiled": compiled(eager),
        "OpenCV": Row(
            opencv,
            inputs=lambda image: (np.ascontiguousarray(image.permute(0, 2, 3, 1)),),
            result=lambda planes: torch.from_numpy(np.array(planes)[:, None]),
            on_cpu=True,
        ),
    },
)
