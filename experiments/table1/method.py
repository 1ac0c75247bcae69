"""What a method of the table is, what it may learn from, and what it has to give back."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from experiments.table1.study import MAX_REPEATS, Study
from steatosis_tf import __version__
from steatosis_tf.grades import TASKS


@dataclass(frozen=True)
class FoldData:
    """What a method learns from in one fold.

    Attributes:
        study: all frames; labels and fat of the tested ones are hidden.
        train: `(num_train,)` int, rows of the study to train on.
        validation: `(num_validation,)` int, rows to watch or to stop by. A method that does not
            need them may train on them too: they are never tested in this fold.
        task: name out of `grades.TASKS`.
        seed: of everything random.
    """

    study: Study
    train: np.ndarray
    validation: np.ndarray
    task: str
    seed: int

    @property
    def num_classes(self) -> int:
        """Number of classes of the task."""
        return len(TASKS[self.task][0])

    def classes(self, rows: np.ndarray) -> np.ndarray:
        """Class of the task `(n,)` int of rows that may be learnt from.

        Raises:
            ValueError: if one of the rows is tested in this fold, so that its label is hidden.
        """
        labels = self.study.index["label"].to_numpy()[rows]
        if (labels < 0).any():
            raise ValueError(
                f"Expected rows of train or validation. Received: {int((labels < 0).sum())} rows "
                "that are tested in this fold. Their labels are hidden."
            )
        return classes_of(labels, self.task)

    def patients(self, rows: np.ndarray) -> np.ndarray:
        """`patient_id` `(n,)` of rows: the groups of every inner fold."""
        return self.study.index["patient_id"].to_numpy()[rows]

    def thinned(self, rows: np.ndarray, step: int) -> np.ndarray:
        """Every `step`-th of each patient's frames: ten of one clip are nearly one picture.

        Counted over all frames of the study, so that every fold thins to the same frames.
        """
        place = self.study.index.groupby("patient_id").cumcount().to_numpy()
        return rows[place[rows] % step == 0]


class Fitted(Protocol):
    """A trained method."""

    @property
    def num_parameters(self) -> int:
        """Fitted numbers: weights, support vectors, stored neighbours."""

    def probabilities(self, rois: np.ndarray) -> np.ndarray:
        """`(n, num_classes)` float, rows sum to 1, of `(n, 224, 224, 1)` uint8 ROIs."""

    def save(self, folder: Path, rois: np.ndarray) -> Path:
        """Write `model.onnx` or `model.skops` into a folder.

        Args:
            folder: of the run.
            rois: `(n, 224, 224, 1)` uint8, frames on which an export may check itself.

        Returns:
            the file, which `exported.load_exported` can read.
        """


@dataclass(frozen=True)
class Method:
    """One method of the table.

    Attributes:
        name: short, for folders and `--only`.
        title: name in the table.
        year: of the paper, which sorts the table; 0 for floors.
        paper: what the table cites.
        tasks: out of `grades.TASKS`: the original's classes and `four_grades`.
        fit: `fit(fold_data, **settings)` gives a `Fitted`.
        settings: hyperparameters; part of the key of a result, logged, and stated in the table.
        repeats: rounds of 5-fold cross-validation with other folds.
        whole_frames: sees the frames, not their ROIs: `probabilities` is handed rows of the study,
            and its file is not timed, since one would begin at the ROI.

    Raises:
        ValueError: for an unknown task or a number of repeats out of range.
    """

    name: str
    title: str
    year: int
    paper: str
    tasks: tuple[str, ...]
    fit: Callable[..., Fitted]
    settings: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 1
    whole_frames: bool = False

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise ValueError(f"Expected tasks out of {', '.join(TASKS)}. Received: {self.tasks}.")
        if not 1 <= self.repeats <= MAX_REPEATS:
            raise ValueError(
                f"Expected repeats from 1 to {MAX_REPEATS}. Received: repeats={self.repeats}."
            )

    def key(self, study: Study, task: str) -> str:
        """Twelve hex digits that change with the data, the folds, the task, the settings and the
        package's version. After a change of code that is to change a row, run with `--again`."""
        parts = [__version__, study.fingerprint, self.name, task, dict(self.settings)]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:12]


def classes_of(labels: np.ndarray, task: str) -> np.ndarray:
    """Class `(n,)` int of the task for labels `(n,)` int 0..3."""
    return np.asarray(TASKS[task][1])[labels]


def lowest_labels(task: str) -> np.ndarray:
    """The lowest label of each class, `(num_classes,)` int: it stands for the class in score
    tables, so that the usual evaluation serves tasks of fewer classes too."""
    return np.array([TASKS[task][1].index(one) for one in range(len(TASKS[task][0]))])
