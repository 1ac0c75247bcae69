"""Wavelet texture of a ROI: how much detail of which size and direction.

The discrete wavelet transform splits a picture into details of ever coarser size (levels), each
in three directions, and a coarse rest (Mallat 1989, doi 10.1109/34.192463). Speckle and vessel
walls live in the fine levels, shading in the coarse ones; fat makes echoes fine and even.
"""

import numpy as np
import pywt


def wavelet_features(rois: np.ndarray, wavelet: str = "db4", levels: int = 3) -> np.ndarray:
    """Mean absolute value, standard deviation and energy entropy of every subband.

    Args:
        rois: `(n, height, width, 1)` uint8, 0 to 255.
        wavelet: name as PyWavelets has it.
        levels: of the decomposition.

    Returns:
        `(n, 3 * (1 + 3 * levels))` float64: the rest first, then from the coarsest level to the
        finest horizontal, vertical, diagonal. Entropy is in nats over the log of the number of
        coefficients, so from 0 (one coefficient holds all) to 1; 0 for a subband without energy.
    """
    return np.stack([_of_one(roi[..., 0] / 255.0, wavelet, levels) for roi in rois])


def _of_one(picture: np.ndarray, wavelet: str, levels: int) -> np.ndarray:
    rest, *details = pywt.wavedec2(picture, wavelet, mode="symmetric", level=levels)
    subbands = [rest, *(band for level in details for band in level)]
    return np.concatenate([_summary(band.ravel()) for band in subbands])


def _summary(coefficients: np.ndarray) -> tuple[float, float, float]:
    size = np.abs(coefficients)
    energy = coefficients**2
    total = energy.sum()
    # Rounding leaves 1e-30 of a flat picture's details, whose shares would be noise.
    share = energy / total if total > 1e-20 else np.array([1.0])
    positive = share[share > 0]
    entropy = -float((positive * np.log(positive)).sum()) / np.log(len(coefficients))
    return float(size.mean()), float(coefficients.std()), entropy
