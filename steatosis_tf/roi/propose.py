"""The ROI of one frame, the same for training and for prediction.

It knows neither manifests nor workers: `columns.py` proposes for whole studies. The rectangle of
method "liver" is looked for on a small map of where the liver shows plain parenchyma. Whoever
changes what is proposed counts `sector.find.ROI_VERSION` up.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from steatosis_tf.config import RoiConfig
from steatosis_tf.roi.anatomy.liver import liver_probability
from steatosis_tf.roi.anatomy.overlays import find_overlays
from steatosis_tf.roi.sector import Fan, Sector, find_sector
from steatosis_tf.roi.views import Rectangle, around_sector, central_rectangle
from steatosis_tf.sources.images import refuse_colours, to_grey


@dataclass(frozen=True)
class Roi:
    """What the model would see of a frame.

    Attributes:
        sector: of the frame.
        rectangle: in px of the frame; for beam space the one around the whole sector.
        overlay_mask: `(height, width)` bool, True on marks drawn inside the sector.
        quality: 0 to 1; of the liver proposal, or of beam space how much of the fan's border was
            seen (NaN if a person has set it). 0 for the middle of the sector.
        reason: why the sector's rectangle had to do, if it had.
    """

    sector: Sector
    rectangle: Rectangle
    overlay_mask: np.ndarray
    quality: float = 0.0
    reason: str = ""


def propose_roi(frame: np.ndarray, config: RoiConfig, fan: Fan | None = None) -> Roi:
    """The ROI of a frame, for training and for prediction alike.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.
        config: `method` "liver" looks for parenchyma, "sector" takes the sector's middle,
            "beamspace" all of it.
        fan: of the sector if a person has set it; None finds it.

    Raises:
        ValueError: if no ROI can be proposed; the text is the reason.

    Example:
        >>> from steatosis_tf.sources.phantom.study import simulate_patient
        >>> (frame,), _ = simulate_patient(
        ...     20.0, num_frames=1, generator=np.random.default_rng(0)
        ... )
        >>> roi = propose_roi(frame, RoiConfig(method="sector"))
        >>> roi.rectangle.height > 100
        True
    """
    sector = find_sector(frame) if fan is None else Sector.of_fan(fan, frame.shape)
    refuse_colours(sector.pixels(frame))
    overlays = find_overlays(frame, sector.mask)
    if config.method == "beamspace":
        return Roi(sector, around_sector(sector.mask), overlays, sector.border_seen)
    if config.method == "sector":
        return Roi(sector, central_rectangle(sector), overlays)
    proposal = propose_rectangle(frame, sector, liver_probability(frame, sector), overlays)
    if proposal.rectangle is not None:
        return Roi(sector, proposal.rectangle, overlays, proposal.quality)
    if not config.sector_fallback:
        raise ValueError(proposal.reason)
    rectangle = central_rectangle(sector)
    return Roi(sector, rectangle, overlays, proposal.quality, proposal.reason)


# The map's longer side, px: 3 px of a 640 px frame each, about the size of a speckle grain.
_MAP_SIDE_PX = 144
# The upper part of the sector is skin, fat and muscle, and reverberations of them.
_NEAR_FIELD_SHARE = 0.14
# Pixels this close to the liver's border (proportion of the depth) may be its neighbour.
_BORDER_SHARE = 0.02
_NUM_DEPTH_BINS = 12
# Rectangles are tried at every second px of the map.
_STRIDE = 2
# Grey levels, in robust spreads from the level at that depth, that are no parenchyma any more;
# bile and blood are dark, so the lower bound is the tighter one.
_TOO_DARK, _TOO_BRIGHT = -2.2, 3.0
_MIN_SPREAD_SHARE = 0.08
# Darker than this proportion of the liver's median level is shadow, whatever its neighbours show.
_SHADOW_SHARE = 0.4
_SATURATED = 245

# A proposal below this quality is none; see docs/roi.md for how it was measured.
MIN_QUALITY = 0.40
# Sides of the rectangle as proportions of the sector's depth, and how many sizes are tried between.
_MIN_SIDE, _MAX_SIDE, _NUM_SIDES = 0.10, 0.42, 9
_ASPECTS = (0.7, 0.85, 1.0, 1.2, 1.45)
# Of two rectangles the one twice as large is better by this much of the scale from 0 to 1.
_SIZE_POWER = 0.25
# A rectangle a quarter of which is vessel, bile, shadow or saturation is worth nothing.
_MAX_BAD_SHARE = 0.25
# Unevenness (spread over level, the fall of brightness with depth taken out) that halves quality.
_HALF_UNEVENNESS = 0.30
# Distance from the liver's border, as a proportion of the depth, from which more does not help.
_ENOUGH_MARGIN = 0.08
# Echo of the deep part is weak and mixed with amplified noise: from the first depth (proportion of
# the sector's) quality falls, and it is halved the second share further down.
_GOOD_DEPTH, _HALF_DEPTH = 0.40, 0.20
# Mean probability of liver, over one half, from which more does not help.
_ENOUGH_CERTAINTY = 0.45
_MIN_LIVER_SHARE = 0.03
_MIN_SIDE_PX = 24


@dataclass(frozen=True)
class Windows:
    """Rectangles of one size; every array is `(n,)`, n at least 1.

    Attributes:
        height: px of the map.
        width: px of the map.
        top: first row, px of the map.
        left: first column, px of the map.
        bad_share: proportion of pixels that do not look like parenchyma, 0 to 1.
        unevenness: standard deviation of `level` over its mean.
        certainty: mean probability of liver, 0 to 1.
        margin: smallest `margin` at corners and mid-sides.
        depth: `depth` of the centre.
    """

    height: int
    width: int
    top: np.ndarray
    left: np.ndarray
    bad_share: np.ndarray
    unevenness: np.ndarray
    certainty: np.ndarray
    margin: np.ndarray
    depth: np.ndarray

    def rectangle(self, at: int) -> Rectangle:
        """One of them, in px of the map."""
        return Rectangle(int(self.top[at]), int(self.left[at]), self.height, self.width)


@dataclass(frozen=True)
class Terrain:
    """The sector's bounding box on a small scale.

    Attributes:
        allowed: `(rows, columns)` bool, liver away from border, near field and marks.
        bad: `(rows, columns)` bool, allowed or not, what does not look like parenchyma.
        level: `(rows, columns)` float32, smoothed grey over the level at that depth, about 1.
        certain: `(rows, columns)` float32, probability of liver.
        depth: `(rows, columns)` float32, distance from the probe as a proportion of the sector's
            depth.
        margin: `(rows, columns)` float32, distance to the next pixel that is not liver, as a
            proportion of the depth.
        depth_px: depth of the sector, px of this map.
        scale: px of this map per px of the frame.
        origin: top and left of the bounding box, px of the frame.
        frame_shape: height and width of the frame, px.
    """

    allowed: np.ndarray
    bad: np.ndarray
    level: np.ndarray
    certain: np.ndarray
    depth: np.ndarray
    margin: np.ndarray
    depth_px: float
    scale: float
    origin: tuple[int, int]
    frame_shape: tuple[int, int]

    def in_frame(self, window: Rectangle) -> Rectangle:
        """The same rectangle in px of the frame, rounded inwards."""
        top = int(np.ceil(window.top / self.scale)) + self.origin[0]
        left = int(np.ceil(window.left / self.scale)) + self.origin[1]
        bottom = int(window.bottom / self.scale) + self.origin[0]
        right = int(window.right / self.scale) + self.origin[1]
        bottom, right = min(bottom, self.frame_shape[0]), min(right, self.frame_shape[1])
        return Rectangle(top, left, max(1, bottom - top), max(1, right - left))

    def windows(self, height: int, width: int) -> Windows | None:
        """Rectangles of one size (px of this map) that are allowed throughout, or None."""
        rows, columns = self.allowed.shape
        if height > rows or width > columns or min(height, width) < 3:
            return None
        table = self._num_allowed
        num_allowed = (
            table[height::_STRIDE, width::_STRIDE]
            - table[:-height:_STRIDE, width::_STRIDE]
            - table[height::_STRIDE, :-width:_STRIDE]
            + table[:-height:_STRIDE, :-width:_STRIDE]
        )
        top, left = np.nonzero(num_allowed == height * width)
        if len(top) == 0:
            return None
        top, left = _STRIDE * top, _STRIDE * left
        # Places in flat maps, and in the flat tables, which have a row and a column more.
        at, corner = top * columns + left, top * (columns + 1) + left
        below, tables = corner + height * (columns + 1), self._tables
        means = tables[below + width] - tables[corner + width] - tables[below] + tables[corner]
        means /= height * width
        bad, level, squared, certain = means.T
        down, across = (0, height // 2, height - 1), (0, width // 2, width - 1)
        margin, edges = self.margin.ravel(), [i * columns + j for i in down for j in across]
        return Windows(
            height=height,
            width=width,
            top=top,
            left=left,
            bad_share=bad,
            unevenness=np.sqrt(np.maximum(squared - level**2, 0)) / np.maximum(level, 0.1),
            certainty=certain,
            margin=np.min([margin[at + edge] for edge in edges], axis=0),
            depth=self.depth.ravel()[at + down[1] * columns + across[1]],
        )

    @cached_property
    def _num_allowed(self) -> np.ndarray:
        """Integral image, so that a sum over any rectangle costs four look-ups."""
        return np.asarray(cv2.integral(self.allowed.view(np.uint8)))

    @cached_property
    def _tables(self) -> np.ndarray:
        """Integral images of four maps, `(num_pixels, 4)` float64."""
        maps = (self.bad.astype(np.float32), self.level, self.level**2, self.certain)
        tables = [cv2.integral(values, sdepth=cv2.CV_64F) for values in maps]
        return np.stack(tables, axis=-1).reshape(-1, len(maps))


def survey(
    frame: np.ndarray, sector: Sector, probability: np.ndarray, overlay_mask: np.ndarray | None
) -> Terrain:
    """Map the sector.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.
        sector: the sector of that frame.
        probability: `(height, width)` bool or float32, 0 to 1; liver from 0.5 on.
        overlay_mask: `(height, width)` bool, True on drawn marks, or None.
    """
    left, top, width, height = cv2.boundingRect(sector.mask.astype(np.uint8))
    box = (slice(top, top + height), slice(left, left + width))
    scale = min(1.0, _MAP_SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))

    def shrunk(values: np.ndarray) -> np.ndarray:
        return cv2.resize(values, size, interpolation=cv2.INTER_AREA)

    grey = shrunk(to_grey(np.ascontiguousarray(frame[box]))).astype(np.float32)
    certain = shrunk(probability[box].astype(np.float32) * sector.mask[box])
    liver_small = certain >= 0.5
    fan = sector.fan.moved(-left, -top).scaled(scale)
    depth = fan.depth_px(grey.shape)
    depth_px = max(1.0, float(depth[shrunk(sector.mask[box].astype(np.uint8) * 255) > 127].max()))
    padded = cv2.copyMakeBorder(liver_small.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    margin = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1] / depth_px
    allowed = liver_small & (margin > _BORDER_SHARE) & (depth > _NEAR_FIELD_SHARE * depth_px)
    if overlay_mask is not None and overlay_mask[box].any():
        allowed &= shrunk(overlay_mask[box].astype(np.uint8) * 255) == 0
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.2)
    expected, spread = _level_by_depth(smooth, depth, allowed if allowed.any() else liver_small)
    offset = (smooth - expected) / spread
    bad = (offset < _TOO_DARK) | (offset > _TOO_BRIGHT) | (smooth > _SATURATED)
    bad |= smooth < _SHADOW_SHARE * np.median(smooth[liver_small])
    bad = cv2.morphologyEx(bad.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8)) > 0
    return Terrain(
        allowed=allowed,
        bad=bad,
        level=smooth / np.maximum(expected, 1),
        certain=certain,
        depth=depth / depth_px,
        margin=margin,
        depth_px=depth_px,
        scale=scale,
        origin=(top, left),
        frame_shape=(frame.shape[0], frame.shape[1]),
    )


def _level_by_depth(
    grey: np.ndarray, depth: np.ndarray, liver: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Median grey of the liver at each pixel's depth, and its robust spread there.

    Brightness falls with depth in every liver, faster in a fat one; that is no unevenness.
    """
    values, at = grey[liver], depth[liver]
    edges = np.quantile(at, np.linspace(0, 1, _NUM_DEPTH_BINS + 1))
    which = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, _NUM_DEPTH_BINS - 1)
    order = np.argsort(which.astype(np.uint8), kind="stable")
    values, at = values[order], at[order]
    ends = np.bincount(which, minlength=_NUM_DEPTH_BINS).cumsum()
    centres, medians, spreads = [], [], []
    for part, depths in zip(np.split(values, ends), np.split(at, ends), strict=True):
        if len(part):
            low, middle, high = np.quantile(part, [0.25, 0.5, 0.75])
            centres.append(float(depths.mean()))
            medians.append(float(middle))
            spreads.append(float(high - low) / 1.35)
    expected = np.interp(depth, centres, medians).astype(np.float32)
    floor = _MIN_SPREAD_SHARE * np.maximum(expected, 8)
    spread = np.maximum(np.interp(depth, centres, spreads), floor).astype(np.float32)
    return expected, spread


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
    """
    liver = (liver_mask if liver_mask.dtype == np.bool_ else liver_mask >= 0.5) & sector.mask
    num_liver, num_sector = int(np.count_nonzero(liver)), int(np.count_nonzero(sector.mask))
    if num_liver < _MIN_LIVER_SHARE * num_sector:
        share = 100 * num_liver / max(1, num_sector)
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
    for height, width in _sizes(terrain.depth_px):
        # No other factor is above 1.
        if _large_enough(height, width, terrain.depth_px) <= best_quality:
            continue
        windows = terrain.windows(height, width)
        if windows is None:
            continue
        factors = quality_factors(windows, terrain.depth_px)
        quality = np.prod(list(factors.values()), axis=0)
        at = int(quality.argmax())
        if quality[at] > best_quality:
            best_quality = float(quality[at])
            best = windows.rectangle(at)
            best_factors = {name: float(value[at]) for name, value in factors.items()}
    if best is None:
        return None, 0.0, ""
    return best, best_quality, min(best_factors, key=lambda name: best_factors[name])


def _sizes(depth_px: float) -> Iterator[tuple[int, int]]:
    """Heights and widths that are looked at, px of the map, the largest first."""
    for side in np.geomspace(_MAX_SIDE, _MIN_SIDE, _NUM_SIDES) * depth_px:
        for aspect in _ASPECTS:
            yield round(side / aspect**0.5), round(side * aspect**0.5)


def _large_enough(height: int, width: int, depth_px: float) -> float:
    """The factor of the size in a rectangle's quality."""
    side = (height * width) ** 0.5 / depth_px
    return min(1.0, side / _MAX_SIDE) ** (2 * _SIZE_POWER)


def quality_factors(windows: Windows, depth_px: float) -> dict[str, np.ndarray]:
    """What a rectangle's quality is the product of.

    Args:
        windows: rectangles of one size.
        depth_px: depth of the sector, px of the same map.

    Returns:
        `(n,)` float each, 0 to 1, named by what spoils it.
    """
    size = _large_enough(windows.height, windows.width, depth_px)
    deeper = np.maximum(windows.depth - _GOOD_DEPTH, 0)
    return {
        "small": np.full(len(windows.top), size),
        "vessels, shadow or saturation": np.clip(1 - windows.bad_share / _MAX_BAD_SHARE, 0, 1),
        "uneven": 1 / (1 + (windows.unevenness / _HALF_UNEVENNESS) ** 2),
        "close to the liver's border": np.clip(windows.margin / _ENOUGH_MARGIN, 0, 1) ** 0.5,
        "deep": 1 / (1 + (deeper / _HALF_DEPTH) ** 2),
        "may not be liver": np.clip((windows.certainty - 0.5) / _ENOUGH_CERTAINTY, 0, 1),
    }
