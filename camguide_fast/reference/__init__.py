"""The plain PyTorch twin of each op: one line per equation, any device, any float dtype. What every kernel is
compared with."""

from .affinity_walk import affinity_random_walk
from .cam_normalize import cam_normalize, cam_normalize_backward
from .confusion_matrix import confusion_matrix
from .dense_crf import dense_crf, dense_crf_labels
from .edge_consistency import edge_consistency_loss
from .edge_support import edge_support
from .guided_filter import guided_filter
from .label_closing import label_closing, label_morphology
from .local_consistency import local_consistency_loss
from .path_affinity import path_affinity_loss
from .scale_gradient import scale_gradient_
from .slic import slic
from .stochastic_mask import stochastic_mask
from .superpixel_walk import superpixel_graph, superpixel_random_walk
from .target_nll import target_nll
from .threshold_labels import threshold_labels
