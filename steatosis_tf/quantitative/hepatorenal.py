"""Hepatorenal index: brightness of the liver before the right kidney over its renal cortex.

Webb et al. 2009 (doi 10.2214/AJR.07.4016) and Marshall et al. 2012 (doi 10.2214/AJR.11.6677)
divide the mean grey of a liver box by that of a box in the cortex of the right kidney. Grey is
log-compressed, so that their ratio changes with gain. Here grey is linearised first; the ratio of
amplitudes, or their difference in dB, does not.

Both ask for the same depth. Where operators of Byra et al. 2018 really put their boxes, the liver
is 0.135 of the sector's depth (median) shallower and on nearly the same beams: liver at the depth
of the cortex lies far to the side, in the dark edge or behind more fat. Liver taken there is 6 dB
darker than the operators', the more so the more fat, which takes most of the index away
(docs/measured_features.md, "What was wrong with the index").
"""

from dataclasses import dataclass

import numpy as np

from steatosis_tf.quantitative.display import Beams, Display, level_of
from steatosis_tf.roi.views import Rectangle

# Liver is taken this proportion of the sector's depth before the cortex patch, give or take a
# share, and first there where the way through the body wall is the same. Of 36 windows this one's
# level was among the closest to the operators' liver boxes; fat had no say.
_DEPTH_BEFORE = 0.14
_DEPTH_TOLERANCES = (0.06, 0.12, 0.18)
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
        depth_gap: mean depth of that liver minus that of the patch, as a proportion of the
            sector's depth; negative where the liver is shallower.
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
    beams: Beams,
    display: Display,
) -> HepatorenalIndex | None:
    """Compare the cortex patch with the liver before it, on the nearest beams.

    Invariances: gain, mirror image, size of the frame, and what dims whole beams: contact, body
    wall, ribs. Attenuation less time gain compensation counts over `depth_gap`: a fatty liver
    weakens the beam on its last centimetres before the kidney, too.

    Args:
        grey: `(height, width)` uint8, 0 to 255.
        liver: `(height, width)` bool.
        cortex: patch of renal cortex, px of the frame.
        beams: of the frame.
        display: scale of the frame.

    Returns:
        None where no liver as large as the patch lies between 32 % of the sector's depth before
        and 4 % behind it.

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
    depth, depths = float(np.mean(beams.depth_px[box])), beams.depth_px[beside]
    chosen = _nearest_liver(
        np.abs((depths - depth) / beams.extent_px + _DEPTH_BEFORE),
        np.abs(beams.across[beside] - float(np.mean(beams.across[box]))),
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
        depth_gap=float((depths[chosen].mean() - depth) / beams.extent_px),
    )


def _nearest_liver(depth_gap: np.ndarray, side_gap: np.ndarray, patch_px: int) -> np.ndarray | None:
    """Indices of the liver pixels to compare with, or None if there are too few."""
    for tolerance in _DEPTH_TOLERANCES:
        near = np.flatnonzero(depth_gap <= tolerance)
        if len(near) >= patch_px:
            return near[np.argsort(side_gap[near], kind="stable")[: _LIVER_TIMES * patch_px]]
    return None
