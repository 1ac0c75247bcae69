"""The report's page: Markdown as one HTML file without network, pictures inside."""

import base64
import re
from pathlib import Path

import cv2
import jinja2
import numpy as np
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

#: All pictures together; base64 makes them a third larger, and the page has to stay under 5 MB.
_MAX_PICTURE_BYTES = 3_300_000

#: Longer tables are folded: the page stays light, and printing opens them.
_MAX_OPEN_ROWS = 18

_TEMPLATES = Path(__file__).with_name("templates")


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
