"""What the liver network's decoder says about the liver: deep features that never saw a grade.

The network was trained to outline livers (`steatosis_tf/roi/anatomy/liver_unet_card.md`), on other
patients than any study here, and is not changed. Its features are pooled over three zones.
"""

import cv2
import numpy as np

from steatosis_tf.roi.anatomy.kidney import GRID, cortex_features, liver_in_input
from steatosis_tf.roi.anatomy.liver import Placement

_NUM_FEATURES = 148
_ZONES = ("liver", "deep", "rest")
#: Names of the numbers.
LIVER_COLUMNS = tuple(
    f"{zone}_{kind}_{number:03d}"
    for zone in _ZONES
    for kind in ("mean", "spread")
    for number in range(_NUM_FEATURES)
)

# A cell counts as liver, or as none, above and below these shares.
_MOSTLY, _HARDLY = 0.9, 0.1


def liver_features(crop: np.ndarray, liver: np.ndarray, place: Placement) -> np.ndarray:
    """Mean and standard deviation of every feature in liver, its deeper half, and outside it.

    Args:
        crop: `(160, 224, 2)` float32, from `steatosis_tf.roi.anatomy.liver.network_input`.
        liver: `(height, width)` bool, from `liver_mask`.
        place: from `network_input`.

    Returns:
        `(888,)` float64, in the order of `LIVER_COLUMNS`; NaN for a zone without a cell.
    """
    features = cortex_features(crop)
    size = (GRID[1], GRID[0])
    share = cv2.resize(liver_in_input(liver, place), size, interpolation=cv2.INTER_AREA)
    sector = cv2.resize(crop[..., 1], size, interpolation=cv2.INTER_AREA) > _MOSTLY
    inside = share > _MOSTLY
    rows = np.nonzero(inside)[0]
    middle = np.median(rows) if len(rows) else GRID[0]
    deep = inside & (np.arange(GRID[0])[:, None] > middle)
    pooled = [_pooled(features[zone]) for zone in (inside, deep, sector & (share < _HARDLY))]
    return np.concatenate(pooled)


def _pooled(cells: np.ndarray) -> np.ndarray:
    if not len(cells):
        return np.full(2 * _NUM_FEATURES, np.nan)
    return np.concatenate([cells.mean(axis=0), cells.std(axis=0)]).astype(float)
