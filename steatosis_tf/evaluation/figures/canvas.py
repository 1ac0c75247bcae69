"""The sheet every figure is drawn on: size, colours, title, notice, and how it reaches the disk.

Matplotlib's object interface on the Agg canvas only: no pyplot, so no global state, no display,
and figures can be drawn from threads and from a web request.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

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

    Raises:
        ValueError: if the name does not end in .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"Expected a figure path that ends in .png. Received: path={path.name}.")
    with replacing(path) as temporary:
        # No software or date entry: the same numbers give the same bytes.
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
    return path


def cohort_line(counts: Mapping[str, int]) -> str:
    """`{"patients": 44, "frames": 440}` as `n = 44 patients, 440 frames`."""
    return "n = " + ", ".join(f"{count:,} {unit}" for unit, count in counts.items())


def num_of(labels: np.ndarray, unit: str, patient_ids: np.ndarray | None) -> dict[str, int]:
    """Counts for `cohort_line`: rows under their unit, and patients where ids are given."""
    counts = {} if patient_ids is None else {"patients": len(set(np.asarray(patient_ids).tolist()))}
    return {**counts, unit: int(np.asarray(labels).size)}
