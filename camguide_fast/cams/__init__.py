"""Class activation maps on disk: made at several scales, walked and refined, turned into masks, and scored."""

from .cam_files import read_cam
from .making import write_cams
from .masks import write_masks
from .multi_scale import class_maps, multi_scale_cam
from .results import format_table
from .scoring import evaluate_cams, score, sweep
from .thresholds import label_map

__all__ = [
    "class_maps",
    "evaluate_cams",
    "format_table",
    "label_map",
    "multi_scale_cam",
    "read_cam",
    "score",
    "sweep",
    "write_cams",
    "write_masks",
]
