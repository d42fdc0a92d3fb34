"""The interface of pydensecrf over `ops.dense_crf`.

import camguide_fast.compat.pydensecrf.densecrf as dcrf
from camguide_fast.compat.pydensecrf.utils import unary_from_labels, unary_from_softmax
"""

from . import densecrf, utils
