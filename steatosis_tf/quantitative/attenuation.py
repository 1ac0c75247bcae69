"""Depth attenuation: how fast the liver's brightness falls along the beam.

A fatty liver weakens the beam more, so the far field is darker; it is one of the signs that
readers grade by (Hamaguchi et al. 2007, doi 10.1111/j.1572-0241.2007.01526.x), and the quantity
behind attenuation imaging (Kuc & Schwartz 1979, IEEE Trans Sonics Ultrason SU-26, 353-362, from
the echo's spectrum; here from the picture: the slope of log-compressed grey against depth).

What is measured is the loss that the picture shows: tissue attenuation, both ways, minus what the
scanner's time gain compensation gives back. Between scanners or sliders it is therefore comparable
only as far as their compensation is.
"""

from dataclasses import dataclass

import numpy as np

from steatosis_tf.quantitative.display import Beams, Display, level_of

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


@dataclass(frozen=True)
class Cells:
    """Liver brightness on a (depth x beam) grid; every array is `(n,)`.

    Attributes:
        depth_px: mean depth of the cell below the probe, px.
        beam: which of `NUM_BEAMS` beams, int.
        level: brightness, grey 0 to 255.
    """

    depth_px: np.ndarray
    beam: np.ndarray
    level: np.ndarray


@dataclass(frozen=True)
class Attenuation:
    """Loss of brightness along the beam; positive where the far field is darker.

    Attributes:
        grey_per_px: grey levels per px of depth.
        db_per_depth: dB over the whole depth of the sector; by the assumed dynamic range where it
            is unknown.
        db_per_cm: dB per cm of depth; NaN unless spacing and dynamic range are known.
    """

    grey_per_px: float
    db_per_depth: float
    db_per_cm: float


def measure_attenuation(
    grey: np.ndarray,
    liver: np.ndarray,
    beams: Beams,
    display: Display,
) -> Attenuation | None:
    """Slope of the liver's brightness against depth, by robust regression within beams.

    Every beam has its own level, so that poor contact at one side of the probe or a rib's shadow
    is not taken for depth; Huber's weights discount cells on vessels, gall bladder and walls.

    Invariances: gain (adds to all levels), mirror image, and contact; `db_per_depth` also the size
    of the frame. Not invariant to time gain compensation, post-processing curves or depth setting.

    Args:
        grey: `(height, width)` uint8, 0 to 255.
        liver: `(height, width)` bool.
        beams: of the frame.
        display: scale of the frame.

    Returns:
        None where the liver shows too few cells: fewer than 12 in beams of 4 and more.
    """
    cells = _liver_cells(grey, liver, beams)
    if len(cells.level) < _MIN_CELLS:
        return None
    slope = _slope_within_beams(cells)
    known = display.px_per_cm is not None and display.dynamic_range_db is not None
    db_per_px = -slope * display.db_per_grey
    return Attenuation(
        grey_per_px=-slope,
        db_per_depth=db_per_px * beams.extent_px,
        db_per_cm=db_per_px * (display.px_per_cm or np.nan) if known else float("nan"),
    )


def _liver_cells(grey: np.ndarray, liver: np.ndarray, beams: Beams) -> Cells:
    """Brightness of the liver on the grid, without clipped cells and short beams."""
    inside = liver & (beams.depth_px > NEAR_FIELD_SHARE * beams.extent_px)
    if not inside.any():
        return Cells(*(np.zeros(0) for _ in range(3)))
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
    return Cells(table[long, 0], beam[long], table[long, 2])


def _slope_within_beams(cells: Cells) -> float:
    """Slope of level on depth with one level per beam (iterated weights), grey per px."""
    weights = np.ones(len(cells.level))
    slope = 0.0
    for _ in range(_ROUNDS):
        depth = _within(cells.depth_px, cells.beam, weights)
        level = _within(cells.level, cells.beam, weights)
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
