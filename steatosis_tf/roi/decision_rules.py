"""What a person may decide about the ROI of a frame, and what the manifest row becomes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from steatosis_tf.roi.crop import Rectangle
from steatosis_tf.roi.roi_cells import RoiCells

ACTIONS = ("accept", "correct", "reject", "undo", "reopen")
MAX_REASON_CHARACTERS = 200
MAX_REVIEWER_CHARACTERS = 40


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
            f"example initials. Received: reviewer={name!r}."
        )
    return stripped


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


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
