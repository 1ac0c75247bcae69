"""Hepatorenal index: brightness of the liver over renal cortex at the same depth.

Webb et al. 2009 (doi 10.2214/AJR.07.4016) and Marshall et al. 2012 (doi 10.2214/AJR.11.6677)
divide the mean grey of a liver box by that of a box in the cortex of the right kidney at the same
depth. Grey is log-compressed, so that their ratio changes with gain. Here grey is linearised
first; the ratio of amplitudes, or their difference in dB, does not.
"""

from dataclasses import dataclass

import numpy as np

from steatosis_tf.model.baselines.display import Display, level_of
from steatosis_tf.roi.crop import Rectangle

# Liver is taken at the depth of the cortex patch, give or take this share of the sector's depth,
# and first there where the way through the body wall is the same.
_DEPTH_TOLERANCE = 0.03
_WIDEST_TOLERANCE = 0.12
# So many times the pixels of the cortex patch, and no fewer than once as many.
_LIVER_TIMES = 6


@dataclass(frozen=True)
class HepatorenalIndex:
    """Liver over renal cortex.

    Attributes:
        index_db: level of liver minus level of cortex, dB; by the assumed dynamic range where it
            is unknown.
        ratio: the same as ratio of echo amplitudes; 1 where both are as bright.
        liver_level: brightness of the liver that was compared, grey 0 to 255.
        cortex_level: brightness of the cortex patch, grey 0 to 255.
        depth_gap: mean depth of that liver minus that of the patch, share of the sector's depth.
    """

    index_db: float
    ratio: float
    liver_level: float
    cortex_level: float
    depth_gap: float


def measure_hepatorenal(
    grey: np.ndarray,
    liver: np.ndarray,
    cortex: Rectangle,
    depth_px: np.ndarray,
    across: np.ndarray,
    sector_depth_px: float,
    display: Display,
) -> HepatorenalIndex | None:
    """Compare the cortex patch with the liver nearest to it at the same depth.

    Invariances: gain, mirror image, size of the frame. Time gain compensation cancels because the
    depths are the same; attenuation on the way does not where liver lies before the kidney only.

    Args:
        grey: `(height, width)` uint8, 0 to 255.
        liver: `(height, width)` bool.
        cortex: patch of renal cortex, px of the frame.
        depth_px: `(height, width)` float32, px below the probe, as `Fan.depth_px`.
        across: `(height, width)` float32, place across the beams, as `Fan.angle_deg`.
        sector_depth_px: depth of the whole sector, px.
        display: scale of the frame.

    Returns:
        None where no liver as large as the patch lies within 12 % of the sector's depth.

    Raises:
        ValueError: if the patch reaches beyond the frame.
    """
    if cortex.bottom > grey.shape[0] or cortex.right > grey.shape[1]:
        raise ValueError(
            f"Expected a cortex patch inside the frame of {grey.shape} px. Received: "
            f"cortex={cortex}."
        )
    box = (slice(cortex.top, cortex.bottom), slice(cortex.left, cortex.right))
    beside = liver.copy()
    beside[box] = False
    depth = float(np.mean(depth_px[box]))
    chosen = _nearest_liver(
        np.abs(depth_px[beside] - depth) / sector_depth_px,
        np.abs(across[beside] - float(np.mean(across[box]))),
        cortex.height * cortex.width,
    )
    if chosen is None:
        return None
    liver_level, cortex_level = level_of(grey[beside][chosen]), level_of(grey[box])
    index_db = (liver_level - cortex_level) * display.db_per_grey
    return HepatorenalIndex(
        index_db=index_db,
        ratio=float(10 ** (index_db / 20)),
        liver_level=liver_level,
        cortex_level=cortex_level,
        depth_gap=float((depth_px[beside][chosen].mean() - depth) / sector_depth_px),
    )


def _nearest_liver(depth_gap: np.ndarray, side_gap: np.ndarray, patch_px: int) -> np.ndarray | None:
    """Indices of the liver pixels to compare with, or None if there are too few."""
    for tolerance in (_DEPTH_TOLERANCE, 2 * _DEPTH_TOLERANCE, _WIDEST_TOLERANCE):
        near = np.flatnonzero(depth_gap <= tolerance)
        if len(near) >= patch_px:
            return near[np.argsort(side_gap[near], kind="stable")[: _LIVER_TIMES * patch_px]]
    return None
