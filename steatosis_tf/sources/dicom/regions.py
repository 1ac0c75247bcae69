"""Where the 2-D tissue image lies in an ultrasound frame, by the file's own region list.

DICOM PS3.3 C.8.5.5 (US Region Calibration) and C.8.5.6.1.1 (Image Type).
"""

import math
import re
from dataclasses import dataclass

import pydicom

from steatosis_tf.sources.dicom.read import DICOM_ERRORS, number_of, text_of
from steatosis_tf.sources.images import MIN_SIDE_PX
from steatosis_tf.sources.rejection import Rejection

_FORMAT_2D, _FORMAT_M_MODE, _FORMAT_SPECTRAL = 1, 2, 3
_TYPE_NONE, _TYPE_TISSUE, _TYPE_COLOUR_FLOW = 0, 1, 2
_SPECTRAL_TYPES = (3, 4, 5, 6, 7)  # pulsed and continuous wave, and their traces
_UNIT_CM = 3

# Image Type value 4: M-mode, CW, PW, colour Doppler, colour M-mode, 3-D, colour power, tissue
# characterisation. 0001 is 2-D imaging, 0400 only says that frames are spatially related.
_OTHER_MODES = 0x0002 | 0x0004 | 0x0008 | 0x0010 | 0x0020 | 0x0040 | 0x0100 | 0x0200

# Vendors write the last column as `columns` or `columns - 1`; further out the picture was rescaled
# after the regions were written, and neither place nor spacing can be believed.
_OVERHANG_PX = 2


@dataclass(frozen=True)
class Region:
    """The 2-D tissue region of a frame.

    Attributes:
        top, left, height, width: px of the full frame.
        pixel_height_mm, pixel_width_mm: size of one pixel, or None if not stated in cm.
        transducer_frequency_mhz: or None.
    """

    top: int
    left: int
    height: int
    width: int
    pixel_height_mm: float | None
    pixel_width_mm: float | None
    transducer_frequency_mhz: float | None


def find_region(dataset: pydicom.Dataset, rows: int, columns: int) -> Region | None:
    """The one 2-D tissue region of a file.

    Args:
        dataset: header of an ultrasound image.
        rows: height of its frames, px.
        columns: width of its frames, px.

    Returns:
        The region, or None if the file states none that fits its own picture.

    Raises:
        Rejection: if the file holds Doppler, M-mode, or more than one 2-D picture.
    """
    _refuse_other_modes(dataset)
    try:
        items = list(dataset.get("SequenceOfUltrasoundRegions") or ())
    except DICOM_ERRORS:
        items = []
    tissue: dict[tuple[int, int, int, int], pydicom.Dataset] = {}
    num_regions = 0
    for item in items:
        place = _place(item)
        if place is None:
            continue
        num_regions += 1
        if _is_tissue(item):
            tissue.setdefault(place, item)
    if not num_regions:
        return None
    if not tissue:
        raise Rejection("no_tissue_region")
    if len(tissue) > 1:
        raise Rejection("split_screen", count=len(tissue))
    (place, item), *_ = tissue.items()
    return _fitted(place, item, rows, columns)


def _refuse_other_modes(dataset: pydicom.Dataset) -> None:
    values = text_of(dataset, "ImageType").split("\\")
    modes = values[3].strip() if len(values) > 3 else ""
    if re.fullmatch(r"[0-9A-Fa-f]{4}", modes) and int(modes, 16) & _OTHER_MODES:
        raise Rejection("image_type_doppler")


def _is_tissue(item: pydicom.Dataset) -> bool:
    """Whether a region is a 2-D tissue picture; a Doppler or M-mode region is refused."""
    spatial = number_of(item, "RegionSpatialFormat")
    kind = number_of(item, "RegionDataType")
    if kind == _TYPE_COLOUR_FLOW:
        raise Rejection("colour_doppler")
    if spatial == _FORMAT_M_MODE:
        raise Rejection("m_mode")
    if spatial == _FORMAT_SPECTRAL or kind in _SPECTRAL_TYPES:
        raise Rejection("spectral_doppler")
    return spatial == _FORMAT_2D and kind in (_TYPE_TISSUE, _TYPE_NONE)


def _place(item: pydicom.Dataset) -> tuple[int, int, int, int] | None:
    """`(x0, y0, x1, y1)` px, inclusive; None for a region without extent."""
    corners = [
        number_of(item, f"RegionLocation{name}") for name in ("MinX0", "MinY0", "MaxX1", "MaxY1")
    ]
    if any(corner is None for corner in corners):
        return None
    x0, y0, x1, y1 = (int(corner) for corner in corners if corner is not None)
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _fitted(
    place: tuple[int, int, int, int], item: pydicom.Dataset, rows: int, columns: int
) -> Region | None:
    x0, y0, x1, y1 = place
    if x1 >= columns + _OVERHANG_PX or y1 >= rows + _OVERHANG_PX or x0 < 0 or y0 < 0:
        return None
    x1, y1 = min(x1, columns - 1), min(y1, rows - 1)
    height, width = y1 - y0 + 1, x1 - x0 + 1
    if min(height, width) < MIN_SIDE_PX:
        raise Rejection("small_region", low=MIN_SIDE_PX)
    frequency_khz = number_of(item, "TransducerFrequency")
    return Region(
        top=y0,
        left=x0,
        height=height,
        width=width,
        pixel_height_mm=_spacing_mm(item, "Y"),
        pixel_width_mm=_spacing_mm(item, "X"),
        transducer_frequency_mhz=(
            frequency_khz / 1000
            if frequency_khz is not None and 500 <= frequency_khz <= 50_000
            else None
        ),
    )


def _spacing_mm(item: pydicom.Dataset, axis: str) -> float | None:
    """Millimetres per pixel along one axis; some scanners count y upwards, hence the sign."""
    delta_cm = number_of(item, f"PhysicalDelta{axis}")
    if delta_cm is None or number_of(item, f"PhysicalUnits{axis}Direction") != _UNIT_CM:
        return None
    spacing_mm = abs(delta_cm) * 10
    # 0.001 mm is under any wavelength used on a liver, 10 mm would make a frame metres wide.
    return spacing_mm if math.isfinite(spacing_mm) and 0.001 < spacing_mm < 10 else None
