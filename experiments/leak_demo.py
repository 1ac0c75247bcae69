"""Why the data-leakage check exists: one rule, two ways to split, two very different numbers.

Question: what does the simplest memory (the most similar training thumbnail, 40 x 28 px, gives
the grade) score when frames are split by image, and what when they are split by patient?
Command:
    steatosis manifest ../shared/data/byra2018/labels.csv --output byra.csv
    python experiments/leak_demo.py --manifest byra.csv
Expected time: 20 seconds on 2 idle cores, most of it to start MLflow.
Expected result, 44 patients, four grades, accuracy per frame, mean over 20 split seeds:
    split by image, 10 folds     1.000 (SD 0.000)
    split by patient, 5 folds    0.460 (SD 0.038, range 0.366 to 0.514)
    the commonest grade always   0.364
Split by image, a frame's neighbours of the same clip are in training: the rule recognises the
patient, not the fat. The check refuses such a split; this script shows what it would have bought.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from sklearn.model_selection import KFold

from steatosis_tf.cohort.manifest import frame_path, read_manifest
from steatosis_tf.cohort.splits import make_partitions
from steatosis_tf.config import SplitConfig
from steatosis_tf.grades import NOTICE
from steatosis_tf.sources.images import read_frame, to_grey

THUMBNAIL_PX = (40, 28)  # width, height
IMAGE_FOLDS, PATIENT_FOLDS = 10, 5


def thumbnails(frame_table: pd.DataFrame, manifest_path: str | Path) -> np.ndarray:
    """`(num_frames, 1120)` float32, 0 to 255: every frame shrunk to 40 x 28 px."""
    small = [
        cv2.resize(
            to_grey(read_frame(frame_path(manifest_path, path))),
            THUMBNAIL_PX,
            interpolation=cv2.INTER_AREA,
        )
        for path in frame_table["path"]
    ]
    return np.stack(small).reshape(len(small), -1).astype(np.float32)


def nearest_grade_accuracy(
    distances: np.ndarray, grades: np.ndarray, fold_of_frame: np.ndarray
) -> float:
    """Proportion of frames whose nearest frame outside their own fold has their grade.

    Args:
        distances: `(num_frames, num_frames)`.
        grades: `(num_frames,)` str.
        fold_of_frame: `(num_frames,)` int, the fold that tests the frame.
    """
    same_fold = fold_of_frame[:, None] == fold_of_frame[None]
    nearest = np.where(same_fold, np.inf, distances).argmin(axis=1)
    return float((grades[nearest] == grades).mean())


def folds_by_image(num_frames: int, seed: int) -> np.ndarray:
    """Fold of each frame when frames are dealt without regard to patients: the mistake."""
    folds = np.empty(num_frames, int)
    splitter = KFold(IMAGE_FOLDS, shuffle=True, random_state=seed)
    for fold, (_, test) in enumerate(splitter.split(np.empty(num_frames))):
        folds[test] = fold
    return folds


def folds_by_patient(frame_table: pd.DataFrame, seed: int) -> np.ndarray:
    """Fold of each frame when whole patients are dealt, stratified by grade."""
    partitions = make_partitions(
        frame_table, SplitConfig(kind="kfold", folds=PATIENT_FOLDS, split_seed=seed)
    )
    fold_of = {p: fold for fold, part in enumerate(partitions) for p in part.test}
    return frame_table["patient_id"].map(fold_of).to_numpy()


def measure(frame_table: pd.DataFrame, manifest_path: str | Path, seeds: int) -> dict[str, float]:
    """Accuracy of both ways to split, mean and standard deviation over split seeds."""
    graded = frame_table.loc[frame_table["grade"] != ""].reset_index(drop=True)
    pixels = thumbnails(graded, manifest_path)
    squares = (pixels**2).sum(axis=1)
    distances = squares[:, None] + squares[None] - 2 * pixels @ pixels.T
    grades = graded["grade"].to_numpy()
    ways = {
        "by_image": [
            nearest_grade_accuracy(distances, grades, folds_by_image(len(graded), seed))
            for seed in range(seeds)
        ],
        "by_patient": [
            nearest_grade_accuracy(distances, grades, folds_by_patient(graded, seed))
            for seed in range(seeds)
        ],
    }
    largest = graded.drop_duplicates("patient_id")["grade"].value_counts(normalize=True).max()
    return {
        f"accuracy_{way}{suffix}": float(number)
        for way, values in ways.items()
        for suffix, number in (("", np.mean(values)), ("_sd", np.std(values)))
    } | {"accuracy_of_the_commonest_grade": float(largest)}


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and log to MLflow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=NOTICE)
    parser.add_argument("--manifest", required=True, metavar="MANIFEST_CSV")
    parser.add_argument("--seeds", type=int, default=20, help="split seeds to average over")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    arguments = parser.parse_args(argv)
    from steatosis_tf import tracking  # late: MLflow takes seconds to import

    try:
        frame_table = read_manifest(arguments.manifest)
        params = {"thumbnail_px": "40x28", "neighbours": 1, "seeds": arguments.seeds,
                  "image_folds": IMAGE_FOLDS, "patient_folds": PATIENT_FOLDS}  # fmt: skip
        with tracking.start_run("leak_demo", "nearest_thumbnail", params):
            numbers = measure(frame_table, arguments.manifest, arguments.seeds)
            tracking.log_metrics(numbers)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(numbers, indent=2))
        return 0
    print("One nearest 40 x 28 px thumbnail, four grades, accuracy per frame:")
    for way, folds in (("by_image", IMAGE_FOLDS), ("by_patient", PATIENT_FOLDS)):
        mean, spread = numbers[f"accuracy_{way}"], numbers[f"accuracy_{way}_sd"]
        print(f"  split {way.replace('_', ' '):11s} {folds:2d} folds  {mean:.3f} (SD {spread:.3f})")
    print(f"  the commonest grade for everybody  {numbers['accuracy_of_the_commonest_grade']:.3f}")
    print("The gap is the leak: split by image, the patient is recognised, not the fat.")
    print(NOTICE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
