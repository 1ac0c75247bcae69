"""Nested cross-validation of heads on stored features: what one trial of a sweep does."""

import dataclasses
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from experiments.head_search.compiled_fit import (
    Fold,
    HeadSettings,
    HeadWeights,
    StoredStudy,
    balanced,
    fit_compiled,
    probabilities,
)
from steatosis_tf.cohort.splits import make_partitions
from steatosis_tf.config import Config
from steatosis_tf.grades import GRADES
from steatosis_tf.model.features import StoredViews


@dataclasses.dataclass(frozen=True)
class OuterFold:
    """Rows of one outer fold: the inner folds of its training patients, and its own."""

    inner: list[Fold]
    final: Fold
    test: np.ndarray


def outer_folds(index: pd.DataFrame, config: Config, inner_folds: int) -> list[OuterFold]:
    """Divide the patients twice; no test patient of an outer fold is in its inner folds."""
    frames = index.assign(grade=[GRADES[label] for label in index["label"]])
    made = []
    for partition in make_partitions(frames, config.split):
        training = frames.loc[~frames["patient_id"].isin(partition.test)]
        inner_config = dataclasses.replace(
            config.split, kind="kfold", folds=inner_folds, repeats=1, column=""
        )
        inner = make_partitions(training, inner_config)
        made.append(
            OuterFold(
                # An inner fold chooses the epoch and gives the score: both are chosen from.
                [_fold(frames, p.train | p.validation, p.test) for p in inner],
                _fold(frames, partition.train, partition.validation),
                _rows(frames, partition.test),
            )
        )
    return made


def _fold(frames: pd.DataFrame, train: frozenset[str], validation: frozenset[str]) -> Fold:
    return Fold(_rows(frames, train), _rows(frames, validation))


def _rows(frames: pd.DataFrame, patient_ids: frozenset[str]) -> np.ndarray:
    return np.flatnonzero(frames["patient_id"].isin(patient_ids))


def ranking_score(index: pd.DataFrame, rows: np.ndarray, scores: np.ndarray) -> float:
    """Mean AUC of the three cuts over patients; cuts that only one side has are left out."""
    frames = pd.DataFrame(scores, columns=list(GRADES)).assign(
        patient_id=index["patient_id"].to_numpy()[rows], label=index["label"].to_numpy()[rows]
    )
    patients = frames.groupby("patient_id").mean()
    areas = []
    for cut in range(1, len(GRADES)):
        above = patients["label"] >= cut
        if 0 < above.sum() < len(above):
            areas.append(roc_auc_score(above, patients[list(GRADES[cut:])].sum(axis=1)))
    return float(np.mean(areas))


def refuse_other_fits(config: Config) -> None:
    """Raise a ValueError if the config asks for what the compiled fit does not do."""
    asked = config.model.head, config.train.sampling, config.train.fine_tune_epochs
    if asked != ("softmax", "frames", 0):
        raise ValueError(
            "Expected model.head=softmax, train.sampling=frames and train.fine_tune_epochs=0 "
            f"in a sweep. Received: {asked}. docs/research/heads.md compares heads."
        )


class Sweep:
    """One study, its folds, and what a trial does on them."""

    def __init__(self, index: pd.DataFrame, views: StoredViews, config: Config, inner: int) -> None:
        """
        Raises:
            ValueError: as `refuse_other_fits`.
        """
        refuse_other_fits(config)
        self.index, self.config = index, config
        self.folds = outer_folds(index, config, inner)
        self.study = StoredStudy(views, index["label"].to_numpy())

    def run_trial(self, params: dict[str, Any]) -> list[float]:
        """Inner score of every outer fold."""
        jobs = [fold for outer in self.folds for fold in outer.inner]
        start = start_weights(self.study.plain.shape[1], params, self.config.train.seed)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # TensorFlow frees Python's lock
            scored = list(pool.map(lambda fold: self._inner_scores(start, fold, params), jobs))
        per_outer = np.split(np.array(scored), len(self.folds))
        return [float(scores.mean()) for scores in per_outer]

    def test_scores(self, fold: OuterFold, params: dict[str, Any]) -> np.ndarray:
        """Probabilities of the test part, by a head trained as the chosen trial says."""
        start = start_weights(self.study.plain.shape[1], params, self.config.train.seed)
        weights = self._fit(start, fold.final, params)
        return probabilities(weights, self.study, fold.final, fold.test)

    def _inner_scores(self, start: HeadWeights, fold: Fold, params: dict[str, Any]) -> float:
        weights = self._fit(start, fold, params)
        scores = probabilities(weights, self.study, fold, fold.validation)
        return ranking_score(self.index, fold.validation, scores)

    def _fit(self, start: HeadWeights, fold: Fold, params: dict[str, Any]) -> HeadWeights:
        train = dataclasses.replace(
            self.config.train,
            learning_rate=params["learning_rate"],
            weight_decay=params["weight_decay"],
        )
        weights = balanced(self.study.labels[fold.train], params["class_weighting"])
        settings = HeadSettings(params["dropout"], weights, train)
        return fit_compiled(start, self.study, fold, settings)[0]


def start_weights(num_features: int, params: dict[str, Any], seed: int) -> HeadWeights:
    """Glorot-uniform kernels (Glorot and Bengio 2010) and zero biases, as Keras starts."""
    generator = np.random.default_rng(seed)
    sizes = (num_features, params["hidden_units"], len(GRADES))
    arrays: HeadWeights = []
    for inputs, outputs in itertools.pairwise(sizes):
        limit = np.sqrt(6 / (inputs + outputs))
        arrays.append(generator.uniform(-limit, limit, (inputs, outputs)).astype(np.float32))
        arrays.append(np.zeros(outputs, np.float32))
    return arrays
