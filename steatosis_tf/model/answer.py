"""What an answer is: the one shape that predict, the page, the SR and the report hand on.

Frames are answered first, then the patient they show. There are three kinds: *graded*; *score
only* (a scanner or setting unlike the training data: a fat score, no grade); *unable* (with its
reason).
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from steatosis_tf.grades import GRADES

Kind = Literal["graded", "score_only", "unable"]

#: Code of a reason -> its sentence, for frames and patients that are not graded.
REASONS = {
    "unreadable": "The picture could not be read.",
    "not_b_mode": "The picture is no plain B-mode image.",
    "no_sector": "No ultrasound sector was found in the picture.",
    "no_liver": "No liver is in view.",
    "too_shallow": "Too little of the depth is in view.",
    "marks_over_liver": "Text, calipers or marks lie over the liver.",
    "not_liver_ultrasound": "The picture is too unlike the training data for a score: no "
    "ultrasound of a liver, or quite another scanner, setting or view.",
    "unlike_training": "Scanner, setting or view are unlike the training data: the score is shown "
    "without a grade. Recalibrate with 20 local patients.",
    "no_frames": "No frame was given.",
    "frames_disagree": "The frames agree on no grade: joined, none has a probability over 0.",
}


@dataclass(frozen=True)
class FrameAnswer:
    """What one frame shows.

    Attributes:
        name: file name (never a full path), with `#3` behind it for frame 3 of a clip.
        kind: "graded" where the frame enters the patient's grade.
        reason_code: why it does not, a code of `REASONS`; "" where it does.
        reason: the same as a sentence.
        fat_score: predicted fat percent of all parts joined; NaN if unable.
        network_sqrt_fat: the network's own prediction, square root of fat percent; NaN if unable.
        novelty: how unlike the training data, 1 where grades end (`Novelty.relative`); NaN if not
            looked at.
        features: measured feature -> value (NaN where it could not be measured).
        grey_spread: of what the network sees, `rules.grey_spread`; NaN if unable.
        sector: `(n, 2)` float, outline as (x, y) in px of the frame; empty if none.
        liver: the same, outline of the liver.
        boxes: name ("liver", "kidney", "diaphragm", ...) -> (top, left, height, width) px.
        by_person: whether a person placed the sector.
        map: `(rows, columns)` float32 over beam space, what each place adds to the network's
            prediction; None if not asked.
    """

    name: str
    kind: Kind
    reason_code: str = ""
    reason: str = ""
    fat_score: float = float("nan")
    network_sqrt_fat: float = float("nan")
    novelty: float = float("nan")
    features: dict[str, float] = field(default_factory=dict)
    grey_spread: float = float("nan")
    sector: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    liver: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    boxes: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    by_person: bool = False
    map: np.ndarray | None = None


@dataclass(frozen=True)
class PatientAnswer:
    """What a patient's frames say together.

    Attributes:
        patient: pseudonymous id, study UID or folder name as the caller grouped the frames.
        kind, reason_code, reason: as of a frame.
        fat_percent: fat score, percent of hepatocytes as the training biopsies read it; NaN if
            unable, or if the model was trained on grades alone.
        novelty: mean of the frames that entered, 1 where grades end; NaN if unable.
        fat_interval: 90 % interval of it, from left-out patients.
        grade: "" unless graded; by the model's decision rule from the probabilities, not from
            `fat_percent`, which leans to the middle and may lie beyond the grade's usual cut.
        probabilities: grade -> calibrated probability, sum 1; empty unless graded.
        prediction_set: grades that the stated conformal threshold keeps; empty unless graded.
        operating_points: name -> True where the patient is at or over it; empty unless graded.
        contributions: part -> what it adds to the predicted square root of fat percent, against
            the mean training patient; largest first.
        features: measured feature -> mean over the frames that show it.
        training_rank: proportion of training patients with less fat score, 0 to 1.
        num_frames, num_used: frames seen, and those that entered.
        frames: one answer per frame.
        date: study date YYYY-MM-DD where known, else "".
    """

    patient: str
    kind: Kind
    reason_code: str = ""
    reason: str = ""
    fat_percent: float = float("nan")
    novelty: float = float("nan")
    fat_interval: tuple[float, float] = (float("nan"), float("nan"))
    grade: str = ""
    probabilities: dict[str, float] = field(default_factory=dict)
    prediction_set: tuple[str, ...] = ()
    operating_points: dict[str, bool] = field(default_factory=dict)
    contributions: dict[str, float] = field(default_factory=dict)
    features: dict[str, float] = field(default_factory=dict)
    training_rank: float = float("nan")
    num_frames: int = 0
    num_used: int = 0
    frames: tuple[FrameAnswer, ...] = ()
    date: str = ""


def plain_answer(answer: PatientAnswer) -> dict[str, Any]:
    """An answer as JSON can hold it: not known is null, outlines are rounded to px, no maps."""
    values = asdict(answer)
    for frame in values["frames"]:
        del frame["map"]
        for region in ("sector", "liver"):
            frame[region] = np.rint(frame[region]).astype(int).tolist()
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


#: Proportion of frames cut off at each end by `trimmed_mean` (10 frames: one at each end).
TRIM_SHARE = 0.1
# Nearest to 0 or 1 at which the log odds of a probability are still told apart in float64.
_SURE = 1e-15


def _vote(probabilities: np.ndarray) -> np.ndarray:
    return np.bincount(probabilities.argmax(axis=1), minlength=len(GRADES)) / len(probabilities)


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    from scipy import special  # the shipped model answers without SciPy

    at_most = probabilities.cumsum(axis=1)[:, :-1]
    above = probabilities[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]  # 1 - at_most without rounding
    odds = np.log(np.maximum(at_most, _SURE)) - np.log(np.maximum(above, _SURE))
    joined = special.expit(odds.mean(axis=0))
    return np.diff(joined, prepend=0.0, append=1.0)


def _trimmed_mean(probabilities: np.ndarray) -> np.ndarray:
    from scipy import stats

    return np.asarray(stats.trim_mean(probabilities, TRIM_SHARE, axis=0))


#: `evaluation.aggregation` -> function from a patient's `(num_frames, 4)` to `(4,)`.
AGGREGATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda probabilities: probabilities.mean(axis=0),
    "log_odds": _log_odds,
    "median": lambda probabilities: np.median(probabilities, axis=0),
    "trimmed_mean": _trimmed_mean,
    "vote": _vote,
}


def join_frames(probabilities: np.ndarray, aggregation: str) -> np.ndarray:
    """A patient's probabilities from those of its frames, in evaluation and prediction alike.

    Args:
        probabilities: `(num_frames, 4)` float64, each row with sum 1.
        aggregation: one of `AGGREGATIONS`.

    Returns:
        `(4,)` float64 with sum 1; all 0 where the frames lie so far apart that the rule leaves no
        grade.

    Example:
        >>> frames = np.array([[0.75, 0.25, 0, 0], [0.25, 0.5, 0.25, 0], [0, 0.25, 0.75, 0]])
        >>> join_frames(frames, "median").tolist()
        [0.3333333333333333, 0.3333333333333333, 0.3333333333333333, 0.0]
    """
    joined = AGGREGATIONS[aggregation](probabilities)
    total = joined.sum()
    # A sum that differs from 1 by rounding only is left alone: equal votes must stay equal.
    return joined if total <= 0 or abs(total - 1) < 1e-9 else joined / total
