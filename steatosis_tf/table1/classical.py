"""scikit-learn pipelines under the protocol: tuned by patients inside, saved without pickle."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import StratifiedGroupKFold

from steatosis_tf.atomic import replacing
from steatosis_tf.table1.system import Lesson

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


def learnable_rows(lesson: Lesson) -> np.ndarray:
    """Training and validation rows: inner folds choose, so that nobody has to stand aside."""
    return np.sort(np.concatenate([lesson.train, lesson.validation]))


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
