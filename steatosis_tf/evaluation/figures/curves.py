"""The sheet every figure is drawn on; curves of calibration, decision, coverage and robustness.

Matplotlib's object interface on the Agg canvas only: no pyplot, so no global state, no display,
and figures can be drawn from threads and from a web request.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from scipy.stats import binomtest

from steatosis_tf.evaluation.clinical.calibration import NUM_BINS
from steatosis_tf.files import replacing
from steatosis_tf.grades import NOTICE

DPI = 150
INK = "#222222"
FAINT = "#6b6b6b"

#: Okabe and Ito's colours (jfly.uni-koeln.de/color), told apart by every common colour blindness.
COLOURS = ("#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#8a8a8a")
#: A second, colour-free key to the same curve, for grey print.
LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), "-", "--")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_FONT_SIZE = 9.0
_TOP_IN = 0.80
_BOTTOM_IN = 0.34


def new_sheet(title: str, subtitle: str, width_in: float, height_in: float) -> Figure:
    """An empty figure with its title, its cohort line and the notice already on it.

    Args:
        title: what the figure shows, one line.
        subtitle: who it was measured on: number of patients and frames, split.
        width_in: width of the whole sheet in inches.
        height_in: height of the whole sheet in inches.
    """
    top, bottom = 1 - _TOP_IN / height_in, _BOTTOM_IN / height_in
    room = ConstrainedLayoutEngine(rect=(0.01, bottom, 0.98, top - bottom))
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white", layout=room)
    FigureCanvasAgg(figure)
    left = 0.12 / width_in
    figure.text(left, 1 - 0.14 / height_in, title, va="top", size=12, weight="bold", color=INK)
    figure.text(left, 1 - 0.44 / height_in, subtitle, va="top", size=_FONT_SIZE, color=FAINT)
    figure.text(left, 0.10 / height_in, NOTICE, va="bottom", size=6.5, color=FAINT)
    return figure


def style_axes(axes: Axes, x_label: str, y_label: str) -> None:
    """Quiet grid, no box, and labels with their units."""
    axes.set_xlabel(x_label, size=_FONT_SIZE, color=INK)
    axes.set_ylabel(y_label, size=_FONT_SIZE, color=INK)
    axes.tick_params(labelsize=_FONT_SIZE - 1, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)


def add_legend(axes: Axes, location: Any = "best", *, below: bool = False) -> None:
    """A framed legend, so that a curve behind it does not read as part of the text.

    `below` sets it under the x label, in two columns, where curves may go anywhere.
    """
    place = {"bbox_to_anchor": (0.45, -0.14), "ncols": 2, "columnspacing": 1.2} if below else {}
    axes.legend(
        loc=location, fontsize=_FONT_SIZE - 1, framealpha=0.92, edgecolor="none",
        handlelength=3.2, **place,
    )  # fmt: skip


def unit_square(axes: Axes) -> None:
    """Both axes from 0 to 1, equal scales, with room for a line that runs along the border."""
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")


def save_sheet(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG at 150 dpi; a killed process leaves the old file or the new one.

    Args:
        figure: from `new_sheet`.
        path: file to write; its folder is made if it is missing.
    """
    with replacing(path) as temporary:
        # No software or date entry: the same numbers give the same bytes.
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
    return Path(path)


def cohort_line(counts: Mapping[str, int]) -> str:
    """`{"patients": 44, "frames": 440}` as `n = 44 patients, 440 frames`."""
    return "n = " + ", ".join(f"{count:,} {unit}" for unit, count in counts.items())


def num_of(labels: np.ndarray, unit: str, patient_ids: np.ndarray | None) -> dict[str, int]:
    """Counts for `cohort_line`: rows under their unit, and patients where ids are given."""
    counts = {} if patient_ids is None else {"patients": len(set(np.asarray(patient_ids).tolist()))}
    return {**counts, unit: int(np.asarray(labels).size)}


# Colours of named decision strategies; a model takes the first free one.
_REFERENCE_STYLE = {"treat all": ("#8a8a8a", "--"), "treat none": ("#000000", "-")}


def reliability_figure(
    labels: np.ndarray, probabilities: Mapping[str, np.ndarray], path: str | Path
) -> Path:
    """Stated probability of the most probable grade against how often it was right.

    Bins are of equal width. Bars are 95 % Wilson intervals of the share that was right, so that a
    bin of three patients does not look like a finding; below stands how many fell into each bin.

    Args:
        labels: `(n,)` int, 0 to 3.
        probabilities: name such as "before temperature" -> `(n, 4)` float, 0 to 1.
        path: PNG to write.
    """
    title = "Reliability of the most probable grade"
    figure = new_sheet(title, cohort_line({"patients": len(labels)}), 5.2, 6.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    upper.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    edges = np.linspace(0, 1, NUM_BINS + 1)
    for place, (name, scores) in enumerate(probabilities.items()):
        stated = scores.max(axis=1)
        right = scores.argmax(axis=1) == labels
        bins = np.clip(np.digitize(stated, edges) - 1, 0, NUM_BINS - 1)
        _reliability_points(upper, place, name, (bins, stated, right))
        counts = np.bincount(bins, minlength=NUM_BINS)
        width = 0.8 / NUM_BINS / len(probabilities)
        centres = (edges[:-1] + edges[1:]) / 2 + (place - (len(probabilities) - 1) / 2) * width
        lower.bar(centres, counts, width=width, color=COLOURS[3 * place % 7])
    unit_square(upper)
    upper.set_aspect("auto")
    upper.set(ylim=(-0.02, 1.06 + 0.08 * len(probabilities)), yticks=np.linspace(0, 1, 6))
    style_axes(upper, "", "Share right (bars: 95 % Wilson)")
    style_axes(lower, "Probability stated for the most probable grade", "Patients")
    add_legend(upper, "upper left")
    return save_sheet(figure, path)


def _reliability_points(
    axes: Axes, place: int, name: str, rows: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    bins, stated, right = rows
    points = []
    error = 0.0
    for index in np.unique(bins):
        inside = bins == index
        count, hits = int(inside.sum()), int(right[inside].sum())
        interval = binomtest(hits, count).proportion_ci(method="wilson")
        points.append((stated[inside].mean(), hits / count, interval.low, interval.high))
        error += count / bins.size * abs(stated[inside].mean() - hits / count)
    x, y, low, high = np.array(points).T
    shift = 0.004 * place  # bars of two curves side by side, not on top of each other
    axes.errorbar(
        x + shift,
        y,
        yerr=[np.maximum(y - low, 0), np.maximum(high - y, 0)],
        color=COLOURS[3 * place % 7],
        linestyle=LINE_STYLES[place],
        marker=MARKERS[place],
        markersize=5,
        linewidth=1.4,
        elinewidth=0.8,
        capsize=2,
        label=f"{name}: ECE {error:.3f}",
    )


def decision_curve_figure(
    thresholds: np.ndarray,
    net_benefits: Mapping[str, np.ndarray],
    path: str | Path,
    *,
    subtitle: str,
    task: str,
    bands: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> Path:
    """Net benefit against threshold probability (Vickers and Elkin 2006).

    Args:
        thresholds: `(t,)` float, above 0 and below 1.
        net_benefits: strategy ("treat all", "treat none", the model, ...) -> `(t,)` float.
        path: PNG to write.
        subtitle: number of patients and of those with the condition.
        task: the condition, for example "Mild or worse".
        bands: strategy -> lower and upper bounds `(t,)` drawn behind its curve.
    """
    figure = new_sheet(f"Decision curve: {task}", subtitle, 6.2, 4.8)
    axes = figure.add_subplot()
    free = 0
    for name, benefit in net_benefits.items():
        colour, line = _REFERENCE_STYLE.get(name, (COLOURS[free % 6], LINE_STYLES[free % 6]))
        free += name not in _REFERENCE_STYLE
        width = 1.2 if name in _REFERENCE_STYLE else 1.8
        axes.plot(thresholds, benefit, color=colour, linestyle=line, linewidth=width, label=name)
        if bands and name in bands:
            low, high = bands[name]
            axes.fill_between(thresholds, low, high, color=colour, alpha=0.15, linewidth=0)
    top = max(float(np.max(benefit)) for benefit in net_benefits.values())
    # Treat all falls without bound; below a small loss nobody needs to see how far.
    axes.set_ylim(-0.25 * max(top, 0.05), 1.15 * max(top, 0.05))
    style_axes(axes, "Threshold probability", "Net benefit per patient")
    add_legend(axes, "upper center", below=True)
    return save_sheet(figure, path)


def coverage_risk_figure(
    coverage: np.ndarray, risks: Mapping[str, np.ndarray], path: str | Path, *, subtitle: str
) -> Path:
    """Error rate among those still graded when the least certain are left to a person.

    Args:
        coverage: `(c,)` proportion of patients still graded, 0 to 1.
        risks: curve name -> `(c,)` error rate among them, 0 to 1.
        path: PNG to write.
        subtitle: number of patients.
    """
    figure = new_sheet("Coverage and risk: what abstaining buys", subtitle, 6.2, 4.6)
    axes = figure.add_subplot()
    for place, (name, risk) in enumerate(risks.items()):
        axes.plot(coverage, risk, color=COLOURS[place % 6], linestyle=LINE_STYLES[place % 6],
                  linewidth=1.8, label=name)  # fmt: skip
    highest = max(float(np.max(risk)) for risk in risks.values())
    axes.set(xlim=(0, 1.01), ylim=(-0.02 * highest, max(1.15 * highest, 0.05)))
    style_axes(axes, "Coverage: proportion of patients graded", "Error rate among them")
    add_legend(axes, "upper left")
    return save_sheet(figure, path)


def robustness_figure(
    table: pd.DataFrame, path: str | Path, *, metric_label: str, subtitle: str
) -> Path:
    """One panel per perturbation: the metric against its strength, undisturbed value as a line.

    Args:
        table: of `robustness.robustness_curves`: `perturbation, strength, unit, value`, optional
            `low` and `high` of an interval; strength 0 rows hold the undisturbed value. A row
            without value (None or NaN) is left out of its curve.
        path: PNG to write.
        metric_label: what `value` is, for example "Quadratic weighted kappa".
        subtitle: number of patients and frames.
    """
    known = table[table["value"].notna()]
    names = list(dict.fromkeys(table["perturbation"]))
    num_columns = min(4, len(names))
    num_rows = -(-len(names) // num_columns)
    title = f"Robustness: {metric_label[:1].lower()}{metric_label[1:]} under disturbed frames"
    figure = new_sheet(title, subtitle, max(5.6, 2.7 * num_columns), 2.5 * num_rows + 1.15)
    panels = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        rows = known[known["perturbation"] == name].sort_values("strength")
        _robustness_panel(panel, rows, name)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    for panel in panels[::num_columns]:
        panel.set_ylabel(metric_label, size=9)
    return save_sheet(figure, path)


def _robustness_panel(axes: Axes, rows: pd.DataFrame, name: str) -> None:
    unit = str(rows["unit"].iloc[0]) if len(rows) else ""
    words = name.replace("_", " ").replace("roi", "ROI").replace("jpeg", "JPEG")
    style_axes(axes, f"{words} ({unit})" if unit else words, "")
    if rows.empty:
        axes.text(0.5, 0.5, "no value", ha="center", color=FAINT, transform=axes.transAxes)
        return
    if {"low", "high"} <= set(rows.columns):  # a missing bound leaves a gap in the band
        axes.fill_between(rows["strength"], rows["low"].astype(float), rows["high"].astype(float),
                          color=COLOURS[5], alpha=0.3, linewidth=0)  # fmt: skip
    undisturbed = rows.loc[rows["strength"] == 0, "value"]
    if len(undisturbed):
        axes.axhline(float(undisturbed.iloc[0]), color="#8a8a8a", linewidth=1, linestyle="--")
    axes.plot(rows["strength"], rows["value"].astype(float), color=COLOURS[0], marker="o",
              markersize=4, linewidth=1.5)  # fmt: skip
