"""`steatosis page`: drop the frames of one patient and read the answer of a bundle.

The page is `templates/page.html`. Files are read in memory, graded by the same functions as
`steatosis predict`, and forgotten with the answer: nothing is written anywhere. Files and pictures
travel as one line of JSON and the bytes it names, since a form's parser would keep them on disk. A
sector that a person has moved, and a report that is asked for, come with all files once more.
"""

import asyncio
import importlib.util
import io
import json
import math
import re
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from steatosis_tf.deploy.bundle import Bundle
from steatosis_tf.deploy.frames import Look, unable
from steatosis_tf.deploy.inputs import Group, Inputs, Shot
from steatosis_tf.deploy.predict import open_model
from steatosis_tf.grades import FAT_CUTS_PERCENT, GRADES, NOTICE
from steatosis_tf.model.answer import PatientAnswer, plain_answer
from steatosis_tf.quantitative.measure import NAMES, UNITS
from steatosis_tf.roi.sector import Fan
from steatosis_tf.roi.views import to_frame
from steatosis_tf.server.app import LOOPBACK, bound_socket, make_app, serve
from steatosis_tf.server.frames import ShownFrame, encoded, shown_fan

DEFAULT_PORT = 8742
MAX_UPLOAD_BYTES = 128 << 20
MAX_FILES = 64
#: Names of the index and the viewer that a study's CD brings along: not sent, and not counted.
NO_FRAMES = (
    r"(^|[/\\])dicomdir$|"
    r"\.(bat|chm|cmd|config|css|dll|exe|html?|ico|inf|ini|jar|js|lnk|msi|pdf|txt|xml|xsl)$"
)
MAX_FRAMES = 40
#: Of one frame. The widest screen of a scanner has 4; beyond, it is a slide scan or an attack.
MAX_MEGAPIXELS = 12

_MAX_NAME_CHARACTERS = 60
_MAX_HEAD_BYTES = 1 << 16
_MAX_READ_S = 60
# Each holds an upload and its frames in memory; more would only wait for the same cores.
_AT_ONCE = 2
_IMAGES = Path("image files")
_MAX_MAP_SIDE_PX = 480
_CAN_REPORT = importlib.util.find_spec("highdicom") is not None
_ADDS_RGB, _TAKES_RGB = (250, 165, 60), (80, 170, 255)  # told apart by the colour-blind, too


class Correction(BaseModel):
    """A sector as a person has placed it, by the place of its frame in the answer."""

    visit: int
    frame: int
    corners: Annotated[
        list[Annotated[float, Field(ge=-1e5, le=1e5)]], Field(min_length=8, max_length=8)
    ]


class Upload(BaseModel):
    """The first line of an upload; the bytes of the files stand behind it."""

    files: list[tuple[str, NonNegativeInt]]
    corrections: list[Correction] = []


@dataclass
class Visit:
    """One study of the patient.

    Attributes:
        answer: of its frames.
        is_dicom: whether it is a DICOM study.
        shown: the frames for the browser, None where one could not be read.
        maps: what each place adds, as PNG over the frame; None where there is no map.
        fans: of the sectors; None where none was found.
    """

    answer: PatientAnswer
    is_dicom: bool
    shown: list[ShownFrame | None] = field(default_factory=list)
    maps: list[bytes | None] = field(default_factory=list)
    fans: list[Fan | None] = field(default_factory=list)


def page(
    model: str | Path | None = None,
    *,
    port: int = DEFAULT_PORT,
    host: str = LOOPBACK,
    open_browser: bool = True,
) -> None:
    """Serve the reading page until interrupted.

    Args:
        model: bundle or run directory; None is the model that comes with the package.
        port: 0 takes any that is free, and says which.
        host: name or address under which others may open the page, with the token that is
            printed; this machine alone if left out.
        open_browser: whether to open the page in the default browser.

    Raises:
        ValueError: if the bundle cannot be used, or the port or host is not free.
    """
    with bound_socket(port, host) as bound:
        bundle = _opened(model)
        app = make_app("page", host=host, max_body_bytes=MAX_UPLOAD_BYTES)
        add_routes(app, bundle)
        # The networks take a moment to start, and the first patient should not wait for them.
        threading.Thread(target=_warm_up, args=[bundle], daemon=True).start()
        title = f"Reading page with the model {bundle.name}"
        serve(app, bound, title=title, open_browser=open_browser, host=host)


def _opened(model: str | Path | None) -> Bundle:
    grader = open_model(model)
    if not isinstance(grader, Bundle):
        raise ValueError(
            "Expected a bundle, which says score, interval and features. Received: "
            f"{grader.name!r}, a bare network. Answer with it by `steatosis predict`."
        )
    return grader


def add_routes(app: FastAPI, bundle: Bundle) -> None:
    """Add what the page asks for.

    Args:
        app: of `make_app`.
        bundle: that answers.
    """
    turns = asyncio.Semaphore(_AT_ONCE)

    @app.get("/page/session")
    def session() -> dict[str, Any]:
        return {
            "notice": NOTICE,
            "model": {"name": bundle.name, "sha256": bundle.sha256},
            "limits": bundle.about["card"].get("limits", []),
            "grades": GRADES,
            "fat_cuts_percent": FAT_CUTS_PERCENT,
            "change_limit": None if math.isnan(bundle.change_limit) else bundle.change_limit,
            "set_coverage": bundle.joint.calibration.set_coverage,
            "features": {name: [NAMES[name], unit] for name, unit in UNITS.items()},
            "max_upload_bytes": MAX_UPLOAD_BYTES,
            "max_files": MAX_FILES,
            "no_frames": NO_FRAMES,
            "can_report": _CAN_REPORT,
        }

    async def in_turn(request: Request, work: Callable[[Bundle, bytes], bytes]) -> bytes:
        async with turns:  # the upload is taken in only when its turn has come
            body = await asyncio.wait_for(request.body(), _MAX_READ_S)
            return await run_in_threadpool(work, bundle, body)

    @app.post("/page/answers")
    async def answers(request: Request) -> Response:
        return Response(await in_turn(request, _reply), media_type="application/octet-stream")

    @app.post("/page/report/{visit}")
    async def report(request: Request, visit: int) -> Response:
        data = await in_turn(request, lambda bundle, body: report_zip(bundle, body, visit))
        return Response(data, media_type="application/zip")


def read_patient(
    bundle: Bundle, files: Mapping[str, bytes], corrections: Sequence[Correction] = ()
) -> tuple[list[Visit], list[tuple[str, str]]]:
    """Grade one patient's files, each DICOM study a visit of its own; image files are one.

    Args:
        bundle: that answers.
        files: name -> bytes.
        corrections: sectors that a person has placed.

    Returns:
        the visits by date, and (name, reason) of what is no frame.

    Raises:
        ValueError: if there is no frame, the frames are of several patients, or a sector cannot be
            where a person has placed it.
    """
    inputs = Inputs(by_folder=True)
    for name, data in files.items():
        inputs.add(name, lambda data=data: data, _IMAGES)  # type: ignore[misc]
    groups = inputs.groups
    if not groups:
        passed = "".join(f" {name}: {why}." for name, why in inputs.passed_over[:3])
        raise ValueError(
            "Expected frames as PNG, JPEG, BMP, TIFF or DICOM. Received: none that can be read."
            f"{passed}"
        )
    firsts = {group.person: group.names[0] for group in reversed(groups)}
    if len(firsts) > 1:
        raise ValueError(
            f"Expected the frames of one patient. Received: those of {len(firsts)}, image files "
            f"counted as one. {', '.join([*reversed(firsts.values())][:3])}: files of different "
            "patients, or that do not say whose they are. Drop one patient at a time."
        )
    room = MAX_FRAMES
    visits = []
    for place, group in enumerate(groups):
        corners = {
            one.frame: np.reshape(one.corners, (4, 2)) for one in corrections if one.visit == place
        }
        visits.append(_visit(bundle, group, room, inputs.passed_over, corners))
        room -= visits[-1].answer.num_frames
    return visits, inputs.passed_over


def _visit(
    bundle: Bundle,
    group: Group,
    room: int,
    passed_over: list[tuple[str, str]],
    corners: Mapping[int, np.ndarray],
) -> Visit:
    looks: list[Look] = []
    shown: list[ShownFrame | None] = []
    for shot in group.shots():
        if len(looks) >= room:
            at = group.names.index(shot.name.partition("#")[0])
            reason = f"beyond the {MAX_FRAMES} frames that are looked at"
            passed_over += [(name, reason) for name in (shot.name, *group.names[at + 1 :])]
            break
        looks.append(_look(bundle, shot, corners.get(len(looks))))
        is_shown = shot.frame is not None and not _is_too_large(shot.frame)
        shown.append(encoded(shot.frame) if is_shown else None)  # type: ignore[arg-type]
    answer = bundle.answer(group.patient, looks, group.date, maps=True)
    is_dicom = group.patient != _IMAGES.name
    fans = [look.fan for look in looks]
    return Visit(answer, is_dicom, shown, _maps(answer, looks, shown), fans)


def _look(bundle: Bundle, shot: Shot, corners: np.ndarray | None) -> Look:
    if shot.frame is None:
        return unable(shot.name, shot.code, shot.reason)
    if _is_too_large(shot.frame):
        reason = f"The picture has over {MAX_MEGAPIXELS} million px: no frame of a scanner."
        return unable(shot.name, "unreadable", reason)
    return bundle.look(shot.name, shot.frame, display=shot.display, corners=corners)


def _is_too_large(frame: np.ndarray) -> bool:
    return frame.shape[0] * frame.shape[1] > MAX_MEGAPIXELS * 1_000_000


def _maps(
    answer: PatientAnswer, looks: Sequence[Look], shown: Sequence[ShownFrame | None]
) -> list[bytes | None]:
    found = [frame.map for frame in answer.frames]
    # One scale for all frames of a visit: they lie side by side.
    top = max((float(np.abs(values).max()) for values in found if values is not None), default=0.0)
    return [
        None
        if values is None or look.fan is None or picture is None or not top
        else _map_png(values / top, look.fan, (picture.height, picture.width))
        for values, look, picture in zip(found, looks, shown, strict=True)
    ]


def _map_png(values: np.ndarray, fan: Fan, frame_shape: tuple[int, int]) -> bytes:
    """A map over beam space, -1 to 1, as colour with transparency over the frame."""
    scale = min(1.0, _MAX_MAP_SIDE_PX / max(frame_shape))
    shape = (max(1, round(frame_shape[0] * scale)), max(1, round(frame_shape[1] * scale)))
    drawn = to_frame(values, fan.scaled(scale), shape)
    picture = np.empty((*shape, 4), np.uint8)
    picture[..., :3] = np.where(drawn[..., None] > 0, _ADDS_RGB, _TAKES_RGB)
    picture[..., 3] = np.clip(255 * np.abs(drawn), 0, 255)
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA))
    return bytes(data)


def outlier(answer: PatientAnswer) -> int | None:
    """Place of the frame whose score lies farthest from the mean of all, as square roots of fat.

    None where under three frames have a score, or all the same: then no frame is the odd one.

    Example:
        >>> from steatosis_tf.model.answer import FrameAnswer
        >>> frames = [FrameAnswer("", "graded", fat_score=score) for score in (4, 5, 40)]
        >>> outlier(PatientAnswer("p", "graded", frames=tuple(frames)))
        2
    """
    scores = np.sqrt([frame.fat_score for frame in answer.frames])
    if np.count_nonzero(np.isfinite(scores)) < 3 or np.nanmax(scores) - np.nanmin(scores) < 0.01:
        return None
    return int(np.nanargmax(np.abs(scores - np.nanmean(scores))))


def report_zip(bundle: Bundle, body: bytes, visit: int) -> bytes:
    """Structured report and key image of a DICOM study that was read, as `steatosis sr` has them.

    Args:
        bundle: that answers.
        body: the upload that was read, with its corrections.
        visit: which study of it.

    Returns:
        a zip of both files.

    Raises:
        ValueError: if it is no DICOM study that a report can stand beside, or `highdicom` is not
            installed.
    """
    if not _CAN_REPORT:
        raise ValueError("Expected highdicom. Received: none. `pip install 'steatosis_tf[pacs]'`.")
    from steatosis_tf.deploy.sr import answer_files, pacs_answer
    from steatosis_tf.deploy.study import read_study

    files, corrections = split_files(body)
    visits, _ = read_patient(bundle, files, corrections)
    if visit not in range(len(visits)) or not visits[visit].is_dicom:
        raise ValueError("Expected a DICOM study, to write a report on. Received: none.")
    answer = visits[visit].answer
    uids = {name: _uids(data) for name, data in files.items()}
    mine = {name: data for name, data in files.items() if uids[name][0] == answer.patient}
    parts = [frame.name.partition("#") for frame in answer.frames]
    named = replace(
        answer,
        frames=tuple(
            replace(frame, name=f"{uids[name][1]}{mark}{number}")
            for frame, (name, mark, number) in zip(answer.frames, parts, strict=True)
        ),
    )
    study = read_study(mine)
    looked_at = {frame.name.partition("#")[0] for frame in named.frames}
    images = tuple(image for image in study.images if image.uid in looked_at)  # the rest is none
    made = pacs_answer(replace(study, images=images), named, bundle)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in answer_files(made).items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return stream.getvalue()


def _uids(data: bytes) -> tuple[str, str]:
    """Of study and image; empty for what is no DICOM file."""
    from steatosis_tf.sources.dicom.read import read_dataset, text_of
    from steatosis_tf.sources.images import quiet_readers

    try:
        with quiet_readers():
            header = read_dataset(io.BytesIO(data), with_pixels=False)
    except ValueError:
        return "", ""
    return text_of(header, "StudyInstanceUID"), text_of(header, "SOPInstanceUID")


def _reply(bundle: Bundle, body: bytes) -> bytes:
    visits, passed_over = read_patient(bundle, *split_files(body))
    blobs: list[bytes] = []

    def place(data: bytes | None) -> int | None:
        if data is None:
            return None
        blobs.append(data)
        return len(blobs) - 1

    told = []
    for visit in visits:
        answer = plain_answer(visit.answer)
        pictures = [
            {
                "picture": place(shown.png) if shown else None,
                "height": shown.height if shown else 0,
                "width": shown.width if shown else 0,
                "map": place(drawn),
                "fan": shown_fan(fan) if fan else None,
            }
            for shown, drawn, fan in zip(visit.shown, visit.maps, visit.fans, strict=True)
        ]
        told.append(
            {
                "answer": answer,
                "is_dicom": visit.is_dicom,
                "pictures": pictures,
                "outlier": outlier(visit.answer),
            }
        )
    head = {"visits": told, "passed_over": passed_over, "blobs": list(map(len, blobs))}
    return b"".join([json.dumps(head).encode(), b"\n", *blobs])


def split_files(body: bytes) -> tuple[dict[str, bytes], list[Correction]]:
    """The files of an upload, under names that are shown: an `Upload` as a line, then their bytes.

    Returns:
        name -> bytes, each name once, and the sectors that a person has placed.

    Raises:
        ValueError: if the body is not like this, or holds more than `MAX_FILES` that may be frames.

    Example:
        >>> split_files(b'{"files": [["a.png", 2], ["b/a.png", 1]]}' + bytes([10]) + b"xyz")[0]
        {'a.png': b'xy', 'a (2).png': b'z'}
    """
    end = body.find(b"\n", 0, _MAX_HEAD_BYTES)
    try:
        upload = Upload.model_validate_json(body[: max(end, 0)])
    except ValidationError as error:
        raise ValueError("Expected a list of files before their bytes. Received: none.") from error
    num_files = sum(not re.search(NO_FRAMES, name.lower()) for name, _ in upload.files)
    if num_files > MAX_FILES:
        raise ValueError(
            f"Expected at most {MAX_FILES} files. Received: {num_files}. Choose the frames "
            "that show the liver."
        )
    if sum(size for _, size in upload.files) != len(body) - end - 1:
        raise ValueError("Expected the bytes of the files listed. Received: more or fewer.")
    files: dict[str, bytes] = {}
    at = end + 1
    for given, size in upload.files:
        name = shown = _shown_name(given)
        copy = 1
        while name in files:
            copy += 1
            stem, _, suffix = shown.rpartition(".")
            name = f"{stem} ({copy}).{suffix}" if stem else f"{shown} ({copy})"
        files[name] = body[at : at + size]
        at += size
    return files, upload.corrections


def _shown_name(name: str) -> str:
    """The last part of a name, without what could write elsewhere or turn a line around."""
    last = name.replace("\\", "/").rpartition("/")[2]
    # The mark stands before the number of a frame in a clip.
    kept = "".join(letter for letter in last if letter.isprintable()).replace("#", "_")
    stem, dot, suffix = kept.rpartition(".")
    if dot and len(suffix) < 6:
        return f"{stem[:_MAX_NAME_CHARACTERS]}.{suffix}"
    return kept[:_MAX_NAME_CHARACTERS] or "file"


def _warm_up(bundle: Bundle) -> None:
    bundle.answer("", [bundle.look("", bundle.vectors["frames"][0])])
