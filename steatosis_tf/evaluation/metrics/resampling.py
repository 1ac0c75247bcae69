"""Which patients a resample holds: coding, strata, bootstrap and jackknife weights.

The patient is the unit: all frames of a patient enter or leave a resample together, and in
repeated cross-validation one weight serves the patient in every repeat.

Patients are drawn within their grade, so that every resample has the study's mix of grades.
The means over folds (`fold_mean.*`) compare only patients of one fold, so for them patients are
drawn within fold and grade; a cell of one patient cannot vary, so such patients are joined per
grade. Pooled numbers are not drawn within folds: with two or three patients a cell their
intervals came out too narrow (BCa coverage 0.91 to 0.95 against 0.93 to 0.98 by grade, in 200
simulated studies of 48 patients).

From a stratum of n patients n - 1 are drawn with replacement and weighted n / (n - 1) (Rao and
Wu 1988). Drawing n instead makes the variance (n - 1) / n of what it should be: harmless with
hundreds of patients per grade, a fifth too small with five.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

from steatosis_tf.evaluation.metrics.registry import METRICS, weighted_metrics
from steatosis_tf.evaluation.metrics.scores import (
    check_frame_scores,
    check_table,
    labels_and_probabilities,
    named_labels,
)
from steatosis_tf.evaluation.metrics.weighted import WeightedTable, prepare
from steatosis_tf.grades import GRADES

#: Most weightings of a jackknife; larger studies leave out several patients at a time.
MAX_JACKKNIFE = 400

# Resamples drawn at a time.
_AT_A_TIME = 100

AUC_NAMES = tuple(name for name, metric in METRICS.items() if metric.is_auc)


@dataclass(frozen=True)
class PatientTable:
    """A score table coded by patient.

    Attributes:
        patient_ids: `(P,)` ids, sorted; position is the patient's code.
        grade: `(P,)` int 0..3, the stratum of every pooled number.
        fold_cell: `(P,)` int, the stratum of the means over folds.
        repeats: one weighted table per repeat of the cross-validation (one if there is none).
        folds: for each repeat the weighted tables of its folds; empty lists for a hold-out run
            and for leave-one-patient-out, where no fold holds two patients to compare.
    """

    patient_ids: np.ndarray
    grade: np.ndarray
    fold_cell: np.ndarray
    repeats: list[WeightedTable]
    folds: list[list[WeightedTable]]

    def metrics(
        self, weights: np.ndarray, names: Collection[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Pooled metrics `(B,)` under weights `(B, P)`, mean of repeats; NaN = undefined.

        `names` are of `METRICS`; all if None.
        """
        return _average([weighted_metrics(table, weights, names) for table in self.repeats])

    def fold_means(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """`fold_mean.<name>` of each AUC `(B,)`, averaged over repeats; empty without folds.

        The mean over the folds that hold both sides of the question: each fold's AUC compares
        only scores of one model.
        """
        if not all(self.folds):
            return {}
        return _average([_fold_means(folds, weights) for folds in self.folds])

    def num_defined_folds(self) -> dict[str, tuple[int, int]]:
        """For each `fold_mean.<name>`: folds in which the AUC is defined, and all folds."""
        folds = [fold for repeat in self.folds for fold in repeat]
        ones = np.ones((1, self.num_patients))
        results = [weighted_metrics(fold, ones, AUC_NAMES) for fold in folds]
        return {
            f"fold_mean.{name}": (sum(not np.isnan(one[name][0]) for one in results), len(folds))
            for name in AUC_NAMES
        }

    @property
    def num_patients(self) -> int:
        """Number of patients."""
        return len(self.patient_ids)


def code_patients(scores: pd.DataFrame) -> PatientTable:
    """Check a frame or patient score table and code it by patient.

    Args:
        scores: frame table (has `frame_id`) or patient table; with `repeat` for repeated
            cross-validation, in which every repeat must hold every patient.

    Raises:
        ValueError: if the table cannot be evaluated, or a repeat lacks a patient.
    """
    if "frame_id" in scores:
        check_frame_scores(scores)
    else:
        check_table(scores, "patient_id")
    ids, patient = np.unique(scores["patient_id"].astype(str).to_numpy(str), return_inverse=True)
    labels, probabilities = labels_and_probabilities(scores)
    named = named_labels(scores)
    fat = scores["fat_percent"].to_numpy(dtype=float) if "fat_percent" in scores else None
    grade = np.zeros(len(ids), dtype=int)
    grade[patient] = labels
    repeat = scores["repeat"].to_numpy() if "repeat" in scores else np.zeros(len(scores))
    fold = scores["fold"].to_numpy() if "fold" in scores else np.zeros(len(scores))

    def weighted(rows: np.ndarray) -> WeightedTable:
        known = None if fat is None else fat[rows]
        return prepare(
            labels[rows], probabilities[rows], patient[rows], len(ids), known, named[rows]
        )

    tables, folds = [], []
    for name in np.unique(repeat):
        rows = repeat == name
        if len(np.unique(patient[rows])) != len(ids):
            raise ValueError(
                f"Expected every patient in every repeat. Received: repeat={name} with "
                f"{len(np.unique(patient[rows]))} of {len(ids)} patients."
            )
        tables.append(weighted(rows))
        names = np.unique(fold[rows])
        has_folds = 1 < len(names) < len(ids)
        folds.append([weighted(rows & (fold == one)) for one in names if has_folds])
    first_fold = np.zeros(len(ids), dtype=int)
    if len(tables) == 1:  # folds differ between repeats: patients then share no cell
        first_fold[patient] = np.unique(fold, return_inverse=True)[1]
    return PatientTable(ids, grade, _fold_cells(grade, first_fold), tables, folds)


def bootstrap_weights(
    stratum: np.ndarray, num_resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Weights `(num_resamples, P)` float32 of patients drawn with replacement within strata."""
    weights = np.ones((num_resamples, len(stratum)), dtype=np.float32)
    for name in np.unique(stratum):
        members = np.flatnonzero(stratum == name)
        size = len(members)
        if size > 1:
            chances = np.full(size, 1 / size)
            # In parts: the numbers are the same, and draws take four times what weights take.
            for part in np.split(weights, range(_AT_A_TIME, num_resamples, _AT_A_TIME)):
                draws = rng.multinomial(size - 1, chances, size=len(part))
                part[:, members] = draws * (size / (size - 1))
    return weights


def jackknife_weights(
    stratum: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Weights `(J, P)` that leave patients out in turn, and the stratum `(J,)` of each.

    One patient at a time up to `MAX_JACKKNIFE` patients. Beyond, random groups of one stratum:
    third and second moments of group sums grow alike, so the acceleration that BCa takes from
    them stays the same.
    """
    num_groups = min(MAX_JACKKNIFE, len(stratum))
    rows, names = [], []
    for name in np.unique(stratum):
        members = rng.permutation(np.flatnonzero(stratum == name))
        if len(members) < 2:
            continue
        share = max(2, round(num_groups * len(members) / len(stratum)))
        for group in np.array_split(members, min(share, len(members))):
            row = np.ones(len(stratum), dtype=np.float32)
            row[group] = 0
            rows.append(row)
            names.append(name)
    return np.array(rows).reshape(-1, len(stratum)), np.array(names, dtype=int)


def _fold_cells(grade: np.ndarray, fold: np.ndarray) -> np.ndarray:
    cell = fold * len(GRADES) + grade
    alone = np.bincount(cell)[cell] == 1
    cell = np.where(alone, -1 - grade, cell)
    return np.unique(cell, return_inverse=True)[1]


def _fold_means(folds: list[WeightedTable], weights: np.ndarray) -> dict[str, np.ndarray]:
    results = [weighted_metrics(fold, weights, AUC_NAMES) for fold in folds]
    means = {}
    for name in AUC_NAMES:
        values = np.stack([result[name] for result in results])
        defined = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            mean = np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0)
        means[f"fold_mean.{name}"] = mean
    return means


def _average(results: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.mean([result[name] for result in results], axis=0) for name in results[0]}
