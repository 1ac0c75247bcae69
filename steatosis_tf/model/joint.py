"""The one grading rule: a network's features and measured features of a patient's frames, joined.

Each part is a linear rule on the square root of fat percent; their mixture is read as four grades
by a cumulative link. Whoever shows a grade (pipeline, predict, page, structured report) calls
`grade_patient`. `steatosis_tf.model.joint_fit.fit_joint` fits the model. NumPy only.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from steatosis_tf.grades import GRADES
from steatosis_tf.model.answer import REASONS, FrameAnswer, Kind, PatientAnswer
from steatosis_tf.model.rules import CumulativeLink, FatRule, Novelty

#: Name of the part that reads the backbone's features.
NETWORK = "network"

DecisionRule = Literal["argmax", "median", "rounded_mean"]
DECISION_RULES: tuple[DecisionRule, ...] = ("argmax", "median", "rounded_mean")

_FORMAT = 1
#: Masses that differ by less are equal: sums of the same probabilities round differently.
TINY = 1e-9


@dataclass(frozen=True)
class JointPart:
    """One kind of numbers and what is made of them.

    Attributes:
        name: `NETWORK`, "measured" or another.
        columns: names of its numbers in order; empty for the network's, which have none.
        share: how much it counts, 0 to 1.
        rule: from the numbers to the square root of fat percent (or to the grade, 0 to 3).
    """

    name: str
    columns: tuple[str, ...]
    share: float
    rule: FatRule


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold chosen on left-out scores.

    Attributes:
        name: such as "at_least_mild, sensitivity 0.95".
        first_label: the least grade that counts as positive, 1 to 3.
        threshold: positive at or above this probability of that grade or worse.
    """

    name: str
    first_label: int
    threshold: float


@dataclass(frozen=True)
class Calibration:
    """What left-out scores of the training patients tell.

    Attributes:
        left_out: their scores, ascending; each by a model that had not seen the patient.
        half_width: half of the 90 % interval of a new patient's score.
        set_threshold: a grade joins the prediction set while the probability gathered before it is
            at most this.
        set_coverage: stated coverage of the set, 0 to 1.
        operating_points: see there.
    """

    left_out: tuple[float, ...]
    half_width: float
    set_threshold: float
    set_coverage: float
    operating_points: tuple[OperatingPoint, ...]


@dataclass(frozen=True)
class JointModel:
    """A fitted grader.

    Attributes:
        parts: what it sees.
        link: reads a score as grades.
        decision_rule: how one grade is named: the most probable, the one at which half of the
            probability is reached, or the rounded mean.
        calibration: from left-out training patients.
        novelty: None where it is not asked how unlike the training data a frame is.
        target: a score is the square root of fat percent, or a grade from 0 to 3.
        notes: what a reader should know.
    """

    parts: tuple[JointPart, ...]
    link: CumulativeLink
    decision_rule: DecisionRule
    calibration: Calibration
    novelty: Novelty | None
    target: Literal["sqrt_fat", "grade"]
    notes: dict[str, str]

    def score(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Joined score `(n,)`; may fall below 0.

        Args:
            inputs: part name -> numbers `(n, k)`, NaN for what was not measured. A part of which
                nothing was measured does not count; the others then share its weight.

        Raises:
            ValueError: if a part is absent, of another width, or nothing of a row is known.
        """
        total, weight = np.zeros(_num_rows(inputs)), np.zeros(_num_rows(inputs))
        for part in self.parts:
            numbers = _numbers(part, inputs)
            known = ~np.isnan(numbers).all(axis=1)
            total += part.share * np.where(known, part.rule.sqrt_fat(numbers), 0.0)
            weight += part.share * known
        if not (weight > 0).all():
            raise ValueError(
                "Expected numbers of at least one part in every row. Received: "
                f"{int((weight <= 0).sum())} rows without any."
            )
        return np.asarray(total / weight)

    def contributions(self, inputs: Mapping[str, np.ndarray]) -> list[dict[str, float]]:
        """For each row, number (the network as one) -> what it adds to the score, against the mean
        training patient; largest first."""
        rows = range(_num_rows(inputs))
        found: list[dict[str, float]] = [{} for _ in rows]
        weight = np.zeros(len(found))
        for part in self.parts:
            numbers = _numbers(part, inputs)
            known = ~np.isnan(numbers).all(axis=1)
            weight += part.share * known
            adds = part.share * known[:, None] * part.rule.shares(numbers)
            for row in rows:
                if not part.columns:
                    found[row][part.name] = float(adds[row].sum())
                    continue
                for column, name in enumerate(part.columns):
                    found[row][name] = float(adds[row, column])
                for flag, column in enumerate(part.rule.indicators):
                    found[row][part.columns[column]] += float(adds[row, len(part.columns) + flag])
        scaled = [
            {name: add / float(weight[row]) for name, add in found[row].items()} for row in rows
        ]
        return [dict(sorted(one.items(), key=lambda item: -abs(item[1]))) for one in scaled]

    def probabilities(self, score: np.ndarray) -> np.ndarray:
        """Probabilities of the four grades `(n, 4)` of scores `(n,)`; rows sum to 1."""
        return self.link.probabilities(score)

    def fat_percent(self, score: np.ndarray) -> np.ndarray:
        """Fat percent `(n,)`, 0 to 100, of scores; NaN for a model of grades."""
        if self.target == "grade":
            return np.full(np.shape(score), np.nan)
        return np.asarray(np.clip(score, 0.0, 10.0) ** 2)

    def to_json(self) -> str:
        """The model as text: numbers and names that a person can read, nothing that can run."""
        content = {"format": _FORMAT, "grades": GRADES, **asdict(self)}
        return json.dumps(content, indent=1, default=np.ndarray.tolist) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "JointModel":
        """The model that `to_json` wrote.

        Raises:
            ValueError: if the text is no such model.
        """
        try:
            content = json.loads(text)
            if content.pop("format") != _FORMAT or content.pop("grades") != list(GRADES):
                raise ValueError(f"not of format {_FORMAT} with the grades {', '.join(GRADES)}")
            return cls(**(content | _typed(content)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Expected a joint model in JSON. Received: {error!r}. `fit_joint` makes one, "
                "`to_json` writes it."
            ) from error


def decide(probabilities: np.ndarray, rule: DecisionRule) -> np.ndarray:
    """One label 0 to 3 `(n,)` of probabilities `(n, 4)`.

    Args:
        probabilities: rows sum to 1.
        rule: "argmax" (the lower where two tie), "median", the grade at which half of the
            probability is reached, or "rounded_mean", which a quadratic weighting asks for.

    Raises:
        ValueError: if there is no such rule.

    Example:
        >>> decide(np.array([[0.4, 0.3, 0.2, 0.1]]), "median").tolist()
        [1]
    """
    if rule == "argmax":
        return np.asarray(probabilities.argmax(axis=1))
    if rule == "median":
        return np.asarray((probabilities.cumsum(axis=1) < 0.5 - TINY).sum(axis=1))
    if rule == "rounded_mean":
        return np.rint(probabilities @ np.arange(len(GRADES))).astype(int)
    raise ValueError(f"Expected rule out of {', '.join(DECISION_RULES)}. Received: rule={rule!r}.")


def mass_before(probabilities: np.ndarray) -> np.ndarray:
    """Probability gathered before each grade joins the prediction set; 0 for the first.

    The set starts at the most probable grade and grows by its more probable neighbour.

    Args:
        probabilities: `(n, 4)`, rows sum to 1.

    Returns:
        `(n, 4)` float64.

    Example:
        >>> mass_before(np.array([[0.5, 0.25, 0.25, 0.0]])).tolist()
        [[0.0, 0.5, 0.75, 1.0]]
    """
    rows = np.arange(len(probabilities))
    low = probabilities.argmax(axis=1)
    high = low.copy()
    gathered = probabilities[rows, low]
    mass = np.zeros_like(probabilities)
    # A column of -1 on both sides: the set never grows beyond the grades.
    padded = np.pad(probabilities, ((0, 0), (1, 1)), constant_values=-1.0)
    for _ in range(len(GRADES) - 1):
        below, above = padded[rows, low], padded[rows, high + 2]
        downwards = below >= above
        joined = np.where(downwards, low - 1, high + 1)
        mass[rows, joined] = gathered
        gathered = gathered + np.where(downwards, below, above)
        low, high = np.where(downwards, joined, low), np.where(downwards, high, joined)
    return mass


def grade_patient(
    model: JointModel,
    patient: str,
    frames: Sequence[FrameAnswer],
    network: np.ndarray | None = None,
    date: str = "",
) -> PatientAnswer:
    """Grade a patient, or say why not.

    A frame unlike the training data is told by its distance in the network's features or by its
    spread of grey levels, one that shows no liver by a larger distance, by its distance from livers
    of many scanners or by the model's rule on the features, where it has these. The patient is
    graded by the frames like the training data if they are at least half of those that show a
    liver; by all of these, with a score alone, if not.

    Args:
        model: as `fit_joint` gives it.
        patient: pseudonymous id.
        frames: one answer per frame, begun: `kind` "unable" with its reason where no liver could be
            looked at, else "graded", with measured `features`.
        network: `(num_frames, width)` features of the backbone, rows in the order of `frames`; NaN
            in rows of frames that are unable. None for a model without that part.
        date: of the study.

    Returns:
        the patient's answer; its frames are those given, with score, novelty, kind and reason.

    Raises:
        ValueError: if the model sees a network and `network` is absent or of another shape.
    """
    width = max([len(part.rule.fill) for part in model.parts if not part.columns], default=0)
    rows = np.empty((len(frames), 0)) if network is None else np.asarray(network, float)
    if rows.shape != (len(frames), width) and (width or rows.size):
        raise ValueError(
            f"Expected network features of {len(frames)} frames, {width} numbers each. "
            f"Received: network.shape={rows.shape}."
        )
    looked_at = _scored_frames(model, frames, rows)
    kind, used = _used(looked_at)
    if kind == "unable":
        code = _commonest_reason(looked_at)
        return PatientAnswer(patient, kind, code, REASONS[code], num_frames=len(frames),
                             frames=tuple(looked_at), date=date)  # fmt: skip
    inputs = _inputs(model, [looked_at[place] for place in used], rows[used])
    means = {name: _mean(numbers) for name, numbers in inputs.items()}
    code = "unlike_training" if kind == "score_only" else ""
    answer = PatientAnswer(
        patient, kind, code, REASONS.get(code, ""), num_frames=len(frames), num_used=len(used),
        frames=tuple(looked_at), date=date, contributions=model.contributions(means)[0],
        features=_named_means(model, means),
        novelty=float(np.mean([looked_at[place].novelty for place in used])),
    )  # fmt: skip
    return _with_score(model, answer, model.score(means))


def _scored_frames(
    model: JointModel, frames: Sequence[FrameAnswer], rows: np.ndarray
) -> list[FrameAnswer]:
    """The frames with novelty and score; those unlike the training data are told so."""
    shown = [place for place, frame in enumerate(frames) if frame.kind != "unable"]
    found = list(frames)
    if not shown:
        return found
    inputs = _inputs(model, [frames[place] for place in shown], rows[shown])
    for numbers in inputs.values():  # what one frame does not show is as in the others
        numbers[:] = np.where(np.isnan(numbers), _mean(numbers), numbers)
    scores = model.score(inputs)
    own = {part.name: part.rule.sqrt_fat(inputs[part.name]) for part in model.parts}
    fat = model.fat_percent(scores)
    for index, place in enumerate(shown):
        novelty = _relative(model.novelty, rows[place], frames[place].grey_spread)
        frame = replace(frames[place], novelty=novelty)
        if model.novelty and not model.novelty.shows_liver(rows[[place]])[0]:
            found[place] = _told(frame, "unable", "not_liver_ultrasound")
            continue
        frame = replace(
            frame,
            fat_score=float(fat[index]),
            network_sqrt_fat=float(own[NETWORK][index]) if NETWORK in own else float("nan"),
        )
        found[place] = _told(frame, "score_only", "unlike_training") if novelty > 1 else frame
    return found


def _relative(novelty: Novelty | None, row: np.ndarray, spread: float) -> float:
    if novelty is None:
        return float("nan")
    return float(novelty.relative(row[None], np.array([spread]))[0])


def _told(frame: FrameAnswer, kind: Kind, code: str) -> FrameAnswer:
    return replace(frame, kind=kind, reason_code=code, reason=REASONS[code])


def _used(frames: Sequence[FrameAnswer]) -> tuple[Kind, list[int]]:
    """Kind of the patient's answer, and which frames enter it."""
    graded = [place for place, frame in enumerate(frames) if frame.kind == "graded"]
    shown = [place for place, frame in enumerate(frames) if frame.kind != "unable"]
    if not shown:
        return "unable", []
    return ("graded", graded) if 2 * len(graded) >= len(shown) else ("score_only", shown)


def _commonest_reason(frames: Sequence[FrameAnswer]) -> str:
    codes = Counter(frame.reason_code for frame in frames)
    return codes.most_common(1)[0][0] if codes else "no_frames"


def _with_score(model: JointModel, answer: PatientAnswer, score: np.ndarray) -> PatientAnswer:
    """The answer with fat and, if it is graded, all that is said of the grade."""
    (value,), known = score, model.calibration
    low, high = model.fat_percent(np.array([value - known.half_width, value + known.half_width]))
    answer = replace(
        answer,
        fat_percent=float(model.fat_percent(score)[0]),
        fat_interval=(float(low), float(high)),
        training_rank=float(np.mean(np.array(known.left_out) < value)),
    )
    if answer.kind != "graded":
        return answer
    chances = model.probabilities(score)
    worse = chances[0, ::-1].cumsum()[::-1]
    within = mass_before(chances)[0] <= known.set_threshold + TINY
    return replace(
        answer,
        grade=GRADES[int(decide(chances, model.decision_rule)[0])],
        probabilities=dict(zip(GRADES, chances[0].tolist(), strict=True)),
        prediction_set=tuple(g for g, inside in zip(GRADES, within, strict=True) if inside),
        operating_points={
            point.name: bool(worse[point.first_label] >= point.threshold)
            for point in known.operating_points
        },
    )


def _inputs(
    model: JointModel, frames: Sequence[FrameAnswer], rows: np.ndarray
) -> dict[str, np.ndarray]:
    """Part name -> numbers of the frames, NaN for what is not there; copies."""
    found = {}
    for part in model.parts:
        if part.columns:
            numbers = [[f.features.get(name, np.nan) for name in part.columns] for f in frames]
            found[part.name] = np.array(numbers, float)
        else:
            found[part.name] = rows.copy()
    return found


def _mean(numbers: np.ndarray) -> np.ndarray:
    """Mean of each column over the rows that have it, `(1, k)`; NaN where none has."""
    known = ~np.isnan(numbers)
    count = known.sum(axis=0, keepdims=True)
    total = np.where(known, numbers, 0.0).sum(axis=0, keepdims=True)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _named_means(model: JointModel, means: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {
        name: float(means[part.name][0, column])
        for part in model.parts
        for column, name in enumerate(part.columns)
    }


def _num_rows(inputs: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(inputs.values())))


def _numbers(part: JointPart, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    width = len(part.rule.fill)
    numbers = np.asarray(inputs.get(part.name, np.empty((0, 0))), float)
    if numbers.ndim != 2 or numbers.shape != (_num_rows(inputs), width):
        raise ValueError(
            f"Expected {width} numbers of the part {part.name!r} in each row. Received: "
            f"shape={numbers.shape} among the parts {sorted(inputs)}."
        )
    return numbers


def _typed(content: dict[str, Any]) -> dict[str, Any]:
    """What JSON cannot tell apart: arrays, tuples, dataclasses."""
    if content["decision_rule"] not in DECISION_RULES:
        raise ValueError(f"decision_rule={content['decision_rule']!r}")
    parts = []
    for part in content["parts"]:
        rule = part["rule"]
        arrays = {name: np.array(rule[name], float) for name in _RULE_ARRAYS}
        fitted = FatRule(**(rule | arrays | {"indicators": tuple(rule["indicators"])}))
        parts.append(JointPart(part["name"], tuple(part["columns"]), part["share"], fitted))
    first, second, third = content["link"]["cuts"]
    known = content["calibration"]
    points = tuple(OperatingPoint(**point) for point in known["operating_points"])
    return {
        "parts": tuple(parts),
        "link": CumulativeLink(content["link"]["slope"], (first, second, third)),
        "calibration": Calibration(
            **(known | {"left_out": tuple(known["left_out"]), "operating_points": points})
        ),
        "novelty": _novelty(content["novelty"]),
    }


def _novelty(content: dict[str, Any] | None) -> Novelty | None:
    if content is None:
        return None
    # Bundles of schema 1 have no rule that knows livers, those of 2 no distance from them.
    content = {"liver_weights": (), "livers": None} | content
    arrays = {name: np.array(content[name], float) for name in _NOVELTY_ARRAYS}
    return Novelty(**(content | arrays | {"livers": _novelty(content["livers"])}))


_RULE_ARRAYS = ("fill", "centre", "scale", "weights")
_NOVELTY_ARRAYS = ("centre", "scale", "basis", "liver_weights")
