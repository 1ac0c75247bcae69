"""What may leave the hospital: named fields, and the pixels of the ultrasound picture.

An allow-list: a field that is not named here does not leave, whatever a scanner puts into it.
"""

import re

import numpy as np
import pydicom

from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.dicom.personal_values import personal_values
from steatosis_tf.sources.dicom.read import Header, text_of
from steatosis_tf.sources.dicom.regions import Region
from steatosis_tf.sources.dicom.split_screen import is_split_screen
from steatosis_tf.sources.dicom.value_finder import Finder
from steatosis_tf.sources.rejection import Rejection

#: Columns of labels.csv that come from the header; nothing else of it leaves.
KEPT_FIELDS = (
    "manufacturer",
    "model",
    "transducer_frequency_mhz",
    "pixel_height_mm",
    "pixel_width_mm",
    "sex",
    "age",
    "days_since_first_study",
)

_MAX_TEXT = 64
_ALLOWED_TEXT = re.compile(r"[^A-Za-z0-9 .,()/_+-]")

# A pixel whose channels differ by more than this is coloured. Measured on 588 B-mode pictures of
# many scanners (Xu et al. 2023, doi 10.1093/bib/bbac569): inside the sector at most 0.11 % of the
# pixels pass it, on the power Doppler example of pydicom 8 %.
_COLOUR_SPREAD = 64
_GREY_SPREAD = 24
_BRIGHT = 48
_MAX_COLOUR_SHARE = 0.005
# With a tinted grey map nearly every bright pixel is coloured, beside Doppler many stay grey.
_MIN_GREY_SHARE = 0.2

# A fan fitted worse than this may reach over text beside it. Every second of the same pictures
# gives 5 of 294 below, one of them with 3 % of its bright pixels outside the outlined sector; a
# fan drawn over the menu bar of pydicom's cine loop, by an earlier finder, scored 1.3 to 1.9.
_MIN_SECTOR_SCORE = 2.0


def kept_fields(dataset: pydicom.Dataset, header: Header, region: Region | None) -> dict[str, str]:
    """The cells of `KEPT_FIELDS` for one file; "" where the file does not say.

    `days_since_first_study` stays "": it takes all files of the patient.

    Args:
        dataset: its header.
        header: the same, read.
        region: its 2-D region, or None.
    """
    finder = Finder(personal_values(dataset))
    spacing_mm = (None, None) if region is None else (region.pixel_height_mm, region.pixel_width_mm)
    frequency_mhz = None if region is None else region.transducer_frequency_mhz
    cells: tuple[str | float | None, ...] = (
        technical_text(text_of(dataset, "Manufacturer"), finder),
        technical_text(text_of(dataset, "ManufacturerModelName"), finder),
        frequency_mhz,
        *spacing_mm,
        header.sex,
        header.age,
        None,
    )
    return dict(zip(KEPT_FIELDS, map(_cell, cells), strict=True))


def _cell(value: str | float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def technical_text(text: str, finder: Finder) -> str:
    """A manufacturer or model name, or "" if a personal value of the same file is in it.

    Free text has been seen to hold whatever was typed into the wrong field.
    """
    plain = " ".join(_ALLOWED_TEXT.sub(" ", text).split())[:_MAX_TEXT].strip()
    plain = plain.lstrip("=+-@ ")  # a spreadsheet would run it as a formula
    return "" if finder.in_text(text) or finder.in_text(plain) else plain


def region_mask(region: Region, rows: int, columns: int) -> np.ndarray:
    """`(rows, columns)` bool, True inside the region."""
    mask = np.zeros((rows, columns), bool)
    mask[region.top : region.top + region.height, region.left : region.left + region.width] = True
    return mask


def sector_mask(frames: np.ndarray) -> np.ndarray:
    """Pixels of the ultrasound sector found in a clip without a stated region.

    Args:
        frames: `(num_frames, height, width)` or `(num_frames, height, width, 3)` RGB, uint8.

    Returns:
        `(height, width)` bool.

    Raises:
        Rejection: if no sector is found, one that may hold more than the picture, or two side by
            side.
    """
    if is_split_screen(frames):
        raise Rejection("split_screen", count=2)
    try:
        sector = find_sector(frames)
    except ValueError as error:
        raise Rejection("no_sector") from error
    if sector.score < _MIN_SECTOR_SCORE:
        for frame in frames:
            _refuse_colours(frame[sector.mask])  # often the true reason for the doubt
        raise Rejection("doubtful_sector")
    return sector.mask


def blanked(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The frame with 0 wherever the mask is False, grey if its channels are equal there.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.
        mask: `(height, width)` bool, True where pixels may leave.

    Raises:
        Rejection: if Doppler colours or nothing at all is left.
    """
    kept = np.where(mask if frame.ndim == 2 else mask[..., None], frame, np.uint8(0))
    inside = frame[mask]
    if inside.size == 0 or inside.min() == inside.max():
        raise Rejection("flat_frame")
    if frame.ndim == 2:
        return kept
    _refuse_colours(inside)
    return kept if (inside != inside[:, :1]).any() else kept[..., 0]


def _refuse_colours(inside: np.ndarray) -> None:
    """Raises:
    Rejection: if pixels `(num_pixels, 3)` RGB hold Doppler colours; `(num_pixels,)` is grey.
    """
    if inside.ndim == 1:
        return
    spread = inside.max(axis=1).astype(np.int16) - inside.min(axis=1)
    coloured = float((spread > _COLOUR_SPREAD).mean())
    bright = inside.max(axis=1) > _BRIGHT
    grey_share = float((spread[bright] < _GREY_SPREAD).mean()) if bright.any() else 0.0
    if coloured > _MAX_COLOUR_SHARE and grey_share > _MIN_GREY_SHARE:
        raise Rejection("colour_pixels")
