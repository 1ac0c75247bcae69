"""Decision curve: the net benefit of acting on a score (Vickers and Elkin 2006).

At threshold probability t one would act on a patient whose risk is t or more, so t says how many
false alarms a found case is worth: t / (1 - t). Net benefit = true positives / n - false
positives / n * t / (1 - t). Its scale is that of the sample's own share of positives: in a sample
enriched with cases it overstates the benefit for a clinic.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special
from sklearn.linear_model import LogisticRegression

from steatosis_tf.cohort.manifest import frame_path, read_manifest
from steatosis_tf.evaluation.metrics.intervals import DEFAULT_RESAMPLES
from steatosis_tf.evaluation.metrics.resampling import bootstrap_weights, code_patients
from steatosis_tf.evaluation.metrics.scores import labels_and_probabilities
from steatosis_tf.evaluation.metrics.weighted import CUMULATIVE_TASKS, cumulative_scores
from steatosis_tf.files import replacing
from steatosis_tf.model.baselines.physics import hepatorenal_db
from steatosis_tf.parallel import map_on_cores
from steatosis_tf.sources.folder import read_frame

#: Threshold probabilities 1 % to 60 %: beyond, nobody would wait that long before acting.
THRESHOLDS = tuple(round(0.01 * step, 2) for step in range(1, 61))


def decision_curve(
    scores: pd.DataFrame,
    task: str = "at_least_mild",
    *,
    comparators: Mapping[str, ArrayLike] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Net benefit of the model against treating all, none, and other probabilities.

    Args:
        scores: patient table (a frame table is resampled by patient).
        task: `at_least_mild`, `at_least_moderate` or `severe`.
        comparators: name -> probability `(N,)` of the task, 0 to 1, one per row of `scores`. Turn
            an index (such as the hepatorenal index) into a probability with
            `fit_index_probability` on validation patients first.
        thresholds: threshold probabilities, between 0 and 1.
        num_resamples: bootstrap resamples of patients for the 95 % bands.
        seed: of the draws.

    Returns:
        `task`, `thresholds`, `prevalence` (share of positive rows), `num_patients`, and
        `net_benefit`: `model`, `treat_all`, `treat_none` and each comparator -> `value`, `low`,
        `high` (lists along thresholds; percentile bands over resamples within grade, so the
        prevalence is held).

    Raises:
        ValueError: unknown task, bad table, thresholds outside 0..1, a comparator that is not a
            probability for every row, or one with a reserved name.
    """
    if task not in CUMULATIVE_TASKS:
        raise ValueError(
            f"Expected a task out of {', '.join(CUMULATIVE_TASKS)}. Received: task={task!r}."
        )
    cuts = np.asarray(thresholds, dtype=float)
    if cuts.ndim != 1 or not len(cuts) or not ((cuts > 0) & (cuts < 1)).all():
        raise ValueError("Expected thresholds between 0 and 1. Received: others or none.")
    table = code_patients(scores)
    labels, probabilities = labels_and_probabilities(scores)
    positive = labels >= CUMULATIVE_TASKS[task]
    patient = np.searchsorted(table.patient_ids, scores["patient_id"].astype(str).to_numpy(str))
    strategies = {
        "model": cumulative_scores(probabilities)[task],
        "treat_all": np.ones(len(labels)),
        "treat_none": np.zeros(len(labels)),
    }
    for name, values in (comparators or {}).items():
        strategies[name] = _checked_comparator(name, values, len(labels), set(strategies))
    weights = bootstrap_weights(table.grade, num_resamples, np.random.default_rng(seed))
    return {
        "task": task,
        "thresholds": cuts.tolist(),
        "prevalence": float(positive.mean()),
        "num_patients": table.num_patients,
        "net_benefit": {
            name: _net_benefit(positive, score, cuts, patient, weights)
            for name, score in strategies.items()
        },
    }


def fit_index_probability(values: ArrayLike, positive: ArrayLike) -> dict[str, float]:
    """Logistic curve from an index to a probability, fitted on validation patients.

    Args:
        values: `(N,)` finite index, any unit (for example the hepatorenal index).
        positive: `(N,)` bool, both kinds present.

    Returns:
        `intercept`, `slope` for `index_probability`; fitted with a weak ridge penalty, so that
        an index that separates the patients perfectly still has a slope.

    Raises:
        ValueError: values not finite, or patients on one side only.
    """
    index, outcome = np.asarray(values, dtype=float), np.asarray(positive, dtype=bool)
    if index.shape != outcome.shape or index.ndim != 1 or not np.isfinite(index).all():
        raise ValueError(f"Expected finite values (N,) and positive (N,). Received: {index.shape}.")
    if outcome.all() or not outcome.any():
        raise ValueError("Expected patients on both sides. Received: patients on one side only.")
    scale = float(index.std()) or 1.0
    model = LogisticRegression(C=100.0).fit((index / scale)[:, None], outcome)
    return {"intercept": float(model.intercept_[0]), "slope": float(model.coef_[0, 0]) / scale}


def index_probability(curve: dict[str, float], values: ArrayLike) -> np.ndarray:
    """Probability `(N,)` of an index by a curve from `fit_index_probability`."""
    return special.expit(curve["intercept"] + curve["slope"] * np.asarray(values, dtype=float))


def _checked_comparator(name: str, values: ArrayLike, num_rows: int, taken: set[str]) -> np.ndarray:
    score = np.asarray(values, dtype=float)
    if name in taken:
        raise ValueError(f"Expected another name. Received: comparator={name!r}, already there.")
    if score.shape != (num_rows,) or not ((score >= 0) & (score <= 1)).all():
        raise ValueError(
            f"Expected a probability from 0 to 1 for each of {num_rows} rows. Received: "
            f"comparator={name!r}, shape={score.shape}. Fit `fit_index_probability` on "
            "validation patients to turn an index into a probability."
        )
    return score


def _net_benefit(
    positive: np.ndarray,
    score: np.ndarray,
    cuts: np.ndarray,
    patient: np.ndarray,
    weights: np.ndarray,
) -> dict[str, list[float]]:
    odds = cuts / (1 - cuts)
    called = score[:, None] >= cuts
    gain = np.where(positive[:, None], called, 0.0 - called * odds)
    sums = np.zeros((weights.shape[1], len(cuts)))
    np.add.at(sums, patient, gain)
    rows = np.bincount(patient, minlength=weights.shape[1])
    replicates = (weights @ sums) / (weights @ rows)[:, None]
    low, high = np.quantile(replicates, [0.025, 0.975], axis=0)
    return {"value": gain.mean(axis=0).tolist(), "low": low.tolist(), "high": high.tolist()}


#: Frames measured of each patient. The frames of a clip are almost one picture, and one costs as
#: much as proposing its ROI.
FRAMES_PER_PATIENT = 2


def write_hepatorenal(run_dir: str | Path) -> Path:
    """Measure the graded patients of a run and write `hepatorenal.csv` for its decision curves.

    Nothing is trained here: the index knows no grade.

    Args:
        run_dir: run directory whose manifest still leads to the frames.

    Returns:
        path of `hepatorenal.csv`: `frame_id, patient_id, hepatorenal_index` (dB, liver over renal
        cortex; empty where a frame shows no kidney, no liver beside it or no sector).

    Raises:
        ValueError: if the manifest is missing or damaged, or a frame cannot be read.
    """
    run_dir = Path(run_dir)
    table = read_manifest(run_dir / "manifest.csv")
    chosen = _spread_over_clips(table.loc[table["grade"] != ""])
    measure = partial(_index_db, run_dir / "manifest.csv")
    indices = list(map_on_cores(measure, chosen["path"].tolist(), "hepatorenal index"))
    path = run_dir / "hepatorenal.csv"
    with replacing(path) as temporary:
        chosen[["frame_id", "patient_id"]].assign(hepatorenal_index=indices).to_csv(
            temporary, index=False, lineterminator="\n"
        )
    return path


def _spread_over_clips(graded: pd.DataFrame) -> pd.DataFrame:
    """A few frames of each patient, at even distances in the order of the manifest."""
    groups = graded.groupby("patient_id", sort=False)
    place, size = groups.cumcount(), groups["patient_id"].transform("size")
    step = np.maximum(size // FRAMES_PER_PATIENT, 1)
    return graded[(place % step == step // 2) & (place // step < FRAMES_PER_PATIENT)]


def _index_db(manifest_path: Path, row_path: str) -> float:
    frame = read_frame(frame_path(manifest_path, row_path))
    try:
        return hepatorenal_db(frame)
    except ValueError:  # no sector
        return float("nan")
