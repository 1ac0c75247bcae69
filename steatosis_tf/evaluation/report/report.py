"""The report of a run: `report.html`, `report.md`, `model_card.md` and `checklists.md`.

Everything is read from the run directory; what is not there is said to be missing. Numbers are
computed anew from the score files, so that an edited metrics.json cannot reach a reader, and the
report calls itself consistent only if every self-check was made and passed.

The report is written once, as Markdown, by the blocks of `templates/report.md.j2`; rendered by
markdown-it-py into `templates/page.html.j2` that is the page, with its pictures inside.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

from steatosis_tf.evaluation.clinical.calibration import NUM_BINS
from steatosis_tf.evaluation.metrics.registry import METRICS, shown_in
from steatosis_tf.evaluation.report import content, tables
from steatosis_tf.evaluation.report.analysis import Analysis, analyse_run
from steatosis_tf.evaluation.report.checks import (
    Item,
    count_statuses,
    fill_checklists,
    is_consistent,
)
from steatosis_tf.evaluation.report.run import RunRecord, read_run
from steatosis_tf.files import write_bytes
from steatosis_tf.grades import FAT_CUTS_PERCENT, GRADES, NOTICE

_TEMPLATES = Path(__file__).with_name("templates")

#: Block of the template -> title of its section, in order. A block that says nothing has none.
_SECTIONS = {
    "use": "Intended use and limits of use",
    "data": "Data",
    "reference": "Reference standard",
    "flow": "Flow of patients and frames",
    "split": "Split and data-leakage check",
    "method": "Preprocessing, model and computation",
    "size": "Sample size",
    "levels": "Unit of inference and intervals",
    "results": "Confusion matrix and per-class results",
    "ordinal": "Ordinal results and areas under curves",
    "operating": "Operating points",
    "calibration": "Calibration and prediction sets",
    "decision": "Decision curves",
    "subgroups": "Subgroups",
    "robustness": "Robustness and repeatability",
    "abstention": "Abstention",
    "patients": "Patients, the most wrong first",
    "failures": "Failures",
    "explanation": "Explanation",
    "external": "External validation",
    "limits": "Limits, risks, monitoring, availability",
    "checks": "Self-check",
}

# What the folder of an external validation cannot say: nothing was split or trained there.
_OF_TRAINING = ("flow", "split", "method", "levels", "robustness", "abstention", "failures")

# Headings of a model card (Mitchell et al. 2019, doi 10.1145/3287560.3287596) and the sections of
# the report that answer them.
_CARD = {
    "Model details": ("method",),
    "Intended use": ("use",),
    "Factors": ("subgroups",),
    "Metrics": ("levels",),
    "Training and evaluation data": ("data", "reference", "flow", "split"),
    "Quantitative analyses": ("results", "ordinal", "operating", "calibration"),
    "Robustness and external validation": ("robustness", "external"),
    "Ethical considerations, caveats and recommendations": ("limits",),
}

# Stands before each section in the rendered template; no text holds it.
_MARK = "\x1e"

_MET = (
    '"Met" says that the report answers the item, not that the answer is good. Subjects are in our '
    "own words under the published numbers; cite the published checklists."
)


def write_report(
    run_dir: str | Path, *, num_resamples: int = 2000, covariates: Sequence[str] = ()
) -> Path:
    """Write the report of a run beside its results.

    Args:
        run_dir: `runs/<experiment>/<run_id>`, or the folder of an external validation. Files of
            later steps are used if they are there: leak_gate.json, robustness.csv, hepatorenal.csv
            (`patient_id, hepatorenal_index`), and the author's study.json (`run.STUDY_KEYS`).
        num_resamples: bootstrap resamples of every interval.
        covariates: columns of the manifest to look at as subgroups, beside `analysis.COVARIATES`.

    Returns:
        path of `report.html`. Beside it are `report.md`, `model_card.md` and `checklists.md`, and
        in `figures/` the figures that follow from the scores.

    Raises:
        ValueError: if `run_dir` is not a run, or study.json is malformed. A damaged result is no
            error: the report is written and says what is wrong.
    """
    run = read_run(run_dir)
    analysis = analyse_run(run, num_resamples=num_resamples, covariates=covariates)
    figures = tables.draw_figures(run, analysis)
    checklists = fill_checklists(run, analysis)
    blocks = _render(run, analysis, figures, checklists)
    title, subtitle = map(_plain, content.titles(run))
    first = [blocks["first_page"], _self_check(analysis)]
    if not is_consistent(analysis.checks):
        first.reverse()  # a doubt stands before the numbers
    opening = "\n\n".join([subtitle, f"**{NOTICE}**", *filter(None, first)])
    sections = {key: text for key in _order(run) if (text := blocks[key])}
    numbered = [
        f"## {number}. {_SECTIONS[key]}\n\n{text}"
        for number, (key, text) in enumerate(sections.items(), start=1)
    ]
    end = f"*{NOTICE}*\n"
    counts = "\n".join(f"- {name}: {count_statuses(items)}" for name, items in checklists.items())
    short = f"## Reporting checklists\n\nIn full in `checklists.md`.\n\n{counts}"
    full = f"## Reporting checklists\n\n{_MET}\n\n" + blocks["checklists"].replace("## ", "### ")
    head = f"# {title}\n\n{opening}"
    pages = {
        "report.md": "\n\n".join([head, *numbered, short, end]),
        "model_card.md": "\n\n".join([f"# Model card: {title}", opening, *_card(blocks), end]),
        "checklists.md": "\n\n".join(
            [f"# Reporting checklists: {title}", f"{subtitle}. {NOTICE}", _MET,
             blocks["checklists"] + "\n"]
        ),
        "report.html": page_html("\n\n".join([head, *numbered, full, end]), run.run_dir),
    }  # fmt: skip
    if run.external:  # of a model that was made elsewhere, and has its card
        del pages["model_card.md"]
    for name, text in pages.items():
        write_bytes(text.encode(), run.run_dir / name)
    return run.run_dir / "report.html"


def read_opening(run_dir: Path) -> list[str]:
    """Paragraphs of the report's first page, from the notice on."""
    opening = (run_dir / "report.md").read_text(encoding="utf-8").partition("\n## ")[0]
    # Title and subtitle say what the page of the run says.
    return opening.strip().split("\n\n")[2:]


def read_verdict(run_dir: Path) -> str:
    """The report's first sentence, without its marks: whether the run is any good, or a doubt."""
    return read_opening(run_dir)[1].splitlines()[0].strip("*> ")


def _order(run: RunRecord) -> list[str]:
    """Keys of the sections; what a reader of a validation came for stands first."""
    return sorted(_SECTIONS, key=lambda key: run.external is None or key != "external")


def _self_check(analysis: Analysis) -> str:
    """One line if the run is consistent; otherwise a warning and every check that did not hold."""
    sentence = content.consistency(analysis)
    if is_consistent(analysis.checks):
        return sentence
    lines = [
        f"> - {_plain(check.name)}: {'not made' if check.passed is None else 'failed'}. "
        f"{_plain(check.detail)}"
        for check in analysis.checks
        if check.passed is not True
    ]
    return "\n".join([f"> **{sentence}**", ">", *lines])


def _card(blocks: Mapping[str, str]) -> list[str]:
    """The same blocks under the headings of a model card, without pictures."""
    parts = []
    for heading, keys in _CARD.items():
        parts.append(f"## {heading}")
        for key in keys:
            text = "\n".join(line for line in blocks[key].splitlines() if not line.startswith("!["))
            if text:
                parts.append(f"### {_SECTIONS[key]}\n\n{text}" if len(keys) > 1 else text)
    return parts


def _render(
    run: RunRecord,
    analysis: Analysis,
    figures: Mapping[str, Path],
    checklists: dict[str, list[Item]],
) -> dict[str, str]:
    """Section -> its Markdown, "" for one that has nothing to say; and `checklists`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), trim_blocks=True, lstrip_blocks=True,
        autoescape=True, finalize=_plain,
    )  # fmt: skip
    environment.filters |= {
        "markdown": Markup,
        "level_words": tables.LEVELS.__getitem__,
        "notes_first": lambda notes: [(note, name) for name, note in notes.items()],
        "first_reaching": lambda values, level: int(np.searchsorted(values, level - 1e-9)),
    }
    scanners: set[str] = set()
    if run.manifest is not None and "scanner" in run.manifest.columns:
        scanners = set(run.manifest["scanner"].astype(str)) - {""}
    state = {True: "yes", False: "no", None: "not checked"}
    whole = environment.get_template("report.md.j2").render(
        run=run, analysis=analysis, c=content, t=tables, grades=list(GRADES), metrics=METRICS,
        group_labels=list(shown_in("groups").values()), cuts=FAT_CUTS_PERCENT, num_bins=NUM_BINS,
        scanners=scanners, captions=tables.figure_captions(list(figures)),
        section=lambda key: Markup(f"{_MARK}{key}\n"),
        without=lambda part, key: {k: v for k, v in part.items() if k != key},
        undefined=sorted({n for found in analysis.metrics.values() for n in found["notes"]}),
        check_rows=[(check.name, state[check.passed], check.detail) for check in analysis.checks],
    )  # fmt: skip
    parts = (part.split("\n", 1) for part in whole.split(_MARK)[1:])
    found = {key.strip(): _tidy(text) for key, text in parts}
    if run.external:
        found |= dict.fromkeys(_OF_TRAINING, "")
    filled = [key for key in _order(run) if found[key]]
    items = environment.get_template("checklists.md.j2").render(
        checklists=checklists, count=count_statuses,
        numbers={key: number for number, key in enumerate(filled, start=1)},
    )  # fmt: skip
    return found | {"checklists": _tidy(items)}


def _plain(value: Any) -> Markup:
    """Text that stays text: no line breaks, no HTML, no emphasis from a covariate's value."""
    if isinstance(value, Markup):
        return value
    single = " ".join(str(value).split())
    for mark in ("\\", "`", "*", "<", "[", "|"):
        single = single.replace(mark, f"\\{mark}")
    return Markup(single)


def _tidy(text: str) -> str:
    """One empty line between paragraphs, none inside a table or a quotation."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    kept: list[str] = []
    for place, line in enumerate(lines):
        following = next((later for later in lines[place + 1 :] if later), "")
        inside = kept and kept[-1][:1] == following[:1] and following[:1] in ("|",)
        if line or (kept and kept[-1] and not inside):
            kept.append(line)
    return "\n".join(kept)


#: All pictures together; base64 makes them a third larger, and the page has to stay under 5 MB.
_MAX_PICTURE_BYTES = 3_300_000

#: Longer tables are folded: the page stays light, and printing opens them.
_MAX_OPEN_ROWS = 18


def page_html(markdown: str, run_dir: Path) -> str:
    """The page of a report.

    Args:
        markdown: the report; pictures are linked relative to `run_dir`. The paragraph before a
            table is its caption. HTML in it stays text.
        run_dir: folder of the pictures.

    Raises:
        ValueError: if the pictures are too heavy and cannot be made smaller.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(markdown)
    images = _images(
        {str(part.attrs["src"]) for token in tokens for part in token.children or ()
         if part.type == "image"},
        run_dir,
    )  # fmt: skip
    title = next((tokens[place + 1].content for place, token in enumerate(tokens)
                  if token.type == "heading_open"), "Report")  # fmt: skip
    contents = _prepare(tokens)
    reader.add_render_rule("image", lambda self, parts, place, *_: _figure(parts[place], images))
    reader.add_render_rule("table_open", lambda self, parts, place, *_: _table_open(parts[place]))
    reader.add_render_rule("table_close", lambda self, parts, place, *_: _table_close(parts[place]))
    body = reader.renderer.render(tokens, reader.options, {})
    # An interval stays on one line: its spaces become no-break spaces.
    body = re.sub(r"\([-\d.]+ to [-\d.]+\)", lambda found: found[0].replace(" ", "\xa0"), body)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    plain = reader.renderInline(title)
    return environment.get_template("page.html.j2").render(
        title=Markup(plain).striptags(), contents=contents, body=Markup(body)
    )


def _prepare(tokens: list[Token]) -> list[tuple[str, str]]:
    """Give headings anchors, tables captions and quotations kinds; the list of contents."""
    contents: list[tuple[str, str]] = []
    for place, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag == "h2":
            key = f"section-{len(contents) + 1}"
            token.attrSet("id", key)
            contents.append((key, tokens[place + 1].content))
        elif token.type == "blockquote_open":
            words = next(later.content for later in tokens[place:] if later.type == "inline")
            token.attrSet("class", "alarm" if words.startswith("**") else "lack")
        elif token.type == "table_open":
            before = tokens[max(place - 2, 0)]
            has_caption = tokens[place - 1].type == "paragraph_close" and before.type == "inline"
            token.meta["caption"] = before.content if has_caption else ""
            end = next(k for k in range(place, len(tokens)) if tokens[k].type == "table_close")
            rows = sum(later.type == "tr_open" for later in tokens[place:end]) - 1
            token.meta["folded"] = tokens[end].meta["folded"] = rows > _MAX_OPEN_ROWS
            if has_caption:
                for part in tokens[place - 3 : place]:
                    part.hidden = True
                before.content, before.children = "", []
        elif token.children and all(part.type == "image" for part in token.children):
            tokens[place - 1].hidden = tokens[place + 1].hidden = True
    return contents


def _table_open(token: Token) -> str:
    caption = str(escape(token.meta["caption"].replace("\\", "")))
    if token.meta["folded"]:
        return f"<details><summary>{caption or 'Table'}</summary><div class='wide'><table>\n"
    return f"<div class='wide'><table>\n{'<caption>' + caption + '</caption>' if caption else ''}"


def _table_close(token: Token) -> str:
    return "</table></div></details>\n" if token.meta["folded"] else "</table></div>\n"


def _figure(token: Token, images: dict[str, bytes]) -> str:
    data = images[str(token.attrs["src"])]
    # Width and height stand in the IHDR chunk, bytes 16 to 24 of every PNG (RFC 2083).
    width, height = (int.from_bytes(data[place : place + 4], "big") for place in (16, 20))
    kind = ' class="tall"' if height > width else ""
    caption = escape(token.content)
    # Figures are drawn at 150 px an inch, a page has 96: shown at their true size.
    return (
        f'<figure{kind}><img alt="{caption}" width="{round(width * 96 / 150)}" '
        f'height="{round(height * 96 / 150)}" loading="lazy" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def _images(sources: set[str], run_dir: Path) -> dict[str, bytes]:
    """Pictures; if they are too heavy together, the heaviest are made smaller."""
    stored = {source: (run_dir / source).read_bytes() for source in sorted(sources)}
    while sum(map(len, stored.values())) > _MAX_PICTURE_BYTES:
        heaviest = max(stored, key=lambda source: len(stored[source]))
        stored[heaviest] = _smaller(stored[heaviest])
    return stored


def _smaller(data: bytes) -> bytes:
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None or min(picture.shape[:2]) < 64:
        raise ValueError("Expected readable PNG figures of a few MB. Received: one that is not.")
    small = cv2.resize(picture, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".png", small, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()
