"""Frames from image files in a folder."""

from pathlib import Path

import cv2
import numpy as np

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

# A frame this wide or high is a slide scan or a mistake, and would exhaust memory in a batch.
MAX_SIDE_PX = 8192
MIN_SIDE_PX = 32


def read_frame(path: str | Path) -> np.ndarray:
    """Decode one image file.

    Args:
        path: PNG, JPEG, BMP or TIFF file; the name may hold any Unicode character.

    Returns:
        `(height, width)` or `(height, width, 3)` RGB, uint8, 0 to 255, as stored in the file.

    Raises:
        ValueError: if the file is missing, empty, not an image, truncated, not 8-bit, or of a
            size no ultrasound frame has. The text is the reason alone; naming the frame is the
            caller's, because a folder can be named after a patient.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"missing or unreadable file ({error.strerror})") from error
    if not data:
        raise ValueError("empty file (0 bytes)")
    # Searched for everywhere: archives add bytes behind the end, and viewers do not mind.
    if data.startswith(b"\x89PNG") and b"IEND\xaeB`\x82" not in data:
        raise ValueError("truncated PNG: the closing IEND chunk is missing; copy the file again")
    if data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data[-1024:]:
        raise ValueError("truncated JPEG: the end-of-image marker is missing; copy the file again")
    try:
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f"not a readable image ({error.err or 'decoder error'})") from error
    if frame is None:
        raise ValueError("not a readable image: expected PNG, JPEG, BMP or TIFF")
    return _checked(frame)


def _checked(frame: np.ndarray) -> np.ndarray:
    if frame.dtype != np.uint8:
        raise ValueError(
            f"expected 8-bit pixels. Received: {frame.dtype}. Convert with the window your "
            "radiologists read with, or ingest the DICOM original"
        )
    height, width = frame.shape[:2]
    if min(height, width) < MIN_SIDE_PX or max(height, width) > MAX_SIDE_PX:
        raise ValueError(
            f"expected sides from {MIN_SIDE_PX} to {MAX_SIDE_PX} px. "
            f"Received: height={height} width={width}"
        )
    if frame.ndim == 2:
        return frame
    if frame.shape[2] == 4:
        return cv2.cvtColor(frame, cv2.COLOR_BGRA2RGB)
    if frame.shape[2] == 3:
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    raise ValueError(f"expected 1, 3 or 4 channels. Received: channels={frame.shape[2]}")


def to_grey(frame: np.ndarray) -> np.ndarray:
    """Luminance of a frame.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.

    Returns:
        `(height, width)` uint8, 0 to 255; the frame itself if it is grey already.
    """
    return frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
