"""Frames of one DICOM file as 8-bit grey or RGB, one at a time.

Each frame is cut out and decoded by itself, so that a broken one does not take its neighbours
along. The decoder of every transfer syntax is fixed: two JPEG decoders differ by up to three grey
levels, and pixels have to hash alike on every machine.
"""

import io
from dataclasses import dataclass

import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, pixel_array
from pydicom.pixels.processing import convert_color_space

from steatosis_tf.sources.dicom_header import DICOM_ERRORS, number_of, text_of
from steatosis_tf.sources.folder import MAX_SIDE_PX, MIN_SIDE_PX
from steatosis_tf.sources.rejection import Rejection

MAX_FRAMES = 100_000

_NATIVE = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
_LOSSLESS_JPEG = (uid.JPEGLossless, uid.JPEGLosslessSV1)
_JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000)
_DECODERS = {
    **dict.fromkeys(_NATIVE, ""),
    uid.RLELossless: "pydicom",
    **dict.fromkeys((uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, *_JPEG_2000), "pillow"),
    **dict.fromkeys(_LOSSLESS_JPEG, "own"),
}
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
_PALETTE = "PALETTE COLOR"


@dataclass(frozen=True)
class Layout:
    """Shape of the frames of a file, checked.

    Attributes:
        rows, columns: px.
        num_frames: frames the header states.
        bits_allocated: 8 or 16.
        photometric: PhotometricInterpretation.
    """

    rows: int
    columns: int
    num_frames: int
    bits_allocated: int
    photometric: str


def read_layout(dataset: Dataset) -> Layout:
    """Check the image part of a header.

    Raises:
        Rejection: if a number is missing or impossible, or the frames are of a kind not read.
    """
    rows, columns = _count(dataset, "Rows"), _count(dataset, "Columns")
    num_frames = _count(dataset, "NumberOfFrames", absent=1)
    bits = _count(dataset, "BitsAllocated")
    if num_frames > MAX_FRAMES:
        raise Rejection("damaged_image_header")
    if min(rows, columns) < MIN_SIDE_PX or max(rows, columns) > MAX_SIDE_PX:
        raise Rejection("image_size", low=MIN_SIDE_PX, high=MAX_SIDE_PX, rows=rows, columns=columns)
    if bits not in (8, 16):
        raise Rejection("bit_depth", bits=bits)
    if not 0 < _count(dataset, "BitsStored", absent=bits) <= bits:
        raise Rejection("damaged_image_header")
    photometric = text_of(dataset, "PhotometricInterpretation").upper()
    if photometric not in (*_GREY, *_COLOUR, _PALETTE):
        raise Rejection("photometric")
    samples = _count(dataset, "SamplesPerPixel", absent=1)
    if samples != (3 if photometric in _COLOUR else 1):
        raise Rejection("damaged_image_header")
    if dataset.file_meta.TransferSyntaxUID not in _DECODERS:
        raise Rejection("codec")
    return Layout(rows, columns, num_frames, bits, photometric)


def _count(dataset: Dataset, keyword: str, absent: int | None = None) -> int:
    if absent is not None and text_of(dataset, keyword) == "":
        return absent
    number = number_of(dataset, keyword)
    if number is None or number < 1 or number != int(number):
        raise Rejection("damaged_image_header")
    return int(number)


def read_frame_of(dataset: FileDataset, layout: Layout, index: int) -> np.ndarray:
    """Decode one frame.

    Args:
        dataset: a file read with its pixel data.
        layout: of `read_layout`.
        index: 0 for the first frame.

    Returns:
        `(rows, columns)` grey or `(rows, columns, 3)` RGB, uint8, 0 to 255. MONOCHROME1 is
        inverted, a palette applied; 16-bit grey goes through the file's window (PS3.3
        C.11.2.1.2), or through the full range of its stored bits if it has none.

    Raises:
        Rejection: if this frame is missing, truncated or broken.
    """
    if "PixelData" not in dataset:
        raise Rejection("truncated")
    single = _single_frame(dataset, layout, index)
    try:
        if dataset.file_meta.TransferSyntaxUID in _LOSSLESS_JPEG:
            stored = _lossless_jpeg(single, layout)
        else:
            plugin = _DECODERS[dataset.file_meta.TransferSyntaxUID]
            stored = pixel_array(single, decoding_plugin=plugin)
        frame = _displayed(stored, dataset, layout)
    except (*DICOM_ERRORS, Image.DecompressionBombError) as error:
        raise Rejection("broken_frame") from error
    shape = (layout.rows, layout.columns)
    if frame.shape not in (shape, (*shape, 3)):
        raise Rejection("broken_frame")
    return np.ascontiguousarray(frame)


def _single_frame(dataset: FileDataset, layout: Layout, index: int) -> FileDataset:
    """The same header with the pixel data of one frame only."""
    data: bytes = dataset.PixelData
    single = FileDataset("", {}, file_meta=dataset.file_meta)
    single.set_original_encoding(*dataset.original_encoding)
    for element in dataset.group_dataset(0x0028):
        single.add(element)
    single.NumberOfFrames = 1
    if dataset.file_meta.TransferSyntaxUID in _NATIVE:
        num_bytes = _frame_bytes(layout)
        if len(data) < num_bytes:
            raise Rejection("truncated")
        frame_data = data[index * num_bytes : (index + 1) * num_bytes]
        if len(frame_data) < num_bytes:
            raise Rejection("missing_frame")
        single.PixelData = frame_data + b"\0" * (num_bytes % 2)
        single["PixelData"].VR = dataset["PixelData"].VR  # sets the byte order of big endian
        return single
    try:
        frame_data = get_frame(data, index, number_of_frames=layout.num_frames)
        single.PixelData = encapsulate([frame_data])
    except DICOM_ERRORS as error:
        raise Rejection("missing_frame") from error
    single["PixelData"].VR = "OB"
    single["PixelData"].is_undefined_length = True
    return single


def _frame_bytes(layout: Layout) -> int:
    samples = {"YBR_FULL_422": 2, **dict.fromkeys(_COLOUR[:2] + _COLOUR[3:], 3)}
    per_pixel = samples.get(layout.photometric, 1)
    return layout.rows * layout.columns * per_pixel * layout.bits_allocated // 8


def _lossless_jpeg(single: FileDataset, layout: Layout) -> np.ndarray:
    """8-bit lossless JPEG by Pillow, whose libjpeg-turbo 3 reads it; pydicom does not know yet."""
    image = Image.open(io.BytesIO(get_frame(single.PixelData, 0, number_of_frames=1)))
    if image.format != "JPEG" or image.size != (layout.columns, layout.rows):
        raise ValueError("expected a JPEG frame of the size the header states")
    stored = np.asarray(image)
    if layout.photometric.startswith("YBR") and "jfif" not in image.info:
        stored = convert_color_space(stored, "YBR_FULL", "RGB")
    return stored


def _displayed(stored: np.ndarray, dataset: Dataset, layout: Layout) -> np.ndarray:
    """Stored samples to 8 bits, as a viewer shows them."""
    if layout.photometric == _PALETTE:
        return _palette(stored, dataset)
    bits_stored = _count(dataset, "BitsStored", absent=layout.bits_allocated)
    if layout.photometric not in _GREY:
        return stored if stored.dtype == np.uint8 else _high_byte(stored, bits_stored)
    # An 8-bit frame is what the scanner's screen showed: a window is a later viewer's taste.
    frame = stored if stored.dtype == np.uint8 else _windowed(stored, dataset, bits_stored)
    return 255 - frame if layout.photometric == "MONOCHROME1" else frame


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
