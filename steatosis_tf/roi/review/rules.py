"""The ROI of a manifest row, what a person may decide about it, and what the row becomes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from steatosis_tf.cohort.decision_store import DECISION_COLUMNS
from steatosis_tf.roi.views import Rectangle

#: States a person gives a frame; the state of a frame nobody has looked at is "".
STATES = ("accepted", "corrected", "rejected")
ACTIONS = ("accept", "correct", "reject", "undo", "reopen")
#: All ROI columns; the quality is the proposer's and no person changes it.
ROI_CELLS = (*DECISION_COLUMNS, "roi_quality")
# The columns behind those of the rectangle, by the names of their fields.
_TEXTS = tuple(name.removeprefix("roi_") for name in DECISION_COLUMNS[4:])
MAX_REASON_CHARACTERS = 200
MAX_REVIEWER_CHARACTERS = 40


@dataclass(frozen=True)
class RoiCells:
    """The ROI of one frame, as the manifest has it.

    Attributes:
        rectangle: px of the full frame, around the sector where beam space is seen; None if nobody
            and nothing could place it.
        source: "auto" or "person": who drew the rectangle or the fan, or decided that there is
            none.
        quality: of the automatic proposal, 0 to 1; None if unknown.
        reason: why there is no proposal, or why a person corrected or rejected it.
        state: one of `STATES`, or "" while nobody has looked at the frame.
        reviewer: who decided; "" while nobody has.
        reviewed_at: when, UTC, ISO 8601; "" while nobody has.
        view: what the model sees, see `roi.views.VIEW_COLUMN`; "" is the rectangle.
        sector: the fan, see `roi.sector.find.sector_cell`; "" if it is not known.
    """

    rectangle: Rectangle | None = None
    source: str = ""
    quality: float | None = None
    reason: str = ""
    state: str = ""
    reviewer: str = ""
    reviewed_at: str = ""
    view: str = ""
    sector: str = ""

    @property
    def revision(self) -> str:
        """Short hash of the content: it tells whether somebody else changed the row meanwhile."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    @staticmethod
    def from_row(row: dict[str, Any]) -> "RoiCells":
        """From a manifest row, as `read_manifest` types it or as `as_texts` writes it.

        Missing columns count as unknown.
        """
        sides: list[Any] = [row.get(name) for name in DECISION_COLUMNS[:4]]
        quality: Any = row.get("roi_quality")
        return RoiCells(
            # A row with half a rectangle, typed by hand, is a row without one.
            Rectangle(*(int(side) for side in sides)) if not any(map(_unknown, sides)) else None,
            quality=None if _unknown(quality) else float(quality),
            **{name: row.get(f"roi_{name}") or "" for name in _TEXTS},
        )

    def as_texts(self) -> dict[str, str]:
        """CSV texts of `ROI_CELLS`; `from_row` turns them back."""
        box = self.rectangle
        sides = ("", "", "", "") if box is None else (box.top, box.left, box.height, box.width)
        rest = (getattr(self, name) for name in _TEXTS)
        quality = "" if self.quality is None else self.quality
        return dict(zip(ROI_CELLS, map(str, (*sides, *rest, quality)), strict=True))


@dataclass(frozen=True)
class Decision:
    """One thing that a person wants.

    Attributes:
        frame_id: of which frame.
        revision: `RoiCells.revision` of the row that the person saw.
        action: one of `ACTIONS`. "undo" takes back the frame's last decision, "reopen" all of
            them, so that the automatic proposal stands again.
        rectangle: the person's, px of the full frame; for "correct" only. Of a frame that is seen
            in beam space it is the one around the fan.
        sector: the person's fan, as `sector_cell` writes it; for "correct" only, where the frame
            is seen in beam space.
        reason: needed for "reject", optional for "correct".
    """

    frame_id: str
    revision: str
    action: str
    rectangle: Rectangle | None = None
    reason: str = ""
    sector: str = ""


@dataclass(frozen=True)
class Outcome:
    """`saved` is False if somebody else changed the row meanwhile; `cells` is the row as it is."""

    saved: bool
    cells: RoiCells


def decided(
    before: RoiCells, stack: Sequence[RoiCells], decision: Decision, reviewer: str
) -> RoiCells:
    """What a decision makes of a row.

    Args:
        before: the row as it is.
        stack: the row before each decision that still stands, oldest first.
        decision: what the person wants.
        reviewer: who that is.

    Raises:
        ValueError: if the action is unknown or impossible, or a reason is missing or too long.
    """
    if decision.action not in ACTIONS:
        raise ValueError(
            f"Expected an action out of {', '.join(ACTIONS)}. Received: action={decision.action!r}."
        )
    if decision.action in ("undo", "reopen"):
        if not stack:
            raise ValueError("There is no decision to take back on this frame.")
        return stack[-1 if decision.action == "undo" else 0]
    signed = replace(before, reviewer=checked_reviewer(reviewer), reviewed_at=now())
    if decision.action == "accept":
        if before.rectangle is None:
            raise ValueError("There is no box to accept: draw one, or reject the frame.")
        return replace(signed, state="accepted")
    # From here on the row is a person's, whatever the proposer thought of it.
    signed = replace(signed, source="person", reason=_checked_reason(decision))
    if decision.action == "correct":
        if decision.rectangle is None:
            raise ValueError("Expected the corrected box. Received: rectangle=None.")
        if bool(decision.sector) != bool(before.view):
            raise ValueError(
                "Expected a corrected fan where the frame is seen in beam space, and a corrected "
                f"box elsewhere. Received: view={before.view!r} sector={decision.sector!r}."
            )
        sector = decision.sector or before.sector
        return replace(signed, rectangle=decision.rectangle, sector=sector, state="corrected")
    # Without its box a rejected frame cannot slip into training through code that looks at the
    # rectangle only. The store keeps the box for undo.
    return replace(signed, rectangle=None, state="rejected")


def checked_reviewer(name: str) -> str:
    """A reviewer's name, without spaces around it.

    Raises:
        ValueError: if it is empty, longer than 40 characters or has a line break.
    """
    stripped = name.strip()
    if not stripped or len(stripped) > MAX_REVIEWER_CHARACTERS or not stripped.isprintable():
        raise ValueError(
            f"Expected a reviewer of 1 to {MAX_REVIEWER_CHARACTERS} characters on one line, for "
            f"example initials (--reviewer AB). Received: reviewer={name!r}."
        )
    return stripped


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def keep_persons_boxes(old_table: pd.DataFrame, new_table: pd.DataFrame) -> pd.DataFrame:
    """Automatic boxes from a new run, except where a person has decided.

    A row is a person's if `roi_source` is "person" or `roi_state` is set: a proposal that a
    person accepted stays the one that was accepted, even where a better proposer would now
    place another.

    Args:
        old_table: manifest as it was, as `read_manifest` returns it.
        new_table: the same frames with new ROI columns.

    Returns:
        a copy of `new_table` in which the rows of a person hold all ROI cells of `old_table`.
    """
    persons = pd.Series(False, index=old_table.index)
    if "roi_source" in old_table.columns:
        persons |= old_table["roi_source"] == "person"
    if "roi_state" in old_table.columns:
        persons |= old_table["roi_state"] != ""
    merged = new_table.copy()
    kept = old_table.loc[persons].set_index("frame_id")
    rows = merged["frame_id"].isin(kept.index)
    frame_ids = merged.loc[rows, "frame_id"]
    for name in [name for name in ROI_CELLS if name in old_table.columns]:
        if name not in merged.columns:
            merged[name] = pd.Series(_empty(name), index=merged.index, dtype=kept[name].dtype)
        merged.loc[rows, name] = kept.loc[frame_ids, name].array
    for name in set(ROI_CELLS) & set(merged.columns) - set(old_table.columns):
        merged.loc[rows, name] = _empty(name)
    return merged


def _checked_reason(decision: Decision) -> str:
    reason = " ".join(decision.reason.split())
    if len(reason) > MAX_REASON_CHARACTERS:
        raise ValueError(
            f"Expected a reason of at most {MAX_REASON_CHARACTERS} characters. "
            f"Received: {len(reason)} characters."
        )
    if decision.action == "reject" and not reason:
        raise ValueError("Expected a reason for the rejection. Received: reason=''.")
    return reason


def _unknown(value: Any) -> bool:
    return value is None or bool(pd.isna(value)) or value == ""


def _empty(name: str) -> Any:
    if name in DECISION_COLUMNS[:4]:
        return pd.NA
    return float("nan") if name == "roi_quality" else ""
