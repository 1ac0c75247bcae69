"""What needs no model: always the commonest grade, and the hepatorenal index.

A model that does no better than these has learned nothing, so they stand beside it on the first
page of the report. They learn from patients that are not tested: the grade that is commonest among
them, and the curve from index to probability.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special
from sklearn.linear_model import LogisticRegression

from steatosis_tf.cohort.manifest import read_manifest
from steatosis_tf.evaluation.metrics.scores import named_grades
from steatosis_tf.evaluation.metrics.weighted import CUMULATIVE_TASKS
from steatosis_tf.files import write_csv
from steatosis_tf.grades import GRADES, SCORE_COLUMNS
from steatosis_tf.quantitative.study import measured_table

#: Frames measured of each patient. The frames of a clip are almost one picture, and one costs as
#: much as proposing its ROI.
FRAMES_PER_PATIENT = 2


def untested_grades(
    split: pd.DataFrame, manifest: pd.DataFrame, folds: ArrayLike
) -> dict[str, pd.Series]:
    """Grades of the graded patients that a fold does not test: fold (text) -> patient -> grade.

    Args:
        split: `fold, patient_id, split`, all text.
        manifest: with `patient_id` and `grade`.
        folds: those that are wanted.
    """
    # A patient's first row may be without one.
    grades = manifest[manifest["grade"] != ""].groupby("patient_id")["grade"].first()
    found = {}
    for fold in map(str, np.unique(folds)):
        part = split[(split["fold"] == fold) & split["split"].isin(["train", "validation"])]
        known = grades.reindex(part["patient_id"])
        found[fold] = known.dropna()
    return found


def majority_scores(patient_scores: pd.DataFrame, untested: dict[str, pd.Series]) -> pd.DataFrame:
    """The table of a reader who always says the commonest grade of the patients not tested.

    Of several folds it is the commonest grade of all patients, one for all. Fold by fold, whoever
    is tested lacks among the others, and where grades are even that reader would nearly always be
    wrong, which flatters the model.

    Args:
        patient_scores: patient table of the model.
        untested: from `untested_grades`. Without any it is the commonest grade tested, which
            flatters this reader, never the model.

    Returns:
        the same rows with a probability of 1 for that grade; the lower of two as common.
    """
    grades = pd.concat([*untested.values()]) if untested else pd.Series(dtype=str)
    grades = grades if len(grades) else patient_scores["grade"]
    commonest = int(np.argmax([(grades == grade).sum() for grade in GRADES]))
    probabilities = np.tile(np.eye(len(GRADES))[commonest], (len(patient_scores), 1))
    return _answered(patient_scores, probabilities)


def index_probabilities(
    patient_scores: pd.DataFrame, index: pd.Series, untested: dict[str, pd.Series]
) -> dict[str, np.ndarray]:
    """Probability `(N,)` of each cumulative task from an index of the patients, fold by fold.

    A test patient without an index gets the proportion of positives among the patients not
    tested, as a reader would who sees no kidney.

    Args:
        patient_scores: patient table; its rows are answered.
        index: patient_id -> index, any unit; patients without one are absent.
        untested: from `untested_grades`.

    Returns:
        task -> probability; without the tasks for which a fold has untested patients with an index
        on one side only.

    Raises:
        ValueError: if over half of the patients lack the index; the text is a reason for a report.
    """
    tested = patient_scores["patient_id"].astype(str)
    num_lacking = int((~tested.isin(index.index)).sum())
    if 2 * num_lacking > len(tested):
        raise ValueError(f"{num_lacking} of {len(tested)} test patients lack it")
    found = {task: np.zeros(len(tested)) for task in CUMULATIVE_TASKS}
    for fold, grades in untested.items():
        labels = grades.map(GRADES.index).to_numpy(int)
        known = grades.index.isin(index.index)
        rows = np.flatnonzero(patient_scores["fold"].astype(str) == fold)
        values = index.reindex(tested.iloc[rows]).to_numpy(float)
        for task, first in CUMULATIVE_TASKS.items():
            positive = labels >= first
            if positive[known].all() or not positive[known].any():
                found.pop(task, None)
            if task not in found:
                continue
            curve = fit_index_probability(
                index.loc[grades.index[known]].to_numpy(), positive[known]
            )
            answer = index_probability(curve, values)
            found[task][rows] = np.where(np.isnan(values), positive.mean(), answer)
    return found


def scores_of_tasks(patient_scores: pd.DataFrame, tasks: dict[str, np.ndarray]) -> pd.DataFrame:
    """The patient table of probabilities of the cumulative tasks, made to fall from Mild on."""
    reached = np.minimum.accumulate(
        np.stack([np.ones(len(patient_scores)), *tasks.values()]), axis=0
    )
    return _answered(patient_scores, -np.diff(reached, axis=0, append=0.0).T)


def fit_index_probability(values: ArrayLike, positive: ArrayLike) -> dict[str, float]:
    """Logistic curve from an index to a probability, fitted on validation patients.

    Args:
        values: `(N,)` finite index, any unit (for example the hepatorenal index).
        positive: `(N,)` bool, both kinds present.

    Returns:
        `intercept`, `slope` for `index_probability`; fitted with a weak ridge penalty, so that
        an index that separates the patients perfectly still has a slope.
    """
    index, outcome = np.asarray(values, dtype=float), np.asarray(positive, dtype=bool)
    scale = float(index.std()) or 1.0
    model = LogisticRegression(C=100.0).fit((index / scale)[:, None], outcome)
    return {"intercept": float(model.intercept_[0]), "slope": float(model.coef_[0, 0]) / scale}


def index_probability(curve: dict[str, float], values: ArrayLike) -> np.ndarray:
    """Probability `(N,)` of an index by a curve from `fit_index_probability`."""
    return special.expit(curve["intercept"] + curve["slope"] * np.asarray(values, dtype=float))


def write_hepatorenal(run_dir: str | Path, store_dir: Path) -> Path:
    """Measure the graded patients of a run and write `hepatorenal.csv` for its decision curves.

    Nothing is trained here: the index knows no grade.

    Args:
        run_dir: run directory whose manifest still leads to the frames.
        store_dir: of what was measured before, see `measured_table`.

    Returns:
        path of `hepatorenal.csv`: `frame_id, patient_id, hepatorenal_index` (dB, liver over renal
        cortex; empty where a frame shows no kidney, no liver beside it or no sector).

    Raises:
        ValueError: if the manifest is missing or damaged, or a frame cannot be read.
    """
    run_dir = Path(run_dir)
    table = read_manifest(run_dir / "manifest.csv")
    chosen = _spread_over_clips(table.loc[table["grade"] != ""])
    measured = measured_table(chosen, run_dir / "manifest.csv", store_dir)
    path = run_dir / "hepatorenal.csv"
    index = measured["hepatorenal_db"]
    write_csv(chosen[["frame_id", "patient_id"]].assign(hepatorenal_index=index), path)
    return path


def _spread_over_clips(graded: pd.DataFrame) -> pd.DataFrame:
    """A few frames of each patient, at even distances in the order of the manifest."""
    groups = graded.groupby("patient_id", sort=False)
    place, size = groups.cumcount(), groups["patient_id"].transform("size")
    step = np.maximum(size // FRAMES_PER_PATIENT, 1)
    return graded[(place % step == step // 2) & (place // step < FRAMES_PER_PATIENT)]


def _answered(patient_scores: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
    """The patients with probabilities that are not the model's: its decision rule is not theirs."""
    table = patient_scores.drop(columns="decision_rule", errors="ignore")
    table[list(SCORE_COLUMNS)] = probabilities
    return table.assign(predicted=named_grades(table))
