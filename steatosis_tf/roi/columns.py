"""The ROI columns of a manifest: the automatic proposal of every frame, a person's box kept."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from steatosis_tf.cohort.manifest import ROI_COLUMNS, frame_path
from steatosis_tf.roi.crop import Rectangle, central_rectangle
from steatosis_tf.roi.sector import Sector, find_sector
from steatosis_tf.sources.folder import read_frame


@dataclass(frozen=True)
class Proposal:
    """What the model would see of a frame."""

    sector: Sector
    rectangle: Rectangle


def propose_roi(frame: np.ndarray) -> Proposal:
    """The ROI of a frame, for training and for prediction alike.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.

    Raises:
        ValueError: if no ROI can be proposed; the text is the reason.
    """
    sector = find_sector(frame)
    return Proposal(sector, central_rectangle(sector))


def add_roi_columns(frame_table: pd.DataFrame, manifest_path: str | Path) -> pd.DataFrame:
    """Propose a ROI for every frame that has none.

    Args:
        frame_table: manifest rows. Rows with a ROI, a person's above all, are left as they are.
        manifest_path: where the manifest lies; frame paths are relative to it.

    Returns:
        the table with `roi_top, roi_left, roi_height, roi_width` (px of the full frame, empty
        where there is no proposal), `roi_source` and `roi_reason` (why there is none).
    """
    table = frame_table.copy()
    for name in ROI_COLUMNS:
        if name not in table.columns:
            table[name] = pd.array([pd.NA] * len(table), dtype="Int64")
    for name in ("roi_source", "roi_reason"):
        if name not in table.columns:
            table[name] = ""
    wanted = table.index[table["roi_height"].isna() & (table["roi_source"] != "person")]

    def work(index: Any) -> tuple[Rectangle | None, str]:
        try:
            frame = read_frame(frame_path(manifest_path, table.at[index, "path"]))
            return propose_roi(frame).rectangle, ""
        except ValueError as error:
            return None, str(error)

    # OpenCV releases Python's lock, so threads use every core and share the decoded frames.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = list(tqdm(pool.map(work, wanted), total=len(wanted), desc="ROI", unit="frame"))
    for index, (rectangle, reason) in zip(wanted, found, strict=True):
        table.at[index, "roi_source"] = "auto"
        table.at[index, "roi_reason"] = reason
        if rectangle is not None:
            table.loc[index, list(ROI_COLUMNS)] = [
                rectangle.top,
                rectangle.left,
                rectangle.height,
                rectangle.width,
            ]
    return table
