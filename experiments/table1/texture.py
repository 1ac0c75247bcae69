"""Grey-level co-occurrence texture of a ROI (Haralick 1973, doi 10.1109/TSMC.1973.4309314)."""

import numpy as np
from skimage.feature import graycomatrix, graycoprops

from experiments.table1.wavelets import wavelet_features

#: Distances in px of the 224 px ROI, and directions in rad: across, down and the diagonals, where
#: scikit-image rounds the distance to whole px along both axes.
DISTANCES_PX = (1, 2, 4, 8)
ANGLES = (0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
NUM_LEVELS = 32
PROPERTIES = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "entropy")


def cooccurrence_features(rois: np.ndarray) -> np.ndarray:
    """Haralick's properties at four distances: mean over the four directions and their range.

    Grey levels are cut to 32 by dropping the lowest three bits: with 256, most pairs of levels
    of a picture this small would never occur.

    Args:
        rois: `(n, height, width, 1)` uint8, 0 to 255.

    Returns:
        `(n, 48)` float64: for each of `PROPERTIES` the four means, then the four ranges.
        Entropy is in nats.
    """
    return np.stack([_of_one(roi[..., 0] // (256 // NUM_LEVELS)) for roi in rois])


def cooccurrence_and_wavelets(
    rois: np.ndarray, wavelet: str = "db4", levels: int = 3
) -> np.ndarray:
    """Both kinds of texture side by side, `(n, 48 + 3 * (1 + 3 * levels))` float64."""
    return np.hstack([cooccurrence_features(rois), wavelet_features(rois, wavelet, levels)])


def _of_one(levels: np.ndarray) -> np.ndarray:
    pairs = graycomatrix(levels, DISTANCES_PX, ANGLES, NUM_LEVELS, symmetric=True, normed=True)
    values = [graycoprops(pairs, name) for name in PROPERTIES]  # each (distances, angles)
    return np.concatenate([part for one in values for part in (one.mean(axis=1), np.ptp(one, 1))])
