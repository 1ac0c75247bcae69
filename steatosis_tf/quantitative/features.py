"""What is measured in the liver of one frame: hepatorenal index, attenuation, vessels, diaphragm.

Hepatorenal index: brightness of the liver before the right kidney over its renal cortex. Webb et
al. 2009 (doi 10.2214/AJR.07.4016) and Marshall et al. 2012 (doi 10.2214/AJR.11.6677) divide the
mean grey of a liver box by that of a box in the cortex. Grey is log-compressed, so that their ratio
changes with gain. Here grey is linearised first; the ratio of amplitudes, or their difference in
dB, does not. Both ask for the same depth. Where operators of Byra et al. 2018 really put their
boxes, the liver is 0.135 of the sector's depth (median) shallower and on nearly the same beams:
liver at the depth of the cortex lies far to the side, in the dark edge or behind more fat, and is 6
dB darker, the more so the more fat, which takes most of the index away (docs/measured_features.md,
"What was wrong with the index").

Attenuation: how fast the liver's brightness falls along the beam. A fatty liver weakens the beam
more, so the far field is darker; readers grade by it (Hamaguchi et al. 2007,
doi 10.1111/j.1572-0241.2007.01526.x), and it is the quantity behind attenuation imaging (Kuc &
Schwartz 1979, IEEE Trans Sonics Ultrason SU-26, 353-362, from the echo's spectrum; here from the
picture: the slope of log-compressed grey against depth). The loss that the picture shows is that of
the tissue, both ways, minus what the scanner's time gain compensation gives back. Between scanners
or sliders it is therefore comparable only as far as their compensation is.

Vessels and diaphragm fade as fat increases: readers grade by "blurring of vessels" and "poor
visualisation of the diaphragm" (Saverymuttu et al. 1986, doi 10.1136/bmj.292.6512.13; Hamaguchi).
No measured definition is agreed upon; the two below are this project's own, kept simple enough to
be checked by eye. What is known of speckle statistics stands in docs/measured_features.md.
"""

from itertools import pairwise

import cv2
import numpy as np

from steatosis_tf.quantitative.display import Beams, Display, level_of
from steatosis_tf.roi.views import Rectangle

# Liver is taken this proportion of the sector's depth before the cortex patch, give or take a
# share, and first there where the way through the body wall is the same. Of 36 windows this one's
# level was among the closest to the operators' liver boxes; fat had no say.
_DEPTH_BEFORE = 0.14
_DEPTH_TOLERANCES = (0.06, 0.12, 0.18)
# So many times the pixels of the cortex patch, and no fewer than once as many.
_LIVER_TIMES = 6


def measure_hepatorenal(
    grey: np.ndarray, liver: np.ndarray, cortex: Rectangle, beams: Beams, display: Display
) -> dict[str, float]:
    """Compare the cortex patch with the liver before it, on the nearest beams.

    Invariances: gain, mirror image, size of the frame, and what dims whole beams: contact, body
    wall, ribs. Attenuation less time gain compensation counts over the depth between the two: a
    fatty liver weakens the beam on its last centimetres before the kidney, too.

    Args:
        grey: `(height, width)` uint8, 0 to 255.
        liver: `(height, width)` bool.
        cortex: patch of renal cortex, px of the frame.
        beams: of the frame.
        display: scale of the frame.

    Returns:
        `hepatorenal_db` and `hepatorenal_ratio`; {} where no liver as large as the patch lies
        between 32 % of the sector's depth before and 4 % behind it.
    """
    box = (slice(cortex.top, cortex.bottom), slice(cortex.left, cortex.right))
    beside = liver.copy()
    beside[box] = False
    depth, depths = float(np.mean(beams.depth_px[box])), beams.depth_px[beside]
    chosen = _nearest_liver(
        np.abs((depths - depth) / beams.extent_px + _DEPTH_BEFORE),
        np.abs(beams.across[beside] - float(np.mean(beams.across[box]))),
        cortex.height * cortex.width,
    )
    if chosen is None:
        return {}
    index_db = (level_of(grey[beside][chosen]) - level_of(grey[box])) * display.db_per_grey
    return {"hepatorenal_db": index_db, "hepatorenal_ratio": float(10 ** (index_db / 20))}


def _nearest_liver(depth_gap: np.ndarray, side_gap: np.ndarray, patch_px: int) -> np.ndarray | None:
    """Indices of the liver pixels to compare with, or None if there are too few."""
    for tolerance in _DEPTH_TOLERANCES:
        near = np.flatnonzero(depth_gap <= tolerance)
        if len(near) >= patch_px:
            return near[np.argsort(side_gap[near], kind="stable")[: _LIVER_TIMES * patch_px]]
    return None


#: Cells per sector: fine enough to follow a beam, large enough for a stable level.
NUM_DEPTHS, NUM_BEAMS = 40, 24
#: The first echoes are skin, fat and muscle, and reverberations of them.
NEAR_FIELD_SHARE = 0.14
# A cell darker or brighter than this is clipped by the display, and flattens the slope.
_DARKEST, _BRIGHTEST = 6.0, 248.0
_MIN_CELL_PX = 12
_MIN_CELLS_PER_BEAM = 4
_MIN_CELLS = 12
# Huber's bound in robust spreads: 95 % efficient for normal errors.
_HUBER = 1.345
_ROUNDS = 20


def measure_attenuation(
    grey: np.ndarray, liver: np.ndarray, beams: Beams, display: Display
) -> dict[str, float]:
    """Slope of the liver's brightness against depth, by robust regression within beams.

    Every beam has its own level, so that poor contact at one side of the probe or a rib's shadow
    is not taken for depth; Huber's weights discount cells on vessels, gall bladder and walls.

    Invariances: gain (adds to all levels), mirror image, and contact; dB over the depth also the
    size of the frame. Not invariant to time gain compensation, post-processing curves or depth
    setting.

    Args:
        grey: `(height, width)` uint8, 0 to 255.
        liver: `(height, width)` bool.
        beams: of the frame.
        display: scale of the frame.

    Returns:
        `attenuation_grey_per_px`, `attenuation_db_per_depth`, `attenuation_db_per_cm`; {} where
        the liver shows too few cells: fewer than 12 in beams of 4 and more.
    """
    cells = _liver_cells(grey, liver, beams)
    if len(cells[0]) < _MIN_CELLS:
        return {}
    slope = _slope_within_beams(*cells)
    known = display.px_per_cm is not None and display.dynamic_range_db is not None
    db_per_px = -slope * display.db_per_grey
    return {
        "attenuation_grey_per_px": -slope,
        "attenuation_db_per_depth": db_per_px * beams.extent_px,
        "attenuation_db_per_cm": db_per_px * (display.px_per_cm or np.nan) if known else np.nan,
    }


def _liver_cells(
    grey: np.ndarray, liver: np.ndarray, beams: Beams
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Liver on a (depth x beam) grid, without clipped cells and short beams.

    Returns:
        of each cell `(n,)` its mean depth below the probe in px, which of `NUM_BEAMS` beams, and
        its brightness, grey 0 to 255.
    """
    inside = liver & (beams.depth_px > NEAR_FIELD_SHARE * beams.extent_px)
    if not inside.any():
        return np.zeros(0), np.zeros(0, int), np.zeros(0)
    depths, places, values = beams.depth_px[inside], beams.across[inside], grey[inside]
    row = np.clip(depths / beams.extent_px * NUM_DEPTHS, 0, NUM_DEPTHS - 1).astype(int)
    low, high = float(places.min()), float(places.max())
    column = np.clip((places - low) / max(high - low, 1e-6) * NUM_BEAMS, 0, NUM_BEAMS - 1)
    cell = row * NUM_BEAMS + column.astype(int)
    order = np.argsort(cell, kind="stable")
    names, starts = np.unique(cell[order], return_index=True)
    found = [
        (float(depths[part].mean()), name % NUM_BEAMS, level_of(values[part]))
        for name, part in zip(names, np.split(order, starts[1:]), strict=True)
        if len(part) >= _MIN_CELL_PX
    ]
    table = np.array(found, float).reshape(-1, 3)
    table = table[(table[:, 2] > _DARKEST) & (table[:, 2] < _BRIGHTEST)]
    beam = table[:, 1].astype(int)
    long = np.bincount(beam, minlength=NUM_BEAMS)[beam] >= _MIN_CELLS_PER_BEAM
    return table[long, 0], beam[long], table[long, 2]


def _slope_within_beams(depths_px: np.ndarray, beam: np.ndarray, levels: np.ndarray) -> float:
    """Slope of level on depth with one level per beam (iterated weights), grey per px."""
    weights = np.ones(len(levels))
    slope = 0.0
    for _ in range(_ROUNDS):
        depth = _within(depths_px, beam, weights)
        level = _within(levels, beam, weights)
        slope = float(np.sum(weights * depth * level) / np.sum(weights * depth**2))
        residual = np.abs(level - slope * depth)
        spread = max(float(np.median(residual)) * 1.4826, 1e-6)
        weights = np.minimum(1.0, _HUBER * spread / np.maximum(residual, 1e-9))
    return slope


def _within(values: np.ndarray, beam: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Values minus the weighted mean of their beam."""
    totals = np.bincount(beam, weights * values, NUM_BEAMS)
    shares = np.bincount(beam, weights, NUM_BEAMS)
    return np.asarray(values - (totals / np.maximum(shares, 1e-12))[beam])


#: Darker than the liver around it by this much counts as the inside of a vessel.
VESSEL_DB = 6.0
# Proportions of the sector's depth: smoothing over speckle, neighbourhood, and search for the
# diaphragm before and behind the deep end of the liver.
_SMOOTH_SHARE, _AROUND_SHARE = 0.008, 0.10
_BEFORE_SHARE, _BEHIND_SHARE = 0.03, 0.08
# Standard deviation up to which a blur is made on all px; that of a frame 640 px deep.
_WIDE_PX = 64
_NUM_END_BEAMS = 32
_MIN_BEAMS = 4
_MIN_PX = 200


def measure_landmarks(
    grey: np.ndarray, liver: np.ndarray, sector_mask: np.ndarray, beams: Beams, display: Display
) -> dict[str, float]:
    """Measure how far vessels and diaphragm stand out from the liver.

    Invariances: gain, mirror image, size of the frame. The dynamic range matters: where it is
    assumed, dB are in proportion only, and 6 dB may be 5 or 7.

    Args:
        grey: `(height, width)` uint8, 0 to 255.
        liver: `(height, width)` bool.
        sector_mask: `(height, width)` bool.
        beams: of the frame.
        display: scale of the frame.

    Returns:
        `vessel_percent`, `vessel_contrast_db` and `diaphragm_db`, upper quartile over the beams,
        NaN where fewer than 4 beams show an end; {} where fewer than 200 px of liver lie below
        the near field.
    """
    plain = liver & (beams.depth_px > NEAR_FIELD_SHARE * beams.extent_px)
    if np.count_nonzero(plain) < _MIN_PX:
        return {}
    smooth = _mean_inside(grey, sector_mask, _SMOOTH_SHARE * beams.extent_px)
    around = _mean_inside(grey, plain, _AROUND_SHARE * beams.extent_px)
    darker_db = (around - smooth)[plain] * display.db_per_grey
    rises = _diaphragm_rises(smooth, plain, sector_mask, beams)
    enough = len(rises) >= _MIN_BEAMS
    return {
        "vessel_percent": 100 * float(np.mean(darker_db >= VESSEL_DB)),
        "vessel_contrast_db": float(np.quantile(darker_db, 0.95)),
        "diaphragm_db": float(np.quantile(rises, 0.75)) * display.db_per_grey if enough else np.nan,
    }


def _mean_inside(grey: np.ndarray, mask: np.ndarray, sigma_px: float) -> np.ndarray:
    """Gaussian mean of the grey inside a mask, `(height, width)` float32."""
    weight = mask.astype(np.float32)
    sigma = max(sigma_px, 0.5)
    # A wide blur shows nothing fine, and costs minutes on a screen of 4,000 px.
    step = 1 + int(sigma // _WIDE_PX)

    def blurred(values: np.ndarray) -> np.ndarray:
        if step == 1:
            return cv2.GaussianBlur(values, (0, 0), sigma)
        height, width = values.shape
        small = cv2.resize(values, (width // step, height // step), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma / step)
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)

    return np.asarray(blurred(grey * weight) / np.maximum(blurred(weight), 1e-6))


def _diaphragm_rises(
    smooth: np.ndarray, liver: np.ndarray, sector_mask: np.ndarray, beams: Beams
) -> list[float]:
    """Grey by which the brightest echo at the liver's deep end rises over the liver, per beam."""
    across = beams.across[liver]
    edges = np.linspace(across.min(), across.max(), _NUM_END_BEAMS + 1)
    which = np.digitize(beams.across[sector_mask], edges) - 1
    # Sorted by beam once: a mask of the whole frame for each beam costs ten times as much.
    order = np.argsort(which, kind="stable")
    ends = np.searchsorted(which[order], np.arange(_NUM_END_BEAMS + 1))
    images = (beams.depth_px, smooth, liver)
    depths, greys, in_liver = (image[sector_mask][order] for image in images)
    rises = []
    for beam in (slice(start, stop) for start, stop in pairwise(ends)):
        inside = depths[beam][in_liver[beam]]
        if len(inside) < _MIN_PX / _NUM_END_BEAMS:
            continue
        end = float(np.quantile(inside, 0.98)) / beams.extent_px
        depth = depths[beam] / beams.extent_px
        search = (depth > end - _BEFORE_SHARE) & (depth < end + _BEHIND_SHARE)
        before = (depth < end - _BEFORE_SHARE) & (depth > end - 0.2) & in_liver[beam]
        if end + _BEFORE_SHARE < 1 and search.any() and before.any():
            values = greys[beam]
            rises.append(float(np.quantile(values[search], 0.98)) - level_of(values[before]))
    return rises


#: Side of a block per depth of the sector: about 26 px of 370, several speckle grains each way.
BLOCK_SHARE = 0.07
_MIN_BLOCK_PX = 8
_MIN_BLOCKS = 3
# Blocks whose mean lies outside lose too much of their distribution to black or white.
_DARKEST_BLOCK, _BRIGHTEST_BLOCK = 25.0, 215.0


def measure_speckle(
    grey: np.ndarray, liver: np.ndarray, sector_depth_px: float, display: Display
) -> dict[str, float]:
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
        `speckle_snr` and `nakagami_m`; {} where fewer than 3 blocks fit into the liver.
    """
    blocks = _blocks(grey, liver, max(round(BLOCK_SHARE * sector_depth_px), _MIN_BLOCK_PX))
    if len(blocks) < _MIN_BLOCKS:
        return {}
    envelope = display.amplitude(_without_plane(blocks))
    intensity = envelope**2
    snr = envelope.mean(axis=(1, 2)) / envelope.std(axis=(1, 2))
    shape = intensity.mean(axis=(1, 2)) ** 2 / intensity.var(axis=(1, 2))
    return {"speckle_snr": float(np.median(snr)), "nakagami_m": float(np.median(shape))}


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
            if _DARKEST_BLOCK < block.mean() < _BRIGHTEST_BLOCK and np.ptp(block) > 0:
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
