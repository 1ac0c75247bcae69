"""What one row of the manifest becomes. No TensorFlow: processes that only cut start at once."""

from pathlib import Path
from typing import Any

import numpy as np

from steatosis_tf.cohort.manifest import ROI_COLUMNS, frame_path, pixels_sha256
from steatosis_tf.grades import label_of
from steatosis_tf.roi.sector.cell import SECTOR_COLUMN, sector_fan
from steatosis_tf.roi.views import VIEW_COLUMN, Rectangle, model_input
from steatosis_tf.sources.images import read_frame


def example_of(manifest_path: str | Path, row: dict[str, Any]) -> dict[str, Any]:
    """The example of a graded row with a ROI, as the records hold it.

    Raises:
        ValueError: as `cut_roi`.
    """
    return {
        "roi": cut_roi(row, manifest_path)[..., np.newaxis],
        "label": label_of(row["grade"]),
        "frame_id": row["frame_id"],
        "patient_id": row["patient_id"],
        "fat_percent": row["fat_percent"],
    }


def cut_roi(row: dict[str, Any], manifest_path: str | Path) -> np.ndarray:
    """The ROI of a manifest row as the model sees it, uint8, 0 outside the sector.

    `(224, 224)` for a rectangle; for beam space the size that the cell `roi_view` says.

    Raises:
        ValueError: if the frame is gone or changed, has no sector, or does not hold the
            rectangle. The text names the frame.
    """
    path = frame_path(manifest_path, row["path"])
    try:
        frame = read_frame(path)
        digest = pixels_sha256(frame)
        if digest != row["pixels_sha256"]:
            raise ValueError("the pixels are not those the manifest was made from")
        rectangle = Rectangle(*(int(row[name]) for name in ROI_COLUMNS))
        fan = sector_fan(frame, digest, row.get(SECTOR_COLUMN, ""))
        return model_input(frame, fan, rectangle, row.get(VIEW_COLUMN, ""))
    except ValueError as error:
        raise ValueError(f"{path.name} (frame_id={row['frame_id']}): {error}") from error
