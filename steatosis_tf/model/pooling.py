"""Feature maps to feature vectors: means over places, by bands of depth or over all.

A mean is additive over places, so what a linear head makes of a feature vector can be drawn back
onto the places it came from without an approximation. NumPy only: the pipeline's graph
(`steatosis_tf.model.efficientnet_lite0`) and predict pool by the same bands.
"""

import itertools

import numpy as np

#: Bands of depth into which the first tap is pooled, nearest first.
NUM_BANDS = 4


def band_rows(num_rows: int, num_bands: int = NUM_BANDS) -> list[tuple[int, int]]:
    """First row and row after the last of each band of a map, nearest first.

    Args:
        num_rows: height of the map.
        num_bands: 1 for the mean over all.

    Raises:
        ValueError: if a band would be empty.

    Example:
        >>> band_rows(24)
        [(0, 6), (6, 12), (12, 18), (18, 24)]
    """
    if not 1 <= num_bands <= num_rows:
        raise ValueError(
            f"Expected a map of at least {num_bands} rows, one for each band of depth. Received: "
            f"num_rows={num_rows}. Give the network a larger picture."
        )
    edges = np.linspace(0, num_rows, num_bands + 1).round().astype(int).tolist()
    return list(itertools.pairwise(edges))


def pool_maps(near: np.ndarray, far: np.ndarray, num_bands: int = NUM_BANDS) -> np.ndarray:
    """Feature vectors of two tapped maps.

    Args:
        near: `(batch, rows, columns, channels)` float32, pooled by bands of depth.
        far: the same of another size, pooled over all places.
        num_bands: of the first.

    Returns:
        `(batch, num_bands * channels of near + channels of far)` float32: band after band.

    Example:
        >>> pool_maps(np.ones((1, 24, 20, 112)), np.ones((1, 12, 10, 192))).shape
        (1, 640)
    """
    bands = [
        near[:, first:end].mean(axis=(1, 2)) for first, end in band_rows(near.shape[1], num_bands)
    ]
    return np.concatenate([*bands, far.mean(axis=(1, 2))], axis=1).astype(np.float32)
