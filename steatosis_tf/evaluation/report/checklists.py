"""Reporting checklists filled from a run: each item met, not met, or waiting for the author."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from steatosis_tf.evaluation.report.analysis import Analysis
from steatosis_tf.evaluation.report.run import RunRecord

_ITEMS_PATH = Path(__file__).with_name("templates") / "checklists.txt"

MET = "met"
NOT_MET = "not met"
AUTHOR = "needs the author"


@dataclass(frozen=True)
class Item:
    """One item of a checklist.

    Attributes:
        number: as in the guideline.
        subject: what it asks for, in our words.
        status: `MET`, `NOT_MET` or `AUTHOR`.
        section: key of the report's section that answers it or says what is missing; "" where
            only a manuscript can.
    """

    number: str
    subject: str
    status: str
    section: str


# Section of the author's statements, for `study:` items.
_STUDY_SECTIONS = {
    "intended_use": "use",
    "users": "use",
    "population": "use",
    "reference_standard": "reference",
    "readers": "reference",
    "missing_data": "reference",
    "sample_size": "size",
    "limitations": "limits",
    "monitoring": "limits",
    "protocol": "limits",
    "involvement": "limits",
    "funding": "limits",
    "availability": "limits",
}

_Holds = Callable[[RunRecord, Analysis], bool]


def _passed(text: str) -> _Holds:
    return lambda run, analysis: any(
        check.passed is True and text in check.name for check in analysis.checks
    )


# What a run itself answers: name -> section and whether it does.
_EVIDENCE: dict[str, tuple[str, _Holds]] = {
    "calibration": (
        "calibration",
        lambda run, analysis: analysis.thresholds.calibrated is not None,
    ),
    "characteristics": (
        "flow",
        lambda run, analysis: run.manifest is not None and {"sex", "age"} <= set(run.manifest),
    ),
    "config": ("method", lambda run, analysis: run.config is not None),
    "disjoint": ("split", _passed("two sides of a partition")),
    "environment": ("method", lambda run, analysis: run.environment is not None),
    "external": ("external", lambda run, analysis: run.is_external),
    "flow": (
        "flow",
        lambda run, analysis: run.manifest is not None and run.rejected is not None,
    ),
    "gallery": ("failures", lambda run, analysis: any("gallery" in s for s in run.figures)),
    "intervals": ("results", lambda run, analysis: "patient" in analysis.intervals),
    "leak": (
        "split",
        lambda run, analysis: (
            run.leak_gate is not None and run.leak_gate.get("passed") is not False
        ),
    ),
    "metrics": ("results", lambda run, analysis: "patient" in analysis.metrics),
    "model": ("split", lambda run, analysis: "model.onnx" in run.hashes),
    "operating": ("operating", lambda run, analysis: analysis.thresholds.operating is not None),
    "outputs": (
        "split",
        lambda run, analysis: {"frame_scores.csv", "model.onnx", "config.json"} <= set(run.hashes),
    ),
    "preprocessing": (
        "method",
        lambda run, analysis: run.manifest is not None and "roi_height" in run.manifest,
    ),
    "rejection": ("abstention", lambda run, analysis: analysis.abstaining is not None),
    "robustness": ("robustness", lambda run, analysis: run.robustness is not None),
    "split": ("split", lambda run, analysis: run.split is not None and run.config is not None),
    "subgroups": ("subgroups", lambda run, analysis: bool(analysis.subgroups)),
}


def read_items() -> dict[str, list[tuple[str, str, str]]]:
    """Guideline -> number, subject and evidence of its items; see `templates/checklists.txt`."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for line in _ITEMS_PATH.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            items = found.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            number, subject, evidence = (part.strip() for part in line.split("|"))
            items.append((number, subject, evidence))
    return found


def fill_checklists(run: RunRecord, analysis: Analysis) -> dict[str, list[Item]]:
    """Fill CLAIM 2024, TRIPOD+AI and STARD-AI for a run.

    "Met" says that the report answers the item from the run or in the author's words, not that
    the answer is good.

    Returns:
        guideline -> its items in order.
    """
    return {
        name: [_item(*item, run, analysis) for item in items]
        for name, items in read_items().items()
    }


def count_statuses(items: list[Item]) -> str:
    """`20 met, 8 not met, 16 need the author`."""
    met, not_met, author = (
        sum(item.status == status for item in items) for status in (MET, NOT_MET, AUTHOR)
    )
    return f"{met} met, {not_met} not met, {author} need the author"


def _item(number: str, subject: str, evidence: str, run: RunRecord, analysis: Analysis) -> Item:
    answers = [_answer(part.strip(), run, analysis) for part in evidence.split("+")]
    # What the run lacks stands before what only the author can add.
    status = next(s for s in (NOT_MET, AUTHOR, MET) if s in [status for status, _ in answers])
    return Item(number, subject, status, next(place for s, place in answers if s == status))


def _answer(evidence: str, run: RunRecord, analysis: Analysis) -> tuple[str, str]:
    """Status and section of one piece of evidence."""
    kind, _, name = evidence.partition(":")
    if kind == "auto":
        section, holds = _EVIDENCE[name]
        return MET if holds(run, analysis) else NOT_MET, section
    if kind == "study":
        return MET if name in run.study else AUTHOR, _STUDY_SECTIONS.get(name, "data")
    return AUTHOR, ""
