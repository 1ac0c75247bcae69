"""Refusals: score tables, labels, probabilities and matrices that cannot be evaluated."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from steatosis_tf.grades import GRADES, SCORE_COLUMNS

#: Largest distance of a row's probabilities from sum 1; float32 softmax stays below 1e-6.
SUM_TOLERANCE = 1e-4


def check_frame_scores(frame_scores: pd.DataFrame, validation: bool = False) -> None:
    """Refuse a frame table that cannot be evaluated.

    Args:
        frame_scores: one row per frame.
        validation: the table holds the validation parts of several folds, so that a patient may
            stand in several folds (once in each). Test and out-of-fold scores must not.

    Raises:
        ValueError: what `check_table` refuses, or a patient with two grades or in two folds.
    """
    check_table(frame_scores, "frame_id", validation)
    _check_one_value_per_patient(frame_scores, "grade")
    if not validation:
        _check_one_value_per_patient(frame_scores, "fold")


def id_key(table: pd.DataFrame, id_column: str, validation: bool = False) -> list[str]:
    """Columns that name a row: the id, within its repeat and (validation only) its fold."""
    within = ["repeat", "fold"] if validation else ["repeat"]
    return [*(column for column in within if column in table), id_column]


def check_table(table: pd.DataFrame, id_column: str, validation: bool = False) -> None:
    """Refuse a frame table (`id_column` frame_id) or patient table (patient_id) row by row.

    `validation` is explained at `check_frame_scores`.

    Raises:
        ValueError: missing column, no row, repeated id, unknown grade, bad probabilities.
    """
    needed = dict.fromkeys([id_column, "patient_id", "grade", *SCORE_COLUMNS])
    missing = [column for column in needed if column not in table]
    if missing:
        raise ValueError(
            f"Expected the columns {', '.join(needed)}. Received: columns={list(table.columns)}; "
            f"missing {missing}."
        )
    if not len(table):
        raise ValueError("Expected at least one row of scores. Received: rows=0.")
    ids = table[id_column]
    key = id_key(table, id_column, validation)
    _refuse(ids, table.duplicated(key).to_numpy(), f"each {id_column} once", "repeated")
    _refuse(
        ids,
        ~table["grade"].isin(GRADES).to_numpy(),
        f"a grade out of {', '.join(GRADES)} in every row",
        "without one (rows of unknown grade cannot be evaluated; leave them out)",
    )
    no_patient = (table["patient_id"].isna() | (table["patient_id"].astype(str) == "")).to_numpy()
    _refuse(ids, no_patient, "a patient_id in every row", "without one")
    _check_probabilities(table, ids)


def _check_probabilities(table: pd.DataFrame, ids: pd.Series) -> None:
    scores = table[list(SCORE_COLUMNS)].to_numpy(dtype=np.float64)
    bad = ~np.isfinite(scores).all(axis=1)
    _refuse(ids, bad, "finite probabilities", "with NaN, infinite or empty cells")
    bad = (scores < 0).any(axis=1) | (scores > 1 + SUM_TOLERANCE).any(axis=1)
    _refuse(ids, bad, "probabilities from 0 to 1", "outside")
    bad = np.abs(scores.sum(axis=1) - 1) > SUM_TOLERANCE
    _refuse(ids, bad, f"probabilities that sum to 1 within {SUM_TOLERANCE}", "that do not")
    if "predicted" in table:
        predicted = np.asarray(GRADES, dtype=object)[scores.argmax(axis=1)]
        bad = table["predicted"].to_numpy(dtype=object) != predicted
        _refuse(ids, bad, "predicted to be the most probable grade", "that contradict their scores")


def _refuse(ids: pd.Series, faulty: np.ndarray, expected: str, found: str) -> None:
    if faulty.any():
        raise ValueError(
            f"Expected {expected}. Received: {int(faulty.sum())} of {len(ids)} rows {found}, "
            f"first {ids.name}={first_ids(ids, faulty)}."
        )


def _check_one_value_per_patient(table: pd.DataFrame, column: str) -> None:
    if column not in table:
        return
    key = ["repeat", "patient_id"] if "repeat" in table and column == "fold" else ["patient_id"]
    counts = table.groupby(key)[column].nunique(dropna=False)
    several = list(counts.index[counts.to_numpy() > 1])
    if several:
        why = (
            "The model of one fold was trained on frames of this patient: split by patient."
            if column == "fold"
            else "Settle the reference first; a patient is graded once."
        )
        raise ValueError(
            f"Expected one {column} per patient. Received: {len(several)} patients with several, "
            f"first patient_id={several[:5]}. {why}"
        )


def first_ids(ids: pd.Series, faulty: np.ndarray) -> list:
    """The first few ids of faulty rows; pseudonymous, so they may be shown."""
    return list(ids.to_numpy()[faulty][:5])


def checked_labels(labels: ArrayLike) -> np.ndarray:
    """`(N,)` int 0..3, or a ValueError that names the first bad row."""
    values = np.asarray(labels)
    if values.ndim != 1 or not len(values) or values.dtype.kind not in "iuf":
        raise ValueError(
            "Expected labels (N,) of whole numbers 0 to 3 with N > 0. "
            f"Received: shape={values.shape}, dtype={values.dtype}."
        )
    bad = ~np.isin(values, range(len(GRADES)))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"Expected labels 0 to 3. Received: {int(bad.sum())} others, first "
            f"label={values[row]} in row {row}. Leave rows of unknown grade out."
        )
    return values.astype(int)


def checked_probabilities(probabilities: ArrayLike) -> np.ndarray:
    """`(N, 4)` float64 in 0..1 with row sums 1, or a ValueError that names the first bad row."""
    scores = np.asarray(probabilities, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] != len(GRADES) or not len(scores):
        raise ValueError(f"Expected probabilities (N, 4), N > 0. Received: shape={scores.shape}.")
    with np.errstate(invalid="ignore"):
        bad = ~((scores >= 0) & (scores <= 1 + SUM_TOLERANCE)).all(axis=1)
        bad |= ~(np.abs(scores.sum(axis=1) - 1) <= SUM_TOLERANCE)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(
            "Expected finite probabilities from 0 to 1 that sum to 1. Received: "
            f"{int(bad.sum())} bad rows, first row {row}: {scores[row].tolist()}."
        )
    return scores


def checked_matrix(matrix: ArrayLike) -> np.ndarray:
    """`(4, 4)` int64 counts, or a ValueError."""
    values = np.asarray(matrix)
    if values.shape != (len(GRADES), len(GRADES)) or values.dtype.kind not in "iuf":
        raise ValueError(
            "Expected a 4 x 4 confusion matrix of counts, rows true. "
            f"Received: shape={values.shape}, dtype={values.dtype}."
        )
    if not np.isfinite(values).all() or (values < 0).any() or (values != np.round(values)).any():
        raise ValueError(f"Expected counts (whole, >= 0). Received: matrix={values.tolist()}.")
    if not values.sum():
        raise ValueError("Expected at least one count. Received: a matrix of zeros.")
    return values.astype(np.int64)
