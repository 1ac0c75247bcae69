"""The sector of a frame in one cell of the manifest, so that it is found once and used again.

A cell says in which pixels the fan was found, and by which version of the code. For other pixels
or another version it counts for nothing, and the sector is found anew: what comes out is the same
with the cell and without. A fan that a person has set says "person" in place of the version, and
stays with its pixels. The cell belongs to the frame and not to the rectangle, so a person who moves
the box leaves it alone.
"""

from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd

from steatosis_tf.roi.sector import Fan, find_sector
from steatosis_tf.roi.sector.find import SECTOR_VERSION

SECTOR_COLUMN = "roi_sector"

_PERSON = "person"
_CODE = f"v{SECTOR_VERSION}"
_FIELDS = tuple(field.name for field in fields(Fan))
# Enough to tell a frame from what it was before; the manifest holds the whole hash.
_DIGITS = 16


def sector_cell(fan: Fan, digest: str, *, by_person: bool = False) -> str:
    """The cell of a frame: version, pixels, kind of fan, its numbers to the last bit.

    Args:
        fan: as `find_sector` found it, or as a person has set it.
        digest: `pixels_sha256` of the frame.
        by_person: whether a person has set it.
    """
    kind, *numbers = (getattr(fan, name) for name in _FIELDS)
    texts = ["-" if number is None else repr(float(number)) for number in numbers]
    return " ".join([_PERSON if by_person else _CODE, digest[:_DIGITS], kind, *texts])


def is_persons(cells: pd.Series) -> pd.Series:
    """Which cells hold a fan that a person has set, bool."""
    return cells.str.startswith(f"{_PERSON} ")


def persons_fan(digest: str, cell: str) -> Fan | None:
    """The fan that a person has set for a frame, or None if there is none for these pixels.

    Args:
        digest: `pixels_sha256` of the frame.
        cell: of the frame's manifest row; "" where there is none.

    Raises:
        ValueError: if the cell is damaged.
    """
    of, _, text = cell.rpartition(f" {digest[:_DIGITS]} ")
    return _parsed(text, cell) if of == _PERSON else None


def kept_fan(digest: str, cell: str) -> Fan | None:
    """The fan of a cell that holds for these pixels and this version, or None.

    Args:
        digest: `pixels_sha256` of the frame.
        cell: of the frame's manifest row; "" where there is none.

    Raises:
        ValueError: if the cell is damaged.
    """
    of, _, text = cell.rpartition(f" {digest[:_DIGITS]} ")
    return _parsed(text, cell) if of in (_CODE, _PERSON) else None


def sector_fan(frame: np.ndarray, digest: str, cell: str) -> Fan:
    """The fan of a frame's sector, from its cell if that holds it.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.
        digest: `pixels_sha256` of that frame.
        cell: of the frame's manifest row; "" where there is none.

    Returns:
        the fan of `find_sector(frame)`, or the one a person has set.

    Raises:
        ValueError: if the frame holds no sector, or the cell is damaged.
    """
    kept = kept_fan(digest, cell)
    return find_sector(frame).fan if kept is None else kept


def _parsed(text: str, cell: str) -> Fan:
    try:
        kind, *texts = text.split(" ")
        numbers = [None if number == "-" else float(number) for number in texts]
        fan: dict[str, Any] = dict(zip(_FIELDS, [kind, *numbers], strict=True))
        return Fan(**fan)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected {SECTOR_COLUMN} as `steatosis roi` wrote it. Received: {cell!r}. "
            "Empty the cell, and the sector is found again"
        ) from error
