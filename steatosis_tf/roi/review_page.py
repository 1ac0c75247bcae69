"""The review page's routes: what the browser asks for, and what it gets.

The page itself is in `review_page.html`, `.css` and `.js`. It talks to the server by requests
that are answered when the disk has the decision, so a reviewer is never told "saved" too early.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

from fastapi import Depends, HTTPException, Query, Request, Response
from nicegui import app, ui
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from steatosis_tf.roi.crop import Rectangle
from steatosis_tf.roi.decision_rules import Decision
from steatosis_tf.roi.decisions import DecisionStore
from steatosis_tf.roi.review_frames import Polygon, frame_outlines, shown_frame
from steatosis_tf.roi.roi_cells import RoiCells

# A smaller box has fewer pixels than a texture needs, and cannot be grasped with a mouse.
MIN_BOX_PX = 16

_HERE = Path(__file__).parent
_SCRIPTS = (
    "review_page.js",
    "review_panel.js",
    "review_keys.js",
    "review_stage.js",
    "review_box.js",
    "review_server.js",
)
_NUM_AHEAD = 4

FilterName = Literal["to_review", "no_box", "accepted", "corrected", "rejected", "all"]
OrderName = Literal["file", "worst"]
Answer = TypeVar("Answer")


class Place(BaseModel):
    """Where the browser wants to go."""

    frame_id: str = ""
    step: Annotated[int, Field(ge=-1, le=1)] = 0
    rank: int | None = None
    filter_by: FilterName = "to_review"
    order: OrderName = "file"


class WantedDecision(BaseModel):
    """A decision as the browser sends it; `box` is top, left, height, width in px."""

    frame_id: str
    revision: str
    action: Literal["accept", "correct", "reject", "undo", "reopen"]
    box: tuple[int, int, int, int] | None = None
    reason: str = ""


def add_review_page(store: DecisionStore, *, reviewer: str) -> None:
    """Add the page and its routes to NiceGUI's application.

    Args:
        store: of the manifest under review.
        reviewer: goes into `roi_reviewer` of what is decided here.
    """
    # Another web site that the reviewer has open must not reach this server by a name of its own.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    for name in (*_SCRIPTS, "review_page.css"):
        app.add_static_file(local_file=_HERE / name, url_path=f"/review/{name}", max_cache_age=0)

    @ui.page("/", title=f"ROI review · {store.path.name}", dark=True)
    def page() -> None:
        ui.add_head_html('<link rel="stylesheet" href="/review/review_page.css">')
        html = (_HERE / "review_page.html").read_text(encoding="utf-8")
        ui.html(html, sanitize=False)
        ui.add_body_html('<script type="module" src="/review/review_page.js"></script>')

    @app.get("/review/session")
    def session() -> dict[str, Any]:
        return {"manifest": store.path.name, "reviewer": reviewer, "min_box_px": MIN_BOX_PX}

    @app.get("/review/go")
    def go(place: Annotated[Place, Query()]) -> dict[str, Any]:
        return _answered(lambda: _placed(store, place))

    @app.get("/review/frames/{frame_id}/picture.png")
    def picture(frame_id: str) -> Response:
        shown = _answered(lambda: shown_frame(store.frame_path(store.position(frame_id))))
        headers = {
            "Cache-Control": "no-store",
            "X-Frame-Height": str(shown.height),
            "X-Frame-Width": str(shown.width),
            "X-Frame-Notice": quote(shown.notice),
        }
        return Response(shown.png, media_type="image/png", headers=headers)

    @app.get("/review/frames/{frame_id}/outlines")
    def outlines(frame_id: str) -> dict[str, list[Polygon]]:
        return _answered(lambda: frame_outlines(store.frame_path(store.position(frame_id))))

    @app.post("/review/decisions", dependencies=[Depends(_same_origin)])
    def decide(wanted: WantedDecision) -> dict[str, Any]:
        return _answered(lambda: _decided(store, wanted, reviewer))


def _same_origin(request: Request) -> None:
    """Refuse a form that another web site sends from the reviewer's browser."""
    origin = request.headers.get("origin")
    if origin and origin.partition("://")[2] != request.headers.get("host"):
        raise HTTPException(403, "Expected a request from the review page itself.")


def _answered(work: Callable[[], Answer]) -> Answer:
    """Turn the errors that a reviewer can act on into messages instead of stack traces."""
    try:
        return work()
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    except OSError as error:  # TimeoutError among them
        reason = error.strerror or str(error)
        text = f"Not saved: the manifest or its store of decisions cannot be used ({reason})."
        raise HTTPException(503, text) from error


def _placed(store: DecisionStore, place: Place) -> dict[str, Any]:
    with store.mutex:  # else another request could take in a new manifest between two lines
        store.refresh()
        return _neighbourhood(store, place)


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
        "ahead": [store.frame_id(at) for at in ahead],
        "behind": [store.frame_id(at) for at in behind],
        **_progress(store),
    }


def _progress(store: DecisionStore) -> dict[str, Any]:
    return {"counts": store.queue.counts(), "fold_error": store.fold_error}


def _row(store: DecisionStore, at: int, order: str) -> dict[str, Any]:
    # No path, patient or grade: a folder may be called "Severe", and the review is blind.
    cells = store.cells(at)
    return {
        "frame_id": store.frame_id(at),
        "rank": store.queue.rank(at, order),
        "total": len(store),
        "box": _box(cells),
        "num_decisions": store.num_decisions(at),
        "revision": cells.revision,
        **{
            name: getattr(cells, name)
            for name in ("source", "quality", "reason", "state", "reviewer", "reviewed_at")
        },
    }


def _box(cells: RoiCells) -> list[int] | None:
    box = cells.rectangle
    return None if box is None else [box.top, box.left, box.height, box.width]


def _decided(store: DecisionStore, wanted: WantedDecision, reviewer: str) -> dict[str, Any]:
    at = store.position(wanted.frame_id)
    if wanted.action in ("accept", "correct"):
        frame = shown_frame(store.frame_path(at))  # nobody can vouch for a frame nobody can see
    rectangle = None
    if wanted.action == "correct" and wanted.box is not None:
        rectangle = Rectangle(*wanted.box)
        _check_inside(rectangle, frame.height, frame.width)
    decision = Decision(wanted.frame_id, wanted.revision, wanted.action, rectangle, wanted.reason)
    with store.mutex:
        outcome = store.decide(decision, reviewer=reviewer)
        row = _row(store, store.position(wanted.frame_id), "file")
        return {"saved": outcome.saved, "row": row, **_progress(store)}


def _check_inside(box: Rectangle, height: int, width: int) -> None:
    if min(box.height, box.width) < MIN_BOX_PX or box.bottom > height or box.right > width:
        raise ValueError(
            f"Expected a box of at least {MIN_BOX_PX} px a side inside the frame of "
            f"{width} × {height} px. Received: {box}."
        )
