"""What another scanner, setting or hand does to a ROI, at a stated strength.

Every function takes ROI frames `(n, height, width, 1)` uint8 and returns new ones of the same
shape; strength 0 returns the same pixels. Pixels that are 0 lie outside the sector (or under the
scanner's noise floor) and stay 0, so that no perturbation draws where the model expects nothing;
`roi_shift_*` and `depth_crop` move that border with the picture.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

#: Grey levels of a B-mode picture span about this many decibels (usual display setting).
DYNAMIC_RANGE_DB = 60.0


def gain(rois: np.ndarray, strength_db: float, seed: int = 0) -> np.ndarray:
    """Overall gain: in a log-compressed picture, an offset of 255 / 60 grey levels per dB."""
    return _inside(rois, rois.astype(np.float32) + strength_db * 255.0 / DYNAMIC_RANGE_DB)


def contrast(rois: np.ndarray, strength_percent: float, seed: int = 0) -> np.ndarray:
    """Dynamic range: distances from mid-grey 128 grow (above 0) or shrink (below 0)."""
    factor = 1 + strength_percent / 100
    return _inside(rois, 128 + factor * (rois.astype(np.float32) - 128))


def speckle(rois: np.ndarray, strength_percent: float, seed: int = 0) -> np.ndarray:
    """Multiplicative noise of this standard deviation, one grain about 2 px wide.

    The noise of a frame depends on the seed and on the frame's own pixels, not on its place in
    the batch.
    """
    noisy = rois.astype(np.float32)
    for roi in noisy:
        key = int(roi.sum()) % (2**32)
        grain = np.random.default_rng([seed, key]).normal(size=roi.shape[:2]).astype(np.float32)
        grain = cv2.GaussianBlur(grain, (0, 0), 0.8)
        roi *= 1 + strength_percent / 100 * (grain / grain.std())[..., None]
    return _inside(rois, noisy)


def blur(rois: np.ndarray, strength_px: float, seed: int = 0) -> np.ndarray:
    """Poorer focus: Gaussian of this standard deviation in px of the ROI."""
    if strength_px == 0:
        return rois.copy()
    # Divided by the blurred mask, so that the black surround does not darken the border.
    mask = (rois > 0).astype(np.float32)
    frames = [cv2.GaussianBlur(roi.astype(np.float32), (0, 0), strength_px) for roi in rois]
    weights = [cv2.GaussianBlur(inside, (0, 0), strength_px) for inside in mask]
    mean = np.stack(frames) / np.maximum(np.stack(weights), 1e-3)
    return _inside(rois, mean.reshape(rois.shape))


def depth_crop(rois: np.ndarray, strength_percent: float, seed: int = 0) -> np.ndarray:
    """A box that ends higher: the deepest part is left out and the rest stretched over the ROI."""
    height, width = rois.shape[1:3]
    keep = height - round(height * strength_percent / 100)
    area = cv2.INTER_LINEAR  # stretching, so there is nothing to average
    return np.stack([cv2.resize(roi[:keep], (width, height), interpolation=area) for roi in rois])[
        ..., None
    ]


def roi_shift_depth(rois: np.ndarray, strength_px: float, seed: int = 0) -> np.ndarray:
    """A box placed deeper (above 0) or higher (below 0), in px of the ROI; see `_shifted`."""
    return _shifted(rois, round(strength_px), 0)


def roi_shift_lateral(rois: np.ndarray, strength_px: float, seed: int = 0) -> np.ndarray:
    """A box placed further right (above 0) or left (below 0), in px of the ROI."""
    return _shifted(rois, 0, round(strength_px))


def jpeg(rois: np.ndarray, strength_loss: float, seed: int = 0) -> np.ndarray:
    """JPEG at quality 100 - strength; strength 0 leaves the pixels uncompressed."""
    if strength_loss == 0:
        return rois.copy()
    quality = [cv2.IMWRITE_JPEG_QUALITY, round(100 - strength_loss)]
    stored = [cv2.imencode(".jpg", roi, quality)[1] for roi in rois]
    decoded = [np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)) for data in stored]
    return _inside(rois, np.stack(decoded)[..., None])


@dataclass(frozen=True)
class Perturbation:
    """A perturbation with the unit of its strength and the strengths that a report shows."""

    apply: Callable[[np.ndarray, float, int], np.ndarray]
    unit: str
    strengths: tuple[float, ...]


PERTURBATIONS = {
    "gain": Perturbation(gain, "dB", (-12, -6, -3, 3, 6, 12)),
    "contrast": Perturbation(contrast, "percent", (-40, -20, 20, 40)),
    "speckle": Perturbation(speckle, "percent", (5, 10, 20, 40)),
    "blur": Perturbation(blur, "px", (0.5, 1, 2, 4)),
    "depth_crop": Perturbation(depth_crop, "percent", (10, 20, 30)),
    "roi_shift_depth": Perturbation(roi_shift_depth, "px", (-32, -16, 16, 32)),
    "roi_shift_lateral": Perturbation(roi_shift_lateral, "px", (-32, -16, 16, 32)),
    "jpeg": Perturbation(jpeg, "100 - quality", (10, 30, 50, 70, 90)),
}


def _inside(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Rounded to uint8; what was inside (above 0) stays above 0, what was outside stays 0."""
    return np.where(before > 0, np.clip(np.rint(after), 1, 255), 0).astype(np.uint8)


def _shifted(rois: np.ndarray, down_px: int, right_px: int) -> np.ndarray:
    """Move the window; tissue beyond the stored ROI is unknown and stands in mirrored.

    A mirrored strip keeps the texture of its neighbourhood, a black one would tell the model that
    the sector ends there. Where full frames are at hand, cropping them anew is the better test.
    """
    pad = max(abs(down_px), abs(right_px))
    height, width = rois.shape[1:3]
    wide = np.pad(rois, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    top, left = pad + down_px, pad + right_px
    return wide[:, top : top + height, left : left + width]
