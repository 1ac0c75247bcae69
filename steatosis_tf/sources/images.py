"""Frames from image files in a folder."""

import contextlib
import io
import logging
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image

from steatosis_tf.files import open_regular, write_bytes
from steatosis_tf.sources.rejection import Rejection

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff")

# A frame this wide or high is a slide scan or a mistake, and would exhaust memory in a batch.
MAX_SIDE_PX = 8192
MIN_SIDE_PX = 32

# A pixel whose channels differ by more than this is coloured. Measured on 588 B-mode pictures of
# many scanners (Xu et al. 2023, doi 10.1093/bib/bbac569): inside the sector at most 0.11 % of the
# pixels pass it, on the power Doppler example of pydicom 8 %.
_COLOUR_SPREAD = 64
_GREY_SPREAD = 24
_BRIGHT = 48
_MAX_COLOUR_SHARE = 0.005
# With a tinted grey map nearly every bright pixel is coloured, beside Doppler many stay grey.
_MIN_GREY_SHARE = 0.2

# So many zero bytes hold a whole block of 63 coefficients whatever the code table says.
_HOLE = bytes(64)
_END_OF_BLOCK = 0
# EXIF orientation -> quarter turns to the left, and whether left and right change places then.
_TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True),
          6: (3, False), 7: (1, True), 8: (1, False)}  # fmt: skip
_MAX_EXIF_AT = 1 << 16
_FRAME_MARKERS = (0xC0, 0xC1, 0xC2, 0xC3)
_SEQUENTIAL = (0xC0, 0xC1)  # markers of frames whose blocks are whole, not sent by and by


_SILENCE = threading.Lock()
_silenced = contextlib.ExitStack()
_num_silent = 0


@contextlib.contextmanager
def quiet_readers() -> Iterator[None]:
    """Silences warnings, and pydicom's log: they quote the values they are about.

    Until the last of all threads is through. Where two cross, `warnings.catch_warnings` of the one
    would let out those of the other, or leave them off for good.
    """
    global _num_silent
    with _SILENCE:
        _num_silent += 1
        if _num_silent == 1:
            log = logging.getLogger("pydicom")
            _silenced.callback(log.setLevel, log.level)
            _silenced.enter_context(warnings.catch_warnings(action="ignore"))
            log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        with _SILENCE:
            _num_silent -= 1
            if not _num_silent:
                _silenced.close()


def read_frame(path: str | Path) -> np.ndarray:
    """Decode one image file.

    Args:
        path: PNG, JPEG, BMP or TIFF file; the name may hold any Unicode character.

    Returns:
        `(height, width)` or `(height, width, 3)` RGB, uint8, 0 to 255, as stored in the file;
        the picture of a phone upright, as its EXIF orientation says.

    Raises:
        Rejection: if the file is missing, no regular file, empty, not an image, truncated,
            damaged, not 8-bit, or of a size no ultrasound frame has, which its header says before
            anything is decoded. The text is the reason alone; naming the frame is the caller's,
            because a folder can be named after a patient.

    Example:
        >>> from steatosis_tf.sources.phantom.study import write_phantoms
        >>> labels = write_phantoms("phantoms", num_patients=4, frames_per_patient=1, seed=0)
        >>> frame = read_frame(sorted((labels.parent / "images").iterdir())[0])
        >>> frame.shape, frame.dtype.name
        ((434, 636), 'uint8')
    """
    return decode_frame(read_bytes(path))


def read_bytes(path: str | Path) -> bytes:
    """All bytes of a frame's file, for `decode_frame` and `later_pages`.

    Raises:
        Rejection: if the file is missing or no regular file.
    """
    try:
        with open_regular(path) as file:
            return file.read()
    except (OSError, ValueError) as error:  # no path holds a zero byte
        raise Rejection("unreadable_frame", why=getattr(error, "strerror", error)) from error


def decode_frame(data: bytes) -> np.ndarray:
    """`read_frame` of a file's bytes.

    Args:
        data: all bytes of a PNG, JPEG, BMP or TIFF file.

    Raises:
        Rejection: as `read_frame`.
    """
    if not data:
        raise Rejection("empty_frame_file")
    if data.startswith(b"\xff\xd8"):
        frame = decode_jpeg(data)
        return _upright(frame, data) if b"Exif\0\0" in data[:_MAX_EXIF_AT] else frame
    is_png = data.startswith(b"\x89PNG")
    if is_png and not _is_whole_png(data):
        raise Rejection("cut_png")
    check_sides(*_stated_size(data))
    try:
        stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise Rejection("no_picture") from error
    if stored is None:
        raise Rejection("no_picture")
    frame = _as_rgb(stored)
    # OpenCV turns a TIFF by itself.
    return _upright(frame, data) if is_png and b"eXIf" in data else frame


def _is_whole_png(data: bytes) -> bool:
    """Whether all parts up to the end lie within the bytes; what archives add behind it may stay.

    OpenCV takes the memory that a part states, gigabytes too, before it looks for its bytes.
    """
    at = 8
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        at += 12 + length
        if kind == b"IEND":
            return at <= len(data)
    return False


def decode_jpeg(data: bytes) -> np.ndarray:
    """Decode a JPEG strictly: what makes the decoder warn is refused, where viewers guess on.

    A hole or a cut leaves the rest of the picture shifted and darker or brighter, and a grade
    computed from it is wrong. JPEG has no checksum: a hole after which the code falls into step
    again at the very same block is found only if it is of zeros.

    Args:
        data: the file or the code stream, from its first marker on.

    Returns:
        `(height, width)` or `(height, width, 3)` RGB, uint8, 0 to 255.

    Raises:
        Rejection: if it is damaged, truncated, not 8-bit, or of a size no frame has.
    """
    for marker in _FRAME_MARKERS:
        if (bits := jpeg_segment(data, marker)[:1]) and bits != b"\x08":
            of = f"a JPEG of {bits[0]} bits, which djpeg of libjpeg-turbo 3 decodes"
            raise Rejection("not_8_bit", received=of)
    if _has_hole(data):
        raise Rejection("damaged_jpeg", why="a hole of zero bytes")
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise Rejection("damaged_jpeg", why=error) from error
    check_sides(height, width)
    try:
        frame = simplejpeg.decode_jpeg(data, "GRAY" if colours == "Gray" else "RGB", strict=True)
    except ValueError as error:
        raise Rejection("damaged_jpeg", why=error) from error
    return frame[:, :, 0] if frame.shape[2] == 1 else frame


def _upright(frame: np.ndarray, data: bytes) -> np.ndarray:
    """A JPEG or PNG turned as viewers show it; no scanner's export asks for that."""
    try:
        # Damaged entries make it warn.
        with quiet_readers(), Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, ValueError, SyntaxError, OverflowError, KeyError, struct.error):
        return frame
    turns, is_mirrored = _TURNS.get(orientation, (0, False))
    turned = np.rot90(frame, turns)
    return np.ascontiguousarray(turned[:, ::-1] if is_mirrored else turned)


def jpeg_segment(data: bytes, marker: int) -> bytes:
    """What stands under a marker in the header of a stream of the JPEG family; b"" if none does."""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if data[at + 1] == marker:
            return data[at + 4 : end]
        at = end
    return b""


def _has_hole(data: bytes) -> bool:
    """Whether 64 zero bytes stand where a sequential JPEG of these code tables cannot have any.

    Zeros are the first code of a table over and over. Only where that is the end of a block do
    they encode something that exists, a level area; else they are blocks full of equal noise.
    """
    at, num_components, first_symbol = 2, 0, _END_OF_BLOCK
    while data[at : at + 1] == b"\xff" and at + 10 <= len(data):
        kind, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if kind in _SEQUENTIAL:
            num_components = data[at + 9]
        elif kind == 0xC4:  # code tables
            first_symbol = _first_symbol(data[at + 4 : end], first_symbol)
        elif kind == 0xDA:  # the pixels begin
            # One scan for all components holds brightness everywhere, whose table this is.
            is_known = first_symbol != _END_OF_BLOCK and data[at + 4] == num_components
            return is_known and data.find(_HOLE, end) >= 0
        at = end
    return False


def _first_symbol(tables: bytes, former: int) -> int:
    """What zeros mean by the table of brightness coefficients (class 1, number 0)."""
    at = 0
    while at + 17 < len(tables):
        if tables[at] == 0x10:
            return tables[at + 17]
        at += 17 + sum(tables[at + 1 : at + 17])
    return former


def _stated_size(data: bytes) -> tuple[int, int]:
    """Height and width in px out of the header, without decoding."""
    try:
        with (
            quiet_readers(),  # of damaged tags
            Image.open(io.BytesIO(data), formats=("PNG", "BMP", "TIFF")) as image,
        ):
            return image.height, image.width
    except Image.DecompressionBombError as error:
        raise _wrong_size("far more") from error
    except (OSError, ValueError, SyntaxError, OverflowError, KeyError) as error:
        raise Rejection("no_picture") from error


def later_pages(data: bytes) -> int:
    """Pages behind the first of a TIFF or an animated PNG, which nobody reads; 0 of all else.

    Args:
        data: of a file that was decoded, so that its size is known to be sound.
    """
    try:
        with quiet_readers(), Image.open(io.BytesIO(data), formats=("PNG", "TIFF")) as image:
            return int(getattr(image, "n_frames", 1)) - 1
    except (OSError, ValueError, SyntaxError, OverflowError, KeyError):
        return 0


def check_sides(height: int, width: int) -> None:
    """Raises:
    Rejection: if no ultrasound frame has these sides, in px.
    """
    if min(height, width) < MIN_SIDE_PX or max(height, width) > MAX_SIDE_PX:
        raise _wrong_size(f"height={height} width={width}")


def _wrong_size(size: str) -> Rejection:
    return Rejection("image_size", low=MIN_SIDE_PX, high=MAX_SIDE_PX, size=size)


def _as_rgb(frame: np.ndarray) -> np.ndarray:
    if frame.dtype != np.uint8:
        raise Rejection("not_8_bit", received=frame.dtype)
    check_sides(*frame.shape[:2])
    if frame.ndim == 2:
        return frame
    if frame.shape[2] == 4:
        return cv2.cvtColor(frame, cv2.COLOR_BGRA2RGB)
    if frame.shape[2] == 3:
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    raise Rejection("channels", count=frame.shape[2])


def to_grey(frame: np.ndarray) -> np.ndarray:
    """Luminance of a frame.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.

    Returns:
        `(height, width)` uint8, 0 to 255; the frame itself if it is grey already.
    """
    return frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def has_doppler_colours(inside: np.ndarray) -> bool:
    """Whether pixels of a sector hold the colours of Doppler, not those of a tinted grey map.

    Args:
        inside: `(num_pixels, 3)` RGB or `(num_pixels,)` grey, uint8.

    Example:
        >>> grey = np.full((90, 3), 120, np.uint8)
        >>> red = np.full((10, 3), (220, 30, 30), np.uint8)
        >>> has_doppler_colours(grey), has_doppler_colours(np.concatenate([grey, red]))
        (False, True)
    """
    if inside.ndim == 1 or not inside.size:
        return False
    # By channels: the extremes of rows of three take NumPy ten times as long.
    red, green, blue = inside.T
    highest = np.maximum(np.maximum(red, green), blue)
    spread = highest - np.minimum(np.minimum(red, green), blue)
    coloured = float((spread > _COLOUR_SPREAD).mean())
    bright = highest > _BRIGHT
    grey_share = float((spread[bright] < _GREY_SPREAD).mean()) if bright.any() else 0.0
    return coloured > _MAX_COLOUR_SHARE and grey_share > _MIN_GREY_SHARE


def refuse_colours(inside: np.ndarray) -> None:
    """Refuse pixels of a sector that `has_doppler_colours`.

    Raises:
        Rejection: if they have.
    """
    if has_doppler_colours(inside):
        raise Rejection("colour_pixels")


def write_png(picture: np.ndarray, path: Path) -> None:
    """Write a PNG whole or not at all.

    Args:
        picture: `(height, width)` or `(height, width, 3)` RGB, uint8.
        path: file to write or replace.

    Raises:
        OSError: if the disk does not take it. OpenCV's own writer would only answer False.
    """
    ok, data = cv2.imencode(
        ".png", picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    )
    if not ok:
        raise ValueError(f"could not encode a picture of shape {picture.shape} as PNG")
    write_bytes(data.tobytes(), path)
