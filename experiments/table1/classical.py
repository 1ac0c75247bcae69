"""scikit-learn pipelines under the protocol: tuned by patients inside, saved without pickle."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC

from experiments.table1.method import FoldData
from steatosis_tf.files import replacing

_INNER_FOLDS = 4


@dataclass(frozen=True)
class FittedPipeline:
    """A fitted scikit-learn estimator on ROIs.

    Attributes:
        pipeline: takes `(n, 224, 224, 1)` uint8, has `predict_proba`.
        num_parameters: fitted numbers in it.
    """

    pipeline: BaseEstimator
    num_parameters: int

    def probabilities(self, rois: np.ndarray) -> np.ndarray:
        """`(n, num_classes)` float64."""
        return self.pipeline.predict_proba(rois)

    def save(self, folder: Path, rois: np.ndarray) -> Path:
        """Write `model.skops`: data and names of functions, no pickle."""
        import skops.io

        path = folder / "model.skops"
        with replacing(path) as temporary:
            skops.io.dump(self.pipeline, temporary)
        return path


def learnable_rows(fold_data: FoldData) -> np.ndarray:
    """Training and validation rows: inner folds choose, so that nobody has to stand aside."""
    return np.sort(np.concatenate([fold_data.train, fold_data.validation]))


def inner_folds(
    classes: np.ndarray, patients: np.ndarray, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inner folds of whole patients with every class on both sides.

    Args:
        classes: `(n,)` int.
        patients: `(n,)` patient of each row.
        seed: of the deal.

    Raises:
        ValueError: if a class has fewer than two patients.
    """
    counts = [len(set(patients[classes == one])) for one in np.unique(classes)]
    if min(counts) < 2:
        raise ValueError(
            f"Expected two patients of every class to choose hyperparameters by. Received: "
            f"patients per class={counts}. Add patients or ask for fewer folds."
        )
    splitter = StratifiedGroupKFold(min(_INNER_FOLDS, *counts), shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(classes)), classes, patients))


def fit_svm(
    fold_data: FoldData,
    describe: Callable[..., np.ndarray],
    parameters: dict[str, Any],
    *,
    penalties: Iterable[float],
    widths: Iterable[float],
) -> FittedPipeline:
    """Support vector machine with a Gaussian kernel on standardised features.

    Inner folds of whole patients choose the penalty and the kernel's width by balanced accuracy,
    and give the left-out decisions from which Platt's sigmoids are fitted.

    Args:
        fold_data: what may be learnt from.
        describe: function from ROIs to features.
        parameters: keyword arguments of `describe`.
        penalties: values of C to choose from.
        widths: values of gamma times the number of features to choose from.
    """
    rows = learnable_rows(fold_data)
    features = describe(fold_data.study.rois[rows], **parameters)
    classes = fold_data.classes(rows)
    folds = inner_folds(classes, fold_data.patients(rows), fold_data.seed)
    machine = make_pipeline(StandardScaler(), SVC(class_weight="balanced"))
    grid = {
        "svc__C": list(penalties),
        "svc__gamma": [width / features.shape[1] for width in widths],
    }
    best = _chosen(machine, grid, features, classes, folds)
    calibrated = CalibratedClassifierCV(best, cv=folds, ensemble=False).fit(features, classes)
    fitted = calibrated.calibrated_classifiers_[0].estimator[-1]
    num_parameters = fitted.support_vectors_.size + fitted.dual_coef_.size + fitted.intercept_.size
    return FittedPipeline(_from_rois(describe, parameters, calibrated), int(num_parameters))


def fit_neighbours(
    fold_data: FoldData,
    describe: Callable[..., np.ndarray],
    parameters: dict[str, Any],
    *,
    num_neighbours: Iterable[int],
) -> FittedPipeline:
    """k nearest neighbours on standardised features, k chosen by inner folds of whole patients.

    Args:
        fold_data: what may be learnt from.
        describe: function from ROIs to features.
        parameters: keyword arguments of `describe`.
        num_neighbours: values of k to choose from.
    """
    rows = learnable_rows(fold_data)
    features = describe(fold_data.study.rois[rows], **parameters)
    classes = fold_data.classes(rows)
    folds = inner_folds(classes, fold_data.patients(rows), fold_data.seed)
    smallest = min(len(train) for train, _ in folds)
    grid = {"kneighborsclassifier__n_neighbors": [k for k in num_neighbours if k <= smallest]}
    machine = make_pipeline(StandardScaler(), KNeighborsClassifier())
    best = _chosen(machine, grid, features, classes, folds).fit(features, classes)
    return FittedPipeline(_from_rois(describe, parameters, best), features.size)


def _chosen(
    machine: Pipeline,
    grid: dict[str, list],
    features: np.ndarray,
    classes: np.ndarray,
    folds: list[tuple[np.ndarray, np.ndarray]],
) -> Pipeline:
    """The machine, not yet fitted, with the settings that do best on patients left out inside."""
    search = GridSearchCV(machine, grid, scoring="balanced_accuracy", cv=folds, refit=False)
    return machine.set_params(**search.fit(features, classes).best_params_)


def _from_rois(
    describe: Callable[..., np.ndarray], parameters: dict[str, Any], fitted: BaseEstimator
) -> Pipeline:
    return make_pipeline(FunctionTransformer(describe, kw_args=parameters), fitted)
