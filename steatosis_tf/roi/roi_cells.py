"""The ROI cells of a manifest row: what they hold, and who may overwrite them."""

import hashlib
from dataclasses import dataclass
from typing import Any

import pandas as pd

from steatosis_tf.cohort.decisions import DECISION_COLUMNS
from steatosis_tf.roi.crop import Rectangle

#: States a person gives a frame; the state of a frame nobody has looked at is "".
STATES = ("accepted", "corrected", "rejected")
#: All of them; the quality is the proposer's and no person changes it.
ROI_CELLS = (*DECISION_COLUMNS, "roi_quality")


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
        sector: the fan, see `roi.sector_cell`; "" if it is not known.
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
            **{
                name: row.get(f"roi_{name}") or ""
                for name in (
                    "source",
                    "reason",
                    "state",
                    "reviewer",
                    "reviewed_at",
                    "view",
                    "sector",
                )
            },
        )

    def as_texts(self) -> dict[str, str]:
        """CSV texts of `ROI_CELLS`; `from_row` turns them back."""
        box = self.rectangle
        sides = ("", "", "", "") if box is None else (box.top, box.left, box.height, box.width)
        rest = (self.source, self.reason, self.state, self.reviewer, self.reviewed_at, self.view,
                self.sector)  # fmt: skip
        quality = "" if self.quality is None else self.quality
        return dict(zip(ROI_CELLS, map(str, (*sides, *rest, quality)), strict=True))


def _unknown(value: Any) -> bool:
    return value is None or bool(pd.isna(value)) or value == ""


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


def _empty(name: str) -> Any:
    if name in DECISION_COLUMNS[:4]:
        return pd.NA
    return float("nan") if name == "roi_quality" else ""
