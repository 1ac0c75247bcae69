"""Propose the rectangle of liver parenchyma the model should see."""

from dataclasses import dataclass

import numpy as np

from steatosis_tf.roi.crop import Rectangle
from steatosis_tf.roi.parenchyma import Terrain, survey
from steatosis_tf.roi.sector import Sector

# A proposal below this quality is none; see docs/roi.md for how it was measured.
MIN_QUALITY = 0.35
# Sides of the rectangle as shares of the sector's depth, and how many sizes are tried between.
_MIN_SIDE, _MAX_SIDE, _NUM_SIDES = 0.10, 0.42, 9
_ASPECTS = (0.7, 0.85, 1.0, 1.2, 1.45)
# Of two rectangles the one twice as large is better by this much of the scale from 0 to 1.
_SIZE_POWER = 0.25
# A rectangle a quarter of which is vessel, bile, shadow or saturation is worth nothing.
_MAX_BAD_SHARE = 0.25
# Unevenness (spread over level, the fall of brightness with depth taken out) that halves quality.
_HALF_UNEVENNESS = 0.30
# Distance from the liver's border, as a share of the depth, from which more does not help.
_ENOUGH_MARGIN = 0.06
_MIN_LIVER_SHARE = 0.03
_MIN_SIDE_PX = 24


@dataclass(frozen=True)
class Proposal:
    """A proposed rectangle, or none.

    Attributes:
        rectangle: in px of the frame, or None where no rectangle can be proposed.
        quality: 0 to 1, of the best rectangle there is, even if it is not good enough.
        reason: why there is no rectangle; empty where there is one.
    """

    rectangle: Rectangle | None
    quality: float
    reason: str


def propose_rectangle(
    frame: np.ndarray,
    sector: Sector,
    liver_mask: np.ndarray,
    overlay_mask: np.ndarray | None = None,
) -> Proposal:
    """Find the largest even rectangle of liver, clear of its border and of all that is not liver.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8, 0 to 255.
        sector: the sector of that frame.
        liver_mask: `(height, width)` bool, or float32 probability 0 to 1 (liver from 0.5 on).
        overlay_mask: `(height, width)` bool, True on drawn marks; None if there are none.

    Returns:
        The proposal. "Unable to propose" is an answer, not an error: `rectangle` is None then.

    Raises:
        ValueError: if the masks are not of the frame's size.
    """
    for name, mask in (("sector.mask", sector.mask), ("liver_mask", liver_mask)):
        if mask.shape != frame.shape[:2]:
            raise ValueError(
                f"expected {name} of the frame's size {frame.shape[:2]}. "
                f"Received: shape={mask.shape}"
            )
    liver = (liver_mask if liver_mask.dtype == np.bool_ else liver_mask >= 0.5) & sector.mask
    if liver.sum() < _MIN_LIVER_SHARE * sector.mask.sum():
        share = 100 * liver.sum() / max(1, sector.mask.sum())
        return Proposal(None, 0.0, f"no liver found ({share:.1f} % of the sector)")
    terrain = survey(frame, sector, liver, overlay_mask)
    best, quality, cause = _best_window(terrain)
    if best is None:
        return Proposal(None, 0.0, "the clear part of the liver is too small for a rectangle")
    if quality < MIN_QUALITY:
        return Proposal(None, quality, f"best rectangle is doubtful: {cause}")
    rectangle = terrain.in_frame(best)
    if min(rectangle.height, rectangle.width) < _MIN_SIDE_PX:
        return Proposal(None, quality, f"best rectangle is under {_MIN_SIDE_PX} px")
    return Proposal(rectangle, quality, "")


def _best_window(terrain: Terrain) -> tuple[Rectangle | None, float, str]:
    """The best rectangle in px of the terrain, its quality, and what spoils it most."""
    best, best_quality, best_factors = None, -1.0, {}
    sides = np.geomspace(_MIN_SIDE, _MAX_SIDE, _NUM_SIDES) * terrain.depth_px
    for side in sides:
        for aspect in _ASPECTS:
            height, width = round(side / aspect**0.5), round(side * aspect**0.5)
            windows = terrain.windows(height, width)
            if windows is None:
                continue
            top, left, bad, uneven, margin = windows
            factors = {
                "small": np.full(len(top), min(1.0, side / sides[-1]) ** (2 * _SIZE_POWER)),
                "vessels, shadow or saturation": np.clip(1 - bad / _MAX_BAD_SHARE, 0, 1),
                "uneven": 1 / (1 + (uneven / _HALF_UNEVENNESS) ** 2),
                "close to the border": np.clip(margin / _ENOUGH_MARGIN, 0, 1) ** 0.5,
            }
            quality = np.prod(list(factors.values()), axis=0)
            at = int(quality.argmax())
            if quality[at] > best_quality:
                best_quality = float(quality[at])
                best = Rectangle(int(top[at]), int(left[at]), height, width)
                best_factors = {name: float(value[at]) for name, value in factors.items()}
    if best is None:
        return None, 0.0, ""
    return best, best_quality, min(best_factors, key=lambda name: best_factors[name])
