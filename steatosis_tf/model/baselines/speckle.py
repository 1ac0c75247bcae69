"""Speckle statistics of the liver: signal-to-noise ratio and Nakagami shape.

Many scatterers per resolution cell make the envelope Rayleigh distributed: mean over standard
deviation 1.91 and Nakagami shape m = 1 (Wagner et al. 1983, doi 10.1109/T-SU.1983.31404; Shankar
2000, doi 10.1109/58.842062). Compounding and smoothing raise both; few strong scatterers lower
them. The shape is estimated by the inverse normalised variance of intensity.

A displayed frame is not raw envelope: linearised by a dynamic range that is often assumed, after
the scanner's own smoothing. Numbers compare patients of one scanner and preset, not laboratories.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from steatosis_tf.model.baselines.display import Display

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
        num_blocks: blocks that were measured.
    """

    snr: float
    nakagami_m: float
    num_blocks: int


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
    return Speckle(float(np.median(snr)), float(np.median(shape)), len(blocks))


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
