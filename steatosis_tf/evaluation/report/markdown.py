"""The report, the model card and the checklists as Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steatosis_tf.evaluation.report.checklists import count_statuses
from steatosis_tf.evaluation.report.document import (
    Alarm,
    Block,
    Lack,
    Picture,
    Section,
    Table,
    Text,
)

# Headings of a model card (Mitchell et al. 2019, doi 10.1145/3287560.3287596) and the sections of
# the report that answer them.
_CARD = {
    "Model details": ("method",),
    "Intended use": ("use",),
    "Factors": ("subgroups",),
    "Metrics": ("levels",),
    "Training and evaluation data": ("data", "reference", "flow", "split"),
    "Quantitative analyses": ("results", "ordinal", "operating", "calibration"),
    "Robustness, rejection, external validation": ("robustness", "rejection", "external"),
    "Ethical considerations, caveats and recommendations": ("limits",),
}


def report_markdown(content: dict[str, Any], sections: Sequence[Section], run_dir: Path) -> str:
    """The whole report; pictures are linked relative to the run directory."""
    parts = [_head(content)]
    parts.extend(_block(block, run_dir) for block in content["overview"])
    for place, section in enumerate(sections, start=1):
        parts.append(f"## {place}. {section.title}")
        parts.extend(_block(block, run_dir) for block in section.blocks)
    parts.append("## Self-check")
    state = {True: "yes", False: "no", None: "not checked"}
    rows = [(check.name, state[check.passed], check.detail) for check in content["checks"]]
    parts.append(_table(("Statement", "Holds", "Found"), rows))
    counts = [f"- {name}: {count_statuses(items)}" for name, items in content["checklists"].items()]
    parts += ["## Reporting checklists", "In full in `checklists.md`.", "\n".join(counts)]
    return "\n\n".join([*parts, f"*{content['notice']}*"]) + "\n"


def model_card(content: dict[str, Any], sections: Sequence[Section]) -> str:
    """Model card: the same blocks under the headings of Mitchell et al., without pictures."""
    by_key = {section.key: section for section in sections}
    parts = [_head(content, "Model card: ")]
    parts.extend(_block(block, None) for block in content["overview"])
    for heading, keys in _CARD.items():
        parts.append(f"## {heading}")
        for key in keys:
            blocks = [block for block in by_key[key].blocks if not isinstance(block, Picture)]
            if len(keys) > 1:
                parts.append(f"### {by_key[key].title}")
            parts.extend(_block(block, None) for block in blocks)
    return "\n\n".join([*parts, f"*{content['notice']}*"]) + "\n"


def checklists_markdown(content: dict[str, Any]) -> str:
    """Every item of every checklist with its status and the section of the report."""
    parts = [
        f"# Reporting checklists: {_plain(content['title'])}",
        f"{_plain(content['subtitle'])}. {content['notice']}",
        '"Met" says that the report answers the item, not that the answer is good. Subjects are in '
        "our own words under the published numbers; cite the published checklists.",
    ]
    for name, items in content["checklists"].items():
        parts.append(f"## {name}: {count_statuses(items)}")
        rows = [
            (item.number, item.subject, item.status,
             f"report, section {content['numbers'][item.section]}" if item.section
             else "manuscript")
            for item in items
        ]  # fmt: skip
        parts.append(_table(("Item", "Subject", "Status", "Where"), rows))
    return "\n\n".join(parts) + "\n"


def _head(content: dict[str, Any], prefix: str = "") -> str:
    lines = [
        f"# {prefix}{_plain(content['title'])}",
        _plain(content["subtitle"]),
        f"**{content['notice']}**",
        f"**{content['verdict']}**",
    ]
    if not content["consistent"]:
        lines += [
            f"- {_plain(check.name)}: {'not made' if check.passed is None else 'failed'}. "
            f"{_plain(check.detail)}"
            for check in content["checks"]
            if check.passed is not True
        ]
    return "\n\n".join(lines)


def _block(block: Block, run_dir: Path | None) -> str:
    if isinstance(block, Text):
        return _plain(block.text)
    if isinstance(block, Lack):
        return "\n".join([f"> {_plain(block.text)}", *(f"> - {_plain(i)}" for i in block.items)])
    if isinstance(block, Alarm):
        return f"> **Attention.** {_plain(block.text)}"
    if isinstance(block, Table):
        table = _table(block.header, block.rows)
        return f"{_plain(block.caption)}\n\n{table}" if block.caption else table
    place = block.path if run_dir is None else block.path.relative_to(run_dir)
    return f"![{_plain(block.caption)}]({place.as_posix()})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_row(header), _row(["---"] * len(header)), *(_row(row) for row in rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    """Text that stays text: no line breaks, no HTML, no emphasis from a covariate's value."""
    single = " ".join(str(text).split())
    for mark in ("\\", "`", "*", "<", "["):
        single = single.replace(mark, f"\\{mark}")
    return single
