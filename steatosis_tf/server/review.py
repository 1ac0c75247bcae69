"""`steatosis review`: a page on which a person looks through the boxes of a manifest.

The page is `templates/review.html`. It is answered when the disk has the decision, so a reviewer is
never told "saved" too early.
"""

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Query, Response
from pydantic import BaseModel, Field, FiniteFloat

from steatosis_tf.roi.review.rules import Decision, checked_reviewer
from steatosis_tf.roi.review.store import DecisionStore
from steatosis_tf.roi.sector import Fan
from steatosis_tf.roi.sector.find import kept_fan, sector_cell
from steatosis_tf.roi.views import Rectangle, around_sector
from steatosis_tf.server.app import bound_socket, make_app, serve
from steatosis_tf.server.frames import (
    Polygon,
    StudyFolders,
    check_study,
    frame_outlines,
    picture,
    shown_fan,
    shown_frame,
)

DEFAULT_PORT = 8741
# A smaller box has fewer pixels than a texture needs, and cannot be grasped with a mouse.
MIN_BOX_PX = 16
_NUM_AHEAD = 4

FilterName = Literal["to_review", "no_box", "accepted", "corrected", "rejected", "all"]
OrderName = Literal["file", "worst"]


class Place(BaseModel):
    """Where the browser wants to go."""

    frame_id: str = ""
    step: Annotated[int, Field(ge=-1, le=1)] = 0
    rank: int | None = None
    filter_by: FilterName = "to_review"
    order: OrderName = "file"


class WantedDecision(BaseModel):
    """A decision as the browser sends it.

    `box` is top, left, height, width in px; `corners` are x and y in px of near left, near right,
    far right and far left of the fan, where the frame is seen in beam space.
    """

    frame_id: str
    revision: str
    action: Literal["accept", "correct", "reject", "undo", "reopen"]
    box: tuple[int, int, int, int] | None = None
    corners: Annotated[list[FiniteFloat], Field(min_length=8, max_length=8)] | None = None
    reason: str = ""


def review(
    manifest_path: str | Path,
    *,
    reviewer: str,
    port: int = DEFAULT_PORT,
    frame_folders: Sequence[str | Path] = (),
    open_browser: bool = True,
) -> None:
    """Serve the review page on 127.0.0.1 until interrupted.

    A decision is on disk, beside the manifest, before the page says so; the manifest follows
    within a moment. Several reviewers may run this on one manifest at a time, each on a port of
    their own. The page shows no grades: the review is blind. The patient's pseudonym stands beside
    the frame's, so that two people can speak about a case.

    Args:
        manifest_path: manifest.csv with ROI columns, as `steatosis roi` writes them.
        reviewer: goes into `roi_reviewer`, for example initials.
        port: of 127.0.0.1; 0 takes any that is free, and says which.
        frame_folders: folders of frames besides that of the manifest.
        open_browser: whether to open the page in the default browser.

    Raises:
        ValueError: if the manifest cannot be read or is empty, frames of it lie in other folders,
            nothing can be written beside it, the reviewer's name is empty, or the port is taken.
    """
    reviewer = checked_reviewer(reviewer)
    with bound_socket(port) as bound:
        folders = StudyFolders(manifest_path, frame_folders)
        store = DecisionStore(manifest_path)
        if not len(store):
            text = f"Expected a manifest with frames. Received: {store.path.name} with none."
            raise ValueError(text)
        check_study(store.path, folders)
        store.start_folding()
        app = make_app("review", at_end=store.close)
        add_routes(app, store, folders, reviewer=reviewer)
        title = f"Review of {store.path.name} by {reviewer}"
        serve(app, bound, title=title, open_browser=open_browser)


def add_routes(app: FastAPI, store: DecisionStore, folders: StudyFolders, *, reviewer: str) -> None:
    """Add what the page asks for.

    Args:
        app: of `make_app`.
        store: of the manifest under review.
        folders: out of which frames may be shown.
        reviewer: goes into `roi_reviewer` of what is decided here.
    """

    def path_of(frame_id: str) -> Path:
        return folders.checked(store.frame_path(store.position(frame_id)))

    @app.get("/review/session")
    def session() -> dict[str, Any]:
        return {"manifest": store.path.name, "reviewer": reviewer, "min_box_px": MIN_BOX_PX}

    @app.get("/review/go")
    def go(place: Annotated[Place, Query()]) -> dict[str, Any]:
        with store.mutex:  # else another request could take in a new manifest between two lines
            store.refresh()
            return _neighbourhood(store, place)

    @app.get("/review/frames/{frame_id}/picture.png")
    def frame_picture(frame_id: str) -> Response:
        return picture(path_of(frame_id))

    @app.get("/review/frames/{frame_id}/outlines")
    def outlines(frame_id: str) -> dict[str, list[Polygon]]:
        return frame_outlines(path_of(frame_id))

    @app.post("/review/decisions")
    def decide(wanted: WantedDecision) -> dict[str, Any]:
        rectangle = None if wanted.box is None else Rectangle(*wanted.box)
        sector = ""
        if wanted.action in ("accept", "correct"):
            # Nobody can vouch for a frame nobody can see.
            frame = shown_frame(path_of(wanted.frame_id))
            if wanted.action == "correct" and rectangle is not None:
                _check_inside_frame(rectangle, frame.height, frame.width)
            if wanted.action == "correct" and wanted.corners is not None:
                fan = _corrected_fan(store, wanted.frame_id, wanted.corners)
                digest = store.pixels_sha256(store.position(wanted.frame_id))
                sector = sector_cell(fan, digest, by_person=True)
                rectangle = around_sector(fan.mask((frame.height, frame.width)))
        decision = Decision(
            wanted.frame_id, wanted.revision, wanted.action, rectangle, wanted.reason, sector
        )
        with store.mutex:
            outcome = store.decide(decision, reviewer=reviewer)
            row = _row(store, store.position(wanted.frame_id), "file")
            return {"saved": outcome.saved, "row": row, **_progress(store)}


def _neighbourhood(store: DecisionStore, place: Place) -> dict[str, Any]:
    queue = store.queue
    look = {"filter_by": place.filter_by, "order": place.order}
    at = store.position(place.frame_id) if place.frame_id else None
    if place.rank is not None:
        here: list[int] = [queue.at_rank(place.rank, place.order)]
    elif at is not None and place.step == 0:
        here = [at]
    else:
        here = queue.following(at, step=place.step or 1, count=1, **look)
    ahead, behind = [], []
    if here:
        ahead = queue.following(here[0], step=1, count=_NUM_AHEAD, **look)
        behind = queue.following(here[0], step=-1, count=1, **look)
    return {
        "row": _row(store, here[0], place.order) if here else None,
        "ahead": [_row(store, at, place.order) for at in ahead],
        "behind": [_row(store, at, place.order) for at in behind],
        **_progress(store),
    }


def _progress(store: DecisionStore) -> dict[str, Any]:
    return {"counts": store.queue.counts(), "fold_error": store.fold_error}


def _row(store: DecisionStore, at: int, order: str) -> dict[str, Any]:
    # No path and no grade: a folder may be called "Severe", and the review is blind.
    cells = store.cells(at)
    return {
        "frame_id": store.frame_id(at),
        "patient_id": store.patient_id(at),
        "rank": store.queue.rank(at, order),
        "total": len(store),
        "box": cells.rectangle and astuple(cells.rectangle),
        "fan": _shown_fan(store, at),
        "num_decisions": store.num_decisions(at),
        "revision": cells.revision,
        **{
            name: getattr(cells, name)
            for name in ("source", "quality", "reason", "state", "reviewer", "reviewed_at")
        },
    }


def _shown_fan(store: DecisionStore, at: int) -> dict[str, Any] | None:
    """The fan of a frame that is seen in beam space, by its corners; None if it is not known."""
    cells = store.cells(at)
    if not cells.view or cells.rectangle is None:
        return None
    fan = kept_fan(store.pixels_sha256(at), cells.sector)
    return None if fan is None else shown_fan(fan)


def _corrected_fan(store: DecisionStore, frame_id: str, corners: Sequence[float]) -> Fan:
    at = store.position(frame_id)
    fan = kept_fan(store.pixels_sha256(at), store.cells(at).sector)
    if fan is None:
        raise ValueError(
            "Expected a frame whose fan is known. Received: one without. Run `steatosis roi "
            "MANIFEST_CSV --set roi.method=beamspace` with this version, or reject the frame."
        )
    return fan.with_corners(np.reshape(corners, (4, 2)))


def _check_inside_frame(box: Rectangle, height: int, width: int) -> None:
    if min(box.height, box.width) < MIN_BOX_PX or box.bottom > height or box.right > width:
        raise ValueError(
            f"Expected a box of at least {MIN_BOX_PX} px a side inside the frame of "
            f"{width} × {height} px. Received: {box}."
        )
