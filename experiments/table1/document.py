"""The table as a page: `docs/table1.md` and its figure, written from finished results only."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.table1.method import Method
from experiments.table1.protocol import Row
from experiments.table1.row_numbers import SHOWN, interval_text, row_numbers
from experiments.table1.study import Study
from steatosis_tf.evaluation.figures.results import comparison_figure
from steatosis_tf.evaluation.metrics.intervals import paired_bootstrap
from steatosis_tf.files import replacing
from steatosis_tf.grades import GRADES, NOTICE, TASKS

FIGURE = "images/table1.png"
#: The floor whose values the figure draws through its panels.
_FLOOR = "nearest"
_DRAWN = tuple(SHOWN)[2:]
_GAINS = ("ordinal.quadratic_kappa", "ordinal.auc_at_least_mild")

Numbers = dict[str, dict[str, Any]]


def write_page(
    rows: Sequence[Row], missing: Sequence[tuple[Method, str]], study: Study, path: str | Path
) -> None:
    """Write the page and, beside it, the figure of the four-grade rows.

    Args:
        rows: finished ones, in the order of the table.
        missing: methods and tasks without a finished result, named at the end of the page.
        study: what the rows were computed on.
        path: Markdown file.
    """
    path = Path(path)
    numbers = [row_numbers(row) for row in rows]
    pairs = list(zip(rows, numbers, strict=True))
    parts = [
        _head(study),
        "## Four grades",
        _table([pair for pair in pairs if pair[0].task == "four_grades"]),
        f"![Intervals of the four-grade methods]({FIGURE})",
        *_dashed([row for row in rows if row.task == "four_grades"]),
        *_over_floor([row for row in rows if row.task == "four_grades"]),
    ]
    for task in ("three_grades", "at_least_mild"):
        if chosen := [pair for pair in pairs if pair[0].task == task]:
            parts += [f"## {len(TASKS[task][0])} classes: {', '.join(TASKS[task][0])}",
                      _table(chosen)]  # fmt: skip
    parts += ["## Cost and settings", _costs(rows), "## Methods", _methods(rows)]
    if missing:
        parts += ["## Not run", "\n".join(f"- {method.title}: {', '.join(TASKS[task][0])}"
                                          for method, task in missing)]  # fmt: skip
    with replacing(path) as temporary:
        temporary.write_text("\n\n".join([*parts, f"*{NOTICE}*"]) + "\n", encoding="utf-8")
    _draw([pair for pair in pairs if pair[0].task == "four_grades"], path.parent / FIGURE)


def _head(study: Study) -> str:
    patients = study.index.drop_duplicates("patient_id")
    counts = ", ".join(f"{(patients['label'] == i).sum()} {name}" for i, name in enumerate(GRADES))
    return f"""# Table I under one protocol

Written by `make table1`; do not edit. `make table1 ONLY=chen2008` runs one method, and what is
finished is not run again. How the protocol works: [architecture.md](architecture.md).

{len(patients)} patients ({counts}), {len(study.index)} frames. Whole patients in
{study.config.split.folds} folds, stratified by grade; repeats deal them anew. Every method sees the
same ROI (`{study.config.roi.method}`, chosen before any was scored), the joint system whole frames,
and is tested on all frames; a patient's probabilities are the mean over frames. Hyperparameters
that are chosen are chosen by inner folds of the training patients. Values are pooled over folds and
averaged over repeats; intervals are 95 % BCa over patients and do not contain the spread over
training sets. With this few patients most intervals overlap: the order of two rows is no finding.

The struck-through column is **wrong on purpose**: the same method with frames dealt without regard
to patients (one fifth tested, accuracy per frame). It measures how well a method recognises a
patient it was trained on."""


def _table(pairs: Sequence[tuple[Row, Numbers]]) -> str:
    header = ("Method", *SHOWN.values(), "~~split by image~~")
    body = [
        (
            row.method.title,
            *(interval_text(numbers[name]) for name in SHOWN),
            f"~~{row.cost['by_image_accuracy']:.2f}~~",
        )
        for row, numbers in pairs
    ]
    return _markdown(header, body)


def _dashed(rows: Sequence[Row]) -> list[str]:
    is_drawn = any(row.method.name == _FLOOR for row in rows)
    return ["The dashed line is the nearest neighbour on thumbnails."] if is_drawn else []


def _over_floor(rows: Sequence[Row]) -> list[str]:
    """What each method has over the nearest neighbour, patients paired."""
    floor = next((row for row in rows if row.method.name == _FLOOR), None)
    others = [row for row in rows if row.method.year]
    if floor is None or not others:
        return []
    gains = [_gains(row, floor) for row in others]
    kappa, auc = (sum((gain[name]["low"] or 0) > 0 for gain in gains) for name in _GAINS)
    body = [(row.method.title, *(_signed(gain[name]) for name in _GAINS))
            for row, gain in zip(others, gains, strict=True)]  # fmt: skip
    return [
        "### More than a memory of pictures?",
        "Paired difference to the nearest neighbour, with 95 % intervals over patients, not "
        f"corrected for the number of rows. Of {len(others)} methods {kappa} are above it in kappa "
        f"and {auc} in AUC with an interval that leaves out 0.",
        _markdown(("Method", *(SHOWN[name] for name in _GAINS)), body),
    ]


def _gains(row: Row, floor: Row) -> Numbers:
    paired = paired_bootstrap(row.patient_scores, floor.patient_scores)
    return {name: paired[name] for name in _GAINS}


def _signed(entry: dict[str, Any]) -> str:
    if entry["value"] is None or entry["low"] is None:
        return "-"
    return f"{entry['value']:+.2f} ({entry['low']:+.2f} to {entry['high']:+.2f})"


def _costs(rows: Sequence[Row]) -> str:
    header = ("Method", "classes", "parameters", "training, processor minutes", "ms per frame",
              "repeats", "settings")  # fmt: skip
    body = [
        (
            row.method.title,
            str(len(TASKS[row.task][0])),
            f"{row.cost['num_parameters']:,}",
            f"{row.cost['train_minutes']:.2f}",
            "-" if row.method.whole_frames else f"{row.cost['ms_per_frame']:.1f}",
            _repeats(row),
            ", ".join(f"{name} {value}" for name, value in row.method.settings.items()),
        )
        for row in rows
    ]
    total = sum(row.cost["total_minutes"] for row in rows)
    return (
        "Training is the processor time of the folds of one repeat; milliseconds are the median "
        "processor time of one frame through the exported file (ONNX or skops), ROI to "
        f"probabilities. The rows of this page took {total:.0f} processor minutes together, "
        "evaluation and the split by image included.\n\n"
        "Networks train for the few epochs and on the few frames per patient that the settings "
        "state (`frame_step` 5: every fifth), so that the whole table runs on two cores; all "
        "frames are tested. `weights` says what a published network starts from: "
        "`make table1 WEIGHTS=imagenet` starts it from ImageNet, `random` is a lower bound.\n\n"
        + _markdown(header, body)
    )


def _repeats(row: Row) -> str:
    done, wanted = row.patient_scores["repeat"].nunique(), row.method.repeats
    return str(done) if done == wanted else f"{done} of {wanted}"


def _methods(rows: Sequence[Row]) -> str:
    """What each file says of its method: once per file, for all its rows."""
    files: dict[str, list[Method]] = {}
    for row in rows:
        source = str(inspect.getsourcefile(row.method.fit))
        if row.method not in files.setdefault(source, []):
            files[source].append(row.method)
    entries = []
    for source, methods in files.items():
        papers = "; ".join(dict.fromkeys(method.paper for method in methods))
        name = Path(source).name
        link = f"[`{name}`](../experiments/table1/papers/{name})"
        entries.append(f"- {link}: {papers}.")
    return "What was adapted stands at the top of each file.\n\n" + "\n".join(entries)


def _draw(pairs: Sequence[tuple[Row, Numbers]], path: Path) -> None:
    if not pairs:
        return
    rows = [
        {"name": row.method.title, **{name: numbers[name] for name in _DRAWN}}
        for row, numbers in pairs
    ]
    names = [row.method.name for row, _ in pairs]
    num_patients = pairs[0][0].patient_scores["patient_id"].nunique()
    comparison_figure(
        rows,
        path,
        compared={name: SHOWN[name] for name in _DRAWN},
        title=f"Table I under one protocol: four grades, {num_patients} patients",
        reference=names.index(_FLOOR) if _FLOOR in names else None,
    )


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
