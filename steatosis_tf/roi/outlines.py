"""Sector and liver of every frame of a manifest, as mask files and on a contact sheet."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from steatosis_tf.cohort.manifest import ROI_COLUMNS, frame_path
from steatosis_tf.parallel import map_on_cores
from steatosis_tf.roi.crop import Rectangle
from steatosis_tf.roi.liver import liver_mask
from steatosis_tf.roi.sector import Sector, find_sector
from steatosis_tf.roi.sector_cell import SECTOR_COLUMN, persons_fan
from steatosis_tf.roi.sheet import MAX_TILES, SheetRow, write_png, write_sheet
from steatosis_tf.roi.views import VIEW_COLUMN
from steatosis_tf.sources.images import read_frame

_PNG_END = b"IEND\xaeB`\x82"


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
    frames = list(zip(paths, frame_table["pixels_sha256"], cells, strict=True))
    if not again:
        frames = [one for one in frames if not _have_masks(Path(masks_dir), one[0].stem)]
    for _ in map_on_cores(partial(_write_masks_of, Path(masks_dir)), frames, "masks"):
        pass


def _have_masks(masks_dir: Path, stem: str) -> bool:
    # A mask that a full disk cut short, as earlier versions left them, is made again.
    paths = [masks_dir / f"{stem}_{name}.png" for name in ("sector", "liver")]
    return all(path.is_file() and path.read_bytes().endswith(_PNG_END) for path in paths)


def _write_masks_of(masks_dir: Path, frame: tuple[Path, str, str]) -> None:
    path, digest, cell = frame
    try:
        masks = _masks(read_frame(path), digest, cell)
    except ValueError:
        return  # the manifest holds the reason
    for name, mask in masks.items():
        write_png(mask.astype(np.uint8) * 255, masks_dir / f"{path.stem}_{name}.png")


def draw_sheet(
    frame_table: pd.DataFrame, manifest_path: str | Path, output_path: str | Path
) -> Path:
    """Draw the frames with the worst proposals on a contact sheet, frames without any first.

    Args:
        frame_table: manifest rows with ROI columns.
        manifest_path: where the manifest lies.
        output_path: PNG file to write.
    """
    rank = frame_table["roi_quality"].fillna(2.0) - 10 * frame_table["roi_height"].isna()
    worst = frame_table.loc[rank.sort_values(kind="stable").index[:MAX_TILES]]
    return write_sheet(_sheet_rows(worst, Path(manifest_path)), output_path)


def _sheet_rows(rows: pd.DataFrame, manifest_path: Path) -> Iterator[SheetRow]:
    for row in tqdm(rows.to_dict("records"), desc="sheet", unit="frame"):
        try:
            frame = read_frame(frame_path(manifest_path, row["path"]))
        except ValueError:
            frame = np.zeros((260, 360), np.uint8)  # an empty tile with its reason below
        try:
            masks = _masks(frame, row["pixels_sha256"], row[SECTOR_COLUMN])
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


def _masks(frame: np.ndarray, digest: str, cell: str) -> dict[str, np.ndarray]:
    """Sector (a person's if there is one) and liver of a frame."""
    fan = persons_fan(digest, cell)
    if fan is None:
        sector = find_sector(frame)
    else:
        sector = Sector(fan.mask(frame.shape[:2]), fan, score=np.nan, border_seen=np.nan)
    return {"sector": sector.mask, "liver": liver_mask(frame, sector)}


def _rectangle(row: dict[str, Any]) -> Rectangle | None:
    if pd.isna(row["roi_height"]):
        return None
    return Rectangle(*(int(row[name]) for name in ROI_COLUMNS))
