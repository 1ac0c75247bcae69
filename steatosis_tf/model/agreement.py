"""Whether features computed in another way are the same: by angle, and by what heads make of them.

The angle alone says little: features of two patients can have a cosine of 0.999. What counts is
whether a head would decide otherwise. No trained head is at hand when an engine starts, and a few
frames fit any, so many random ones are asked.
"""

import numpy as np

from steatosis_tf.grades import GRADES

#: Cosine between received and expected features, on every checked frame.
MIN_COSINE = 0.999
#: Share of decisions of random heads that may change. They have no margins, so of a trained head's
#: decisions fewer change. On random ResNet-50 weights, whose features hardly differ between
#: patients, bfloat16 changes 7 %, int8 28 % and more: see docs/speed.md.
MAX_CHANGED = 0.10

_NUM_HEADS = 256
_EPSILON = 1e-6  # of the head's feature normalisation, see classifier.py


def smallest_cosine(received: np.ndarray, expected: np.ndarray) -> float:
    """Smallest cosine of a frame; NaN if any feature is NaN or all of a frame's are 0.

    Args:
        received: `(num_frames, num_features)` float32.
        expected: the same, of the reference.
    """
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(received, axis=1)
    with np.errstate(invalid="ignore"):
        return float(((expected * received).sum(axis=1) / norms).min())


def changed_decisions(received: np.ndarray, expected: np.ndarray) -> float:
    """Share of (head, frame) pairs that are graded otherwise, from 0 to 1.

    The heads are linear, drawn at random, and see features standardised by the expected ones, as a
    trained head does. One frame alone cannot be standardised: nothing is decided, nothing changes.

    Args:
        received: `(num_frames, num_features)` float32.
        expected: the same, of the reference.
    """
    if len(expected) < 2:
        return 0.0
    shape = (_NUM_HEADS, expected.shape[1], len(GRADES))
    heads = np.random.default_rng(0).standard_normal(shape, np.float32)
    mean, scale = expected.mean(axis=0), np.sqrt(expected.var(axis=0) + _EPSILON)

    def decisions(features: np.ndarray) -> np.ndarray:
        return ((features - mean) / scale @ heads).argmax(axis=-1)

    return float(np.mean(decisions(received) != decisions(expected)))
