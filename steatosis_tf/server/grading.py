"""`steatosis review --grade`: a page on which readers grade whole patients, blind.

The page is `templates/grade.html`. It shows the frames of a case and nothing that was said of them:
no grade, no answer of a model or of another reader, no id, no file name. It is answered when the
disk has the reading, so a reader is never told "saved" too early.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Response
from pydantic import BaseModel, Field

from steatosis_tf.cohort.manifest import read_manifest
from steatosis_tf.grades import GRADES
from steatosis_tf.server.app import bound_socket, make_app, serve
from steatosis_tf.server.frames import StudyFolders, check_study, picture, shown_frame
from steatosis_tf.server.readings import (
    DEFAULT_REPEATS,
    STORE_NAME,
    TABLE_NAME,
    Reading,
    ReadingStudy,
    checked_initials,
)
from steatosis_tf.server.review import DEFAULT_PORT


class LogOn(BaseModel):
    """Who wants to read; `begins` confirms initials that are new."""

    initials: str
    begins: bool = False


class WantedAnswer(BaseModel):
    """An answer as the browser sends it: a grade with a confidence, or the reason for none."""

    case: int
    grade: Annotated[int, Field(ge=0, lt=len(GRADES))] | None = None
    confidence: Literal["", "low", "medium", "high"] = ""
    reason: str = ""


def grade(
    manifest_path: str | Path,
    *,
    repeats: float = DEFAULT_REPEATS,
    port: int = DEFAULT_PORT,
    frame_folders: Sequence[str | Path] = (),
    open_browser: bool = True,
) -> Path:
    """Serve the grading page on 127.0.0.1 until interrupted.

    Readers log on by initials and go on where they were. Several may use one server, or one each
    on the same manifest. Every answer is on disk before the page goes on.

    Args:
        manifest_path: as `build_manifest` writes it, with grades or without.
        repeats: proportion of the patients, 0 to 1, that a new reader sees twice.
        port: of 127.0.0.1; 0 takes any that is free, and says which.
        frame_folders: folders of frames besides that of the manifest.
        open_browser: whether to open the page in the default browser.

    Returns:
        the path of `readings.csv`, which is there once somebody has logged on.

    Raises:
        ValueError: if the manifest or the store of readings cannot be used, frames of it lie in
            other folders, nothing can be written beside it, or the port is taken.
    """
    with bound_socket(port) as bound:
        folders = StudyFolders(manifest_path, frame_folders)
        read_manifest(manifest_path, for_review=True)  # else a store would be left beside none
        check_study(Path(manifest_path), folders)
        study = ReadingStudy(manifest_path, repeats)
        if away := study.num_elsewhere():  # of a second manifest in the folder, for example
            print(
                f"{TABLE_NAME} now holds the readings of {study.path.name} alone; patients who "
                f"were read and are not in it: {away}. The store {STORE_NAME} keeps theirs.",
                file=sys.stderr,
            )
        app = make_app("grade")
        add_routes(app, study, folders)
        title = f"Blind grading of {study.path.name}"
        serve(app, bound, title=title, open_browser=open_browser)
    return study.path.with_name(TABLE_NAME)


def add_routes(app: FastAPI, study: ReadingStudy, folders: StudyFolders) -> None:
    """Add what the page asks for.

    Args:
        app: of `make_app`.
        study: of the manifest that is read.
        folders: out of which frames may be shown.
    """

    def place(reader: str) -> dict[str, Any]:
        return {**asdict(study.place(reader)), "trouble": study.table_error}

    @app.get("/grade/session")
    def session() -> dict[str, Any]:
        return {"grades": GRADES}

    @app.post("/grade/log-on")
    def log_on(wanted: LogOn) -> dict[str, Any]:
        reader = checked_initials(wanted.initials)
        if not wanted.begins and not study.is_known(reader):
            return {"reader": reader, "is_new": True}
        study.log_on(reader)
        return {"reader": reader, "is_new": False, **place(reader)}

    # Cases have numbers: an id, or its place among others, can tell the grade.
    @app.get("/grade/{reader}/frames/{case}-{number}/picture.png")
    def frame_picture(reader: str, case: int, number: int) -> Response:
        paths = study.frame_paths(reader, case)
        if number not in range(len(paths)):
            raise ValueError(f"Expected a frame of this case. Received: number={number}.")
        return picture(folders.checked(paths[number]))

    @app.post("/grade/{reader}/answers")
    def answer(reader: str, wanted: WantedAnswer) -> dict[str, Any]:
        if wanted.grade is not None:
            _check_seen([folders.checked(path) for path in study.frame_paths(reader, wanted.case)])
        reading = Reading(wanted.grade, wanted.confidence, wanted.reason)
        saved = study.answer(reader, wanted.case, reading)
        return {"saved": saved, **place(reader)}

    @app.post("/grade/{reader}/undo")
    def undo(reader: str) -> dict[str, Any]:
        taken_back = study.undo(reader)
        return {"taken_back": taken_back and asdict(taken_back[1]), **place(reader)}


def _check_seen(paths: Sequence[Path]) -> None:
    """Nobody can grade a patient of whom no frame can be shown."""
    for path in paths:
        try:
            shown_frame(path)
            return
        except ValueError:
            continue
    raise ValueError("No frame of this case can be shown: say that it cannot be graded.")
