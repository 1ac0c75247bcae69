"""What is looked at in one frame before a model sees it: sector, liver, cortex, measured features.

Training and prediction look by this one function. No TensorFlow.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from steatosis_tf.model.answer import REASONS, FrameAnswer
from steatosis_tf.model.rules import grey_spread
from steatosis_tf.quantitative.display import Display
from steatosis_tf.quantitative.measure import FAT_SIGNS, measure_regions
from steatosis_tf.roi.anatomy.kidney import find_kidney_cortex
from steatosis_tf.roi.anatomy.liver import liver_mask
from steatosis_tf.roi.anatomy.overlays import find_overlays
from steatosis_tf.roi.sector import Fan, Sector, find_sector
from steatosis_tf.roi.views import model_input
from steatosis_tf.sources.images import has_doppler_colours
from steatosis_tf.sources.rejection import Rejection

# Seen in 88 frames of byra2018 and 294 of aul, all of which show a liver: at least 21 and 10 % of
# the sector is liver, its deepest place lies at 60 and 40 % of the depth or more, and at most 0.4
# and 0.9 % of it lie under marks.
_MIN_LIVER_SHARE = 0.04
_MIN_DEPTH_SHARE = 0.35
_MAX_MARKS_SHARE = 0.10
# Of the frame, where a person places the sector: a slip of the hand leaves less.
_MIN_SECTOR_SHARE = 0.02
_NO_FAN = "Expected a fan over the frame. Received: one beside it, or too small."
_COLOURED = "Colours lie over the picture: Doppler, elastography or coloured marks."


@dataclass(frozen=True)
class Look:
    """One frame, ready for `grade_patient`.

    Attributes:
        answer: begun: "unable" with its reason, or "graded" with measured features and regions.
        picture: what the network sees, uint8 grey; None where the answer is "unable".
        fan: of the sector, where there is one.
    """

    answer: FrameAnswer
    picture: np.ndarray | None = None
    fan: Fan | None = None


def look_at(
    name: str,
    frame: np.ndarray,
    view: str,
    display: Display | None = None,
    corners: np.ndarray | None = None,
) -> Look:
    """Find and measure what a frame shows.

    Args:
        name: of the frame, for its answer.
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8, 0 to 255.
        view: what the network sees, as `RoiConfig.view` says it.
        display: scale of the frame, where known.
        corners: of the fan as a person has placed it, as `Fan.with_corners` takes them.

    Raises:
        ValueError: if the corners are none of a fan, or no sector was found to be corrected.

    Example:
        >>> look_at("black.png", np.zeros((300, 400), np.uint8), "").answer.reason
        'No ultrasound sector was found in the picture.'
    """
    try:
        sector = find_sector(frame)
    except ValueError as error:
        if corners is None:
            return unable(name, "no_sector", _closer(error))
        raise ValueError(
            "Expected a frame whose sector was found, to correct it. Received: one without. "
            "Leave the frame out, or give another."
        ) from error
    if corners is not None:
        sector = Sector.of_fan(sector.fan.with_corners(corners), frame.shape)
        if np.count_nonzero(sector.mask) < _MIN_SECTOR_SHARE * sector.mask.size:
            raise ValueError(_NO_FAN)
    if has_doppler_colours(sector.pixels(frame)):
        return unable(name, "not_b_mode", _COLOURED)
    liver = liver_mask(frame, sector)
    marks = find_overlays(frame, sector.mask)
    code = _hindrance(sector, liver, marks)
    outlines = _outline(sector.mask), _outline(liver)
    if code:
        look = unable(name, code, outlines=outlines)
        return Look(replace(look.answer, by_person=corners is not None), fan=sector.fan)
    cortex = find_kidney_cortex(frame, sector, liver).box
    measured = measure_regions(frame, sector, liver, cortex, display)
    boxes = {"kidney": (cortex.top, cortex.left, cortex.height, cortex.width)} if cortex else {}
    picture = model_input(frame, sector.fan, view=view, overlay_mask=marks)
    answer = FrameAnswer(
        name,
        "graded",
        features={number: float(getattr(measured, number)) for number in FAT_SIGNS},
        grey_spread=grey_spread(picture),
        sector=outlines[0],
        liver=outlines[1],
        boxes=boxes,
        by_person=corners is not None,
    )
    return Look(answer, picture, sector.fan)


def _closer(error: ValueError) -> str:
    """What a rejection says, as a sentence; "" of other errors, which speak of the search."""
    return f"{str(error).capitalize()}." if isinstance(error, Rejection) else ""


def unable(
    name: str, code: str, reason: str = "", outlines: tuple[np.ndarray, np.ndarray] | None = None
) -> Look:
    """A frame that cannot be graded.

    Args:
        name: of the frame.
        code: of `REASONS`.
        reason: a closer one than the code's own sentence.
        outlines: of sector and liver, where they were found.
    """
    answer = FrameAnswer(name, "unable", code, reason or REASONS[code])
    if outlines:
        answer = replace(answer, sector=outlines[0], liver=outlines[1])
    return Look(answer)


def _hindrance(sector: Sector, liver: np.ndarray, marks: np.ndarray) -> str:
    """Code of the reason why the liver in a frame cannot be judged, or ""."""
    num_px = np.count_nonzero(liver)
    if num_px < _MIN_LIVER_SHARE * np.count_nonzero(sector.mask):
        return "no_liver"
    fan = sector.fan
    rows, columns = np.nonzero(liver)
    depths = fan.depth_px(liver.shape)[rows, columns]
    if np.quantile(depths, 0.98) < _MIN_DEPTH_SHARE * (fan.far_px - fan.near_px):
        return "too_shallow"
    if np.count_nonzero(marks & liver) > _MAX_MARKS_SHARE * num_px:
        return "marks_over_liver"
    return ""


def _outline(mask: np.ndarray) -> np.ndarray:
    """Border of the largest piece, `(n, 2)` x and y in px."""
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_TC89_L1
    )
    if not contours:
        return np.zeros((0, 2))
    return max(contours, key=cv2.contourArea)[:, 0].astype(float)
