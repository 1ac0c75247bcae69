"""The picture beside a structured report: one frame, what was looked at, the answer, the notice.

Nothing outside the sector is shown, so a banner with a patient's name never gets into it.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from steatosis_tf.deploy.tables import patient_text
from steatosis_tf.grades import NOTICE
from steatosis_tf.model.answer import FrameAnswer, PatientAnswer

#: Burned into every picture, on top.
WARNING = "RESEARCH, NOT FOR DIAGNOSIS"

_MIN_WIDTH = 640
_LINE_PX, _MARGIN_PX = 24, 12
_FONT, _SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.55
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
    strip = np.zeros((_LINE_PX * len(lines) + _MARGIN_PX, width, 3), np.uint8)
    for number, line in enumerate(lines, start=1):
        cv2.putText(strip, line, (_MARGIN_PX, number * _LINE_PX), _FONT, _SCALE, colour, 1,
                    cv2.LINE_AA)  # fmt: skip
    return strip
