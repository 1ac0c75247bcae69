"""The report of a run: `report.html`, `report.md`, `model_card.md` and `checklists.md`.

Everything is read from the run directory; what is not there is said to be missing. Numbers are
computed anew from the score files, so that an edited metrics.json cannot reach a reader, and the
report calls itself consistent only if every self-check was made and passed.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from steatosis_tf.evaluation.report.analysis import Analysis, analyse_run
from steatosis_tf.evaluation.report.checklists import count_statuses, fill_checklists
from steatosis_tf.evaluation.report.checks import is_consistent
from steatosis_tf.evaluation.report.document import (
    Block,
    Picture,
    Section,
    Table,
    Text,
    with_interval,
)
from steatosis_tf.evaluation.report.markdown import (
    checklists_markdown,
    model_card,
    report_markdown,
)
from steatosis_tf.evaluation.report.report_results import OVERVIEW, result_sections
from steatosis_tf.evaluation.report.report_study import study_sections
from steatosis_tf.evaluation.report.report_trust import trust_sections
from steatosis_tf.evaluation.report.run import RunRecord, read_run
from steatosis_tf.files import replacing
from steatosis_tf.grades import NOTICE

#: All pictures together; base64 makes them a third larger, and the page has to stay under 5 MB.
_MAX_PICTURE_BYTES = 3_300_000

_TEMPLATE_PATH = Path(__file__).with_name("templates") / "report.html.j2"


def write_report(
    run_dir: str | Path, *, num_resamples: int = 2000, covariates: Sequence[str] = ()
) -> Path:
    """Write the report of a run beside its results.

    Args:
        run_dir: `runs/<experiment>/<run_id>`. Files of later steps are used if they are there:
            leak_gate.json, robustness.csv, hepatorenal.csv (`patient_id, hepatorenal_index`),
            those of `run_record.PARTS`, and the author's study.json (`run_record.STUDY_KEYS`).
        num_resamples: bootstrap resamples of every interval.
        covariates: columns of the manifest to look at as subgroups, beside
            `run_analysis.COVARIATES`.

    Returns:
        path of `report.html`. Beside it are `report.md`, `model_card.md` and `checklists.md`, and
        in `figures/` the figures that follow from the scores.

    Raises:
        ValueError: if `run_dir` is not a run, or study.json is malformed. A damaged result is no
            error: the report is written and says what is wrong.
    """
    run = read_run(run_dir)
    analysis = analyse_run(run, num_resamples=num_resamples, covariates=covariates)
    sections = [
        *study_sections(run, analysis),
        *result_sections(run, analysis),
        *trust_sections(run, analysis),
    ]
    content = _content(run, analysis, sections)
    pages = {
        "report.html": _html(content, sections),
        "report.md": report_markdown(content, sections, run.run_dir),
        "model_card.md": model_card(content, sections),
        "checklists.md": checklists_markdown(content),
    }
    for name, text in pages.items():
        with replacing(run.run_dir / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return run.run_dir / "report.html"


def _content(run: RunRecord, analysis: Analysis, sections: list[Section]) -> dict[str, Any]:
    consistent = is_consistent(analysis.checks)
    title = run.study.get("title") or f"Steatosis grading from ultrasound: {run.experiment}"
    return {
        "title": title,
        "subtitle": f"Experiment {run.experiment}, run {run.run_id}",
        "notice": NOTICE,
        "consistent": consistent,
        "verdict": _verdict(analysis),
        "checks": analysis.checks,
        "overview": _overview(run, analysis),
        "checklists": fill_checklists(run, analysis),
        "numbers": {section.key: place for place, section in enumerate(sections, start=1)},
        "study": run.study,
    }


def _verdict(analysis: Analysis) -> str:
    if is_consistent(analysis.checks):
        return (
            f"Consistent: all {len(analysis.checks)} self-checks hold. Matrix, supports, accuracy, "
            "per-class values and averages follow from the scores."
        )
    failed = sum(check.passed is False for check in analysis.checks)
    open_checks = sum(check.passed is None for check in analysis.checks)
    if failed:
        return f"Not consistent: {failed} of {len(analysis.checks)} self-checks failed."
    return f"Not shown to be consistent: {open_checks} self-checks could not be made."


def _overview(run: RunRecord, analysis: Analysis) -> list[Block]:
    found = analysis.metrics.get("patient")
    if not found:
        return []
    entries = analysis.intervals["patient"]
    rows = [(words, with_interval(entries.get(name))) for name, words in OVERVIEW.items()]
    how = "tested out of fold" if run.num_folds > 1 else "of the test part"
    caption = f"{found['n']:,} patients {how}; value (95 % interval over patients)."
    blocks: list[Block] = [Table(("Per patient", "Result"), rows, caption)]
    if run.num_folds > 1:
        blocks.append(
            Text(
                "The exported model of a cross-validated run is trained on all patients; these "
                "figures are those of the folds' models."
            )
        )
    return blocks


@dataclass(frozen=True)
class _Image:
    data: str
    width: int
    height: int
    tall: bool


def _html(content: dict[str, Any], sections: list[Section]) -> str:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["unbroken"] = _unbroken
    template = environment.from_string(_TEMPLATE_PATH.read_text(encoding="utf-8"))
    paths = [
        block.path for section in sections for block in section.blocks if isinstance(block, Picture)
    ]
    return template.render(
        **content, sections=sections, images=_images(paths), count=count_statuses
    )


def _unbroken(cell: str) -> str:
    """An interval stays on one line: its spaces become no-break spaces."""
    return re.sub(r"\(\S+ to \S+\)", lambda found: found[0].replace(" ", "\xa0"), cell)


def _images(paths: list[Path]) -> dict[Path, _Image]:
    """Pictures as base64; if they are too heavy together, the heaviest are made smaller."""
    stored = {path: path.read_bytes() for path in paths}
    while sum(map(len, stored.values())) > _MAX_PICTURE_BYTES:
        heaviest = max(stored, key=lambda path: len(stored[path]))
        stored[heaviest] = _smaller(stored[heaviest])
    return {path: _image(data) for path, data in stored.items()}


def _smaller(data: bytes) -> bytes:
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None or min(picture.shape[:2]) < 64:
        raise ValueError("Expected readable PNG figures of a few MB. Received: one that is not.")
    small = cv2.resize(picture, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".png", small, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


def _image(data: bytes) -> _Image:
    # Width and height stand in the IHDR chunk, bytes 16 to 24 of every PNG (RFC 2083).
    width, height = (int.from_bytes(data[place : place + 4], "big") for place in (16, 20))
    text = base64.b64encode(data).decode()
    # Figures are drawn at 150 px an inch, a page has 96: shown at their true size.
    return _Image(text, round(width * 96 / 150), round(height * 96 / 150), height > width)
