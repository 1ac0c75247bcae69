"""Pictures of an answer: each frame with what was found, measured and added; the key image; maps.

The key image stands beside a structured report: one frame, what was looked at, the answer, the
notice. Nothing outside the sector is shown in it, so a banner with a patient's name never gets in.
"""

import collections
import datetime
import math
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from tqdm import tqdm

from steatosis_tf.deploy.frames import Look
from steatosis_tf.deploy.tables import patient_text
from steatosis_tf.files import write_bytes
from steatosis_tf.grades import FAT_CUTS_PERCENT, GRADES, NOTICE
from steatosis_tf.model.answer import FrameAnswer, PatientAnswer
from steatosis_tf.quantitative.measure import NAMES, UNITS
from steatosis_tf.roi.views import to_frame
from steatosis_tf.sources.images import read_frame, write_png

if TYPE_CHECKING:
    from steatosis_tf.deploy.predict import Grader

_Hue = tuple[int, int, int]

# RGB, told apart by the colour blind as well.
_SECTOR, _LIVER, _BOX = (86, 180, 233), (0, 158, 115), (240, 228, 66)
_MORE, _LESS = np.array((213, 94, 0), np.float32), np.array((0, 114, 178), np.float32)
_TEXT = (230, 230, 230)
_SIDE_PX, _LINE_PX, _BACKGROUND = 640, 20, 20
_FONT, _SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.45
_STRONGEST = 0.7


def draw_frame(
    answer: PatientAnswer, frame_answer: FrameAnswer, look: Look, frame: np.ndarray, path: Path
) -> None:
    """Write a PNG: the frame with sector, liver and boxes beside the frame with the map.

    Args:
        answer: of the patient.
        frame_answer: of the frame, with its map.
        look: of the frame.
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.
        path: PNG to write.
    """
    pictures = frame_pictures(frame_answer, look, frame, answer)
    lines = _lines(answer, frame_answer, shows_map=len(pictures) > 1)
    write_png(_page(pictures, lines), path)


def write_sheet(rows: Sequence[tuple[str, list[np.ndarray]]], path: Path) -> Path:
    """Write a PNG of several frames, one below the other.

    Args:
        rows: line of text and pictures of `frame_pictures`.
        path: PNG to write.
    """
    pages = [_page(pictures, [(text, _TEXT)]) for text, pictures in rows]
    pages.append(_page([], [(NOTICE, _TEXT)]))
    width = max(page.shape[1] for page in pages)
    wide = [
        cv2.copyMakeBorder(page, 0, 0, 0, width - page.shape[1], cv2.BORDER_CONSTANT,
                           value=[_BACKGROUND] * 3)
        for page in pages
    ]  # fmt: skip
    write_png(np.concatenate(wide), path)
    return path


def write_map(text: str, pictures: Sequence[np.ndarray], path: Path) -> None:
    """Write a JPEG of one frame, a tenth of the PNG's size: a run holds many.

    Args:
        text: line below.
        pictures: of `frame_pictures`.
        path: JPEG to write; its folder is made.
    """
    page = _page(pictures, [(text, _TEXT), (NOTICE, _TEXT)])
    turned = cv2.cvtColor(page, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", turned, [cv2.IMWRITE_JPEG_QUALITY, 80])
    write_bytes(data.tobytes(), path)


def frame_pictures(
    frame_answer: FrameAnswer, look: Look, frame: np.ndarray, answer: PatientAnswer | None = None
) -> list[np.ndarray]:
    """The frame with sector, liver and boxes, and, where there is a map, the frame with it.

    Args:
        frame_answer: of the frame.
        look: of the frame.
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.
        answer: of the patient: what was measured is then written where it was, with what it adds.
    """
    scale = _SIDE_PX / max(frame.shape[:2])
    size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
    colour = frame if frame.ndim == 3 else cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB)
    left = np.array(cv2.resize(colour, size, interpolation=cv2.INTER_AREA))
    for outline, hue in ((frame_answer.sector, _SECTOR), (frame_answer.liver, _LIVER)):
        if len(outline):
            points = np.rint(outline * scale).astype(np.int32)
            cv2.polylines(left, [points], True, hue, 1, cv2.LINE_AA)
    said = _said_where(frame_answer, answer) if answer else {}
    for name, (top, first, height, width) in frame_answer.boxes.items():
        corner = (round(first * scale), round(top * scale))
        cv2.rectangle(left, corner, (round((first + width) * scale), round((top + height) * scale)),
                      _BOX, 1)  # fmt: skip
        _write(left, said.get(name, name), corner[0], corner[1] - 5, _BOX)
    if len(frame_answer.liver):
        outline = frame_answer.liver
        # Above the kidney, and below the deep end.
        shallow = np.array([outline[:, 0].mean(), np.quantile(outline[:, 1], 0.1) + 20 / scale])
        deep = outline[outline[:, 1].argmax()] + (0, 16 / scale)
        for name, (across, down) in (("liver", shallow), ("diaphragm", deep)):
            if name in said:
                _write(left, said[name], round(across * scale) - 60, round(down * scale), _LIVER)
    right = _with_map(colour, frame_answer, look, size)
    return [left] if right is None else [left, right]


# Where each measured feature is measured; the others stand in the lines below the picture.
_MEASURED_AT = {
    "hepatorenal_db": "kidney", "attenuation_db_per_depth": "liver", "diaphragm_db": "diaphragm",
}  # fmt: skip


def _said_where(frame: FrameAnswer, answer: PatientAnswer) -> dict[str, str]:
    """Place -> what was measured there and what it adds to the patient's score."""
    return {
        place: f"{NAMES[name]} {frame.features[name]:.1f}: {answer.contributions[name]:+.2f}"
        for name, place in _MEASURED_AT.items()
        if name in answer.contributions and np.isfinite(frame.features.get(name, np.nan))
    }


def _write(picture: np.ndarray, text: str, left: int, bottom: int, hue: _Hue) -> None:
    """Text on the picture on a dark ground, moved inside if it would reach beyond."""
    (width, height), _ = cv2.getTextSize(text, _FONT, _SIZE, 1)
    left = min(max(left, 2), max(picture.shape[1] - width - 2, 2))
    bottom = min(max(bottom, height + 2), picture.shape[0] - 4)
    ground = picture[bottom - height - 2 : bottom + 4, left - 2 : left + width + 2]
    ground[:] = ground // 3
    cv2.putText(picture, text, (left, bottom), _FONT, _SIZE, hue, 1, cv2.LINE_AA)


def _page(pictures: Sequence[np.ndarray], lines: Sequence[tuple[str, _Hue]]) -> np.ndarray:
    """Pictures side by side, lines of text below."""
    height = max((one.shape[0] for one in pictures), default=0)
    width = max(sum(one.shape[1] for one in pictures), 2 * _SIDE_PX)
    page = np.full((height + _LINE_PX * (len(lines) + 1), width, 3), _BACKGROUND, np.uint8)
    at = 0
    for one in pictures:
        page[: one.shape[0], at : at + one.shape[1]] = one
        at += one.shape[1]
    for number, (text, hue) in enumerate(lines, start=1):
        # OpenCV's fonts know ASCII only, and draw "?" for the rest.
        cv2.putText(page, text, (8, height + _LINE_PX * number), _FONT, _SIZE, hue, 1, cv2.LINE_AA)
    return page


def draw_trends(
    by_person: Mapping[str, Sequence[PatientAnswer]], output_dir: str | Path | None
) -> list[Path]:
    """Draw fat scores by date, with the model's interval, of everybody with two dated visits.

    Args:
        by_person: of `tables.Visits`.
        output_dir: gets `figures/trend_0001.png` and so on, by number: a name may be a person's.
            None draws nothing.
    """
    if output_dir is None:
        return []
    folder = Path(output_dir) / "figures"
    paths = []
    for number, answers in enumerate(by_person.values(), start=1):
        dated = [answer for answer in answers if answer.date]
        if len(dated) > 1:
            paths.append(folder / f"trend_{number:04}.png")
            write_png(_trend(dated), paths[-1])
    return paths


def _trend(answers: Sequence[PatientAnswer]) -> np.ndarray:
    """Scores over time, their scale the square root of fat percent; hollow where not graded."""
    height, width, left, right, top, bottom = 300, _SIDE_PX, 60, 30, 20, 60
    page = np.full((height + _LINE_PX, width, 3), _BACKGROUND, np.uint8)
    days = [datetime.date.fromisoformat(answer.date).toordinal() for answer in answers]
    across = [
        left + (width - left - right) * (day - days[0]) / max(days[-1] - days[0], 1) for day in days
    ]

    def down(fat: float) -> int:
        share = np.sqrt(np.clip(fat, 0, 100) / 100)
        return round(height - bottom - (height - top - bottom) * float(share))

    for fat in (0, *FAT_CUTS_PERCENT, 100):
        cv2.line(page, (left, down(fat)), (width - right, down(fat)), (70, 70, 70), 1)
        cv2.putText(page, f"{fat:g} %", (8, down(fat) + 4), _FONT, _SIZE, _TEXT, 1, cv2.LINE_AA)
    points = [(round(x), down(one.fat_percent)) for x, one in zip(across, answers, strict=True)]
    cv2.polylines(page, [np.array(points, np.int32)], False, (120, 120, 120), 1, cv2.LINE_AA)
    for (x, y), answer in zip(points, answers, strict=True):
        low, high = answer.fat_interval
        if np.isfinite(low):
            cv2.line(page, (x, down(low)), (x, down(high)), _SECTOR, 2, cv2.LINE_AA)
        filled = -1 if answer.kind == "graded" else 2
        cv2.circle(page, (x, y), 6, _BOX, filled, cv2.LINE_AA)
    for place in (0, -1):
        _write(page, answers[place].date, points[place][0] - 40, height - bottom + 24, _TEXT)
    words = "Fat score by date with its 90 % interval; hollow: score only. Changes: see the table."
    for number, text in enumerate((words, NOTICE)):
        corner = (8, height - 8 + _LINE_PX * number)
        cv2.putText(page, text, corner, _FONT, 0.38, _TEXT, 1, cv2.LINE_AA)
    return page


def _with_map(
    colour: np.ndarray, answer: FrameAnswer, look: Look, size: tuple[int, int]
) -> np.ndarray | None:
    if answer.map is None or look.fan is None:
        return None
    if "roi" in answer.boxes:  # of a network that sees a rectangle
        top, first, height, width = answer.boxes["roi"]
        drawn = np.zeros(colour.shape[:2], np.float32)
        inside = cv2.resize(answer.map, (width, height), interpolation=cv2.INTER_LINEAR)
        drawn[top : top + height, first : first + width] = inside
    else:
        drawn = to_frame(answer.map, look.fan, colour.shape[:2])
    strength = np.abs(drawn) / max(float(np.abs(answer.map).max()), 1e-9)
    opacity = (_STRONGEST * strength)[..., None]
    hue = np.where(drawn[..., None] >= 0, _MORE, _LESS)
    mixed = colour.astype(np.float32) * (1 - opacity) + hue * opacity
    return np.asarray(cv2.resize(mixed.astype(np.uint8), size, interpolation=cv2.INTER_AREA))


def _lines(answer: PatientAnswer, frame: FrameAnswer, *, shows_map: bool) -> list[tuple[str, _Hue]]:
    said = {"graded": answer.grade, "score_only": "score only", "unable": "unable to assess"}
    fat = "" if np.isnan(answer.fat_percent) else f", fat {answer.fat_percent:.0f} %"
    own = "" if np.isnan(frame.fat_score) else f"; this frame {frame.fat_score:.0f} %"
    lines = [(f"patient: {said[answer.kind]}{fat}{own}", _TEXT)]
    scale = "root of fat percent" if fat else "grade"  # without, it was trained on grades alone
    for name, value in frame.features.items():
        if name in answer.contributions:
            shown = "not measured" if np.isnan(value) else f"{value:.2f} {UNITS[name]}"
            adds = f"adds {answer.contributions[name]:+.2f} (patient, {scale})"
            lines.append((f"{NAMES[name]}: {shown}; {adds}", _BOX))
    if frame.reason:
        lines.append((frame.reason, (230, 159, 0)))
    if shows_map:
        largest = float(np.abs(frame.map).max()) if frame.map is not None else 0.0
        what = "the network's score; orange more fat, blue less"
        if "roi" in frame.boxes:
            what = f"the logit of {answer.grade}; orange for it, blue against it"
        lines.append((f"right: what each place adds to {what}; strongest {largest:.3f}", _TEXT))
    for region, outline, hue in (
        ("sector", frame.sector, _SECTOR), ("liver", frame.liver, _LIVER)
    ):  # fmt: skip
        if len(outline):
            lines.append((region, hue))
    lines.append((NOTICE, _TEXT))
    return lines


#: Burned into every picture, on top.
WARNING = "RESEARCH, NOT FOR DIAGNOSIS"

_MIN_WIDTH = 640
_KEY_LINE_PX, _MARGIN_PX = 24, 12
_LETTERS = 0.55
_LETTERS_PER_PX = 1 / 9.5
_COLOURS = {"liver": (0, 200, 255), "kidney": (255, 160, 0), "diaphragm": (120, 255, 120)}
_WHITE, _RED = (255, 255, 255), (255, 80, 80)


def key_frame(answer: PatientAnswer) -> FrameAnswer | None:
    """The frame to show: of those that entered the answer, the one nearest to its score."""
    used = used_frames(answer)
    if not used:
        return next((frame for frame in answer.frames if len(frame.sector) > 2), None)
    scores = [frame.fat_score for frame in used]
    middle = np.nanmedian(scores) if np.isfinite(scores).any() else math.nan
    return min(used, key=lambda frame: np.nan_to_num(abs(frame.fat_score - middle), nan=np.inf))


def used_frames(answer: PatientAnswer) -> list[FrameAnswer]:
    """The frames that entered an answer."""
    if answer.kind == "unable":
        return []
    kinds = ("graded",) if answer.kind == "graded" else ("graded", "score_only")
    return [frame for frame in answer.frames if frame.kind in kinds]


def answer_lines(answer: PatientAnswer, num_training: int = 0) -> list[str]:
    """An answer in words, without a name: what a person reads first.

    Example:
        >>> answer_lines(PatientAnswer("p1", "unable", "no_liver", "No liver is in view."))
        ['Liver fat: unable to assess', 'No liver is in view.', '0 of 0 frames used']
    """
    text = patient_text(replace(answer, patient="Liver fat", date=""), num_training)
    return [line.strip() for line in text.splitlines() if line.strip()]


def draw_key_image(
    lines: Sequence[str], shown: FrameAnswer | None, frame: np.ndarray | None
) -> np.ndarray:
    """Draw the picture.

    Args:
        lines: said below it, before the notice.
        shown: the answer of the frame that is drawn, or None.
        frame: `(height, width)` or `(height, width, 3)` uint8, or None for words alone.

    Returns:
        `(height, width, 3)` uint8 RGB.
    """
    picture = np.zeros((0, _MIN_WIDTH, 3), np.uint8)
    if shown is not None and frame is not None and len(shown.sector) > 2:
        picture = _drawn(frame, shown)
    width = picture.shape[1]
    wrapped = [
        line
        for text in (*lines, NOTICE)
        for line in textwrap.wrap(text, int((width - 2 * _MARGIN_PX) * _LETTERS_PER_PX))
    ]
    return np.ascontiguousarray(
        np.concatenate([_text([WARNING], width, _RED), picture, _text(wrapped, width, _WHITE)])
    )


def _drawn(frame: np.ndarray, shown: FrameAnswer) -> np.ndarray:
    """The sector alone, with outlines and boxes, at least `_MIN_WIDTH` wide."""
    grey = frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, axis=2)
    inside = np.zeros(grey.shape[:2], np.uint8)
    cv2.fillPoly(inside, [np.rint(shown.sector).astype(np.int32)], 1)
    picture = grey * inside[..., None]
    if len(shown.liver) > 2:
        cv2.polylines(picture, [np.rint(shown.liver).astype(np.int32)], True, _COLOURS["liver"], 1)
    for name, (top, left, height, width) in shown.boxes.items():
        colour = _COLOURS.get(name, _WHITE)
        cv2.rectangle(picture, (left, top), (left + width - 1, top + height - 1), colour, 1)
    missing = max(0, _MIN_WIDTH - picture.shape[1])
    return np.pad(picture, ((0, 0), (missing // 2, missing - missing // 2), (0, 0)))


def _text(lines: list[str], width: int, colour: tuple[int, int, int]) -> np.ndarray:
    strip = np.zeros((_KEY_LINE_PX * len(lines) + _MARGIN_PX, width, 3), np.uint8)
    for number, line in enumerate(lines, start=1):
        cv2.putText(strip, line, (_MARGIN_PX, number * _KEY_LINE_PX), _FONT, _LETTERS, colour, 1,
                    cv2.LINE_AA)  # fmt: skip
    return strip


#: Patients of a run or validation with a map: each takes 70 KB and a quarter of a CPU second,
#: three quarters with a ResNet-50. What is right needs none to be looked at first.
MAX_MAPS = 20
_EACH = 2


def draw_explanations(folder: str | Path, grader: "Grader") -> Path | None:
    """Draw where a model's score comes from: a map of each tested patient, and a sheet of four.

    `figures/maps/FRAME_ID.jpg` shows the first frame of a patient that has a map, for at most
    `MAX_MAPS` patients, the most wrong first. Of `figures/explanation.png` the four are the least
    and the most fat of those named right and the two most wrong.

    Args:
        folder: of a run or a validation, with `patient_scores.csv` and a manifest that leads to the
            frames.
        grader: its model.

    Returns:
        the sheet; None if no frame has a map.
    """
    import pandas as pd  # which predict does without

    from steatosis_tf.cohort.manifest import frame_path, read_manifest

    folder = Path(folder)
    scores = pd.read_csv(folder / "patient_scores.csv", dtype={"patient_id": str})
    manifest_path = folder / "manifest.csv"
    frames: dict[str, dict[str, Path]] = collections.defaultdict(dict)
    for row in read_manifest(manifest_path).itertuples():
        frames[row.patient_id][row.frame_id] = frame_path(manifest_path, row.path)
    label, named = (scores[name].map(GRADES.index) for name in ("grade", "predicted"))
    scores = scores.assign(label=label, far=(label - named).abs())
    scores = scores.sort_values("far", ascending=False, kind="stable")
    right = scores.query("far == 0").sort_values("label", kind="stable")
    told = [*right.index[[0, -1][: len(right)]], *scores.query("far > 0").index[:_EACH]]
    shutil.rmtree(folder / "figures" / "maps", ignore_errors=True)
    rows = {}
    shown = tqdm(dict.fromkeys([*told, *scores.index[:MAX_MAPS]]), "maps", unit="patient")
    for place in shown:
        patient = scores.loc[place]
        patient_id = patient["patient_id"]
        frame_id, pictures = _pictures(grader, patient_id, frames[patient_id])
        if not pictures:
            continue
        text = (f"patient {patient_id}: reference {patient['grade']}, named "
                f"{patient['predicted']} ({'wrong' if patient['far'] else 'right'})")  # fmt: skip
        write_map(text, pictures, folder / "figures" / "maps" / f"{frame_id}.jpg")
        if place in told:
            rows[text] = pictures
    return write_sheet(list(rows.items()), folder / "figures" / "explanation.png") if rows else None


def _pictures(
    grader: "Grader", patient: str, paths: Mapping[str, Path]
) -> tuple[str, list[np.ndarray]]:
    """Outlines and map of the first frame that has a map, and its id; [] if none has."""
    for frame_id, path in paths.items():
        try:
            frame = read_frame(path)
        except ValueError:
            continue  # it was answered as one that cannot be read
        look = grader.look("", frame)
        answer = grader.answer(patient, [look], maps=True)
        (found,) = answer.frames
        if look.fan is None or found.map is None:
            continue
        # Names are burned in beside the sector.
        inside = look.fan.mask(frame.shape[:2])
        bare = np.where(inside if frame.ndim == 2 else inside[..., None], frame, np.uint8(0))
        return frame_id, frame_pictures(found, look, bare, answer)
    return "", []
