"""The ROI columns of a manifest: the automatic proposal of every frame, a person's box kept."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from steatosis_tf.cohort.manifest import ROI_COLUMNS, frame_path, read_manifest
from steatosis_tf.config import RoiConfig
from steatosis_tf.roi.crop import Rectangle, central_rectangle, crop_roi
from steatosis_tf.roi.fold import fold_decisions, write_automatic_boxes
from steatosis_tf.roi.liver import liver_probability
from steatosis_tf.roi.overlays import find_overlays
from steatosis_tf.roi.proposal import propose_rectangle
from steatosis_tf.roi.sector import Sector, find_sector
from steatosis_tf.roi.workers import on_all_cores
from steatosis_tf.sources.folder import read_frame

# A killed run loses at most this many proposals, or a twentieth of a large study, because the
# whole manifest is written each time.
_CHECKPOINT_ROWS = 500


@dataclass(frozen=True)
class Roi:
    """What the model would see of a frame.

    Attributes:
        sector: of the frame.
        rectangle: in px of the frame.
        quality: of the liver proposal, 0 to 1; 0 for the sector's rectangle.
        reason: why the sector's rectangle had to do, if it had.
    """

    sector: Sector
    rectangle: Rectangle
    quality: float = 0.0
    reason: str = ""


def propose_roi(frame: np.ndarray, config: RoiConfig) -> Roi:
    """The ROI of a frame, for training and for prediction alike.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.
        config: `method` "liver" looks for parenchyma, "sector" takes the sector's middle.

    Raises:
        ValueError: if no ROI can be proposed; the text is the reason.
    """
    sector = find_sector(frame)
    if config.method == "sector":
        return Roi(sector, central_rectangle(sector))
    overlays = find_overlays(frame, sector)
    proposal = propose_rectangle(frame, sector, liver_probability(frame, sector), overlays)
    if proposal.rectangle is not None:
        return Roi(sector, proposal.rectangle, proposal.quality)
    if not config.sector_fallback:
        raise ValueError(proposal.reason)
    return Roi(sector, central_rectangle(sector), proposal.quality, proposal.reason)


def fill_manifest(
    manifest_path: str | Path, config: RoiConfig, *, again: bool = False
) -> pd.DataFrame:
    """Propose a ROI for every frame of a manifest that has none, and write them into it.

    Written in steps, so that a killed run goes on where it stopped.

    Args:
        manifest_path: manifest to complete in place.
        config: how to propose.
        again: propose anew where an earlier proposal stands. A person's box is never touched.

    Returns:
        the completed table.
    """
    fold_decisions(manifest_path)
    table = with_roi_columns(read_manifest(manifest_path))
    automatic = table["roi_source"] != "person"
    if again:
        table.loc[automatic, list(ROI_COLUMNS)] = pd.NA
        table.loc[automatic, "roi_source"] = ""
    step = max(_CHECKPOINT_ROWS, len(table) // 20)
    for done in _propose(table, manifest_path, config):
        if done % step == 0:
            write_automatic_boxes(manifest_path, table)
    write_automatic_boxes(manifest_path, table)
    return read_manifest(manifest_path)  # with what reviewers have decided meanwhile


def add_roi_columns(
    frame_table: pd.DataFrame, manifest_path: str | Path, config: RoiConfig
) -> pd.DataFrame:
    """Propose a ROI for every frame of a table that has none, leaving the manifest alone.

    Args:
        frame_table: manifest rows. Rows with a ROI, a person's above all, stay as they are, unless
            nothing of the person's box is in a sector: the model could see nothing of it, so it
            is taken out of this table, with the reason.
        manifest_path: where the manifest lies; frame paths are relative to it.
        config: how to propose.

    Returns:
        the table with `roi_top, roi_left, roi_height, roi_width` (px of the full frame, empty
        where there is no proposal), `roi_source`, `roi_quality` and `roi_reason`.
    """
    table = with_roi_columns(frame_table)
    for _ in _propose(table, manifest_path, config):
        pass
    _empty_useless_boxes(table, manifest_path)
    return table


def with_roi_columns(frame_table: pd.DataFrame) -> pd.DataFrame:
    """A copy of the table with all ROI columns; `roi_source` is "" where nobody has looked."""
    table = frame_table.copy()
    for name in ROI_COLUMNS:
        if name not in table.columns:
            table[name] = pd.array([pd.NA] * len(table), dtype="Int64")
    if "roi_source" not in table.columns:
        table["roi_source"] = np.where(table["roi_height"].notna(), "person", "")
    if "roi_quality" not in table.columns:
        table["roi_quality"] = np.nan
    if "roi_reason" not in table.columns:
        table["roi_reason"] = ""
    return table


def _propose(table: pd.DataFrame, manifest_path: str | Path, config: RoiConfig) -> Iterator[int]:
    """Fill the rows nobody has looked at, in place; yields how many are done after each."""
    wanted = table.index[table["roi_source"] == ""]
    paths = [frame_path(manifest_path, path) for path in table.loc[wanted, "path"]]
    answers = on_all_cores(partial(_answer, config), paths, "ROI")
    for done, (index, (box, quality, reason)) in enumerate(zip(wanted, answers, strict=True), 1):
        if box is not None:
            table.loc[index, list(ROI_COLUMNS)] = [box.top, box.left, box.height, box.width]
        table.at[index, "roi_source"] = "auto"
        table.at[index, "roi_quality"] = quality
        table.at[index, "roi_reason"] = reason
        yield done


def _answer(config: RoiConfig, path: Path) -> tuple[Rectangle | None, float, str]:
    """Box, quality and reason: without the sector's mask, to travel light between processes."""
    try:
        roi = propose_roi(read_frame(path), config)
    except ValueError as error:
        return None, np.nan, str(error)
    return roi.rectangle, roi.quality, roi.reason


def _empty_useless_boxes(table: pd.DataFrame, manifest_path: str | Path) -> None:
    """Take out, in place, persons' boxes of which a model would see nothing."""
    drawn = table.index[(table["roi_source"] == "person") & table["roi_height"].notna()]
    rows = [
        (frame_path(manifest_path, row["path"]), [int(row[name]) for name in ROI_COLUMNS])
        for row in table.loc[drawn].to_dict("records")
    ]
    faults = on_all_cores(_fault_of_box, rows, "persons' boxes") if rows else []
    for index, fault in zip(drawn, faults, strict=True):
        if fault:
            table.loc[index, list(ROI_COLUMNS)] = pd.NA
            table.at[index, "roi_reason"] = f"a person's box, but {fault}"


def _fault_of_box(row: tuple[Path, list[int]]) -> str:
    path, box = row
    try:
        frame = read_frame(path)
        crop_roi(frame, find_sector(frame).mask, Rectangle(*box))
    except ValueError as error:
        return str(error)
    return ""
