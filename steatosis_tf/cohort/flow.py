"""Who was found, who was left out and why, who trains and who tests: counts, and their diagram.

The numbers and the drawing of a CONSORT / STARD flow of patients and frames.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from steatosis_tf.cohort.partition import SPLITS, Partition, split_table
from steatosis_tf.files import replacing, write_csv
from steatosis_tf.grades import GRADES, NOTICE
from steatosis_tf.sources.rejection import KINDS
from steatosis_tf.sources.tables import kinds_of, read_rejected

_INK, _FAINT, _LINE, _FILL, _ASIDE = "#222222", "#6b6b6b", "#5b6b7b", "#eef3f8", "#fbf3e6"
_WIDTH_IN = 9.0
_ROW_IN = 0.20  # height of a line of text
_PAD_IN = 0.12
_GAP_IN = 0.34
_SIDE_LEFT, _SIDE_WIDTH = 4.3, 4.5  # boxes of those who leave
_MAIN_LEFT, _MAIN_WIDTH = 0.2, 3.2  # boxes of those who stay
_MOST_REASONS = 8
_LINE_CHARACTERS = 64  # what fits into a box of those who leave


@dataclass(frozen=True)
class Count:
    """Patients and frames of one box, or of one line in it."""

    name: str
    num_patients: int
    num_frames: int


@dataclass(frozen=True)
class Part:
    """One box at the foot of the diagram, with a line per grade."""

    total: Count
    per_grade: tuple[Count, ...]


@dataclass(frozen=True)
class Flow:
    """All boxes, from the top down. What enters a box leaves it: the counts add up in frames; a
    patient is counted wherever one of the patient's frames is."""

    found: Count
    rejected: tuple[Count, ...]
    in_manifest: Count
    left_aside: tuple[Count, ...]
    analysed: Count
    parts: tuple[Part, ...]
    simulated: bool


def write_cohort(
    frame_table: pd.DataFrame, rejected_path: Path, partitions: list[Partition], folder: Path
) -> None:
    """Write who takes part in a run: `split.csv`, `rejected.csv` and the diagram.

    Args:
        frame_table: the run's completed manifest.
        rejected_path: of `files.rejected_beside` the manifest it was given.
        partitions: the split of this run.
        folder: of the run; its `rejected.csv` has all it leaves out. What never was in the manifest
            has no frame_id.
    """
    write_csv(split_table(partitions), folder / "split.csv")
    before = read_rejected(rejected_path)
    if "frame_id" in before:  # of a run whose manifest is used again: these are in the manifest
        before = before.loc[~before["frame_id"].isin(frame_table["frame_id"])]
    before = before[["patient_id", "reason", "code"]]
    rejected = frame_table.assign(reason=frame_table["roi_reason"], code=_roi_codes(frame_table))
    rejected = rejected.loc[
        frame_table["roi_height"].isna(), ["frame_id", "patient_id", "reason", "code"]
    ]
    everything = pd.concat([before.assign(frame_id=""), rejected])
    write_csv(everything[rejected.columns], folder / "rejected.csv")
    if len(rejected):
        print(f"{len(rejected)} frames without ROI, see {folder / 'rejected.csv'}", file=sys.stderr)
    write_flow(count_flow(frame_table, before, partitions), folder / "figures" / "flow")


def count_flow(
    frame_table: pd.DataFrame, rejected: pd.DataFrame, partitions: list[Partition]
) -> Flow:
    """Count patients and frames on their way through a study.

    Args:
        frame_table: manifest; with ROI columns, frames without a ROI are left aside.
        rejected: of `read_rejected`: `patient_id, reason, code`, one row
            per frame, or per file that an ingest rejected whole.
        partitions: the split, one or the folds of one round.
    """
    everyone = pd.concat([frame_table[["patient_id"]], rejected[["patient_id"]]])
    reasons = kinds_of(rejected)
    aside = _reasons_to_leave_aside(frame_table, partitions)
    analysed = frame_table.loc[aside == ""]
    return Flow(
        found=_count("Found", everyone),
        rejected=_counts(rejected, reasons),
        in_manifest=_count("In the manifest", frame_table),
        left_aside=_counts(frame_table.loc[aside != ""], aside[aside != ""]),
        analysed=_count("Analysed", analysed),
        parts=_parts(analysed, partitions),
        simulated="simulated" in frame_table.columns
        and bool((frame_table["simulated"].astype(str).str.lower() == "true").any()),
    )


def _reasons_to_leave_aside(frame_table: pd.DataFrame, partitions: list[Partition]) -> pd.Series:
    reasons = pd.Series("", index=frame_table.index)
    used = frozenset[str]().union(*(getattr(p, split) for p in partitions for split in SPLITS))
    reasons[~frame_table["patient_id"].isin(used)] = "in no part of the split"
    if "roi_height" in frame_table.columns:
        without = frame_table["roi_height"].isna()
        reasons[without] = _roi_codes(frame_table)[without].map(KINDS)
    reasons[frame_table["grade"] == ""] = "no grade"
    return reasons


def _roi_codes(frame_table: pd.DataFrame) -> pd.Series:
    """What `roi` refused each frame for; a person's rejection and an older manifest name none."""
    unnamed = pd.Series("", index=frame_table.index)
    codes = frame_table.get("roi_code", unnamed)
    is_persons = frame_table.get("roi_source", unnamed) == "person"
    return codes.where(codes.isin(KINDS) & ~is_persons, "no_roi")


def _parts(analysed: pd.DataFrame, partitions: list[Partition]) -> tuple[Part, ...]:
    if len(partitions) == 1:
        return tuple(
            _part(split.capitalize(), analysed, getattr(partitions[0], split)) for split in SPLITS
        )
    tested = frozenset[str]().union(*(partition.test for partition in partitions))
    name = f"Tested once each, in {len(partitions)} folds"
    parts = [_part(name, analysed, tested)]
    never = frozenset(analysed["patient_id"]) - tested
    if never:
        parts.append(_part("Trained on only", analysed, never))
    return tuple(parts)


def _part(name: str, analysed: pd.DataFrame, patients: frozenset[str]) -> Part:
    inside = analysed.loc[analysed["patient_id"].isin(patients)]
    return Part(
        _count(name, inside),
        tuple(_count(grade, inside.loc[inside["grade"] == grade]) for grade in GRADES),
    )


def _counts(rows: pd.DataFrame, reasons: pd.Series) -> tuple[Count, ...]:
    counts = [_count(str(reason), group) for reason, group in rows.groupby(reasons)]
    return tuple(sorted(counts, key=lambda count: (-count.num_frames, count.name)))


def _count(name: str, rows: pd.DataFrame) -> Count:
    known = rows.loc[rows["patient_id"].fillna("") != "", "patient_id"]
    return Count(name, int(known.nunique()), len(rows))


def write_flow(flow: Flow, path: str | Path) -> None:
    """Draw the diagram and write it twice.

    Args:
        flow: from `count_flow`.
        path: without suffix. The SVG is for print, its text stays text; the PNG, 150 dots per
            inch, for the report and MLflow.
    """
    rejected, aside = _lines(flow.rejected), _lines(flow.left_aside)
    boxes = [
        ("Found", [_people(flow.found)], _all("Rejected", flow.rejected), rejected),
        (
            "In the manifest",
            [_people(flow.in_manifest)],
            _all("Left aside", flow.left_aside),
            aside,
        ),
        ("Analysed", [_people(flow.analysed)], "", []),
    ]
    heights = [
        (_height(len(main)), _height(len(side)) if title else 0.0) for _, main, title, side in boxes
    ]
    foot = max(_height(len(_part_lines(part))) for part in flow.parts)
    body = sum(main + side + _GAP_IN for main, side in heights) + foot
    height_in = body + 1.15
    figure = Figure(figsize=(_WIDTH_IN, height_in), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, _WIDTH_IN), ylim=(height_in, 0))
    axes.set_axis_off()
    _headings(axes, flow, height_in)

    top = 0.72
    middle = _MAIN_LEFT + _MAIN_WIDTH / 2
    for (name, main, side_name, side), (main_in, side_in) in zip(boxes, heights, strict=True):
        _box(axes, (_MAIN_LEFT, top, _MAIN_WIDTH, main_in), name, main, _FILL)
        below = top + main_in + side_in + _GAP_IN
        if side_name:
            _arrow(axes, (middle, top + main_in), (middle, below))
            branch = top + main_in + _GAP_IN / 2 + side_in / 2
            place = (_SIDE_LEFT, branch - side_in / 2, _SIDE_WIDTH, side_in)
            _arrow(axes, (middle, branch), (_SIDE_LEFT, branch))
            _box(axes, place, side_name, side, _ASIDE)
        top = below
    _draw_parts(axes, flow.parts, top, foot, middle)
    # Without a date and with fixed names inside, the same study gives the same bytes.
    with replacing(f"{path}.png") as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    with (
        replacing(f"{path}.svg") as temporary,
        rc_context({"svg.fonttype": "none", "svg.hashsalt": "flow"}),
    ):
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def _headings(axes: Axes, flow: Flow, height_in: float) -> None:
    title = "SIMULATED study: flow" if flow.simulated else "Flow"
    axes.text(0.12, 0.14, f"{title} of patients and frames", va="top", size=12, weight="bold",
              color=_INK)  # fmt: skip
    axes.text(0.12, 0.44, "A patient is counted wherever one of the patient's frames is.",
              va="top", size=8.5, color=_FAINT)  # fmt: skip
    axes.text(0.12, height_in - 0.10, NOTICE, va="bottom", size=6.5, color=_FAINT)


def _draw_parts(
    axes: Axes, parts: tuple[Part, ...], top: float, height: float, middle: float
) -> None:
    # The foot: a rail from the analysed frames to each part.
    analysed_bottom, rail = top - _GAP_IN, top - _GAP_IN / 2
    width = min(_MAIN_WIDTH, (_WIDTH_IN - 0.4 - 0.2 * (len(parts) - 1)) / len(parts))
    lefts = [0.2 + number * (width + 0.2) for number in range(len(parts))]
    if len(parts) == 1:
        lefts = [middle - width / 2]
    centres = [left + width / 2 for left in lefts]
    axes.plot([middle, middle], [analysed_bottom, rail], color=_LINE, lw=1)
    axes.plot([min(middle, *centres), max(middle, *centres)], [rail, rail], color=_LINE, lw=1)
    for part, left, centre in zip(parts, lefts, centres, strict=True):
        _arrow(axes, (centre, rail), (centre, top))
        place = (left, top, width, height)
        _box(axes, place, part.total.name, _part_lines(part), _FILL)


def _box(
    axes: Axes, place: tuple[float, float, float, float], name: str, lines: list[str], fill: str
) -> None:
    left, top, width, height = place
    axes.add_patch(
        FancyBboxPatch(
            (left, top), width, height, boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=fill, edgecolor=_LINE, linewidth=0.9,
        )
    )  # fmt: skip
    inside = left + _PAD_IN
    axes.text(inside, top + _PAD_IN, name, va="top", size=9.5, weight="bold", color=_INK)
    for number, line in enumerate(lines, start=1):
        axes.text(inside, top + _PAD_IN + number * _ROW_IN, line, va="top", size=8.5, color=_INK)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate(
        "", xy=end, xytext=start,
        arrowprops={"arrowstyle": "-|>", "color": _LINE, "lw": 1, "shrinkA": 0, "shrinkB": 0},
    )  # fmt: skip


def _height(num_lines: int) -> float:
    return 2 * _PAD_IN + (num_lines + 1) * _ROW_IN - 0.04


def _all(name: str, counts: tuple[Count, ...]) -> str:
    frames = sum(count.num_frames for count in counts)
    return f"{name}: {_number(frames, 'frame')}"


def _lines(counts: tuple[Count, ...]) -> list[str]:
    lines = [
        f"{_shortened(count.name, _LINE_CHARACTERS - len(_people(count)))}: {_people(count)}"
        for count in counts[:_MOST_REASONS]
    ]
    rest = counts[_MOST_REASONS:]
    if rest:
        frames = sum(count.num_frames for count in rest)
        lines.append(f"{len(rest)} other reasons: {_number(frames, 'frame')}")
    return lines or ["none"]


def _shortened(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"


def _part_lines(part: Part) -> list[str]:
    return [_people(part.total), *(f"{c.name}: {_people(c)}" for c in part.per_grade)]


def _people(count: Count) -> str:
    return f"{_number(count.num_patients, 'patient')}, {_number(count.num_frames, 'frame')}"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
