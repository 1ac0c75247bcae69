"""Propose the rectangle of liver parenchyma the model should see."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from steatosis_tf.roi.crop import Rectangle
from steatosis_tf.roi.parenchyma import Terrain, Windows, survey
from steatosis_tf.roi.sector import Sector

# A proposal below this quality is none; see docs/roi.md for how it was measured.
MIN_QUALITY = 0.40
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
_ENOUGH_MARGIN = 0.08
# Echo of the deep part is weak and mixed with amplified noise: from the first depth (share of the
# sector's) quality falls, and it is halved the second share further down.
_GOOD_DEPTH, _HALF_DEPTH = 0.40, 0.20
# Mean probability of liver, over one half, from which more does not help.
_ENOUGH_CERTAINTY = 0.45
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
    masks = {"sector.mask": sector.mask, "liver_mask": liver_mask, "overlay_mask": overlay_mask}
    for name, mask in masks.items():
        if mask is not None and mask.shape != frame.shape[:2]:
            raise ValueError(
                f"expected {name} of the frame's size {frame.shape[:2]}. "
                f"Received: shape={mask.shape}"
            )
    liver = (liver_mask if liver_mask.dtype == np.bool_ else liver_mask >= 0.5) & sector.mask
    if liver.sum() < _MIN_LIVER_SHARE * sector.mask.sum():
        share = 100 * liver.sum() / max(1, sector.mask.sum())
        return Proposal(None, 0.0, f"no liver found ({share:.1f} % of the sector)")
    terrain = survey(frame, sector, liver_mask, overlay_mask)
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
    for windows in sized_windows(terrain):
        factors = quality_factors(windows, terrain.depth_px)
        # Sizes only get smaller; rounding makes sizes of one side differ by a few percent.
        if 1.1 * factors["small"][0] < best_quality:
            break
        quality = np.prod(list(factors.values()), axis=0)
        at = int(quality.argmax())
        if quality[at] > best_quality:
            best_quality = float(quality[at])
            best = windows.rectangle(at)
            best_factors = {name: float(value[at]) for name, value in factors.items()}
    if best is None:
        return None, 0.0, ""
    return best, best_quality, min(best_factors, key=lambda name: best_factors[name])


def sized_windows(terrain: Terrain) -> Iterator[Windows]:
    """All rectangles of liver that are looked at, one size at a time, the largest first."""
    for side in np.geomspace(_MAX_SIDE, _MIN_SIDE, _NUM_SIDES) * terrain.depth_px:
        for aspect in _ASPECTS:
            windows = terrain.windows(round(side / aspect**0.5), round(side * aspect**0.5))
            if windows is not None:
                yield windows


def quality_factors(windows: Windows, depth_px: float) -> dict[str, np.ndarray]:
    """What a rectangle's quality is the product of.

    Args:
        windows: rectangles of one size.
        depth_px: depth of the sector, px of the same map.

    Returns:
        `(n,)` float each, 0 to 1, named by what spoils it.
    """
    side = (windows.height * windows.width) ** 0.5 / depth_px
    deeper = np.maximum(windows.depth - _GOOD_DEPTH, 0)
    return {
        "small": np.full(len(windows.top), min(1.0, side / _MAX_SIDE) ** (2 * _SIZE_POWER)),
        "vessels, shadow or saturation": np.clip(1 - windows.bad_share / _MAX_BAD_SHARE, 0, 1),
        "uneven": 1 / (1 + (windows.unevenness / _HALF_UNEVENNESS) ** 2),
        "close to the liver's border": np.clip(windows.margin / _ENOUGH_MARGIN, 0, 1) ** 0.5,
        "deep": 1 / (1 + (deeper / _HALF_DEPTH) ** 2),
        "may not be liver": np.clip((windows.certainty - 0.5) / _ENOUGH_CERTAINTY, 0, 1),
    }
