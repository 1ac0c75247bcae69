"""A predicted fat percent, with its error, read as probabilities of the four grades.

The square root evens out the spread of biopsy readings, which grows with fat. On that scale the
truth is taken as normal around the prediction, and a grade's probability is the share of that
normal distribution between its cuts. The one reading of a predicted fat percent and its error.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from steatosis_tf.grades import FAT_CUTS_PERCENT

#: Narrowest error that is believed, square root of percent: no biopsy is read more exactly.
MIN_SPREAD = 1e-3

_CUTS = np.sqrt(FAT_CUTS_PERCENT).astype(np.float32)
# Shares below the three cuts -> shares between them: a grade is what lies below its upper cut less
# what lies below its lower one, and all of it lies below the last.
_DIFFERENCES = np.array([[1, -1, 0, 0], [0, 1, -1, 0], [0, 0, 1, -1]], np.float32)
_ALL = np.array([0, 0, 0, 1], np.float32)


def grade_probabilities(sqrt_fat: Any, spread: Any, normal_cdf: Callable[[Any], Any]) -> Any:
    """Shares of a normal distribution between the fat cuts, in NumPy or in a graph.

    Args:
        sqrt_fat: `(n, 1)` array or tensor, predicted square root of fat percent.
        spread: its error, one number over 0 on the same scale.
        normal_cdf: of the standard normal distribution, elementwise.

    Returns:
        `(n, 4)`, each row sums to 1, order Normal, Mild, Moderate, Severe.
    """
    return normal_cdf((_CUTS - sqrt_fat) / spread) @ _DIFFERENCES + _ALL
