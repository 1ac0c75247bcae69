"""What was found in the frames, for eyes: contact sheets, worst first, and mask files."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from steatosis_tf.cohort.manifest import ROI_COLUMNS, frame_path, pixels_sha256
from steatosis_tf.parallel import map_on_cores
from steatosis_tf.roi.anatomy.liver import liver_mask
from steatosis_tf.roi.sector import Sector
from steatosis_tf.roi.sector.find import SECTOR_COLUMN, sector_fan
from steatosis_tf.roi.views import VIEW_COLUMN, Rectangle
from steatosis_tf.sources.images import read_frame, write_png

_TILE_WIDTH_PX, _TILE_HEIGHT_PX, _CAPTION_PX = 360, 260, 40
_GAP_PX = 6
# A sheet of more tiles is neither readable nor quick to open.
MAX_TILES = 120
_BACKGROUND = 24
# RGB, told apart by the colour blind as well.
_SECTOR_COLOUR, _LIVER_COLOUR = (86, 180, 233), (0, 158, 115)
_AUTO_COLOUR, _PERSON_COLOUR = (240, 228, 66), (204, 121, 167)
_TEXT_COLOUR, _REASON_COLOUR = (220, 220, 220), (230, 159, 0)

_PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class SheetRow:
    """One frame of a contact sheet.

    Attributes:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.
        caption: what to write below it, such as the pseudonymous frame id.
        rectangle: the ROI in px of the frame, or None.
        quality: 0 to 1, or None where unknown.
        reason: why there is no ROI; empty where there is one.
        source: `auto` or `person`.
        is_beam_space: the model sees the whole sector: it is drawn in place of the rectangle.
        sector_mask: `(height, width)` bool, or None.
        liver_mask: `(height, width)` bool, or None.
    """

    frame: np.ndarray
    caption: str
    rectangle: Rectangle | None = None
    quality: float | None = None
    reason: str = ""
    source: str = "auto"
    sector_mask: np.ndarray | None = None
    liver_mask: np.ndarray | None = None
    is_beam_space: bool = False


def write_masks(
    frame_table: pd.DataFrame,
    manifest_path: str | Path,
    masks_dir: str | Path,
    *,
    again: bool = False,
) -> None:
    """Write `<frame file stem>_sector.png` and `<stem>_liver.png` (0 or 255, full frame size).

    A frame without a sector has no masks; its `roi_reason` in the manifest says why. A frame that
    has both files already is left alone, so that a killed call goes on where it stopped.

    Args:
        frame_table: manifest rows.
        manifest_path: where the manifest lies.
        masks_dir: folder to write to.
        again: replace the files that are there, those of a person's outlines too.

    Raises:
        ValueError: if two frames have the same file stem, because their masks would collide.
    """
    stems = frame_table["path"].map(lambda path: PurePosixPath(path).stem)
    twice = stems[stems.duplicated()]
    if len(twice):
        raise ValueError(
            f"Expected every frame file to have a name of its own. Received: {len(twice)} "
            f"repeated, first stem={twice.iloc[0]!r}. Give them different names for the masks."
        )
    cells = frame_table.get(SECTOR_COLUMN, pd.Series("", index=frame_table.index))
    paths = [frame_path(manifest_path, path) for path in frame_table["path"]]
    frames = list(zip(paths, cells, strict=True))
    if not again:
        frames = [one for one in frames if not _have_masks(Path(masks_dir), one[0].stem)]
    for _ in map_on_cores(partial(_write_masks_of, Path(masks_dir)), frames, "masks"):
        pass


def draw_sheet(
    frame_table: pd.DataFrame, manifest_path: str | Path, output_path: str | Path
) -> Path:
    """Draw the frames with the worst proposals on a contact sheet, frames without any first.

    Args:
        frame_table: manifest rows with ROI columns.
        manifest_path: where the manifest lies.
        output_path: PNG file to write.
    """
    # Frames without a rectangle first, then by quality; those of unknown quality last.
    rank = frame_table["roi_quality"].fillna(2.0) - 10 * frame_table["roi_height"].isna()
    ranked = frame_table.assign(rank=rank).sort_values("rank", kind="stable")
    worst = ranked[:MAX_TILES].sort_values(["rank", "frame_id"])
    rows = _sheet_rows(worst, Path(manifest_path))
    return write_sheet(rows, output_path, num_better=len(frame_table) - len(worst))


def write_sheet(
    rows: Iterable[SheetRow],
    output_path: str | Path,
    num_columns: int = 4,
    *,
    num_better: int = 0,
) -> Path:
    """Draw a contact sheet.

    Args:
        rows: the frames, in order; of a generator each is shrunk before the next is asked for.
        output_path: PNG file to write.
        num_columns: tiles side by side.
        num_better: frames that were left out of the rows, to be counted in the header.

    Returns:
        The path written.
    """
    output_path = Path(output_path)
    tiles = [_tile(row) for row in rows]
    if not tiles:
        raise ValueError("expected at least one row to draw. Received: none")
    write_png(_header(tiles, len(tiles) + num_better, num_columns), output_path)
    return output_path


def _tile(row: SheetRow) -> np.ndarray:
    frame = row.frame
    if frame.ndim == 2:
        frame = np.asarray(cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB))
    scale = min(_TILE_WIDTH_PX / frame.shape[1], _TILE_HEIGHT_PX / frame.shape[0])
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    picture = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))
    for mask, colour in ((row.sector_mask, _SECTOR_COLOUR), (row.liver_mask, _LIVER_COLOUR)):
        if mask is not None:
            _draw_outline(picture, mask, colour, 1)
    colour = _PERSON_COLOUR if row.source == "person" else _AUTO_COLOUR
    if row.is_beam_space and row.rectangle is not None and row.sector_mask is not None:
        _draw_outline(picture, row.sector_mask, colour, 2)
    elif row.rectangle is not None:
        box = row.rectangle
        first = (round(box.left * scale), round(box.top * scale))
        last = (round(box.right * scale) - 1, round(box.bottom * scale) - 1)
        cv2.rectangle(picture, first, last, colour, 2)
    tile = np.full((_TILE_HEIGHT_PX + _CAPTION_PX, _TILE_WIDTH_PX, 3), _BACKGROUND, np.uint8)
    top, left = (_TILE_HEIGHT_PX - size[1]) // 2, (_TILE_WIDTH_PX - size[0]) // 2
    tile[top : top + size[1], left : left + size[0]] = picture
    quality = "" if row.quality is None else f"  quality {row.quality:.2f}"
    _write(tile, row.caption + quality, 1, _TEXT_COLOUR)
    _write(tile, row.reason, 2, _REASON_COLOUR)
    return tile


def _draw_outline(
    picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], width_px: int
) -> None:
    size = (picture.shape[1], picture.shape[0])
    small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, colour, width_px)


def _write(tile: np.ndarray, text: str, line: int, colour: tuple[int, int, int]) -> None:
    # OpenCV's fonts know ASCII only, and draw "?" for the rest.
    place = (4, _TILE_HEIGHT_PX - 2 + 18 * line)
    cv2.putText(tile, text[:52], place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)


def _header(tiles: list[np.ndarray], total: int, num_columns: int) -> np.ndarray:
    """The tiles in a grid under one line that says what the colours mean."""
    num_columns = min(num_columns, len(tiles))
    num_rows = -(-len(tiles) // num_columns)
    tile_height, tile_width = tiles[0].shape[:2]
    width = num_columns * (tile_width + _GAP_PX) + _GAP_PX
    top = 34
    sheet = np.zeros((top + num_rows * (tile_height + _GAP_PX), max(width, 740), 3), np.uint8)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, num_columns)
        y, x = top + row * (tile_height + _GAP_PX), _GAP_PX + column * (tile_width + _GAP_PX)
        sheet[y : y + tile_height, x : x + tile_width] = tile
    x = _GAP_PX
    for text, colour in (
        (f"{len(tiles)} of {total} frames, worst first", _TEXT_COLOUR),
        ("sector", _SECTOR_COLOUR),
        ("liver", _LIVER_COLOUR),
        ("proposal", _AUTO_COLOUR),
        ("a person's", _PERSON_COLOUR),
    ):
        cv2.putText(sheet, text, (x, 23), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
        x += cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0] + 24
    return sheet


def _have_masks(masks_dir: Path, stem: str) -> bool:
    # A mask that a full disk cut short, as earlier versions left them, is made again.
    paths = [masks_dir / f"{stem}_{name}.png" for name in ("sector", "liver")]
    return all(path.is_file() and path.read_bytes().endswith(_PNG_END) for path in paths)


def _write_masks_of(masks_dir: Path, frame: tuple[Path, str]) -> None:
    path, cell = frame
    try:
        masks = _masks(read_frame(path), cell)
    except ValueError:
        return  # the manifest holds the reason
    for name, mask in masks.items():
        write_png(mask.astype(np.uint8) * 255, masks_dir / f"{path.stem}_{name}.png")


def _sheet_rows(rows: pd.DataFrame, manifest_path: Path) -> Iterator[SheetRow]:
    for row in tqdm(rows.to_dict("records"), desc="sheet", unit="frame"):
        try:
            frame = read_frame(frame_path(manifest_path, row["path"]))
        except ValueError:
            frame = np.zeros((260, 360), np.uint8)  # an empty tile with its reason below
        try:
            masks = _masks(frame, row[SECTOR_COLUMN])
        except ValueError:
            masks = {}
        yield SheetRow(
            frame,
            row["frame_id"],
            rectangle=_rectangle(row),
            quality=None if pd.isna(row["roi_quality"]) else float(row["roi_quality"]),
            reason=row["roi_reason"],
            source=row["roi_source"],
            is_beam_space=bool(row[VIEW_COLUMN]),
            sector_mask=masks.get("sector"),
            liver_mask=masks.get("liver"),
        )


def _masks(frame: np.ndarray, cell: str) -> dict[str, np.ndarray]:
    """Sector (of the manifest's cell, a person's too, if it holds) and liver of a frame."""
    sector = Sector.of_fan(sector_fan(frame, pixels_sha256(frame), cell), frame.shape)
    return {"sector": sector.mask, "liver": liver_mask(frame, sector)}


def _rectangle(row: dict[str, Any]) -> Rectangle | None:
    if pd.isna(row["roi_height"]):
        return None
    return Rectangle(*(int(row[name]) for name in ROI_COLUMNS))
