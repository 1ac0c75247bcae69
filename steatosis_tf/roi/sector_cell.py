"""The sector of a frame in one cell of the manifest, so that it is found once and used again.

A cell says in which pixels the fan was found, and by which version of the code. For other pixels
or another version it counts for nothing, and the sector is found anew: what comes out is the same
with the cell and without. It belongs to the frame and not to the rectangle, so a person who moves
the box leaves it alone.
"""

from dataclasses import fields
from typing import Any

import numpy as np

from steatosis_tf import __version__
from steatosis_tf.roi.sector import Fan, find_sector

SECTOR_COLUMN = "roi_sector"

_FIELDS = tuple(field.name for field in fields(Fan))
# Enough to tell a frame from what it was before; the manifest holds the whole hash.
_DIGITS = 16


def sector_cell(fan: Fan, digest: str) -> str:
    """The cell of a frame: version, pixels, kind of fan, its numbers to the last bit.

    Args:
        fan: as `find_sector` found it.
        digest: `pixels_sha256` of the frame.
    """
    kind, *numbers = (getattr(fan, name) for name in _FIELDS)
    texts = ["-" if number is None else repr(float(number)) for number in numbers]
    return " ".join([__version__, digest[:_DIGITS], kind, *texts])


def sector_mask(frame: np.ndarray, digest: str, cell: str) -> np.ndarray:
    """Where the echoes of a frame are.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.
        digest: `pixels_sha256` of that frame.
        cell: of the frame's manifest row; "" where there is none.

    Returns:
        `(height, width)` bool, the mask that `find_sector` returns.

    Raises:
        ValueError: if the frame holds no sector, or the cell is damaged.
    """
    of, _, text = cell.rpartition(f" {digest[:_DIGITS]} ")
    if of != __version__:
        return find_sector(frame).mask
    try:
        kind, *texts = text.split(" ")
        numbers = [None if number == "-" else float(number) for number in texts]
        fan: dict[str, Any] = dict(zip(_FIELDS, [kind, *numbers], strict=True))
        return Fan(**fan).mask(frame.shape[:2])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected {SECTOR_COLUMN} as `steatosis roi` wrote it. Received: {cell!r}. "
            "Empty the cell, and the sector is found again"
        ) from error
