"""Frames and outlines as a browser can show them."""

import functools
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pandas as pd
from fastapi import Response

from steatosis_tf.roi.anatomy.liver import liver_mask
from steatosis_tf.roi.sector import Fan, find_sector
from steatosis_tf.sources.images import read_frame

# No screen shows more, and a browser's canvas may refuse more.
_MAX_SHOWN_PX = 4096
# Outlines are drawn one or two screen pixels wide; more vertices than this tolerance needs are
# bytes that nobody sees.
_TOLERANCE_PX = 0.75

Polygon = list[list[int]]


@dataclass(frozen=True)
class ShownFrame:
    """A frame ready for the browser.

    Attributes:
        png: lossless, so that speckle is judged as the model gets it.
        height: of the file, px; boxes are in these, whatever the PNG's size is.
        width: of the file, px.
        notice: what a reviewer should know about the frame; "" if nothing.
    """

    png: bytes
    height: int
    width: int
    notice: str


def frame_masks(frame: np.ndarray) -> dict[str, np.ndarray]:
    """Masks whose outlines the page can show; one that cannot be found is left out.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.

    Returns:
        name ("sector", "liver") to `(height, width)` bool.
    """
    try:
        sector = find_sector(frame)
    except ValueError:
        return {}  # without a sector there is no place for a liver, and the page shows neither
    return {"sector": sector.mask, "liver": liver_mask(frame, sector)}


class StudyFolders:
    """Folders out of which a page may show frames, links followed.

    A manifest that somebody else has written must not open any file of this machine.

    Args:
        manifest_path: its folder is one of them.
        more: those that the command line names.

    Raises:
        ValueError: if one of `more` is no folder.
    """

    def __init__(self, manifest_path: str | Path, more: Sequence[str | Path] = ()) -> None:
        for folder in more:
            if not Path(folder).is_dir():
                raise ValueError(f"Expected a folder of frames. Received: {str(folder)!r}.")
        self._folders = [Path(folder).resolve() for folder in (Path(manifest_path).parent, *more)]

    def __contains__(self, path: Path) -> bool:
        resolved = path.resolve()
        return any(resolved.is_relative_to(folder) for folder in self._folders)

    def checked(self, path: Path) -> Path:
        """The path itself.

        Raises:
            ValueError: if it lies elsewhere; without the path, which a page must not show.
        """
        if path not in self:
            raise ValueError(
                "Expected a frame in the study's folder. Received one outside of it. Start the "
                "page with --frames FOLDER to show it."
            )
        return path


def check_study(manifest_path: Path, folders: StudyFolders) -> None:
    """Say at the start, with the words that help, what else the page would say of every frame.

    Raises:
        ValueError: if nothing can be written beside the manifest, or frames of it lie elsewhere.
    """
    try:
        with tempfile.TemporaryFile(dir=manifest_path.parent):
            pass
    except OSError as error:
        raise ValueError(
            "Expected a folder that can be written to: decisions are kept beside the manifest. "
            f"Received: {error.strerror}."
        ) from error
    # The paths alone, once for every folder: a manifest may have a million rows.
    paths = pd.read_csv(manifest_path, usecols=["path"], dtype=str)["path"].dropna()
    of_folder = paths.map(os.path.dirname).value_counts()
    outside = {
        name: num for name, num in of_folder.items() if manifest_path.parent / name not in folders
    }
    if outside:
        common = os.path.commonpath(os.path.abspath(manifest_path.parent / one) for one in outside)
        raise ValueError(
            f"Expected frames in the folder of {manifest_path.name}. Received: "
            f"{sum(outside.values())} of {len(paths)} frames outside of it. If they may be shown, "
            f"add --frames {os.path.relpath(common)}"
        )


def picture(path: Path) -> Response:
    """A frame as a page asks for it.

    Raises:
        ValueError: if the frame cannot be read, with the reason.
    """
    shown = shown_frame(path)
    headers = {
        "X-Frame-Height": str(shown.height),
        "X-Frame-Width": str(shown.width),
        "X-Frame-Notice": quote(shown.notice),
    }
    return Response(shown.png, media_type="image/png", headers=headers)


def shown_fan(fan: Fan) -> dict[str, Any]:
    """A fan as the browser draws and drags it: `corners` are x and y in px, see `Fan.corners`."""
    corners = fan.corners().ravel().round(2).tolist()
    return {"corners": corners, "kind": fan.kind, "row_stretch": fan.row_stretch}


def shown_frame(path: Path) -> ShownFrame:
    """Read a frame and encode it for the browser.

    Raises:
        ValueError: if the frame cannot be read, with the reason.
    """
    return _shown_frame(path, _version(path))


def frame_outlines(path: Path) -> dict[str, list[Polygon]]:
    """Outlines of a frame: name to polygons of `[x, y]` in px of the file.

    Raises:
        ValueError: if the frame cannot be read, with the reason.
    """
    return _frame_outlines(path, _version(path))


def _version(path: Path) -> int:
    """So that a frame that was copied again is read again."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0  # the reader says what is wrong with it


# Two pages with their look-ahead ask for a dozen frames; decoded ones are shared by the picture
# and the outlines of the same frame, which are asked for at the same time.
@functools.lru_cache(maxsize=4)
def _decoded(path: Path, version: int) -> np.ndarray:
    return read_frame(path)


@functools.lru_cache(maxsize=24)
def _shown_frame(path: Path, version: int) -> ShownFrame:
    return encoded(_decoded(path, version))


def encoded(frame: np.ndarray) -> ShownFrame:
    """Encode a frame for the browser.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.

    Example:
        >>> encoded(np.zeros((40, 50), np.uint8)).png[1:4]
        b'PNG'
    """
    height, width = frame.shape[:2]
    scale = min(1.0, _MAX_SHOWN_PX / max(height, width))
    notice = ""
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        notice = (
            f"{width} × {height} px is far more than an ultrasound frame has. Shown at "
            f"{scale:.0%}; the box is still in px of the file."
        )
    shown = frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    # Level 1: five times as fast as the default, and the bytes stay on this machine.
    _, data = cv2.imencode(".png", shown, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return ShownFrame(data.tobytes(), height, width, notice)


@functools.lru_cache(maxsize=256)
def _frame_outlines(path: Path, version: int) -> dict[str, list[Polygon]]:
    masks = frame_masks(_decoded(path, version))
    return {name: _polygons(mask) for name, mask in masks.items() if mask.any()}


def _polygons(mask: np.ndarray) -> list[Polygon]:
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    return [
        cv2.approxPolyDP(contour, _TOLERANCE_PX, True)[:, 0].tolist()
        for contour in contours
        if len(contour) > 2
    ]
