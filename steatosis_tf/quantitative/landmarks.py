"""How well vessels and diaphragm stand out, the signs that fade as fat increases; and speckle.

Readers grade by "blurring of vessels" and "poor visualisation of the diaphragm" (Saverymuttu et
al. 1986, doi 10.1136/bmj.292.6512.13; Hamaguchi et al. 2007,
doi 10.1111/j.1572-0241.2007.01526.x). No measured definition is agreed upon; the two below are
this project's own, kept simple enough to be checked by eye. What is known of speckle statistics
stands in docs/measured_features.md.
"""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from steatosis_tf.quantitative.attenuation import NEAR_FIELD_SHARE
from steatosis_tf.quantitative.display import Beams, Display, level_of

#: Darker than the liver around it by this much counts as the inside of a vessel.
VESSEL_DB = 6.0
# Proportions of the sector's depth: smoothing over speckle, neighbourhood, and search for the
# diaphragm before and behind the deep end of the liver.
_SMOOTH_SHARE, _AROUND_SHARE = 0.008, 0.10
_BEFORE_SHARE, _BEHIND_SHARE = 0.03, 0.08
# Standard deviation up to which a blur is made on all px; that of a frame 640 px deep.
_WIDE_PX = 64
_NUM_BEAMS = 32
_MIN_BEAMS = 4
_MIN_PX = 200


@dataclass(frozen=True)
class Landmarks:
    """Visibility of vessels and diaphragm.

    Attributes:
        vessel_percent: proportion of the liver that is at least 6 dB darker than the liver around
            it once speckle is smoothed, percent.
        vessel_contrast_db: how much darker than their surroundings the darkest 5 % are, dB.
        diaphragm_db: how far the brightest echo at the deep end of the liver rises over the liver
            before it, upper quartile over the beams, dB; NaN where fewer than 4 beams show an end.
    """

    vessel_percent: float
    vessel_contrast_db: float
    diaphragm_db: float


def measure_landmarks(
    grey: np.ndarray,
    liver: np.ndarray,
    sector_mask: np.ndarray,
    beams: Beams,
    display: Display,
) -> Landmarks | None:
    """Measure how far vessels and diaphragm stand out from the liver.

    Invariances: gain, mirror image, size of the frame. The dynamic range matters: where it is
    assumed, dB are in proportion only, and 6 dB may be 5 or 7.

    Args:
        grey: `(height, width)` uint8, 0 to 255.
        liver: `(height, width)` bool.
        sector_mask: `(height, width)` bool.
        beams: of the frame.
        display: scale of the frame.

    Returns:
        None where fewer than 200 px of liver lie below the near field.
    """
    plain = liver & (beams.depth_px > NEAR_FIELD_SHARE * beams.extent_px)
    if np.count_nonzero(plain) < _MIN_PX:
        return None
    smooth = _mean_inside(grey, sector_mask, _SMOOTH_SHARE * beams.extent_px)
    around = _mean_inside(grey, plain, _AROUND_SHARE * beams.extent_px)
    darker_db = (around - smooth)[plain] * display.db_per_grey
    rises = _diaphragm_rises(smooth, plain, sector_mask, beams)
    enough = len(rises) >= _MIN_BEAMS
    return Landmarks(
        vessel_percent=100 * float(np.mean(darker_db >= VESSEL_DB)),
        vessel_contrast_db=float(np.quantile(darker_db, 0.95)),
        diaphragm_db=float(np.quantile(rises, 0.75)) * display.db_per_grey if enough else np.nan,
    )


def _mean_inside(grey: np.ndarray, mask: np.ndarray, sigma_px: float) -> np.ndarray:
    """Gaussian mean of the grey inside a mask, `(height, width)` float32."""
    weight = mask.astype(np.float32)
    sigma = max(sigma_px, 0.5)
    # A wide blur shows nothing fine, and costs minutes on a screen of 4,000 px.
    step = 1 + int(sigma // _WIDE_PX)

    def blurred(values: np.ndarray) -> np.ndarray:
        if step == 1:
            return cv2.GaussianBlur(values, (0, 0), sigma)
        height, width = values.shape
        small = cv2.resize(values, (width // step, height // step), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma / step)
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)

    return np.asarray(blurred(grey * weight) / np.maximum(blurred(weight), 1e-6))


def _diaphragm_rises(
    smooth: np.ndarray, liver: np.ndarray, sector_mask: np.ndarray, beams: Beams
) -> list[float]:
    """Grey by which the brightest echo at the liver's deep end rises over the liver, per beam."""
    across = beams.across[liver]
    edges = np.linspace(across.min(), across.max(), _NUM_BEAMS + 1)
    which = np.digitize(beams.across[sector_mask], edges) - 1
    # Sorted by beam once: a mask of the whole frame for each beam costs ten times as much.
    order = np.argsort(which, kind="stable")
    ends = np.searchsorted(which[order], np.arange(_NUM_BEAMS + 1))
    images = (beams.depth_px, smooth, liver)
    depths, greys, in_liver = (image[sector_mask][order] for image in images)
    rises = []
    for beam in (slice(start, stop) for start, stop in pairwise(ends)):
        inside = depths[beam][in_liver[beam]]
        if len(inside) < _MIN_PX / _NUM_BEAMS:
            continue
        end = float(np.quantile(inside, 0.98)) / beams.extent_px
        depth = depths[beam] / beams.extent_px
        search = (depth > end - _BEFORE_SHARE) & (depth < end + _BEHIND_SHARE)
        before = (depth < end - _BEFORE_SHARE) & (depth > end - 0.2) & in_liver[beam]
        if end + _BEFORE_SHARE < 1 and search.any() and before.any():
            values = greys[beam]
            rises.append(float(np.quantile(values[search], 0.98)) - level_of(values[before]))
    return rises


#: Side of a block per depth of the sector: about 26 px of 370, several speckle grains each way.
BLOCK_SHARE = 0.07
_MIN_BLOCK_PX = 8
_MIN_BLOCKS = 3
# Blocks whose mean lies outside lose too much of their distribution to black or white.
_DARKEST, _BRIGHTEST = 25.0, 215.0


@dataclass(frozen=True)
class Speckle:
    """Medians over the blocks of one liver.

    Attributes:
        snr: mean over standard deviation of the linearised envelope, no unit.
        nakagami_m: shape, no unit.
    """

    snr: float
    nakagami_m: float


def measure_speckle(
    grey: np.ndarray, liver: np.ndarray, sector_depth_px: float, display: Display
) -> Speckle | None:
    """Speckle statistics in square blocks that lie wholly in the liver.

    In each block a plane is fitted to the grey and taken away, so that attenuation and shading do
    not count as speckle; then grey is linearised. The median over blocks discounts vessels.

    Invariances: gain (a factor of the envelope, which cancels), linear shading in dB, mirror image.

    Args:
        grey: `(height, width)` uint8, 0 to 255.
        liver: `(height, width)` bool.
        sector_depth_px: depth of the whole sector, px.
        display: scale of the frame.

    Returns:
        None where fewer than 3 blocks fit into the liver.
    """
    blocks = _blocks(grey, liver, max(round(BLOCK_SHARE * sector_depth_px), _MIN_BLOCK_PX))
    if len(blocks) < _MIN_BLOCKS:
        return None
    envelope = display.amplitude(_without_plane(blocks))
    intensity = envelope**2
    snr = envelope.mean(axis=(1, 2)) / envelope.std(axis=(1, 2))
    shape = intensity.mean(axis=(1, 2)) ** 2 / intensity.var(axis=(1, 2))
    return Speckle(float(np.median(snr)), float(np.median(shape)))


def _blocks(grey: np.ndarray, liver: np.ndarray, side: int) -> np.ndarray:
    """Blocks, half overlapping, `(n, side, side)` float64."""
    sums = cv2.integral(liver.astype(np.uint8))
    found = []
    for top in range(0, grey.shape[0] - side + 1, max(side // 2, 1)):
        for left in range(0, grey.shape[1] - side + 1, max(side // 2, 1)):
            bottom, right = top + side, left + side
            area = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
            if area < side * side:
                continue
            block = grey[top:bottom, left:right]
            if _DARKEST < block.mean() < _BRIGHTEST and np.ptp(block) > 0:
                found.append(block)
    return np.array(found, np.float64).reshape(-1, side, side)


def _without_plane(blocks: np.ndarray) -> np.ndarray:
    """Blocks minus their own least-squares plane; the mean of each is 0 then."""
    side = blocks.shape[1]
    place = np.arange(side) - (side - 1) / 2
    power = float(side * np.sum(place**2))
    down = np.einsum("nij,i->n", blocks, place) / power
    right = np.einsum("nij,j->n", blocks, place) / power
    plane = down[:, None, None] * place[:, None] + right[:, None, None] * place[None, :]
    return np.asarray(blocks - blocks.mean(axis=(1, 2), keepdims=True) - plane)
