"""Robustness of a run's own model on its own test frames, cropped anew from the full frames."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from steatosis_tf.cohort.manifest import ROI_COLUMNS, frame_path, pixels_sha256
from steatosis_tf.evaluation.robustness import robustness_curves
from steatosis_tf.evaluation.run_record import RunRecord, read_run
from steatosis_tf.files import replacing
from steatosis_tf.grades import GRADES
from steatosis_tf.roi.crop import INPUT_SIZE_PX, Rectangle
from steatosis_tf.roi.overlays import paint_out
from steatosis_tf.roi.sector_cell import SECTOR_COLUMN, sector_fan
from steatosis_tf.roi.views import VIEW_COLUMN, depth_length_px, input_shape, model_input
from steatosis_tf.sources.folder import read_frame


def write_robustness(
    run_dir: str | Path,
    predict: Callable[[np.ndarray], np.ndarray],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Path:
    """Disturb the test frames of a hold-out run, grade them, and write `robustness.csv`.

    Shifts of the ROI are real ones: the box, or the fan of beam space, is moved in the full frame
    and the ROI is cut again.

    Args:
        run_dir: run directory whose manifest still leads to the frames.
        predict: the run's model, `(n, height, width, 1)` uint8 -> `(n, 4)` probabilities.
        num_resamples: bootstrap resamples of each interval.
        seed: of the random perturbations and the bootstrap.

    Returns:
        path of `robustness.csv`, the table of `robustness.robustness_curves`.

    Raises:
        ValueError: if the run is cross-validated (its exported model has learned from every
            patient, so no frame of the run can test it), if a file of the run is absent, or if a
            frame cannot be read.
    """
    run = read_run(run_dir)
    rows = _test_rows(run)
    frames = [_Source(run.run_dir / "manifest.csv", row) for _, row in rows.iterrows()]

    def shifted(down_px: float, right_px: float) -> np.ndarray:
        return np.stack([frame.roi(down_px, right_px) for frame in frames])[..., None]

    table = robustness_curves(
        predict,
        shifted(0, 0),
        rows["grade"].map(GRADES.index).to_numpy(),
        rows["patient_id"].to_numpy(),
        shifted=shifted,
        rule=(run.config or {}).get("evaluation", {}).get("aggregation", "mean"),
        num_resamples=num_resamples,
        seed=seed,
    )
    path = run.run_dir / "robustness.csv"
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    return path


def _test_rows(run: RunRecord) -> pd.DataFrame:
    if run.num_folds != 1:
        raise ValueError(
            f"Expected a hold-out run. Received: {run.num_folds} folds in split.csv. The exported "
            "model of a cross-validated run has learned from every patient; disturb the test "
            "frames of a hold-out run instead."
        )
    if run.manifest is None or run.frame_scores is None:
        raise ValueError(
            f"Expected manifest.csv and frame_scores.csv in the run. Received: "
            f"{'; '.join(run.faults) or 'one of them is absent'}."
        )
    scored = run.manifest["frame_id"].isin(run.frame_scores["frame_id"])
    rows = run.manifest[scored & run.manifest["roi_height"].notna()]
    if rows.empty:
        raise ValueError("Expected scored frames with a ROI in manifest.csv. Received: none.")
    return rows


class _Source:
    """One frame, kept grey and masked, from which its ROI is cut at any place."""

    def __init__(self, manifest_path: Path, row: pd.Series) -> None:
        frame = read_frame(frame_path(manifest_path, row["path"]))
        self._fan = sector_fan(frame, pixels_sha256(frame), row.get(SECTOR_COLUMN, ""))
        mask = self._fan.mask(frame.shape[:2])
        self._frame = paint_out(frame, mask) * mask
        self._box = Rectangle(*(int(row[name]) for name in ROI_COLUMNS))
        self._view = row.get(VIEW_COLUMN, "")

    def roi(self, down_px: float, right_px: float) -> np.ndarray:
        """The ROI `(height, width)` moved by px of the ROI; a box is held inside the frame."""
        if self._view:
            # At half the depth a px of beam space is as long in both directions, or nearly so.
            px = depth_length_px(self._fan) / input_shape(self._view)[0]
            moved_fan = self._fan.moved(right_px * px, down_px * px)
            return model_input(self._frame, moved_fan, None, self._view)
        height, width = self._frame.shape
        down = round(down_px * self._box.height / INPUT_SIZE_PX)
        right = round(right_px * self._box.width / INPUT_SIZE_PX)
        top = min(max(self._box.top + down, 0), height - self._box.height)
        left = min(max(self._box.left + right, 0), width - self._box.width)
        moved = Rectangle(top, left, self._box.height, self._box.width)
        return model_input(self._frame, self._fan, moved)
