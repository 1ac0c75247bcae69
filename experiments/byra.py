"""How far do automatic numbers go on the 44 biopsied patients, and what does each one bring?

    python -m experiments.byra --data DATA_DIR --out runs/byra

DATA_DIR holds `byra2018/` (see docs/data.md). Every frame is measured without a person
(`experiments.fat_rules.measurements`): physics, polar blocks, features of the liver network. Each
system below is fitted to all patients but one and asked about that one; its penalty, the proportion
of each part and the reading as grades come from folds inside the others. Which systems stand here
was decided by looking at such numbers, though: docs/research/best.md lists what was looked at. In
`set chosen inside` the training patients alone decide how much each set of numbers counts.

The shipped kidney finder was fitted to operators' boxes of these very patients, so it is not used:
each patient's cortex is found with weights fitted to the four folds of patients without them, by
`experiments/segmentation/kidney_head.py`. No fat percent enters there. The liver network saw none
of them.

Time: 4 minutes of processor time; a second call reads what was measured. Result:
docs/research/best.md holds the tables that it leaves in `table.md` beside the runs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiments.fat_rules.comparison import MeasuredStudy, compare_systems, text_of
from experiments.fat_rules.leave_one_out import left_out_scores
from experiments.fat_rules.liver_features import LIVER_COLUMNS
from experiments.fat_rules.measurements import measure_study
from experiments.fat_rules.polar import POLAR_COLUMNS
from experiments.segmentation import kidney_head
from steatosis_tf.cohort.manifest import build_manifest, read_manifest
from steatosis_tf.cohort.splits import make_partitions
from steatosis_tf.evaluation.metrics.intervals import bootstrap_intervals
from steatosis_tf.evaluation.metrics.scores import patient_scores
from steatosis_tf.files import replacing
from steatosis_tf.grades import NOTICE
from steatosis_tf.model.joint_fit import Part
from steatosis_tf.quantitative.measure import FAT_SIGNS
from steatosis_tf.roi.anatomy.kidney import best_patch, cortex_features, liver_in_input
from steatosis_tf.roi.anatomy.liver import network_input
from steatosis_tf.roi.sector import Sector
from steatosis_tf.roi.views import Rectangle

BEST = "measured features"
#: Published or measured elsewhere, AUC for fat >= 5 percent; not on these folds.
ANCHORS = (
    ("Byra 2018, ImageNet network, leave-one-patient-out, all 55 patients", 0.977),
    ("Byra 2018, hepatorenal index in boxes placed by hand", 0.959),
    ("Byra 2018, GLCM texture", 0.893),
)

INDEX, SLOPE, DIAPHRAGM = "hepatorenal_db", "attenuation_db_per_depth", "diaphragm_db"
SIGNS = (INDEX, SLOPE, DIAPHRAGM)
SPECKLE = ("speckle_snr", "nakagami_m")


def directed(*names: str) -> Part:
    """Numbers that count in the direction which their source names."""
    return Part(" + ".join(names), names, tuple(FAT_SIGNS[name] for name in names))


POLAR, LIVER = Part("polar", POLAR_COLUMNS), Part("liver_network", LIVER_COLUMNS)
#: Method -> what it sees; the first is the one that the others are compared with.
METHODS: dict[str, tuple[Part, ...]] = {
    BEST: (directed(*SIGNS),),
    "without index": (directed(SLOPE, DIAPHRAGM),),
    "without attenuation": (directed(INDEX, DIAPHRAGM),),
    "without diaphragm": (directed(INDEX, SLOPE),),
    "index alone": (directed(INDEX),),
    "attenuation alone": (directed(SLOPE),),
    "diaphragm alone": (directed(DIAPHRAGM),),
    "with speckle": (directed(*SIGNS, *SPECKLE),),
    "all seven numbers": (directed(*FAT_SIGNS),),
    "set chosen inside": (
        directed(*SIGNS),
        directed(INDEX, SLOPE),
        directed(INDEX, DIAPHRAGM),
        directed(SLOPE, DIAPHRAGM),
        directed(*SIGNS, *SPECKLE),
        directed(*FAT_SIGNS),
    ),
    "all seven, ridge without directions": (Part("physics", tuple(FAT_SIGNS)),),
    "polar blocks": (POLAR,),
    "liver network": (LIVER,),
    "measured features + liver network": (directed(*SIGNS), LIVER),
    "measured features + polar blocks": (directed(*SIGNS), POLAR),
    "measured features + both": (directed(*SIGNS), LIVER, POLAR),
}


class FoldedCortex:
    """Finds cortex with weights that never saw the patient's operator boxes; fits them once."""

    def __init__(self, byra_dir: Path, patient_ids: list[str], store_dir: Path) -> None:
        self._byra_dir = byra_dir
        self._folds = kidney_head.fold_of(patient_ids)
        self._path = store_dir / "kidney_weights.npy"
        self._weights: np.ndarray | None = None

    def __call__(
        self, patient_id: str, frame: np.ndarray, sector: Sector, liver: np.ndarray
    ) -> Rectangle | None:
        if self._weights is None:
            self._weights = np.load(self._path) if self._path.is_file() else self._fitted()
        crop, place = network_input(frame, sector.mask)
        weights = self._weights[self._folds[patient_id]]
        logit = (cortex_features(crop) @ weights).astype(np.float32)
        return best_patch(logit, crop[..., 1], liver_in_input(liver, place), place).box

    def _fitted(self) -> np.ndarray:
        frames = kidney_head.read_frames(self._byra_dir)
        weights = [
            kidney_head.fitted([f for f in frames if self._folds[f.patient_id] != fold])
            for fold in tqdm(range(kidney_head.NUM_FOLDS), "kidney finders", file=sys.stderr)
        ]
        with replacing(self._path) as temporary, temporary.open("wb") as file:
            np.save(file, np.array(weights))
        return np.array(weights)


def measured(byra_dir: Path, out_dir: Path, frame_step: int = 1) -> MeasuredStudy:
    """Every `frame_step`-th frame of the patients, measured unless `out_dir` has its numbers."""
    out_dir.mkdir(parents=True, exist_ok=True)
    build_manifest(byra_dir / "labels.csv", out_dir / "manifest.csv")
    frames = read_manifest(out_dir / "manifest.csv")
    chosen = frames["frame_index"].astype(int) % frame_step == 0
    frames = frames[chosen].reset_index(drop=True)
    store = out_dir / "folded_cortex"
    cortex = FoldedCortex(byra_dir, frames["patient_id"].tolist(), store)
    features = measure_study(frames, out_dir / "manifest.csv", store, cortex)
    return MeasuredStudy(out_dir / "manifest.csv", frames, features)


def table1_row(study: MeasuredStudy) -> str:
    """The best system on the folds of `make table1`, as a row of that table; it sees frames."""
    from experiments.table1.row_numbers import SHOWN, interval_text  # loads TensorFlow
    from experiments.table1.study import PROTOCOL

    partitions = make_partitions(study.frames, PROTOCOL.split)
    scores, _ = left_out_scores(study.frames, study.features, METHODS[BEST], partitions)
    found = bootstrap_intervals(patient_scores(scores.drop(columns="sqrt_fat")))
    cells = " | ".join(interval_text(found[name]) for name in SHOWN)
    return (
        f"On the folds of Table I ({PROTOCOL.split.folds} folds, {PROTOCOL.split.repeats} rounds; "
        f"most probable grade):\n\n| Method | {' | '.join(SHOWN.values())} |\n"
        f"{'|---' * (len(SHOWN) + 1)}|\n| {BEST} | {cells} |\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds byra2018/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--frame-step", type=int, default=1, help="5 for every fifth frame")
    parser.add_argument("--only", choices=METHODS, nargs="+", help="some of the systems")
    arguments = parser.parse_args(argv)
    out = arguments.out
    study = measured(arguments.data / "byra2018", out, arguments.frame_step)
    wanted = {BEST, *(arguments.only or METHODS)}
    systems = {name: parts for name, parts in METHODS.items() if name in wanted}
    text, values = compare_systems("byra", systems, study, out)
    anchors = "\n".join(f"| {name} | {value:.3f} |" for name, value in ANCHORS)
    auc = text_of(values[BEST]["AUC, Mild or worse"])
    text += f"\n| AUC for fat >= 5 % | |\n|---|---|\n| `{BEST}`, here | {auc} |\n{anchors}\n"
    text += f"\n{table1_row(study)}"
    with replacing(out / "table.md") as temporary:
        temporary.write_text(text)
    print(f"{text}\n{NOTICE}")


if __name__ == "__main__":
    main()
