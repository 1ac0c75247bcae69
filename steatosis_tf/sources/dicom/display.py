"""Stored samples of a frame to the 8 bits a viewer shows (PS3.3 C.7.6.3, C.11.1 and C.11.2)."""

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi

from steatosis_tf.sources.dicom.read import number_of, text_of

GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"


def displayed(
    stored: np.ndarray, dataset: Dataset, photometric: str, bits_allocated: int
) -> np.ndarray:
    """Stored samples to 8 bits, as a viewer shows them.

    Args:
        stored: `(rows, columns)` grey or palette index, or `(rows, columns, 3)` RGB; integers.
        dataset: header with palette, window and stored bits.
        photometric: PhotometricInterpretation as stored.
        bits_allocated: 8 or 16.

    Returns:
        The same shape, or `(rows, columns, 3)` for a palette; uint8, 0 to 255.

    Raises:
        ValueError, KeyError, AttributeError: from pydicom, for tables that do not fit.
    """
    if photometric == PALETTE:
        return _palette(stored, dataset)
    bits_stored = int(number_of(dataset, "BitsStored") or bits_allocated)
    if photometric not in GREY:
        return stored if stored.dtype == np.uint8 else _high_byte(stored, bits_stored)
    # An 8-bit frame is what the scanner's screen showed: a window is a later viewer's taste.
    as_shown = stored.dtype == np.uint8 and bits_stored == 8
    frame = stored if as_shown else _windowed(stored, dataset, bits_stored)
    return 255 - frame if photometric == "MONOCHROME1" else frame


def _high_byte(stored: np.ndarray, bits_stored: int) -> np.ndarray:
    top = (1 << bits_stored) - 1
    scaled = np.clip(stored.astype(np.float64), 0, top) * (255 / top)
    return np.round(scaled).astype(np.uint8)


def _palette(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    colours = apply_color_lut(stored, dataset)
    if colours.dtype == np.uint8:
        return colours
    entries = [dataset[f"{name}PaletteColorLookupTableData"].value for name in ("Red", "Green")]
    # Some scanners say 16 bits per entry and fill 8: every high byte is zero then.
    wide = any(np.frombuffer(entry, "<u2").max(initial=0) > 255 for entry in entries)
    return (colours >> 8 if wide or colours.max() > 255 else colours).astype(np.uint8)


def _windowed(stored: np.ndarray, dataset: Dataset, bits_stored: int) -> np.ndarray:
    signed = stored.dtype.kind == "i"
    low = -(1 << (bits_stored - 1)) if signed else 0
    stored = np.clip(stored, low, low + (1 << bits_stored) - 1)
    values = np.asarray(apply_modality_lut(stored, dataset), np.float64)
    if "VOILUTSequence" in dataset:
        shown = np.asarray(apply_voi(values.astype(np.int64), dataset), np.float64)
        entry_bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return np.round(np.clip(shown / ((1 << entry_bits) - 1), 0, 1) * 255).astype(np.uint8)
    center = _first_number(dataset, "WindowCenter")
    width = _first_number(dataset, "WindowWidth")
    if center is not None and width is not None and width >= 1:
        share = _window_share(values, center, width, text_of(dataset, "VOILUTFunction").upper())
    else:
        ends = np.array([low, low + (1 << bits_stored) - 1], stored.dtype)
        bottom, top = sorted(np.asarray(apply_modality_lut(ends, dataset), np.float64))
        share = (values - bottom) / max(top - bottom, 1e-12)
    return np.round(np.clip(share, 0, 1) * 255).astype(np.uint8)


def _window_share(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """Position in the window, 0 to 1 (PS3.3 C.11.2.1.2.1 and C.11.2.1.3)."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -50, 50)))
    if function == "LINEAR_EXACT":
        return (values - center) / width + 0.5
    return (values - (center - 0.5)) / max(width - 1, 1e-12) + 0.5


def _first_number(dataset: Dataset, keyword: str) -> float | None:
    """First value of a window element, which may list several windows."""
    first = pydicom.Dataset()
    first.add_new("WindowCenter", "DS", text_of(dataset, keyword).split("\\")[0] or None)
    return number_of(first, "WindowCenter")
