"""Two pictures side by side on one screen, told from the pixels where the file does not say."""

import cv2
import numpy as np

from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.images import to_grey

# Between two pictures the darkest column has at most 3 % of the lesser picture's brightest (200
# pairs); in 597 of 599 single ones the middle never falls under 30 %.
_MAX_GAP_SHARE = 0.15
# The border of a whole fan. Where one picture is cut in two, the lesser half shows at most 0.49 of
# it (199 pictures), and then without a gap; the lesser of two pictures 0.47 to 0.98 (65 pairs).
# What comes of both rules together, benchmarks/split_screen.py measures.
_MIN_BORDER_SEEN = 0.4

_MIDDLE = (0.35, 0.65)  # share of the width in which the gap is looked for


def is_split_screen(frames: np.ndarray) -> bool:
    """Whether two sectors stand side by side with a dark gap between them.

    Args:
        frames: frames of one clip, `(num_frames, height, width)` or
            `(num_frames, height, width, 3)` RGB, uint8.
    """
    still = np.median([to_grey(frame) for frame in frames], axis=0).astype(np.float32)
    width = still.shape[1]
    columns = cv2.GaussianBlur(still.mean(axis=0)[None], (0, 0), max(1.0, width / 100))[0]
    columns -= columns.min()
    first, last = (int(share * width) for share in _MIDDLE)
    gap = first + int(columns[first:last].argmin())
    lesser = min(columns[:gap].max(), columns[gap:].max())
    if columns[gap] > _MAX_GAP_SHARE * lesser:
        return False
    return all(_shows_sector(half) for half in (frames[:, :, :gap], frames[:, :, gap:]))


def _shows_sector(frames: np.ndarray) -> bool:
    try:
        return find_sector(frames).border_seen >= _MIN_BORDER_SEEN
    except ValueError:
        return False
