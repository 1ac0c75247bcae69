"""Frames of one DICOM file as 8-bit grey or RGB, one at a time.

Each frame is cut out and decoded by itself, so that a broken one does not take its neighbours
along. The decoder of every transfer syntax is fixed: two JPEG decoders differ by up to three grey
levels, and pixels have to hash alike on every machine."""

import copy
import io
import struct
from dataclasses import dataclass, replace

import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, pixel_array
from pydicom.pixels.processing import convert_color_space

from steatosis_tf.sources.dicom.read import DICOM_ERRORS, number_of, text_of
from steatosis_tf.sources.images import check_sides, decode_jpeg, jpeg_segment
from steatosis_tf.sources.rejection import Rejection

MAX_FRAMES = 100_000

_NATIVE = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
_LOSSLESS_JPEG = (uid.JPEGLossless, uid.JPEGLosslessSV1)
_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, *_LOSSLESS_JPEG)
_JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
# High-throughput JPEG 2000 differs in its inner coding only, and Pillow's OpenJPEG reads both.
_AS_JPEG_2000 = {
    uid.HTJ2KLossless: uid.JPEG2000Lossless,
    uid.HTJ2KLosslessRPCL: uid.JPEG2000Lossless,
    uid.HTJ2K: uid.JPEG2000,
}
_JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000, *_AS_JPEG_2000)
_DECODERS = {
    **dict.fromkeys(_NATIVE, ""),
    uid.RLELossless: "pydicom",
    **dict.fromkeys((uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, *_JPEG_2000), "pillow"),
    **dict.fromkeys(_LOSSLESS_JPEG, "own"),
    **dict.fromkeys(_JPEG_LS, "pyjpegls"),
}
_ADOBE_RGB = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"  # colours are not transformed
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")


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
    # Some scanners write 0 for a single frame.
    is_zero = number_of(dataset, "NumberOfFrames") == 0
    num_frames = 1 if is_zero else _count(dataset, "NumberOfFrames", absent=1)
    bits = _count(dataset, "BitsAllocated")
    if num_frames > MAX_FRAMES:
        raise Rejection("damaged_image_header")
    check_sides(rows, columns)
    if bits not in (8, 16):
        raise Rejection("bit_depth", bits=bits)
    bits_stored = _count(dataset, "BitsStored", absent=bits)
    if bits_stored > bits:
        raise Rejection("damaged_image_header")
    photometric = text_of(dataset, "PhotometricInterpretation").upper()
    if photometric not in (*GREY, *_COLOUR, PALETTE):
        raise Rejection("photometric")
    samples = _count(dataset, "SamplesPerPixel", absent=1)
    if samples != (3 if photometric in _COLOUR else 1):
        raise Rejection("damaged_image_header")
    _check_syntax(dataset.file_meta.TransferSyntaxUID, bits, bits_stored, dataset)
    return Layout(rows, columns, num_frames, bits, photometric)


def _check_syntax(syntax: uid.UID, bits: int, bits_stored: int, dataset: Dataset) -> None:
    if syntax not in _DECODERS:
        raise Rejection("codec", codec=syntax.name if syntax.name != syntax else "private")
    if syntax in _JPEG and bits_stored > 8:  # libjpeg in Pillow: 8 bits
        raise Rejection("codec", codec=f"{syntax.name} of {bits_stored} bits")
    # Samples that are not at the lower end of their word, as ACR-NEMA allowed.
    is_shifted = number_of(dataset, "HighBit") not in (None, bits_stored - 1)
    if is_shifted and bits_stored < bits and syntax in (*_NATIVE, uid.RLELossless):
        raise Rejection("damaged_image_header")


def _count(dataset: Dataset, keyword: str, absent: int | None = None) -> int:
    if absent is not None and text_of(dataset, keyword) == "":
        return absent
    number = number_of(dataset, keyword)
    if number is None or number < 1 or number != int(number):
        raise Rejection("damaged_image_header")
    return int(number)


def pixel_bytes(dataset: Dataset) -> bytes:
    """The pixel data of a file as they are stored.

    Raises:
        Rejection: if they are missing, empty or unreadable, as in a file that was cut.
    """
    try:
        data = dataset.PixelData
    except DICOM_ERRORS as error:
        raise Rejection("truncated") from error
    if not isinstance(data, bytes) or not data:
        raise Rejection("truncated")
    return data


class FrameReader:
    """Decodes the frames of a file one by one.

    Args:
        dataset: a file read with its pixel data.
        layout: of `read_layout`.

    Raises:
        Rejection: if there are no pixel data, or not one whole frame of them.
    """

    def __init__(self, dataset: FileDataset, layout: Layout):
        data = pixel_bytes(dataset)
        self._dataset = dataset
        self._syntax = dataset.file_meta.TransferSyntaxUID
        photometric = layout.photometric
        if self._syntax in _NATIVE:
            # A decompressed JPEG may keep its halved colours in the header, and store whole ones.
            whole = replace(layout, photometric="YBR_FULL")
            is_whole = len(data) >= layout.num_frames * _frame_bytes(whole)
            if photometric == "YBR_FULL_422" and is_whole:
                photometric = "YBR_FULL"
            self._frames = _plain_frames(data, replace(layout, photometric=photometric))
        else:
            self._frames = _encoded_frames(data, dataset, layout)
        if not self._frames:
            raise Rejection("truncated")
        if self._syntax in _JPEG:
            self._frames = [_stating_rgb(frame) for frame in self._frames]
        if self._syntax in _JPEG_2000 and photometric in _COLOUR and _is_rct(self._frames[0]):
            photometric = "YBR_RCT"  # by the stream; the header may be that of an earlier JPEG
        self._layout = replace(layout, photometric=photometric)
        try:
            self._one = _image_header(dataset, photometric)
        except DICOM_ERRORS as error:
            raise Rejection("damaged_image_header") from error

    @property
    def num_frames(self) -> int:
        """Frames that are there, which may be fewer than the header states."""
        return len(self._frames)

    def read(self, index: int) -> np.ndarray:
        """Decode one frame.

        Args:
            index: 0 for the first frame.

        Returns:
            `(rows, columns)` grey or `(rows, columns, 3)` RGB, uint8, 0 to 255. MONOCHROME1 is
            inverted, a palette applied; 16-bit grey goes through the file's window (PS3.3
            C.11.2.1.2), or through the full range of its stored bits if it has none.

        Raises:
            Rejection: if this frame is missing or broken.
        """
        layout = self._layout
        if index >= self.num_frames:
            raise Rejection("missing_frame", count=layout.num_frames - self.num_frames)
        try:
            if self._syntax in _JPEG:
                decode_jpeg(self._frames[index])  # Pillow fills up what was cut off
            if self._syntax in _JPEG_LS:
                _check_jpeg_ls(self._frames[index], layout)
            if self._syntax in _LOSSLESS_JPEG:
                stored = _lossless_jpeg(self._frames[index], layout)
            else:
                stored = pixel_array(self._single(index), decoding_plugin=_DECODERS[self._syntax])
            frame = displayed(stored, self._dataset, layout.photometric, layout.bits_allocated)
        except (*DICOM_ERRORS, Image.DecompressionBombError) as error:
            raise Rejection("broken_frame") from error
        shape = (layout.rows, layout.columns)
        if frame.shape != (shape if layout.photometric in GREY else (*shape, 3)):
            raise Rejection("broken_frame")
        if layout.photometric in _COLOUR:
            _refuse_false_colours(frame)
        return np.ascontiguousarray(frame)

    def _single(self, index: int) -> FileDataset:
        """The image part of the header with the pixel data of one frame only."""
        data = self._frames[index]
        if self._syntax in _NATIVE:
            self._one.PixelData = data + b"\0" * (len(data) % 2)
            self._one["PixelData"].VR = self._dataset["PixelData"].VR  # order of big endian bytes
        else:
            self._one.PixelData = encapsulate([data])
            self._one["PixelData"].VR = "OB"
            self._one["PixelData"].is_undefined_length = True
        return self._one


def _image_header(dataset: FileDataset, photometric: str) -> FileDataset:
    """The elements that describe the picture, for one frame."""
    meta = copy.copy(dataset.file_meta)
    meta.TransferSyntaxUID = _AS_JPEG_2000.get(meta.TransferSyntaxUID, meta.TransferSyntaxUID)
    single = FileDataset("", {}, file_meta=meta)
    single.set_original_encoding(*dataset.original_encoding)
    for element in dataset.group_dataset(0x0028):
        # Elements are shared; those that are set anew must not be.
        if element.keyword not in ("NumberOfFrames", "PhotometricInterpretation"):
            single.add(element)
    single.NumberOfFrames, single.PhotometricInterpretation = 1, photometric
    # Required, and left out all the same by older converters; pydicom does not guess.
    for keyword, usual in (
        ("SamplesPerPixel", 1),
        ("PlanarConfiguration", 0),
        ("PixelRepresentation", 0),
        ("BitsStored", text_of(dataset, "BitsAllocated")),
    ):
        if text_of(single, keyword) == "":
            setattr(single, keyword, int(usual))
    return single


def _plain_frames(data: bytes, layout: Layout) -> list[bytes]:
    """The whole frames of uncompressed pixel data; a cut one at the end is left out."""
    size = _frame_bytes(layout)
    num_whole = min(layout.num_frames, len(data) // size)
    return [data[index * size : (index + 1) * size] for index in range(num_whole)]


def _encoded_frames(data: bytes, dataset: FileDataset, layout: Layout) -> list[bytes]:
    """The code streams of compressed pixel data, as far as they can be told apart."""
    frames: list[bytes] = []
    try:
        offsets = (
            (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
            if "ExtendedOffsetTable" in dataset
            else None
        )
        for frame in generate_frames(
            data, number_of_frames=layout.num_frames, extended_offsets=offsets
        ):
            frames.append(frame)
    except DICOM_ERRORS:
        return frames  # the missing ones are reported one by one when they are asked for
    return frames


def _frame_bytes(layout: Layout) -> int:
    samples = {"YBR_FULL_422": 2, **dict.fromkeys(_COLOUR[:2] + _COLOUR[3:], 3)}
    per_pixel = samples.get(layout.photometric, 1)
    return layout.rows * layout.columns * per_pixel * layout.bits_allocated // 8


def _stating_rgb(data: bytes) -> bytes:
    """A JPEG whose components are called R, G and B, with the marker by which Pillow knows that."""
    header = jpeg_segment(data, 0xC0) or jpeg_segment(data, 0xC1)
    is_rgb = header[6:15:3] == b"RGB" and not jpeg_segment(data, 0xEE)
    return data[:2] + _ADOBE_RGB + data[2:] if is_rgb else data


def _is_rct(data: bytes) -> bool:
    """Whether a JPEG 2000 stream has transformed its colours, which its decoder takes back."""
    return jpeg_segment(data, 0x52)[4:5] == b"\1"


def _check_jpeg_ls(data: bytes, layout: Layout) -> None:
    """Hold a JPEG-LS stream to the stated size, before its decoder takes memory for its own.

    Without its end the decoder searches for tens of seconds.
    """
    if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ValueError("expected a JPEG-LS frame with its end")
    if struct.unpack(">HH", jpeg_segment(data, 0xF7)[1:5]) != (layout.rows, layout.columns):
        raise ValueError("expected a JPEG-LS frame of the size the header states")


# What black becomes where YBR is shown as RGB, and the other way round.
_FALSE_BLACKS = ((0, 128, 128), (0, 135, 0))


def _refuse_false_colours(frame: np.ndarray) -> None:
    """Refuse `(rows, columns, 3)` colours in another space than the header says."""
    pixels = frame[::4, ::4].reshape(-1, 3).astype(int)

    def share(of: tuple[int, int, int]) -> float:
        return float((np.abs(pixels - of).max(axis=1) < 12).mean())

    if max(map(share, _FALSE_BLACKS)) > max(0.01, share((0, 0, 0))):
        raise Rejection("colour_space")


def _lossless_jpeg(data: bytes, layout: Layout) -> np.ndarray:
    """8-bit lossless JPEG by Pillow, whose libjpeg-turbo 3 reads it; pydicom does not know yet."""
    image = Image.open(io.BytesIO(data))
    if image.format != "JPEG" or image.size != (layout.columns, layout.rows):
        raise ValueError("expected a JPEG frame of the size the header states")
    stored = np.asarray(image)
    if layout.photometric.startswith("YBR") and "jfif" not in image.info:
        stored = convert_color_space(stored, "YBR_FULL", "RGB")
    return stored


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
    names = (f"{name}PaletteColorLookupTableData" for name in ("Red", "Green"))
    entries = [dataset[name].value for name in names if name in dataset]  # none if in segments
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
