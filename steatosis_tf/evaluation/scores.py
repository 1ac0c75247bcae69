"""Score tables: one row per frame, and from it one row per patient.

A frame table holds `frame_id, patient_id, fold, grade, fat_percent, p_normal, p_mild,
p_moderate, p_severe, predicted`; a patient table holds `patient_id, fold, grade, fat_percent,
num_frames, p_normal .. p_severe, predicted`. `fold` is 0 for a hold-out run. Repeated
cross-validation adds a column `repeat`: ids are then unique within each repeat.

The rule that turns frames into a patient is part of the configuration, so it is fixed before
the test part is scored. Where two grades tie, the lower one is predicted (`numpy.argmax`).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from steatosis_tf.evaluation.checks import check_frame_scores, check_table, first_ids, id_key
from steatosis_tf.files import open_regular, replacing
from steatosis_tf.grades import GRADES, SCORE_COLUMNS, label_of

FRAME_COLUMNS = (
    "frame_id",
    "patient_id",
    "fold",
    "grade",
    "fat_percent",
    *SCORE_COLUMNS,
    "predicted",
)
PATIENT_COLUMNS = (
    "patient_id",
    "fold",
    "grade",
    "fat_percent",
    "num_frames",
    *SCORE_COLUMNS,
    "predicted",
)

#: Share of frames cut off at each end by the rule `trimmed_mean` (10 frames: one at each end).
TRIM_SHARE = 0.1


def _vote(probabilities: np.ndarray) -> np.ndarray:
    return np.bincount(probabilities.argmax(axis=1), minlength=len(GRADES)) / len(probabilities)


#: Rule name -> function from one patient's `(num_frames, 4)` probabilities to `(4,)`.
RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda probabilities: probabilities.mean(axis=0),
    "median": lambda probabilities: np.median(probabilities, axis=0),
    "trimmed_mean": lambda probabilities: stats.trim_mean(probabilities, TRIM_SHARE, axis=0),
    "vote": _vote,
}


def score_table(
    index: pd.DataFrame, probabilities: np.ndarray, fold: int | np.ndarray
) -> pd.DataFrame:
    """One row per frame, from what a model says of it.

    Args:
        index: `frame_id, patient_id, label, fat_percent`, as `records.pipeline.read_index` gives
            them; one row per frame.
        probabilities: `(num_frames, 4)`, in the same order.
        fold: in which these frames were tested, one for all or `(num_frames,)` int.

    Returns:
        `FRAME_COLUMNS`, with the index and in the order of `index`.
    """
    table = index[["frame_id", "patient_id"]].assign(
        fold=fold, grade=[GRADES[label] for label in index["label"]],
        fat_percent=index["fat_percent"],
    )  # fmt: skip
    table[list(SCORE_COLUMNS)] = probabilities
    return table.assign(predicted=[GRADES[label] for label in probabilities.argmax(axis=1)])


def patient_scores(
    frame_scores: pd.DataFrame, rule: str = "mean", *, validation: bool = False
) -> pd.DataFrame:
    """One row per patient from one row per frame.

    Args:
        frame_scores: table with at least `frame_id, patient_id, grade` and the four probability
            columns (0 to 1, each row sums to 1). `fold` is taken as 0 and `fat_percent` as
            unknown where the column is missing.
        rule: how a patient's frames are joined, grade by grade and then scaled to sum 1:
            `mean`, `median`, `trimmed_mean` (a tenth of the frames cut at each end) or `vote`
            (share of frames that predict the grade).
        validation: the validation parts of several folds: a patient may stand in several folds
            and gets one row in each.

    Returns:
        `PATIENT_COLUMNS` (after `repeat`, where there is one), sorted by patient. `fat_percent`
        is the mean of the patient's known values, NaN where none is known.

    Raises:
        ValueError: unknown rule; missing column; no row; probabilities not finite, not within
            0..1 or not summing to 1; unknown grade; a patient with two grades or in two folds;
            a frame twice; `predicted` that contradicts the probabilities; or frames so far
            apart that their median is 0 for all four grades.
    """
    if rule not in RULES:
        raise ValueError(f"Expected a rule out of {', '.join(RULES)}. Received: rule={rule!r}.")
    check_frame_scores(frame_scores, validation)
    table = frame_scores.assign(
        fold=frame_scores.get("fold", 0), fat_percent=frame_scores.get("fat_percent", np.nan)
    )
    # Sums of the same frames in another order round differently.
    table = table.sort_values("frame_id", kind="stable")
    groups = table.groupby(id_key(table, "patient_id", validation), sort=True)
    patients = groups.agg(
        **({} if validation else {"fold": ("fold", "first")}),
        grade=("grade", "first"),
        fat_percent=("fat_percent", "mean"),
        num_frames=("frame_id", "size"),
    )
    joined = np.stack([RULES[rule](_probabilities(frames)) for _, frames in groups])
    totals = joined.sum(axis=1)
    if (totals <= 0).any():
        raise ValueError(
            f"Expected probabilities that leave some grade above 0. Received: rule={rule!r}, "
            f"patient_id={first_ids(patients.reset_index()['patient_id'], totals <= 0)}, whose "
            "joined probabilities are all 0. Use rule='mean'."
        )
    # Sums that differ from 1 by rounding only are left alone: equal votes must stay equal.
    joined /= np.where(np.abs(totals - 1) < 1e-9, 1.0, totals)[:, None]
    patients[list(SCORE_COLUMNS)] = joined
    patients["predicted"] = np.asarray(GRADES, dtype=object)[joined.argmax(axis=1)]
    columns = [*(["repeat"] if "repeat" in table else []), *PATIENT_COLUMNS]
    return patients.reset_index()[columns]


def labels_and_probabilities(
    table: pd.DataFrame, *, validation: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """True labels `(N,)` int 0..3 and probabilities `(N, 4)` float64 of a frame or patient table.

    Raises:
        ValueError: if the table is not a valid score table.
    """
    check_table(table, "frame_id" if "frame_id" in table else "patient_id", validation)
    labels = np.array([label_of(grade) for grade in table["grade"]], dtype=int)
    return labels, _probabilities(table)


def read_scores(path: str | Path, *, validation: bool = False) -> pd.DataFrame:
    """Read and check a frame or patient score file.

    Args:
        path: CSV written by `write_scores`. Ids are read as text (patient "007" or "NA" stays
            so); numbers come back bit-equal.
        validation: it holds the validation parts of several folds, see `patient_scores`.

    Raises:
        ValueError: if the file is missing, is not a CSV, holds a cell that is not a number where
            one belongs, or is not a valid score table.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        # An OSError prints the whole path, and a folder can be named after a patient.
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"Expected a score CSV. Received: {path.name}: {reason}") from error
    try:
        for column in ("fat_percent", *SCORE_COLUMNS):
            if column in table:
                # numpy parses the shortest text of a double back to the same double.
                cells = table[column].to_numpy(dtype=object)
                table[column] = np.array([float(cell) if cell else np.nan for cell in cells])
        for column in ("repeat", "fold", "num_frames"):
            if column in table:
                table[column] = np.array([int(cell) for cell in table[column]], dtype=np.int64)
    except ValueError as error:
        raise ValueError(
            f"Expected numbers in column {column} of {path.name}. Received: {error}"
        ) from error
    try:
        if "frame_id" in table:
            check_frame_scores(table, validation)
        else:
            check_table(table, "patient_id", validation)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    return table


def write_scores(table: pd.DataFrame, path: str | Path, *, validation: bool = False) -> None:
    """Write a frame or patient table as CSV, complete or not at all, at full precision.

    `validation` is explained at `patient_scores`.

    Raises:
        ValueError: if the table is not a valid score table.
    """
    check_table(table, "frame_id" if "frame_id" in table else "patient_id", validation)
    # float32 would be written with 8 digits and read back as another float64.
    wide = table.astype(dict.fromkeys(SCORE_COLUMNS, np.float64))
    with replacing(path) as temporary:
        wide.to_csv(temporary, index=False, lineterminator="\n")


def check_same_patients(frame_scores: pd.DataFrame, patient_scores: pd.DataFrame) -> None:
    """Refuse two tables of one run that do not describe the same patients.

    Raises:
        ValueError: naming the patients that only one table has, or whose grade or number of
            frames differ.
    """
    key = id_key(frame_scores, "patient_id")
    frames = frame_scores.groupby(key).agg(grade=("grade", "first"), num_frames=("grade", "size"))
    patients = patient_scores.set_index(key)
    for have, lack, name in (
        (frames, patients, "patient_scores"),
        (patients, frames, "frame_scores"),
    ):
        missing = have.index.difference(lack.index)
        if len(missing):
            raise ValueError(
                f"Expected the same patients in frame_scores and patient_scores. Received: "
                f"{len(missing)} patients missing from {name}, first {list(missing[:5])}. "
                "Make both files anew from one run."
            )
    patients = patients.loc[frames.index]
    for column in ("grade", "num_frames"):
        differs = (frames[column] != patients[column]).to_numpy()
        if differs.any():
            raise ValueError(
                f"Expected the same {column} in frame_scores and patient_scores. Received: "
                f"{differs.sum()} patients differ, first {list(frames.index[differs][:5])}. "
                "Make both files anew from one run."
            )


def _probabilities(table: pd.DataFrame) -> np.ndarray:
    return table[list(SCORE_COLUMNS)].to_numpy(dtype=np.float64)
