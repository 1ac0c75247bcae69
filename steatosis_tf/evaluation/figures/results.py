"""The figures every run draws: confusion matrix, ROC curves, training curves, worst errors.

The first two are the source paper's Fig. 1 and Fig. 2, with the counts they are drawn from in the
title. Curves of calibration, decision and robustness are in `curves.py`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle as Box
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_auc_score, roc_curve

from steatosis_tf.cohort.manifest import ROI_COLUMNS, frame_path, read_manifest
from steatosis_tf.evaluation.figures.curves import (
    COLOURS,
    FAINT,
    INK,
    LINE_STYLES,
    MARKERS,
    add_legend,
    cohort_line,
    new_sheet,
    num_of,
    save_sheet,
    style_axes,
    unit_square,
)
from steatosis_tf.evaluation.metrics.comparison import COMPARED, difference_text
from steatosis_tf.evaluation.metrics.scores import named_grades, read_scores
from steatosis_tf.evaluation.metrics.weighted import expected_grades
from steatosis_tf.grades import GRADES, SCORE_COLUMNS
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.images import read_frame, to_grey

_SETTINGS = ("learning_rate", "lr")
_TIMES = ("seconds", "time", "duration")


def confusion_figure(matrix: np.ndarray, path: str | Path, *, unit: str = "patients") -> Path:
    """Heat map of a confusion matrix with its margins (the paper's Fig. 1).

    The colour is the proportion of the row, so that a rare grade is as visible as a common one; the
    large number is the count, so that the reader can add it up.

    Args:
        matrix: `(4, 4)` counts, rows reference grade, columns predicted grade.
        path: PNG to write.
        unit: what is counted, "patients" or "frames".
    """
    counts = np.asarray(matrix)
    total, correct = int(counts.sum()), int(np.trace(counts))
    rows, columns = counts.sum(axis=1), counts.sum(axis=0)
    share = counts / np.maximum(rows, 1)[:, None]
    figure = new_sheet(
        f"Confusion matrix: {correct:,} of {total:,} correct ({100 * correct / total:.1f} %)",
        cohort_line({unit: total}),
        5.5,
        5.9,
    )
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        ink = "white" if share[row, column] > 0.55 else INK
        axes.text(column, row - 0.06, f"{counts[row, column]:,}", ha="center", va="center",
                  size=14, color=ink)  # fmt: skip
        if rows[row]:
            axes.text(column, row + 0.26, f"{100 * share[row, column]:.1f} %", ha="center",
                      va="center", size=8, color=ink)  # fmt: skip
    _matrix_axes(axes, rows, columns)
    return save_sheet(figure, path)


def _matrix_axes(axes: Axes, rows: np.ndarray, columns: np.ndarray) -> None:
    places = np.arange(len(GRADES))
    axes.set_xticks(places, [f"{g}\nn = {n:,}" for g, n in zip(GRADES, columns, strict=True)])
    axes.set_yticks(places, [f"{g}\nn = {n:,}" for g, n in zip(GRADES, rows, strict=True)])
    axes.set_xlabel("Predicted grade", color=INK)
    axes.set_ylabel("Reference grade (colour and percent: proportion of the row)", color=INK)
    axes.tick_params(length=0, labelsize=9, colors=INK)
    axes.set_xticks(places[1:] - 0.5, minor=True)
    axes.set_yticks(places[1:] - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_color("#bbbbbb")


def roc_figure(
    labels: np.ndarray,
    probabilities: np.ndarray,
    path: str | Path,
    *,
    unit: str = "patients",
    patient_ids: np.ndarray | None = None,
) -> Path:
    """One-vs-rest ROC curve of every grade and their macro average (the paper's Fig. 2).

    A grade that nobody has, or everybody has, has no ROC curve; then there is no macro average
    either. The legend says so.

    Args:
        labels: `(n,)` int, 0 to 3.
        probabilities: `(n, 4)` float, 0 to 1, rows sum to 1.
        path: PNG to write.
        unit: what one row is, "patients" or "frames".
        patient_ids: `(n,)` ids; when given, the title also counts patients.
    """
    counts = num_of(labels, unit, patient_ids)
    figure = new_sheet("ROC curves, each grade against the rest", cohort_line(counts), 5.3, 6.5)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    _draw_roc_curves(axes, labels, probabilities, unit)
    unit_square(axes)
    style_axes(axes, "1 - specificity", "Sensitivity")
    # Below the axes: the curve of a grade told worse than by chance fills the lower right.
    add_legend(axes, "upper center", below=True)
    return save_sheet(figure, path)


def _draw_roc_curves(axes: Axes, truth: np.ndarray, scores: np.ndarray, unit: str) -> None:
    grid = np.linspace(0, 1, 501)
    areas, curves = [], []
    for index, grade in enumerate(GRADES):
        positive = truth == index
        style: dict[str, Any] = {
            "color": COLOURS[index],
            "linestyle": LINE_STYLES[index],
            "linewidth": 1.8,
        }
        if positive.all() or not positive.any():
            who = "everybody is" if positive.all() else f"no {unit}"
            axes.plot([], [], label=f"{grade}: no curve ({who})", **style)
            continue
        false_rate, true_rate, _ = roc_curve(positive, scores[:, index], drop_intermediate=False)
        areas.append(roc_auc_score(positive, scores[:, index]))
        curves.append(np.interp(grid, false_rate, true_rate))
        name = f"{grade} (n = {positive.sum():,}): AUC {areas[-1]:.3f}"
        axes.plot(false_rate, true_rate, label=name, **style)
    if len(areas) == len(GRADES):
        mean_curve = np.concatenate([[0.0], np.mean(curves, axis=0)])
        axes.plot(
            np.concatenate([[0.0], grid]),
            mean_curve,
            color="black",
            linewidth=1.0,
            label=f"macro average: AUC {np.mean(areas):.3f}",
        )
    else:  # a mean over other grades would be another quantity under the same name
        axes.plot([], [], color="none", label="no macro average: a grade has no curve")


def training_curves(table: pd.DataFrame, path: str | Path) -> Path:
    """Loss and metrics against epoch, training beside validation, best epoch marked.

    Args:
        table: `history.csv` of a run: one row an epoch, Keras names (`loss`,
            `val_loss`, ...), optionally `epoch` and `learning_rate`.
        path: PNG to write.
    """
    # The log may count from 0; people count epochs from 1.
    start = 1 - int(table["epoch"].min()) if "epoch" in table.columns else 1
    epochs = table["epoch"] + start if "epoch" in table.columns else np.arange(len(table)) + start
    names = [
        name
        for name in table.columns
        if name != "epoch" and not name.startswith("val_") and name not in _TIMES
        and pd.api.types.is_numeric_dtype(table[name])
    ]  # fmt: skip
    names.sort(key=lambda name: (name != "loss", name in _SETTINGS))  # the rest as they came
    num_columns = min(len(names), 3)
    num_rows = -(-len(names) // num_columns)
    figure = new_sheet(
        "Training curves",
        cohort_line({"epochs": len(table)}),
        max(5.2, 3.6 * num_columns),
        2.9 * num_rows + 1.1,
    )
    for place, name in enumerate(names):
        axes = figure.add_subplot(num_rows, num_columns, place + 1)
        _training_panel(axes, table, np.asarray(epochs), name)
    return save_sheet(figure, path)


def _training_panel(axes: Axes, table: pd.DataFrame, epochs: np.ndarray, name: str) -> None:
    marker = MARKERS[0] if len(table) < 3 else None  # one point draws no line
    drawn = [(name, "training", 0, "-")]
    if name in _SETTINGS:
        drawn = [(name, "as scheduled", 6, "-")]
    if f"val_{name}" in table.columns:
        drawn.append((f"val_{name}", "validation", 3, "--"))
    steps = "steps-mid" if name in _SETTINGS else "default"
    for column, legend, index, line in drawn:
        axes.plot(epochs, table[column], color=COLOURS[index], linestyle=line, linewidth=1.5,
                  drawstyle=steps, marker=marker, label=legend)  # fmt: skip
    if name == "loss" and "val_loss" in table.columns and table["val_loss"].notna().any():
        best = int(table["val_loss"].reset_index(drop=True).idxmin())
        axes.axvline(epochs[best], color="#999999", linewidth=0.8)
        axes.plot(epochs[best], table["val_loss"].iloc[best], marker="D", color=COLOURS[3],
                  linestyle="none", markersize=5,
                  label=f"lowest, epoch {epochs[best]}")  # fmt: skip
    if name in _SETTINGS:
        axes.set_yscale("log")
    style_axes(axes, "Epoch", name.replace("_", " "))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(axes)


def comparison_figure(
    rows: Sequence[dict[str, Any]],
    path: str | Path,
    *,
    compared: Mapping[str, str] = COMPARED,
    title: str = "Runs side by side",
    reference: int | None = None,
) -> Path:
    """Forest plot: one panel per metric, one line per row, 95 % intervals over patients.

    Args:
        rows: each with `name` and for each metric a dict `value, low, high`, and `difference`
            where it is to stand above the dot.
        path: PNG to write.
        compared: metric -> heading of its panel.
        title: of the figure.
        reference: row whose value is drawn through each panel as a dashed line.
    """
    subtitle = f"{len(rows)} runs; 95 % intervals over patients"
    if any(difference_text(row[name].get("difference")) for row in rows for name in compared):
        subtitle += (
            "; above each dot the paired difference to the baseline (* its interval leaves out 0)"
        )
    figure = new_sheet(title, subtitle, 12.0, 2.2 + 0.4 * len(rows))
    axes = figure.subplots(1, len(compared), sharey=True)
    places = range(len(rows))
    for panel, (name, heading) in zip(axes, compared.items(), strict=True):
        style_axes(panel, heading, "")
        if reference is not None and rows[reference][name]["value"] is not None:
            panel.axvline(rows[reference][name]["value"], color=FAINT, linestyle="--", linewidth=1)
        for place, row in zip(places, rows, strict=True):
            cell = row[name]
            if cell["value"] is None:
                continue
            if cell["low"] is not None:
                panel.plot([cell["low"], cell["high"]], [place, place], color=COLOURS[0])
            panel.plot(cell["value"], place, "o", color=INK)
            if text := difference_text(cell.get("difference")):
                panel.annotate(text, (cell["value"], place), (0, 5), textcoords="offset points",
                               ha="center", size=7, color=FAINT)  # fmt: skip
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    axes[0].set_yticks(places, [row["name"] for row in rows])
    return save_sheet(figure, path)


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
        ValueError: if a frame cannot be read, or has neither sector nor
            ROI.
    """
    rows = read_manifest(manifest_path).set_index("frame_id")
    pictures: dict[str, tuple[np.ndarray, tuple[int, int, int, int] | None]] = {}
    for frame_id in errors["frame_id"]:
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
    """
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
