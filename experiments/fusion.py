"""What do clinical covariates add to the numbers of the picture?

    python -m experiments.fusion --manifest MANIFEST_CSV --out runs/fusion
    python -m experiments.fusion --simulate 80 --out runs/fusion

The first form reads `age, sex, bmi, alt, ast, platelets, diabetes` from a manifest, as far as it
has them (cells may be empty), and needs `fat_percent`. Byra et al. 2018 published none of them,
so the second form makes phantoms with SIMULATED covariates: drawn around plausible means that
shift with fat, a fifth of the cells left empty. It shows that the code takes them and copes with
what is missing; what it prints says nothing about patients.

Each system is graded leave-one-patient-out; shares and penalties are chosen inside the others.
Time: 1 minute of processor time for 80 simulated patients. Result: `table.md` beside the runs.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.fat_rules.clinical import CLINICAL_COLUMNS
from experiments.fat_rules.comparison import MeasuredStudy, compare_systems
from experiments.fat_rules.measurements import measure_study
from steatosis_tf.cohort.manifest import build_manifest, read_manifest
from steatosis_tf.files import replacing
from steatosis_tf.grades import NOTICE
from steatosis_tf.model.joint_fit import Part
from steatosis_tf.quantitative.measure import FAT_SIGNS
from steatosis_tf.sources.phantom.study import write_phantoms

SIGNS = ("hepatorenal_db", "attenuation_db_per_depth", "diaphragm_db")
PHYSICS = Part("physics", SIGNS, tuple(FAT_SIGNS[name] for name in SIGNS))
CLINIC = Part("clinic", CLINICAL_COLUMNS, flag_missing=True)
SYSTEMS = {
    "physics": (PHYSICS,),
    "clinic": (CLINIC,),
    "physics + clinic": (PHYSICS, CLINIC),
}
SIMULATED = "SIMULATED patients and covariates: this shows that the code works, nothing else.\n\n"
EMPTY_SHARE = 0.2


def simulated_covariates(fat_percent: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """Covariates that shift with fat; numbers made up, a fifth of the cells empty."""
    count, fat = len(fat_percent), fat_percent / 100
    table = pd.DataFrame(
        {
            "age": rng.normal(50, 12, count).clip(20, 85).round(),
            "sex": rng.choice(["M", "F"], count),
            "bmi": (25 + 10 * fat + rng.normal(0, 3, count)).round(1),
            "alt": np.exp(np.log(25) + 0.9 * fat + rng.normal(0, 0.4, count)).round(),
            "ast": np.exp(np.log(24) + 0.5 * fat + rng.normal(0, 0.4, count)).round(),
            "platelets": rng.normal(240, 50, count).round(),
            "diabetes": np.where(rng.random(count) < 0.1 + 0.4 * fat, "yes", "no"),
        }
    ).astype(object)
    return table.mask(rng.random(table.shape) < EMPTY_SHARE, "")


def simulated_study(num_patients: int, folder: Path) -> Path:
    """Phantoms with simulated covariates in their label table; the manifest's path."""
    labels_path = folder / "phantoms" / "labels.csv"
    write_phantoms(labels_path.parent, num_patients=num_patients, frames_per_patient=1, seed=7)
    labels = pd.read_csv(labels_path)
    covariates = simulated_covariates(
        labels["fat_percent"].to_numpy(float), np.random.default_rng(7)
    )
    with replacing(labels_path) as temporary:
        labels.join(covariates).to_csv(temporary, index=False)
    build_manifest(labels_path, folder / "manifest.csv")
    return folder / "manifest.csv"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--manifest", type=Path, metavar="MANIFEST_CSV")
    source.add_argument("--simulate", type=int, metavar="NUM_PATIENTS")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    arguments = parser.parse_args(argv)
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    manifest_path = arguments.manifest or simulated_study(arguments.simulate, out)
    frames = read_manifest(manifest_path)
    frames = frames[frames["fat_percent"].notna()].reset_index(drop=True)
    features = measure_study(frames, manifest_path, out / "store")
    text, _ = compare_systems(
        "fusion", SYSTEMS, MeasuredStudy(manifest_path, frames, features), out
    )
    text = (SIMULATED if arguments.simulate else "") + text
    with replacing(out / "table.md") as temporary:
        temporary.write_text(text)
    print(f"{text}\n{NOTICE}")


if __name__ == "__main__":
    main()
