"""Networks. `models.weights` (pretrained files) is not imported here, because it also runs as a program."""

from .affinity_net import AffinityNet
from .camguide import CamGuideNet, CamNet, build_model, evaluating, logits, param_groups
from .refine_head import RefineHead
from .trunks import STRIDE, TRUNKS, Trunk, build_trunk
