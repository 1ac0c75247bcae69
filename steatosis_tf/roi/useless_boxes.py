"""Persons' boxes that a model could see nothing in."""

from pathlib import Path

import pandas as pd

from steatosis_tf.cohort.manifest import ROI_COLUMNS, frame_path, pixels_sha256
from steatosis_tf.parallel import map_on_cores
from steatosis_tf.roi.crop import Rectangle, crop_roi
from steatosis_tf.roi.sector_cell import SECTOR_COLUMN, sector_fan
from steatosis_tf.roi.views import VIEW_COLUMN
from steatosis_tf.sources.folder import read_frame


def empty_useless_boxes(table: pd.DataFrame, manifest_path: str | Path) -> None:
    """Take out, in place, persons' boxes of which a model would see nothing.

    Args:
        table: manifest rows with all ROI columns; `roi_reason` then says what is wrong.
        manifest_path: where the manifest lies; frame paths are relative to it.
    """
    is_box = table["roi_height"].notna() & (table[VIEW_COLUMN] == "")
    drawn = table.index[(table["roi_source"] == "person") & is_box]
    rows = [
        (
            frame_path(manifest_path, row["path"]),
            [int(row[name]) for name in ROI_COLUMNS],
            row[SECTOR_COLUMN],
        )
        for row in table.loc[drawn].to_dict("records")
    ]
    faults = map_on_cores(_fault_of_box, rows, "persons' boxes") if rows else []
    for index, fault in zip(drawn, faults, strict=True):
        if fault:
            table.loc[index, list(ROI_COLUMNS)] = pd.NA
            table.at[index, "roi_reason"] = f"a person's box, but {fault}"


def _fault_of_box(row: tuple[Path, list[int], str]) -> str:
    path, box, cell = row
    try:
        frame = read_frame(path)
        fan = sector_fan(frame, pixels_sha256(frame), cell)
        crop_roi(frame, fan.mask(frame.shape[:2]), Rectangle(*box))
    except ValueError as error:
        return str(error)
    return ""
