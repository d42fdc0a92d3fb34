"""The ops: drop-in functions on CPU or CUDA tensors. Each file holds schema, shapes for tracing, autograd and the
docstring."""

from ._backends import COST, backends, build_error, load_native
from .affinity_walk import affinity_random_walk
from .cam_normalize import cam_normalize
from .confusion_matrix import confusion_matrix
from .dense_crf import crf_settings, dense_crf, dense_crf_labels
from .edge_consistency import edge_consistency_loss
from .edge_support import edge_support
from .guided_filter import guided_filter
from .label_closing import label_closing, label_dilation, label_erosion, label_opening
from .local_consistency import local_consistency_loss
from .path_affinity import path_affinity_loss
from .scale_gradient import scale_gradient_
from .slic import max_segments, slic
from .stochastic_mask import stochastic_mask
from .superpixel_walk import SuperpixelGraph, superpixel_graph, superpixel_random_walk
from .target_nll import target_nll
from .threshold_labels import threshold_labels

load_native()
