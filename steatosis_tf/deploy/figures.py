"""One picture per frame: what was found in it, what was measured, what each place adds."""

from pathlib import Path

import cv2
import numpy as np

from steatosis_tf.deploy.frames import Look
from steatosis_tf.grades import NOTICE
from steatosis_tf.model.answer import FrameAnswer, PatientAnswer
from steatosis_tf.roi.views import to_frame
from steatosis_tf.sources.images import write_png

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
    scale = _SIDE_PX / max(frame.shape[:2])
    size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
    colour = frame if frame.ndim == 3 else cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB)
    left = np.asarray(cv2.resize(colour, size, interpolation=cv2.INTER_AREA))
    right = _with_map(colour, frame_answer, look, size)
    for outline, hue in ((frame_answer.sector, _SECTOR), (frame_answer.liver, _LIVER)):
        if len(outline):
            points = np.rint(outline * scale).astype(np.int32)
            cv2.polylines(left, [points], True, hue, 1, cv2.LINE_AA)
    for name, (top, first, height, width) in frame_answer.boxes.items():
        corner = (round(first * scale), round(top * scale))
        cv2.rectangle(left, corner, (round((first + width) * scale), round((top + height) * scale)),
                      _BOX, 1)  # fmt: skip
        cv2.putText(left, name, (corner[0], corner[1] - 4), _FONT, _SIZE, _BOX, 1, cv2.LINE_AA)
    lines = _lines(answer, frame_answer, shows_map=right is not None)
    pictures = [left] if right is None else [left, right]
    width = max(sum(one.shape[1] for one in pictures), 2 * _SIDE_PX)
    canvas = np.full((size[1] + _LINE_PX * (len(lines) + 1), width, 3), _BACKGROUND, np.uint8)
    at = 0
    for one in pictures:
        canvas[: size[1], at : at + one.shape[1]] = one
        at += one.shape[1]
    for number, (text, hue) in enumerate(lines, start=1):
        place = (8, size[1] + _LINE_PX * number)
        # OpenCV's fonts know ASCII only, and draw "?" for the rest.
        cv2.putText(canvas, text, place, _FONT, _SIZE, hue, 1, cv2.LINE_AA)
    write_png(canvas, path)


def _with_map(
    colour: np.ndarray, answer: FrameAnswer, look: Look, size: tuple[int, int]
) -> np.ndarray | None:
    if answer.map is None or look.fan is None:
        return None
    drawn = to_frame(answer.map, look.fan, colour.shape[:2])
    strength = np.abs(drawn) / max(float(np.abs(answer.map).max()), 1e-9)
    opacity = (_STRONGEST * strength)[..., None]
    hue = np.where(drawn[..., None] >= 0, _MORE, _LESS)
    mixed = colour.astype(np.float32) * (1 - opacity) + hue * opacity
    return np.asarray(cv2.resize(mixed.astype(np.uint8), size, interpolation=cv2.INTER_AREA))


def _lines(
    answer: PatientAnswer, frame: FrameAnswer, *, shows_map: bool
) -> list[tuple[str, tuple[int, int, int]]]:
    said = {"graded": answer.grade, "score_only": "score only", "unable": "unable to assess"}
    fat = "" if np.isnan(answer.fat_percent) else f", fat {answer.fat_percent:.0f} %"
    own = "" if np.isnan(frame.fat_score) else f"; this frame {frame.fat_score:.0f} %"
    lines = [(f"patient: {said[answer.kind]}{fat}{own}", _TEXT)]
    for name, value in frame.features.items():
        if name in answer.contributions:
            shown = "not measured" if np.isnan(value) else f"{value:.2f}"
            adds = f"adds {answer.contributions[name]:+.2f} (patient, root of fat percent)"
            lines.append((f"{name.replace('_', ' ')}: {shown}; {adds}", _BOX))
    if frame.reason:
        lines.append((frame.reason, (230, 159, 0)))
    if shows_map:
        largest = float(np.abs(frame.map).max()) if frame.map is not None else 0.0
        lines.append((f"right: what each place adds to the network's score; orange more fat, blue "
                      f"less; strongest {largest:.3f}", _TEXT))  # fmt: skip
    lines.append(("sector", _SECTOR))
    lines.append(("liver", _LIVER))
    lines.append((NOTICE, _TEXT))
    return lines
