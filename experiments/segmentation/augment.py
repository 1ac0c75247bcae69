"""Training pictures for the liver network: geometry, brightness, pasted masses, painted kidneys.

NumPy and OpenCV, not TensorFlow: one affine warp from a cached crop costs 2 ms.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from steatosis_tf.roi.anatomy.liver import INPUT_HEIGHT_PX, INPUT_WIDTH_PX, normalised

_NUM_TRIES = 4
# So much of a pasted mass lies in the liver that is there: what only touches it may be a gall
# bladder, and that is no liver.
_MIN_INSIDE = 0.85


@dataclass(frozen=True)
class OutlinedCrop:
    """A sector with some margin and what a person outlined in it, all of one size.

    Attributes:
        grey: `(height, width)` uint8, 0 to 255.
        sector: `(height, width)` uint8, 0 or 1.
        liver: `(height, width)` uint8, 0 or 1.
        mass: `(height, width)` uint8, 0 or 1, inside the liver; all 0 where there is none.
    """

    grey: np.ndarray
    sector: np.ndarray
    liver: np.ndarray
    mass: np.ndarray


def training_pair(
    crop: OutlinedCrop,
    random: np.random.Generator,
    *,
    kidney_share: float,
    donor: OutlinedCrop | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One random training picture and its target.

    Args:
        crop: the outlined sector.
        random: source of every random choice.
        kidney_share: proportion of pictures that get a kidney painted in, 0 to 1.
        donor: where a mass to paste into the liver comes from, if any.

    Returns:
        `(160, 224, 2)` float32 network input, and `(80, 112, 1)` float32, how much is liver,
        0 to 1.
    """
    sector = _shaken_sector(crop.sector, random)
    matrix = _random_placement(sector, random)
    size = (INPUT_WIDTH_PX, INPUT_HEIGHT_PX)
    grey = cv2.warpAffine(crop.grey, matrix, size, flags=cv2.INTER_LINEAR).astype(np.float32)
    sector = cv2.warpAffine(sector, matrix, size, flags=cv2.INTER_NEAREST)
    liver = cv2.warpAffine(crop.liver * 255, matrix, size, flags=cv2.INTER_LINEAR) / 255.0
    liver = liver.astype(np.float32)
    if donor is not None:
        grey, liver = paste_mass(grey, sector, liver, donor, random)
    if random.random() < kidney_share:
        grey, liver = paint_kidney(grey, sector, liver, random)
    grey = _random_brightness(grey, random)
    kept: np.ndarray = liver * sector
    target = cv2.resize(kept, (size[0] // 2, size[1] // 2), interpolation=cv2.INTER_AREA)
    return normalised(grey, sector > 0), target[..., np.newaxis]


def _shaken_sector(sector: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The sector as a finder might return it: too tight, too wide, or cut along a line."""
    choice = random.random()
    height, width = sector.shape
    if choice < 0.4:
        side = int(random.integers(1, max(2, width // 40))) * 2 + 1
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        return cv2.erode(sector, kernel) if choice < 0.2 else cv2.dilate(sector, kernel)
    if choice < 0.6:
        angle = random.uniform(0, 2 * np.pi)
        rows, columns = np.mgrid[:height, :width]
        along = (columns - width / 2) * np.cos(angle) + (rows - height / 2) * np.sin(angle)
        inside = along[sector > 0]
        limit = np.quantile(inside, random.uniform(0.9, 1.0))
        return sector * (along <= limit).astype(np.uint8)
    return sector


def _random_placement(sector: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Affine `(2, 3)` from crop to network input, around the fit that inference uses."""
    left, top, width, height = cv2.boundingRect(sector)
    fit = min(INPUT_HEIGHT_PX / height, INPUT_WIDTH_PX / width)
    zoom = fit * np.exp(random.normal(0, 0.1))
    stretch = np.exp(random.normal(0, 0.12))
    angle = random.normal(0, 0.14)
    shear = random.normal(0, 0.08)
    mirror = random.choice((-1.0, 1.0))
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    deform = np.array([[mirror * stretch, shear], [0.0, 1.0 / stretch]])
    linear = zoom * rotate @ deform
    centre = np.array([left + width / 2, top + height / 2])
    target = np.array([INPUT_WIDTH_PX, INPUT_HEIGHT_PX]) * (0.5 + random.normal(0, 0.03, 2))
    return np.column_stack([linear, target - linear @ centre])


def _random_brightness(grey: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Gamma, gain along depth and across, blur, speckle and a noise floor; 0 to 255."""
    picture = 255.0 * (np.clip(grey, 0, 255) / 255.0) ** np.exp(random.normal(0, 0.25))
    if random.random() < 0.7:
        knots = np.exp(random.normal(0, 0.25, (4, 3))).astype(np.float32)
        picture *= cv2.resize(knots, picture.shape[::-1], interpolation=cv2.INTER_CUBIC)
    if random.random() < 0.4:
        picture = cv2.GaussianBlur(picture, (0, 0), random.uniform(0.4, 1.6))
    if random.random() < 0.5:
        small = random.gamma(4.0, 0.25, (INPUT_HEIGHT_PX, INPUT_WIDTH_PX)).astype(np.float32)
        grain = cv2.GaussianBlur(small, (0, 0), random.uniform(0.5, 1.5)) - 1.0
        picture *= np.clip(1.0 + random.uniform(0.3, 1.2) * grain, 0, 3)
    if random.random() < 0.3:
        floor = random.uniform(5, 50)
        picture = picture * (1 - floor / 255.0) + floor
    return np.clip(picture, 0, 255).astype(np.float32)


def paint_kidney(
    grey: np.ndarray, sector: np.ndarray, liver: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A kidney painted at the liver's deep side, and the liver cut back to what is before it.

    The outlined images show few kidneys, and the network ran on into the kidney where fat makes
    the two alike. The painted one is an ellipse of cortex, often hardly darker than the liver,
    around a brighter sinus, with the liver's own speckle. Nothing behind it is liver.

    Args:
        grey: `(height, width)` float32, 0 to 255.
        sector: `(height, width)` uint8, 0 or 1.
        liver: `(height, width)` float32, 0 to 1.
        random: source of every random choice.

    Returns:
        New grey and new liver; the given ones where there is too little liver to paint on.
    """
    rows, columns = np.nonzero(liver > 0.5)
    if rows.size < 0.12 * np.count_nonzero(sector):
        return grey, liver
    column = random.choice(columns)
    depth = rows[columns == column]
    row = np.quantile(depth, random.uniform(0.55, 1.0)) + random.uniform(0, 12)
    half_length = random.uniform(18, 45)
    radius, side = _ellipse_radius(grey.shape, (row, column), half_length, random)
    before = liver * (radius > 1.15)
    # Enough liver has to remain in front, or the picture says that liver is kidney.
    if before[: max(int(row), 1)].sum() < 0.35 * liver.sum():
        return grey, liver
    near = (liver > 0.5) & (radius < 2.5)
    level = float(grey[near if near.any() else liver > 0.5].mean())
    painted = _kidney_texture(grey, radius, side, level, random)
    inside = cv2.GaussianBlur((radius < 1).astype(np.float32), (0, 0), random.uniform(0.6, 1.5))
    covered = np.maximum.accumulate(radius < 1, axis=0)
    behind = covered & (radius >= 1)
    # Soft-edged: a sharp step would be a cue that no real picture has.
    shade = cv2.GaussianBlur(behind.astype(np.float32), (0, 0), 6) * (random.random() < 0.6)
    far = grey * (1 + random.uniform(-0.3, 0.4) * shade)
    picture = far * (1 - inside) + painted * inside
    return picture * (sector > 0), liver * ~covered


def _ellipse_radius(
    shape: tuple[int, ...],
    centre: tuple[float, float],
    half_length: float,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Distance from the centre in units of a wavy tilted ellipse; and the signed short axis."""
    half_width = half_length * random.uniform(0.38, 0.6)
    tilt = random.uniform(-0.9, 0.9)
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    down, right = rows - centre[0], columns - centre[1]
    long = (right * np.cos(tilt) + down * np.sin(tilt)) / half_length
    short = (-right * np.sin(tilt) + down * np.cos(tilt)) / half_width
    wave = 1 + 0.07 * np.sin(
        random.integers(2, 5) * np.arctan2(short, long) + random.uniform(0, 2 * np.pi)
    )
    return np.hypot(long, short) / wave, short


def _kidney_texture(
    grey: np.ndarray,
    radius: np.ndarray,
    side: np.ndarray,
    level: float,
    random: np.random.Generator,
) -> np.ndarray:
    """Cortex, sinus and capsule with the speckle of the picture itself."""
    moved = np.roll(grey, random.integers(-25, 26, 2), axis=(0, 1))
    speckle = np.clip((moved + 3) / (cv2.GaussianBlur(moved, (0, 0), 6) + 3), 0.3, 2.5)
    cortex = level * random.uniform(0.4, 1.08)
    sinus = level * random.uniform(0.9, 2.0)
    edge = (random.uniform(0.3, 0.65) - radius) / random.uniform(0.06, 0.2)
    sinus_share = 0.5 + 0.5 * np.tanh(edge)
    brightness = cortex + (sinus - cortex) * sinus_share
    if random.random() < 0.6:
        rim = np.exp(-(((radius - 0.98) / 0.06) ** 2)) * (side < 0)
        brightness = brightness + level * random.uniform(0.2, 1.5) * rim
    return brightness * speckle


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
