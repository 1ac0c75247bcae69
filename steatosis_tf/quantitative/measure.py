"""Numbers a radiologist can read, measured from one frame without a person.

Sector, liver and renal cortex are found by `steatosis_tf.roi`; nothing is trained here. What each
number means, its source and what it does not depend on stands in `features.py`;
docs/measured_features.md has them in one table.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from steatosis_tf.quantitative.display import Beams, Display
from steatosis_tf.quantitative.features import (
    measure_attenuation,
    measure_hepatorenal,
    measure_landmarks,
    measure_speckle,
)
from steatosis_tf.roi.anatomy.kidney import find_kidney_cortex
from steatosis_tf.roi.anatomy.liver import liver_mask
from steatosis_tf.roi.sector import Sector, find_sector
from steatosis_tf.roi.views import Rectangle
from steatosis_tf.sources.images import refuse_colours, to_grey

# The liver's capsule and neighbours lie within this proportion of the depth from the mask's border.
_BORDER_SHARE = 0.02

# What a person calls each number, its unit, and which way it goes with fat by its source, 0 where
# no rule reads it. Droplets add scatterers: speckle comes nearer to fully developed (Ho et al.
# 2013, doi 10.1371/journal.pone.0063543).
_NUMBERS = {
    "hepatorenal_db": ("Hepatorenal index", "dB", 1),
    "hepatorenal_ratio": ("Hepatorenal ratio", "", 0),
    "attenuation_grey_per_px": ("Attenuation, in grey", "grey/px", 0),
    "attenuation_db_per_depth": ("Attenuation", "dB over the sector's depth", 1),
    "attenuation_db_per_cm": ("Attenuation per cm", "dB/cm", 0),
    "speckle_snr": ("Speckle signal-to-noise", "", 1),
    "nakagami_m": ("Nakagami shape", "", 1),
    "vessel_percent": ("Visible vessels", "% of the liver", -1),
    "vessel_contrast_db": ("Vessel contrast", "dB", -1),
    "diaphragm_db": ("Diaphragm", "dB", -1),
}
#: Name of a number -> what a person calls it, and its unit, in the order of the output.
NAMES = {name: words for name, (words, _, _) in _NUMBERS.items()}
UNITS = {name: unit for name, (_, unit, _) in _NUMBERS.items()}
#: Which way each number goes with fat: a rule may use it in that direction only.
FAT_SIGNS = {name: sign for name, (_, _, sign) in _NUMBERS.items() if sign}


@dataclass(frozen=True)
class MeasuredFeatures:
    """The numbers of one frame; NaN where something could not be measured.

    Attributes:
        hepatorenal_db: liver before the kidney over its renal cortex, dB.
        hepatorenal_ratio: the same as ratio of amplitudes.
        attenuation_grey_per_px: loss of brightness along the beam, grey per px.
        attenuation_db_per_depth: the same in dB over the whole depth of the sector.
        attenuation_db_per_cm: the same in dB per cm, where spacing and dynamic range are known.
        speckle_snr: mean over standard deviation of the linearised envelope.
        nakagami_m: Nakagami shape of the linearised envelope.
        vessel_percent: proportion of the liver that is clearly darker than the liver around it.
        vessel_contrast_db: how dark the darkest 5 % of the liver are, dB below their surroundings.
        diaphragm_db: brightest echo at the liver's deep end over the liver before it, dB.
        is_assumed_scale: True where dB rest on the assumed dynamic range.
    """

    hepatorenal_db: float
    hepatorenal_ratio: float
    attenuation_grey_per_px: float
    attenuation_db_per_depth: float
    attenuation_db_per_cm: float
    speckle_snr: float
    nakagami_m: float
    vessel_percent: float
    vessel_contrast_db: float
    diaphragm_db: float
    is_assumed_scale: bool

    def text(self) -> str:
        """One line per number, with its unit, for a person."""
        lines = [_line(name, getattr(self, name)) for name in UNITS]
        if self.is_assumed_scale:
            lines.append("dB rest on an assumed dynamic range: compare within one scanner only.")
        return "\n".join(lines)


def measure_frame(frame: np.ndarray, display: Display | None = None) -> MeasuredFeatures:
    """Find sector, liver and renal cortex of a frame and measure it.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8, 0 to 255.
        display: scale of the frame; what it lacks is unknown.

    Returns:
        The numbers; NaN for what the frame does not show.

    Raises:
        ValueError: if there is no sector, or colours of Doppler or elastography lie over it.

    Example:
        >>> from steatosis_tf.sources.phantom.study import simulate_patient
        >>> (frame,), _ = simulate_patient(
        ...     20.0, num_frames=1, generator=np.random.default_rng(0)
        ... )
        >>> numbers = measure_frame(frame)
        >>> numbers.attenuation_db_per_depth > 0
        True
    """
    sector = find_sector(frame)
    refuse_colours(sector.pixels(frame))
    liver = liver_mask(frame, sector)
    cortex = find_kidney_cortex(frame, sector, liver).box
    return measure_regions(frame, sector, liver, cortex, display)


def measure_regions(
    frame: np.ndarray,
    sector: Sector,
    liver: np.ndarray,
    cortex: Rectangle | None,
    display: Display | None = None,
) -> MeasuredFeatures:
    """Measure a frame whose regions are known.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8, 0 to 255.
        sector: its sector.
        liver: `(height, width)` bool, as `liver_mask`; its rim is left out.
        cortex: patch of renal cortex, px of the frame, or None.
        display: scale of the frame; what it lacks is unknown.
    """
    display = display or Display()
    grey, core, beams = _looked_at(frame, sector, liver)
    measured = {
        **(measure_hepatorenal(grey, core, cortex, beams, display) if cortex else {}),
        **measure_attenuation(grey, core, beams, display),
        **measure_speckle(grey, core, beams.extent_px, display),
        **measure_landmarks(grey, core, sector.mask, beams, display),
    }
    unknown: dict[str, float] = dict.fromkeys(UNITS, float("nan"))
    return MeasuredFeatures(**unknown | measured, is_assumed_scale=display.dynamic_range_db is None)


def _looked_at(
    frame: np.ndarray, sector: Sector, liver: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Beams]:
    """Grey, the liver without its rim, and where the beams run."""
    shape, fan = frame.shape[:2], sector.fan
    depth, across = fan.depth_px(shape), fan.angle_deg(shape)
    if fan.kind == "linear":
        across = np.broadcast_to(np.arange(shape[1], dtype=np.float32), shape)
    extent = float(fan.far_px - fan.near_px)
    core = without_rim(liver & sector.mask, _BORDER_SHARE * extent)
    return to_grey(frame), core, Beams(depth, across, extent)


def without_rim(mask: np.ndarray, rim_px: float) -> np.ndarray:
    """A mask `(height, width)` bool less what lies within `rim_px` of its border."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1] > rim_px)


def _line(name: str, value: float) -> str:
    shown = "not measured" if np.isnan(value) else f"{value:.3g} {UNITS[name]}".rstrip()
    return f"{NAMES[name]}: {shown}"
