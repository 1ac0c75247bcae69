"""Out of fold: every patient is graded by a model that never saw that patient."""

import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import ndtr
from tqdm import tqdm

from steatosis_tf.cohort.partition import Partition
from steatosis_tf.grades import GRADES, SCORE_COLUMNS
from steatosis_tf.model.heads import grade_probabilities
from steatosis_tf.model.joint import DecisionRule, JointModel, decide
from steatosis_tf.model.joint_fit import Part, fit_joint

# Any width ranks patients by predicted fat alike; this one is about the error of a left-out one.
_SPREAD = 1.5


def patient_features(frames: pd.DataFrame, features: pd.DataFrame) -> pd.DataFrame:
    """Mean of every number over a patient's frames, index `patient_id`, sorted."""
    return features.groupby(frames["patient_id"].to_numpy()).mean()


def patient_fat(frames: pd.DataFrame) -> pd.Series:
    """Fat percent of each patient, index `patient_id`, sorted."""
    return frames.groupby("patient_id")["fat_percent"].first()


def leave_one_out(frames: pd.DataFrame) -> list[Partition]:
    """One partition per patient, who is tested in it; all others train."""
    patients = frozenset(frames["patient_id"])
    alone = [frozenset([patient_id]) for patient_id in sorted(patients)]
    return [Partition("lopo", patients - one, frozenset(), one) for one in alone]


def left_out_scores(
    frames: pd.DataFrame,
    features: pd.DataFrame,
    parts: Sequence[Part],
    partitions: Sequence[Partition],
    *,
    name: str = "folds",
) -> tuple[pd.DataFrame, list[JointModel]]:
    """Score every tested frame by a model fitted to the other parts.

    Args:
        frames: manifest rows with `fat_percent` known.
        features: one row per frame, in the same order, the columns of every part; NaN
            where something was not measured.
        parts: what the model sees.
        partitions: folds of whole patients, as `leave_one_out` or `make_partitions` gives them; a
            model is fitted to training and validation part, since it stops by neither.
        name: shown beside the progress bar.

    Returns:
        the frame score table (with `sqrt_fat`, the predicted square root of fat percent, beside the
        columns of `evaluation.scores`), and the model of each fold. Penalties, shares and reading
        are chosen inside the training patients, so nothing of a patient's fat reaches its score.

    Raises:
        ValueError: if columns are missing, or see `fit_joint`.
    """
    patients, fat = patient_features(frames, features), patient_fat(frames)
    tables, models = [], []
    for fold, partition in enumerate(tqdm(partitions, name, file=sys.stderr, unit="fold")):
        others = patients.index.isin(partition.train | partition.validation)
        model = fit_joint(
            parts, _inputs(patients[others], parts), patients.index[others],
            fat_percent=fat[others].to_numpy(),
        )  # fmt: skip
        mine = frames["patient_id"].isin(partition.test).to_numpy()
        part = frames.loc[mine, ["frame_id", "patient_id", "grade", "fat_percent"]]
        part = part.assign(fold=fold, repeat=partition.repeat)
        score = model.score(_inputs(features[mine], parts))
        part["sqrt_fat"] = np.maximum(score, 0.0)
        part[list(SCORE_COLUMNS)] = model.probabilities(score)
        tables.append(part)
        models.append(model)
    table = pd.concat(tables, ignore_index=True)
    if not table["repeat"].any():
        table = table.drop(columns="repeat")
    probable = table[list(SCORE_COLUMNS)].to_numpy().argmax(axis=1)
    return table.assign(predicted=np.array(GRADES, object)[probable]), models


def by_predicted_fat(frame_scores: pd.DataFrame, patients: pd.DataFrame) -> pd.DataFrame:
    """The patient table with probabilities that rank patients exactly by predicted fat.

    The reading of each fold differs a little; the predicted fat percent is one scale for all.

    Args:
        frame_scores: with `sqrt_fat`, every patient tested once.
        patients: its patient table.
    """
    of_patient = frame_scores.groupby("patient_id")["sqrt_fat"].mean()
    sqrt_fat = of_patient.loc[patients["patient_id"]].to_numpy()
    return _with(patients, grade_probabilities(sqrt_fat[:, None], _SPREAD, ndtr))


def read_as(patients: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The patient table with one grade each, all or nothing.

    Args:
        patients: patient table.
        rule: `middle`, the grade at which half of the probability is reached, or `expected`, the
            mean grade rounded, which is what a quadratic weighting asks for.
    """
    shares = patients[list(SCORE_COLUMNS)].to_numpy(float)
    rules: dict[str, DecisionRule] = {"middle": "median", "expected": "rounded_mean"}
    if rule not in rules:
        raise ValueError(f"Expected rule middle or expected. Received: rule={rule!r}.")
    labels = decide(shares, rules[rule])
    return _with(patients, np.eye(len(GRADES))[labels])


def _inputs(features: pd.DataFrame, parts: Sequence[Part]) -> dict[str, np.ndarray]:
    absent = {name for part in parts for name in part.columns} - set(features.columns)
    if absent:
        raise ValueError(
            f"Expected the columns of every part in the feature table. Received: "
            f"parts={[part.name for part in parts]}, missing={sorted(absent)[:5]}."
        )
    return {part.name: features[list(part.columns)].to_numpy(float) for part in parts}


def _with(patients: pd.DataFrame, shares: np.ndarray) -> pd.DataFrame:
    table = patients.copy()
    table[list(SCORE_COLUMNS)] = shares / shares.sum(axis=1, keepdims=True)
    return table.assign(predicted=np.array(GRADES, object)[shares.argmax(axis=1)])
