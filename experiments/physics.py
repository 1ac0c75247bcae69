"""How far do numbers a radiologist can read go, measured without a person?

    python experiments/physics.py --data DATA_DIR --out runs/physics

DATA_DIR holds `byra2018/` (see docs/data.md). Every fifth frame (`--frame-step`; a patient's ten
frames are almost one picture) is measured by `steatosis_tf.model.baselines.physics`: hepatorenal
index, attenuation, speckle, vessels, diaphragm. Ridge on the square root of fat percent, one row
per patient, is fitted to all patients but one and asked about that one (leave-one-patient-out);
its penalty and spread come from folds inside the others. A patient's score is the mean over frames.

The shipped kidney finder was fitted to operators' boxes of these very patients, so it is not used:
each patient's cortex is found with weights fitted to the four folds of patients without them, by
`experiments/kidney_head.py`. No fat percent enters there. The liver network saw none of them.

Time: 2 minutes of processor time; 12 minutes on a machine shared by six.
Result: all seven numbers AUC 0.912 / 0.879 / 0.858 (>= Mild, >= Moderate, Severe), Spearman 0.82,
four grades 0.52, quadratic weighted kappa 0.54 (0.63 by cut); without the kidney the same AUC,
four grades 0.55, kappa 0.61. Intervals and the other sets: docs/physics.md.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import kidney_head
import numpy as np
import pandas as pd
from tqdm import tqdm

from steatosis_tf import tracking
from steatosis_tf.atomic import replacing
from steatosis_tf.cohort.manifest import build_manifest, frame_path, read_manifest
from steatosis_tf.evaluation.intervals import bootstrap_intervals
from steatosis_tf.evaluation.scores import patient_scores, write_scores
from steatosis_tf.grades import GRADES, NOTICE, SCORE_COLUMNS, grade_from_fat_percent
from steatosis_tf.model.baselines.ordinal_ridge import fit_ordinal_ridge
from steatosis_tf.model.baselines.physics import measure_regions
from steatosis_tf.roi.kidney import best_patch, cortex_features, liver_in_input
from steatosis_tf.roi.liver import liver_mask, network_input
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.folder import read_frame

FRAME_STEP = 5
#: System -> the numbers it sees. All were fixed before any of them was scored.
SYSTEMS = {
    "physics": (
        "hepatorenal_db",
        "attenuation_db_per_depth",
        "speckle_snr",
        "nakagami_m",
        "vessel_percent",
        "vessel_contrast_db",
        "diaphragm_db",
    ),
    "without_kidney": (
        "attenuation_db_per_depth",
        "speckle_snr",
        "nakagami_m",
        "vessel_percent",
        "vessel_contrast_db",
        "diaphragm_db",
    ),
    "index_and_attenuation": ("hepatorenal_db", "attenuation_db_per_depth"),
    "index_alone": ("hepatorenal_db",),
    "attenuation_alone": ("attenuation_db_per_depth",),
}
REPORTED = (
    "ordinal.auc_at_least_mild",
    "ordinal.auc_at_least_moderate",
    "ordinal.auc_severe",
    "ordinal.spearman_fat",
    "accuracy",
    "ordinal.quadratic_kappa",
)


def kidney_weights(byra_dir: Path) -> dict[int, np.ndarray]:
    """Fold -> weights of the kidney finder fitted to the other folds' patients."""
    frames = kidney_head.read_frames(byra_dir)
    folds = kidney_head.fold_of([frame.patient_id for frame in frames])
    return {
        fold: kidney_head.fitted([f for f in frames if folds[f.patient_id] != fold])
        for fold in tqdm(range(kidney_head.NUM_FOLDS), "kidney finders", file=sys.stderr)
    }


def measured(manifest_path: Path, frames: pd.DataFrame, byra_dir: Path) -> pd.DataFrame:
    """One row of numbers per frame."""
    weights = kidney_weights(byra_dir)
    folds = kidney_head.fold_of(frames["patient_id"].tolist())
    rows = []
    for row in tqdm(list(frames.itertuples()), "frames", file=sys.stderr):
        frame = read_frame(frame_path(manifest_path, str(row.path)))
        sector = find_sector(frame)
        liver = liver_mask(frame, sector)
        crop, place = network_input(frame, sector.mask)
        logit = (cortex_features(crop) @ weights[folds[str(row.patient_id)]]).astype(np.float32)
        cortex = best_patch(logit, crop[..., 1], liver_in_input(liver, place), place).box
        numbers = measure_regions(frame, sector, liver, cortex)
        rows.append({"frame_id": row.frame_id, "patient_id": row.patient_id, **asdict(numbers)})
    return pd.DataFrame(rows)


def left_out_scores(
    frames: pd.DataFrame, numbers: pd.DataFrame, columns: tuple[str, ...]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Out-of-fold frame scores, and per fold the penalty, spread and weights.

    Args:
        frames: manifest rows.
        numbers: from `measured`, in the same order.
        columns: which of them the model sees.
    """
    values = numbers[list(columns)].astype(float)
    of_patient = values.groupby(frames["patient_id"].to_numpy()).mean()
    fat = frames.groupby("patient_id")["fat_percent"].first().loc[of_patient.index]
    scores, fits = [], []
    for fold, patient_id in enumerate(of_patient.index):
        others = of_patient.index != patient_id
        model = fit_ordinal_ridge(of_patient[others].to_numpy(), fat[others].to_numpy())
        mine = (frames["patient_id"] == patient_id).to_numpy()
        part = frames.loc[mine, ["frame_id", "patient_id", "grade", "fat_percent"]]
        part = part.assign(fold=fold, sqrt_fat=model.sqrt_fat(values[mine].to_numpy()))
        part[list(SCORE_COLUMNS)] = model.probabilities(values[mine].to_numpy())
        scores.append(part)
        weights = dict(zip(columns, model.weights(), strict=True))
        fits.append({"fold": fold, "penalty": model.penalty, "spread": model.spread, **weights})
    table = pd.concat(scores, ignore_index=True)
    probable = table[list(SCORE_COLUMNS)].to_numpy().argmax(axis=1)
    return table.assign(predicted=np.array(GRADES, object)[probable]), pd.DataFrame(fits)


def by_cut(scores: pd.DataFrame) -> pd.DataFrame:
    """Patient table whose grade is that of the predicted fat percent, all or nothing."""
    patients = patient_scores(scores)
    sqrt_fat = scores.groupby("patient_id")["sqrt_fat"].mean().loc[patients["patient_id"]]
    fat = np.minimum(sqrt_fat.to_numpy() ** 2, 100.0)
    grades = np.array([grade_from_fat_percent(percent) for percent in fat], object)
    patients[list(SCORE_COLUMNS)] = np.array([[g == name for name in GRADES] for g in grades]) * 1.0
    return patients.assign(predicted=grades)


def summary(scores: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Reported metric -> value, low, high; `by_cut.` for grades read off the predicted fat."""
    found = bootstrap_intervals(patient_scores(scores))
    cut = bootstrap_intervals(by_cut(scores))
    chosen = {name: found[name] for name in REPORTED}
    chosen |= {f"by_cut.{name}": cut[name] for name in ("accuracy", "ordinal.quadratic_kappa")}
    return {
        name: {key: entry[key] for key in ("value", "low", "high")}
        for name, entry in chosen.items()
    }


def run_system(
    system: str, frames: pd.DataFrame, numbers: pd.DataFrame, out_dir: Path
) -> dict[str, dict[str, float]]:
    columns = SYSTEMS[system]
    with tracking.start_run("physics", system, {"system": system, "features": columns}) as run:
        run_dir = out_dir / run.run_id
        run_dir.mkdir(parents=True)
        scores, fits = left_out_scores(frames, numbers, columns)
        patients = patient_scores(scores)
        write_scores(scores.drop(columns="sqrt_fat"), run_dir / "frame_scores.csv")
        write_scores(patients, run_dir / "patient_scores.csv")
        found = summary(scores)
        metrics = {"protocol": "leave-one-patient-out", **found, "notice": NOTICE}
        index = numbers[["frame_id", "patient_id", "hepatorenal_db"]]
        index = index.rename(columns={"hepatorenal_db": "hepatorenal_index"})
        for name, table in (("fits", fits), ("hepatorenal", index)):
            with replacing(run_dir / f"{name}.csv") as temporary:
                table.to_csv(temporary, index=False)
        with replacing(run_dir / "metrics.json") as temporary:
            temporary.write_text(json.dumps(metrics, indent=2) + "\n")
        tracking.log_metrics(metrics)
        tracking.log_artifacts(run_dir)
    return found


def correlations(frames: pd.DataFrame, numbers: pd.DataFrame) -> str:
    """How each number alone ranks patients by fat, and for how many it could be measured."""
    columns = list(SYSTEMS["physics"])
    of_patient = numbers.groupby("patient_id")[columns].mean()
    fat = frames.groupby("patient_id")["fat_percent"].first().loc[of_patient.index]
    lines = [
        f"{name:26s} Spearman {of_patient[name].corr(fat, method='spearman'):+.2f}"
        f"  in {of_patient[name].notna().sum()} of {len(of_patient)} patients"
        for name in columns
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds byra2018/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--frame-step", type=int, default=FRAME_STEP, help="1 for every frame")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    manifest_path = arguments.out / "manifest.csv"
    byra_dir = arguments.data / "byra2018"
    build_manifest(byra_dir / "labels.csv", manifest_path)
    frames = read_manifest(manifest_path)
    chosen = frames["frame_index"].astype(int) % arguments.frame_step == 0
    frames = frames[chosen].reset_index(drop=True)
    numbers = measured(manifest_path, frames, byra_dir)
    with replacing(arguments.out / "physics.csv") as temporary:
        numbers.to_csv(temporary, index=False)
    print(correlations(frames, numbers))
    for system in SYSTEMS:
        print(f"\n{system}")
        for name, entry in run_system(system, frames, numbers, arguments.out).items():
            print(f"  {name:34s} {entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})")
    print(f"\n{NOTICE}")


if __name__ == "__main__":
    main()
