"""The flow diagram of a study, in the manner of CONSORT."""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from steatosis_tf.cohort.flow import Count, Flow, Part
from steatosis_tf.files import replacing
from steatosis_tf.grades import NOTICE

_INK, _FAINT, _LINE, _FILL, _ASIDE = "#222222", "#6b6b6b", "#5b6b7b", "#eef3f8", "#fbf3e6"
_WIDTH_IN = 9.0
_ROW_IN = 0.20  # height of a line of text
_PAD_IN = 0.12
_GAP_IN = 0.34
_SIDE_LEFT, _SIDE_WIDTH = 4.3, 4.5  # boxes of those who leave
_MAIN_LEFT, _MAIN_WIDTH = 0.2, 3.2  # boxes of those who stay
_MOST_REASONS = 8
_LINE_CHARACTERS = 64  # what fits into a box of those who leave


def write_flow(flow: Flow, svg_path: str | Path, png_path: str | Path) -> None:
    """Draw the diagram and write it twice.

    Args:
        flow: from `count_flow`.
        svg_path: for print; text stays text.
        png_path: 150 dots per inch, for the report and MLflow.
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
    _save(figure, svg_path, png_path)


def _save(figure: Figure, svg_path: str | Path, png_path: str | Path) -> None:
    # Without a date and with fixed names inside, the same study gives the same bytes.
    with replacing(png_path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    with (
        replacing(svg_path) as temporary,
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
