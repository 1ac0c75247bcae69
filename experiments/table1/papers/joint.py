"""How far does the joint system, whose recipe is shipped, go on the table's folds?

Command:
    python -m experiments.table1.papers.joint --manifest MANIFEST_CSV
Paper: none; docs/research/best.md. EfficientNet-Lite0 with ImageNet's weights on beam space and the
three measured features, each a linear rule on the square root of fat percent, averaged or mixed by
fitted shares, read as grades by a cumulative link. All of it is fitted anew in every fold.
Adapted: it sees whole frames, not the ROI of the other rows. A patient's frames get one answer,
from the means of their numbers. The page's accuracy is that of the most probable grade, as in every
row; the system's own decision rule stands in best.md. Where the operators' boxes of byra2018 lie
beside the frames, the cortex of each patient is found by weights fitted without it.
Expected time: 6 minutes of processor time, nearly all of it features, which are kept.
Expected result: its row of docs/table1.md.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.fat_rules.measurements import CortexFinder, measure_study, shipped_cortex
from experiments.table1.command_line import main
from experiments.table1.method import FoldData, Method, lowest_labels
from experiments.table1.study import Study
from steatosis_tf.cohort.manifest import frame_path, read_manifest
from steatosis_tf.files import replacing
from steatosis_tf.model.joint import NETWORK, JointModel
from steatosis_tf.model.joint_fit import Part, fit_joint
from steatosis_tf.quantitative.measure import FAT_SIGNS

_SIGNS = ("hepatorenal_db", "attenuation_db_per_depth", "diaphragm_db")
_PARTS = (Part(NETWORK), Part("measured", _SIGNS, tuple(FAT_SIGNS[name] for name in _SIGNS)))
_BOXES = "operator_boxes_28px.csv"


@dataclass(frozen=True)
class FittedJoint:
    """The fitted model and the numbers of all frames of the study.

    Attributes:
        model: fitted to the training patients.
        inputs: part -> `(num_frames, k)`.
        patients: `(num_frames,)` ids.
        task: name out of `grades.TASKS`.
    """

    model: JointModel
    inputs: dict[str, np.ndarray]
    patients: np.ndarray
    task: str

    @property
    def num_parameters(self) -> int:
        """Weights and intercepts of the rules, their shares, slope and cuts of the link."""
        return sum(len(part.rule.weights) + 2 for part in self.model.parts) + 4

    def probabilities(self, rows: np.ndarray) -> np.ndarray:
        """`(n, num_classes)` of rows of the study: each patient's, from the means of its rows."""
        of_row = pd.Series(self.patients[rows])
        means = {name: pd.DataFrame(values[rows]).groupby(of_row.to_numpy()).mean()
                 for name, values in self.inputs.items()}  # fmt: skip
        score = self.model.score({name: table.to_numpy() for name, table in means.items()})
        grades = self.model.probabilities(score)
        classes = np.add.reduceat(grades, lowest_labels(self.task), axis=1)
        place = pd.Series(range(len(score)), index=means[NETWORK].index)
        return np.asarray(classes[of_row.map(place).to_numpy()])

    def save(self, folder: Path, rows: np.ndarray) -> Path:
        """Write the rules as text; the networks before them are those of the shipped bundle."""
        with replacing(folder / "joint.json") as temporary:
            temporary.write_text(self.model.to_json())
        return folder / "joint.json"


def fit(fold_data: FoldData) -> FittedJoint:
    """Both parts on all patients that may be learnt from: nothing is stopped by a validation."""
    study = fold_data.study
    rows = np.sort(np.concatenate([fold_data.train, fold_data.validation]))
    inputs, patients = _inputs(study), study.index["patient_id"].to_numpy()
    model = fit_joint(
        _PARTS, {name: values[rows] for name, values in inputs.items()}, patients[rows],
        fat_percent=study.index["fat_percent"].to_numpy(float)[rows],
    )  # fmt: skip
    return FittedJoint(model, inputs, patients, fold_data.task)


def _inputs(study: Study) -> dict[str, np.ndarray]:
    """What the parts see of every frame, in the order of the study; no label enters."""
    from experiments.joint_features import View, pooled, row_means  # loads TensorFlow

    manifest_path = study.folder / "manifest.csv"
    frames = read_manifest(manifest_path).set_index("frame_id", drop=False)
    frames = frames.loc[study.index["frame_id"]].reset_index(drop=True)
    store = study.folder / "joint"
    measured = measure_study(frames, manifest_path, store, _cortex(frames, manifest_path, store))
    maps = row_means(View("beam space"), frames, manifest_path, store)
    return {NETWORK: pooled(maps), "measured": measured[list(_SIGNS)].to_numpy(float)}


def _cortex(frames: pd.DataFrame, manifest_path: Path, store: Path) -> CortexFinder:
    from experiments.byra import FoldedCortex

    first = frame_path(manifest_path, str(frames["path"].iloc[0])).resolve()
    for folder in first.parents:
        if (folder / _BOXES).is_file():
            return FoldedCortex(folder, frames["patient_id"].tolist(), store)
    return shipped_cortex


METHODS = (
    Method(
        name="joint",
        title="Joint (the recipe that is shipped)",
        year=2026,
        paper="No paper: network and measured features in one, whole frames, four classes",
        tasks=("at_least_mild", "four_grades"),
        fit=fit,
        repeats=3,
        whole_frames=True,
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(__doc__, METHODS))
