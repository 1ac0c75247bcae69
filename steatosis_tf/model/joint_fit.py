"""Fits the joint model: rules, weights, decision rule and thresholds, on training patients.

Each part (`Part`) is a linear rule of its own: ridge on standardised features, or a sum in known
directions (`rules.py`). How much each counts is decided by predictions that such rules made for
training patients they had not seen: all alike, or fitted shares (stacking, Wolpert 1992, doi
10.1016/S0893-6080(05)80023-1; not negative, sum 1, Breiman 1996, doi 10.1007/BF00117832). The same
left-out predictions give the cumulative link, the decision rule and the thresholds, so nothing is
read off scores of patients that a rule had seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize
from sklearn.metrics import cohen_kappa_score

from steatosis_tf.evaluation.clinical.calibration import fit_conformal
from steatosis_tf.evaluation.clinical.thresholds import choose_operating_points
from steatosis_tf.evaluation.metrics.weighted import CUMULATIVE_TASKS
from steatosis_tf.grades import GRADES, SCORE_COLUMNS, grade_from_fat_percent, label_of
from steatosis_tf.model.joint import (
    NETWORK,
    Calibration,
    DecisionRule,
    JointModel,
    JointPart,
    OperatingPoint,
    decide,
)
from steatosis_tf.model.rules import (
    fit_cumulative_link,
    fit_linear_rule,
    fit_novelty,
    patient_means,
)

#: Stated coverage of intervals and prediction sets.
COVERAGE = 0.9
# So heavy that shares sum to 1 to six digits.
_SUM_WEIGHT = 1e3
# In this order where training patients see no difference.
_RULES: tuple[DecisionRule, ...] = ("median", "rounded_mean", "argmax")


@dataclass(frozen=True)
class Part:
    """A kind of numbers.

    Attributes:
        name: short, for tables; `NETWORK` for the backbone's features.
        columns: names of its numbers; empty for the network's.
        signs: for each column the only direction in which it may count, or None for ridge.
        flag_missing: also learn from whether a number is missing.
    """

    name: str
    columns: tuple[str, ...] = ()
    signs: tuple[int, ...] | None = None
    flag_missing: bool = False


def fit_joint(
    parts: Sequence[Part],
    inputs: Mapping[str, np.ndarray],
    patient_ids: Sequence[str],
    *,
    fat_percent: Sequence[float] | None = None,
    grades: Sequence[str] | None = None,
    grey_spreads: np.ndarray | None = None,
    notes: dict[str, str] | None = None,
) -> JointModel:
    """Fit everything from arrays of frames.

    Args:
        parts: what the model sees.
        inputs: part name -> `(num_frames, k)`, NaN for what a frame does not show.
        patient_ids: of each frame; a patient counts once, by the means over its frames.
        fat_percent: of each frame's patient, 0 to 100; the target is its square root.
        grades: of each frame's patient, where no fat percent is known: the target is the grade.
        grey_spreads: `rules.grey_spread` of what the network sees of each frame; None sets no
            limits to it.
        notes: what a reader should know, such as the study.

    Raises:
        ValueError: if there are fewer than 10 patients, or fat lies outside 0 to 100 percent.

    Example:
        >>> fat = np.linspace(0, 90, 40)
        >>> noise = np.random.default_rng(0).normal(size=(40, 8))
        >>> seen = {"network": np.sqrt(fat)[:, None] + noise}
        >>> names = [f"P{place}" for place in range(40)]
        >>> fit_joint([Part("network")], seen, names, fat_percent=fat).parts[0].share
        1.0
    """
    ids = np.asarray(patient_ids)
    patients, first = np.unique(ids, return_index=True)
    target, labels = _targets(fat_percent, grades, first)
    means = {part.name: patient_means(np.asarray(inputs[part.name], float), ids) for part in parts}
    fits = [
        fit_linear_rule(means[part.name], target, signs=part.signs, flag_missing=part.flag_missing)
        for part in parts
    ]
    shares = choose_shares(left_out := np.array([predicted for _, predicted in fits]), target)
    joined = shares @ left_out
    rule, calibration = calibrate(patients, joined, target, labels)
    return JointModel(
        parts=tuple(
            JointPart(part.name, part.columns, float(share), fitted)
            for part, share, (fitted, _) in zip(parts, shares, fits, strict=True)
        ),
        link=fit_cumulative_link(joined, labels),
        decision_rule=rule,
        calibration=calibration,
        novelty=fit_novelty(inputs[NETWORK], patient_ids, grey_spreads)
        if NETWORK in means
        else None,
        target="sqrt_fat" if grades is None else "grade",
        notes=dict(notes or {}),
    )


def _targets(
    fat_percent: Sequence[float] | None, grades: Sequence[str] | None, first: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Target and label of each patient, whose first frame is named."""
    if grades is not None:
        labels = np.array([label_of(grade) for grade in np.asarray(grades)[first]])
        return labels.astype(float), labels
    fat = np.asarray(fat_percent, float)[first]
    if not ((fat >= 0) & (fat <= 100)).all():
        raise ValueError("Expected fat_percent from 0 to 100. Received: a value outside.")
    return np.sqrt(fat), np.array([label_of(grade_from_fat_percent(percent)) for percent in fat])


def choose_shares(left_out: np.ndarray, target: np.ndarray) -> np.ndarray:
    """How much each part counts `(num_parts,)`: all alike, or fitted shares where these are better.

    Args:
        left_out: `(num_parts, num_patients)` predictions by rules that had not seen the patient.
        target: `(num_patients,)`.

    Returns:
        not negative, sum 1. Fitted shares are taken if, fitted to all patients but one, they come
        closer to that one (mean squared error) than equal ones.
    """
    equal = np.full(len(left_out), 1 / len(left_out))
    if len(left_out) == 1:
        return equal
    others = [np.arange(len(target)) != patient for patient in range(len(target))]
    stacked = [
        _fitted_shares(left_out[:, other], target[other]) @ left_out[:, ~other][:, 0]
        for other in others
    ]
    errors = [np.square(one - target).mean() for one in (equal @ left_out, np.array(stacked))]
    return equal if errors[0] <= errors[1] else _fitted_shares(left_out, target)


def calibrate(
    patients: np.ndarray, joined: np.ndarray, target: np.ndarray, labels: np.ndarray
) -> tuple[DecisionRule, Calibration]:
    """Decision rule and thresholds; each patient is read by a link fitted to the others.

    Args:
        patients: their ids.
        joined: scores by a rule that had not seen the patient.
        target: what the scores should be.
        labels: grades, 0 to 3.
    """
    chances = np.empty((len(labels), len(GRADES)))
    for patient in range(len(labels)):
        others = np.arange(len(labels)) != patient
        link = fit_cumulative_link(joined[others], labels[others])
        chances[patient] = link.probabilities(joined[[patient]])[0]
    kappas = [
        cohen_kappa_score(labels, decide(chances, rule), weights="quadratic") for rule in _RULES
    ]
    names = np.array(GRADES, object)
    table = pd.DataFrame(chances, columns=list(SCORE_COLUMNS)).assign(
        patient_id=patients, fold=0, fat_percent=np.nan, num_frames=1,
        grade=names[labels], predicted=names[chances.argmax(axis=1)],
    )  # fmt: skip
    conformal = fit_conformal(table, COVERAGE)
    errors = np.sort(np.abs(joined - target))
    rank = min(int(np.ceil((len(errors) + 1) * COVERAGE)), len(errors))
    return _RULES[int(np.argmax(kappas))], Calibration(
        left_out=tuple(np.sort(joined).tolist()),
        half_width=float(errors[rank - 1]),
        set_threshold=conformal["threshold"],
        set_coverage=COVERAGE,
        operating_points=_points(table),
    )


def _fitted_shares(left_out: np.ndarray, target: np.ndarray) -> np.ndarray:
    matrix = np.vstack([left_out.T, np.full(len(left_out), _SUM_WEIGHT)])
    shares, _ = optimize.nnls(matrix, np.append(target, _SUM_WEIGHT))
    return np.asarray(shares / shares.sum())


def _points(table: pd.DataFrame) -> tuple[OperatingPoint, ...]:
    chosen = choose_operating_points(table)
    (folds,) = chosen["folds"].values()
    return tuple(
        OperatingPoint(f"{task}, {rule} {chosen['settings'][rule]}", first, entry["threshold"])
        for task, first in CUMULATIVE_TASKS.items()
        for rule in ("sensitivity", "specificity")
        if (entry := folds[task][rule])["threshold"] is not None
    )
