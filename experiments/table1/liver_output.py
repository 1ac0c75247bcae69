"""The liver outline as a second output to learn: what the shipped network says of whole frames."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from experiments.segmentation.unet import dice_and_cross_entropy
from experiments.table1.deep import SecondOutput
from experiments.table1.study import Study
from steatosis_tf.cohort.manifest import ROI_COLUMNS, frame_path, read_manifest
from steatosis_tf.roi.anatomy.liver import liver_mask
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.roi.views import Rectangle, crop_roi
from steatosis_tf.sources.images import read_frame


def liver_output(study: Study, rows: np.ndarray) -> SecondOutput:
    """The output `liver_logit` of `unet_cnn` and its targets.

    Args:
        study: the frames; read again from where its manifest lies.
        rows: of the study that are trained on.
    """
    targets = np.zeros(study.rois.shape, np.uint8)
    for row in rows:
        targets[row, ..., 0] = _liver_in_roi(study.folder, study.index["frame_id"].iloc[row])
    known = np.ones(len(study.index), np.float32)
    return SecondOutput("liver_logit", dice_and_cross_entropy, targets, known)


@lru_cache(maxsize=4096)
def _liver_in_roi(folder: Path, frame_id: str) -> np.ndarray:
    """`(224, 224)` uint8, 255 where liver: the mask of the whole frame, cut as its ROI was."""
    row = _rows_by_frame(folder)[frame_id]
    frame = read_frame(frame_path(folder / "manifest.csv", row["path"]))
    sector = find_sector(frame)
    mask = liver_mask(frame, sector).astype(np.uint8) * 255
    return crop_roi(mask, sector.mask, Rectangle(*(int(row[name]) for name in ROI_COLUMNS)))


@lru_cache(maxsize=1)
def _rows_by_frame(folder: Path) -> dict[str, dict]:
    table = read_manifest(folder / "manifest.csv")
    return {row["frame_id"]: row for row in table.to_dict("records")}
