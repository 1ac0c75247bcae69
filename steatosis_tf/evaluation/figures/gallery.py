"""The worst errors as pictures, with the rectangle the model saw."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle as Box

from steatosis_tf.cohort.manifest import ROI_COLUMNS, frame_path, read_manifest
from steatosis_tf.evaluation.figures.canvas import (
    COLOURS,
    FAINT,
    INK,
    cohort_line,
    new_sheet,
    save_sheet,
)
from steatosis_tf.evaluation.metrics.scores import named_grades, read_scores
from steatosis_tf.evaluation.metrics.weighted import expected_grades
from steatosis_tf.grades import GRADES, SCORE_COLUMNS
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.images import read_frame, to_grey

_TILE_WIDTH_PX = 420  # more is lost in print and costs megabytes in the report


def worst_errors(frame_scores: pd.DataFrame, max_frames: int = 12) -> pd.DataFrame:
    """The most wrong frame of each of the most wrong patients.

    One frame per patient, because the frames of one cine loop are nearly the same picture. Sorted
    by distance of the expected grade from the reference grade, largest first; rows without a
    reference grade and rows that are right are left out.

    Args:
        frame_scores: `frame_id, patient_id, grade, p_normal .. p_severe` (0 to 1).
        max_frames: number of rows to keep.

    Returns:
        Those rows, with a column `distance` in grades (0 to 3).
    """
    table = frame_scores[frame_scores["grade"].isin(GRADES)].copy()
    scores = table[list(SCORE_COLUMNS)].to_numpy(np.float64)
    truth = table["grade"].map(GRADES.index).to_numpy(np.int64)
    table["distance"] = np.abs(expected_grades(scores) - truth)
    table["predicted"] = named_grades(table)
    wrong = table[table["predicted"] != table["grade"]]
    ordered = wrong.sort_values(["distance", "frame_id"], ascending=[False, True])
    return ordered.drop_duplicates("patient_id").head(max_frames).reset_index(drop=True)


def sector_pictures(
    errors: pd.DataFrame, manifest_path: str | Path
) -> dict[str, tuple[np.ndarray, tuple[int, int, int, int] | None]]:
    """The frames of the listed errors, black outside the sector, with their ROI.

    Scanners burn names and dates in beside the sector, so nothing out there may reach a figure. A
    frame whose sector is not found is shown inside its ROI only.

    Args:
        errors: of `worst_errors`.
        manifest_path: manifest that lists these frames, with ROI columns.

    Raises:
        ValueError: if a frame is not in the manifest, cannot be read, or has neither sector nor
            ROI.
    """
    rows = read_manifest(manifest_path).set_index("frame_id")
    pictures: dict[str, tuple[np.ndarray, tuple[int, int, int, int] | None]] = {}
    for frame_id in errors["frame_id"]:
        if frame_id not in rows.index:
            raise ValueError(
                f"Expected every listed frame in the manifest. Received: frame_id={frame_id}, "
                f"which {Path(manifest_path).name} does not have. Give the manifest of this run."
            )
        row = rows.loc[frame_id]
        frame = read_frame(frame_path(manifest_path, row["path"]))
        roi = None
        if "roi_height" in rows.columns and pd.notna(row["roi_height"]):
            top, left, height, width = (int(row[name]) for name in ROI_COLUMNS)
            roi = (top, left, height, width)
        pictures[frame_id] = (_without_surround(frame, roi), roi)
    return pictures


def _without_surround(frame: np.ndarray, roi: tuple[int, int, int, int] | None) -> np.ndarray:
    try:
        keep = find_sector(frame).mask
    except ValueError:
        if roi is None:
            raise
        top, left, height, width = roi
        keep = np.zeros(frame.shape[:2], bool)
        keep[top : top + height, left : left + width] = True
    return np.where(keep, to_grey(frame), np.uint8(0))


def draw_run_gallery(run_dir: str | Path) -> Path | None:
    """Draw `figures/gallery.png` of a run whose manifest still leads to the frames.

    Args:
        run_dir: run directory with `frame_scores.csv` and `manifest.csv`.

    Returns:
        path of the figure, or None if every frame was graded right.

    Raises:
        ValueError: if a file of the run is missing or damaged, or a frame cannot be read.
    """
    run_dir = Path(run_dir)
    errors = worst_errors(read_scores(run_dir / "frame_scores.csv"))
    if errors.empty:
        return None
    pictures = sector_pictures(errors, run_dir / "manifest.csv")
    return gallery_figure(errors, pictures, run_dir / "figures" / "gallery.png")


def gallery_figure(
    errors: pd.DataFrame,
    pictures: Mapping[str, tuple[np.ndarray, tuple[int, int, int, int] | None]],
    path: str | Path,
) -> Path:
    """Draw errors as tiles, four in a row, each with its ROI, reference grade and scores.

    Args:
        errors: of `worst_errors`.
        pictures: of `sector_pictures`: frame_id -> grey frame `(height, width)` uint8 and the ROI
            `(top, left, height, width)` in px of that frame, or None.
        path: PNG to write.

    Raises:
        ValueError: if there is no error to draw, or a picture of a listed frame is missing.
    """
    if errors.empty:
        raise ValueError("Expected at least one wrong frame. Received: none; nothing to draw.")
    missing = [name for name in errors["frame_id"] if name not in pictures]
    if missing:
        raise ValueError(
            f"Expected a picture of every listed frame. Received: {len(missing)} without, "
            f"first frame_id={missing[0]}."
        )
    num_columns = min(4, len(errors))
    num_rows = -(-len(errors) // num_columns)
    tallest = max(
        pictures[name][0].shape[0] / pictures[name][0].shape[1] for name in errors["frame_id"]
    )
    figure = new_sheet(
        "Worst errors, one frame per patient",
        cohort_line({"patients": len(errors)}) + "; box: ROI the model saw",
        max(5.6, 2.6 * num_columns),
        (2.5 * min(tallest, 1.5) + 0.55) * num_rows + 1.15,
    )
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    for panel, (_, row) in zip(panels, errors.iterrows(), strict=False):
        _draw_tile(panel, row, *pictures[str(row["frame_id"])])
    return save_sheet(figure, path)


def _draw_tile(
    axes: Axes, row: pd.Series, picture: np.ndarray, roi: tuple[int, int, int, int] | None
) -> None:
    scale = min(1.0, _TILE_WIDTH_PX / picture.shape[1])
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    axes.imshow(small, cmap="gray", vmin=0, vmax=255)
    if roi is not None:
        top, left, height, width = (scale * value for value in roi)
        # White under the colour keeps the box visible on dark and on bright tissue.
        for colour, line_width in (("white", 2.6), (COLOURS[3], 1.4)):
            axes.add_patch(
                Box((left, top), width, height, fill=False, edgecolor=colour, linewidth=line_width)
            )
    scores = row[list(SCORE_COLUMNS)].to_numpy(np.float64)
    called = row["predicted"]
    axes.set_title(
        f"{row['grade']}, called {called} ({100 * scores[GRADES.index(called)]:.0f} %)",
        size=8.5, color=INK, loc="left", pad=14,
    )  # fmt: skip
    shares = " / ".join(f"{100 * score:.0f}" for score in scores)
    who = f"patient {row['patient_id']}"
    axes.text(0, 1.02, f"{who}; scores {shares} %", size=7, color=FAINT, transform=axes.transAxes)
