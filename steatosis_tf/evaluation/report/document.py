"""A report as data: sections of blocks, written once and rendered as HTML and as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Lack:
    """Something a reader expects here and that was not done or is not known."""

    text: str
    items: Sequence[str] = ()
    kind: str = "lack"


@dataclass(frozen=True)
class Alarm:
    """Something that makes a result doubtful."""

    text: str
    kind: str = "alarm"


@dataclass(frozen=True)
class Table:
    """Rows of texts under a header; the first column names the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    kind: str = "table"


@dataclass(frozen=True)
class Picture:
    """A PNG of the run directory."""

    path: Path
    caption: str
    kind: str = "picture"


Block = Text | Lack | Alarm | Table | Picture


@dataclass(frozen=True)
class Section:
    """A numbered section; `key` is its anchor."""

    key: str
    title: str
    blocks: Sequence[Block]


def number(value: Any, digits: int = 3) -> str:
    """A number for a table cell; "undefined" for None."""
    if value is None:
        return "undefined"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return str(value)


def with_interval(entry: dict[str, Any] | None, digits: int = 3) -> str:
    """`0.812 (0.744 to 0.871)`; the value alone where there is no interval."""
    if not entry or entry.get("value") is None:
        return "undefined"
    value = number(float(entry["value"]), digits)
    if entry.get("low") is None:
        return f"{value} (no interval)"
    return f"{value} ({entry['low']:.{digits}f} to {entry['high']:.{digits}f})"


def key_value_rows(content: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested JSON as rows of dotted name and value, for parts whose form is their author's."""
    rows: list[tuple[str, str]] = []
    for key, value in content.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, dict):
            rows.extend(key_value_rows(value, name))
        elif isinstance(value, list) and all(isinstance(part, dict) for part in value) and value:
            for place, part in enumerate(value):
                rows.extend(key_value_rows(part, f"{name}[{place}]"))
        elif isinstance(value, list):
            rows.append((name, ", ".join(_as_set(part) for part in value) or "none"))
        else:
            rows.append((name, _as_set(value)))
    return rows


def side_by_side(rows: Sequence[tuple[str, str]]) -> list[tuple[str, str, str, str]]:
    """Two columns of names and values as four, so that a long list fills half a page."""
    half = -(-len(rows) // 2)
    right = [*rows[half:], ("", "")]
    return [(*left, *other) for left, other in zip(rows[:half], right, strict=False)]


def _as_set(value: Any) -> str:
    """A setting as it was written: 1e-4 must not become 0.000."""
    return f"{value:.6g}" if isinstance(value, float) else number(value)
