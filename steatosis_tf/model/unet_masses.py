"""Training pictures with a mass of another picture in their liver."""

import cv2
import numpy as np

from steatosis_tf.model.outlined_crop import OutlinedCrop

_NUM_TRIES = 4
# So much of a pasted mass lies in the liver that is there: what only touches it may be a gall
# bladder, and that is no liver.
_MIN_INSIDE = 0.85


def paste_mass(
    grey: np.ndarray,
    sector: np.ndarray,
    liver: np.ndarray,
    donor: OutlinedCrop,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Put the donor's mass, turned and scaled, somewhere into this liver.

    Annotators count a mass as liver, and a network that has seen few large ones stops at their
    wall.

    Args:
        grey: `(height, width)` float32, 0 to 255.
        sector: `(height, width)` uint8, 0 or 1.
        liver: `(height, width)` float32, 0 to 1.
        donor: a picture whose `mass` is not empty.
        random: source of every random choice.

    Returns:
        New grey and new liver; the given ones where the mass fits nowhere.
    """
    rows, columns = np.nonzero(liver > 0.5)
    around = (donor.liver > 0) & (donor.mass == 0)
    if rows.size == 0 or not around.any():
        return grey, liver
    linear = _turn(random)
    left, top, width, height = cv2.boundingRect(donor.mass)
    middle = np.array([left + width / 2, top + height / 2])
    size = grey.shape[::-1]
    for _ in range(_NUM_TRIES):
        at = random.integers(rows.size)
        matrix = np.column_stack([linear, np.array([columns[at], rows[at]]) - linear @ middle])
        mass = cv2.warpAffine(donor.mass * 255, matrix, size, flags=cv2.INTER_LINEAR) / 255.0
        if mass.sum() > 0 and mass[liver > 0.5].sum() >= _MIN_INSIDE * mass.sum():
            break
    else:
        return grey, liver
    # As bright against the liver around it as it was at home.
    level = float(grey[liver > 0.5].mean()) / max(float(donor.grey[around].mean()), 1.0)
    seen = cv2.warpAffine(donor.grey, matrix, size, flags=cv2.INTER_LINEAR).astype(np.float32)
    wide = cv2.dilate(mass.astype(np.float32), np.ones((5, 5), np.uint8))
    share = cv2.GaussianBlur(wide, (0, 0), random.uniform(1.0, 2.5))
    picture = grey * (1 - share) + np.clip(seen * np.clip(level, 0.4, 2.5), 0, 255) * share
    # In the cut-out a mass is whole; where it passes the old border the liver reaches as far.
    return picture * (sector > 0), np.maximum(liver, mass).astype(np.float32)


def _turn(random: np.random.Generator) -> np.ndarray:
    """Linear part `(2, 2)` from the donor's crop (300 px wide) to the network's input (224)."""
    scale = 0.75 * np.exp(random.normal(0.1, 0.35))
    angle = random.normal(0, 0.3)
    mirror = random.choice((-1.0, 1.0))
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * rotate @ np.diag([mirror, 1.0])
