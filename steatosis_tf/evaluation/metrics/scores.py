"""Score tables: one row per frame, and from it one row per patient.

A frame table holds `frame_id, patient_id, fold, grade, fat_percent, p_normal, p_mild,
p_moderate, p_severe, predicted`; a patient table holds `patient_id, fold, grade, fat_percent,
num_frames, p_normal .. p_severe, predicted`. `fold` is 0 for a hold-out run. Repeated
cross-validation adds a column `repeat`: ids are then unique within each repeat. A grading rule adds
`sqrt_fat`, its score of each frame.

The rule that turns frames into a patient is part of the configuration, so it is fixed before
the test part is scored. Where two grades tie, the lower one is predicted (`numpy.argmax`). A model
that names a grade by another rule says so in a column `decision_rule` (`joint.DECISION_RULES`).
"""

from pathlib import Path

import numpy as np
import pandas as pd

from steatosis_tf.files import open_regular, write_csv
from steatosis_tf.grades import GRADES, SCORE_COLUMNS, label_of
from steatosis_tf.model.answer import AGGREGATIONS, join_frames
from steatosis_tf.model.joint import decide

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


def score_table(
    index: pd.DataFrame,
    probabilities: np.ndarray,
    fold: int | np.ndarray,
    decision_rule: str | None = None,
) -> pd.DataFrame:
    """One row per frame, from what a model says of it.

    Args:
        index: `frame_id, patient_id, label, fat_percent`, as `records.pipeline.read_index` gives
            them; one row per frame.
        probabilities: `(num_frames, 4)`, in the same order.
        fold: in which these frames were tested, one for all or `(num_frames,)` int.
        decision_rule: by which the model names a grade, where it says so: a column of its own.

    Returns:
        `FRAME_COLUMNS`, with the index and in the order of `index`.
    """
    table = index[["frame_id", "patient_id"]].assign(
        fold=fold, grade=[GRADES[label] for label in index["label"]],
        fat_percent=index["fat_percent"],
    )  # fmt: skip
    table[list(SCORE_COLUMNS)] = probabilities
    if decision_rule is not None:
        table["decision_rule"] = decision_rule
    # The rule stands behind the columns that every table has.
    return table.assign(predicted=named_grades(table))[
        [*FRAME_COLUMNS, *(["decision_rule"] if decision_rule is not None else [])]
    ]


def patient_scores(
    frame_scores: pd.DataFrame, rule: str = "mean", *, validation: bool = False
) -> pd.DataFrame:
    """One row per patient from one row per frame.

    Args:
        frame_scores: table with at least `frame_id, patient_id, grade` and the four probability
            columns (0 to 1, each row sums to 1). `fold` is taken as 0 and `fat_percent` as
            unknown where the column is missing.
        rule: how a patient's frames are joined, grade by grade and then scaled to sum 1:
            `mean`, `log_odds` (mean log odds of at most each grade), `median`, `trimmed_mean` (a
            tenth of the frames cut at each end) or `vote` (proportion of frames that
            predict the grade).
        validation: the validation parts of several folds: a patient may stand in several folds
            and gets one row in each.

    Returns:
        `PATIENT_COLUMNS` (after `repeat` and before `decision_rule`, where there is one), sorted
        by patient. `fat_percent`
        is the mean of the patient's known values, NaN where none is known.

    Raises:
        ValueError: unknown rule; missing column; no row; probabilities not finite, not within
            0..1 or not summing to 1; unknown grade; a patient with two grades or in two folds;
            a frame twice; `predicted` that contradicts the probabilities; or frames so far
            apart that their median is 0 for all four grades.
    """
    if rule not in AGGREGATIONS:
        raise ValueError(
            f"Expected a rule out of {', '.join(AGGREGATIONS)}. Received: rule={rule!r}."
        )
    check_frame_scores(frame_scores, validation)
    table = frame_scores.assign(
        fold=frame_scores.get("fold", 0), fat_percent=frame_scores.get("fat_percent", np.nan)
    )
    rule_column = ["decision_rule"] if "decision_rule" in table else []
    # Sums of the same frames in another order round differently.
    table = table.sort_values("frame_id", kind="stable")
    groups = table.groupby(id_key(table, "patient_id", validation), sort=True)
    patients = groups.agg(
        **({} if validation else {"fold": ("fold", "first")}),
        grade=("grade", "first"),
        fat_percent=("fat_percent", "mean"),
        num_frames=("frame_id", "size"),
        **{name: (name, "first") for name in rule_column},
    )
    joined = np.stack([join_frames(_probabilities(frames), rule) for _, frames in groups])
    is_nothing = joined.sum(axis=1) <= 0
    if is_nothing.any():
        raise ValueError(
            f"Expected probabilities that leave some grade above 0. Received: rule={rule!r}, "
            f"patient_id={first_ids(patients.reset_index()['patient_id'], is_nothing)}, whose "
            "joined probabilities are all 0. Use rule='mean'."
        )
    patients[list(SCORE_COLUMNS)] = joined
    patients["predicted"] = named_grades(patients)
    columns = [*(["repeat"] if "repeat" in table else []), *PATIENT_COLUMNS, *rule_column]
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


def named_labels(table: pd.DataFrame) -> np.ndarray:
    """The grade that is named for each row, `(N,)` int 0..3: the most probable one, or what the
    row's `decision_rule` makes of its probabilities.

    Raises:
        ValueError: if there is no such rule.
    """
    scores = _probabilities(table)
    named = scores.argmax(axis=1)
    for rule in table["decision_rule"].unique() if "decision_rule" in table else ():
        rows = (table["decision_rule"] == rule).to_numpy()
        named[rows] = decide(scores[rows], rule)
    return named


def named_grades(table: pd.DataFrame) -> np.ndarray:
    """`named_labels` as names, `(N,)` str."""
    return np.asarray(GRADES, dtype=object)[named_labels(table)]


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
        for column in ("fat_percent", "sqrt_fat", *SCORE_COLUMNS):
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
    write_csv(table.astype(dict.fromkeys(SCORE_COLUMNS, np.float64)), path)


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
    # A column at a time: pandas takes ten times as long to make a table of four.
    columns = [table[name].to_numpy(np.float64) for name in SCORE_COLUMNS]
    return np.stack(columns, axis=1)


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
    scores = _probabilities(table)
    bad = ~np.isfinite(scores.sum(axis=1))  # one cell is enough
    _refuse(ids, bad, "finite probabilities", "with NaN, infinite or empty cells")
    bad = (scores.min(axis=1) < 0) | (scores.max(axis=1) > 1 + SUM_TOLERANCE)
    _refuse(ids, bad, "probabilities from 0 to 1", "outside")
    bad = np.abs(scores.sum(axis=1) - 1) > SUM_TOLERANCE
    _refuse(ids, bad, f"probabilities that sum to 1 within {SUM_TOLERANCE}", "that do not")
    if "predicted" in table:
        bad = table["predicted"].to_numpy(dtype=object) != named_grades(table)
        _refuse(ids, bad, "predicted to be the most probable grade, or that of the row's "
                "decision_rule", "that contradict their scores")  # fmt: skip


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
