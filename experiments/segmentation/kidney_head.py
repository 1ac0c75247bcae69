"""Can the features of the liver network say where an operator would take renal cortex?

    python -m experiments.segmentation.kidney_head --data DATA_DIR --out runs/kidney_head

DATA_DIR holds `byra2018/` (see docs/data.md). The liver network, which never saw these frames, is
frozen. One weight per feature, 148 in all, gives each cell of a 40 x 56 grid a logit; their softmax
is fitted to where the three operators put their kidney boxes (two frames per patient, each also
mirrored: the ten frames of a patient are almost one picture). Every figure is out-of-fold, five
folds by patient; patients are dealt by the SHA-256 of their id, since ids are sorted by fat. The
shipped weights are then fitted to all patients and have no figure of their own on them.

Time: 2 minutes on 2 cores. Result: see steatosis_tf/roi/anatomy/liver_unet_card.md.
"""

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from steatosis_tf import tracking
from steatosis_tf.files import replacing, write_json
from steatosis_tf.roi.anatomy.kidney import best_patch, cortex_features, liver_in_input
from steatosis_tf.roi.anatomy.liver import Placement, liver_mask, network_input
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.images import read_frame

NUM_FOLDS = 5
FRAME_STEP = 5
BOX_PX = 28
# Operators differ by 17 px of the frame, which is 7 px of the network's input.
SPREAD_PX = 6.0
PENALTY = 1e-3
MAX_ITERATIONS = 60


@dataclass(frozen=True)
class Frame:
    """One frame as this experiment needs it.

    Attributes:
        path, patient_id: as in labels.csv.
        centres: `(num_operators, 2)` float, x and y of the kidney boxes' middles, px of the frame.
        crop, placement: from `network_input`.
        liver: `(160, 224)` float32, proportion of liver.
        features: `(2, 40, 56, num_features)` float32, of the picture and its mirror image.
        targets: `(2, 40, 56)` float32, where operators clicked; each sums to 1.
    """

    path: str
    patient_id: str
    centres: np.ndarray
    crop: np.ndarray
    placement: Placement
    liver: np.ndarray
    features: np.ndarray
    targets: np.ndarray


def read_frames(byra_dir: Path) -> list[Frame]:
    boxes = pd.read_csv(byra_dir / "operator_boxes_28px.csv", dtype={"path": str})
    labels = pd.read_csv(byra_dir / "labels.csv", dtype=str).set_index("path")
    chosen = labels.index[labels["frame_index"].astype(int) % FRAME_STEP == 0]
    frames = []
    for path, of_frame in boxes.dropna(subset=["kidney_x", "kidney_y"]).groupby("path"):
        if path in chosen:
            centres = of_frame[["kidney_x", "kidney_y"]].to_numpy(float) + BOX_PX / 2
            patient_id = str(labels.loc[str(path), "patient_id"])
            frames.append(one_frame(byra_dir, str(path), patient_id, centres))
    return frames


def one_frame(byra_dir: Path, path: str, patient_id: str, centres: np.ndarray) -> Frame:
    frame = read_frame(byra_dir / path)
    sector = find_sector(frame)
    crop, place = network_input(frame, sector.mask)
    points = (centres - (place.left, place.top)) * (place.input_width / place.width)
    points += np.array([place.input_left, place.input_top])
    target = where_clicked(points)
    return Frame(
        path,
        patient_id,
        centres,
        crop,
        place,
        liver_in_input(liver_mask(frame, sector), place),
        np.stack([cortex_features(crop), cortex_features(crop[:, ::-1])]),
        np.stack([target, target[:, ::-1]]),
    )


def where_clicked(points: np.ndarray) -> np.ndarray:
    """Distribution over the 40 x 56 cells, 4 px of the input each; sums to 1."""
    rows, columns = np.mgrid[:40, :56] * 4 + 1.5
    squares = [(columns - x) ** 2 + (rows - y) ** 2 for x, y in points]
    spread = sum(np.exp(-square / (2 * SPREAD_PX**2)) for square in squares)
    return (spread / spread.sum()).astype(np.float32)


def fold_of(patient_ids: list[str]) -> dict[str, int]:
    ranked = sorted(set(patient_ids), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return {patient_id: rank % NUM_FOLDS for rank, patient_id in enumerate(ranked)}


def fitted(frames: list[Frame]) -> np.ndarray:
    """Weights that give the operators' choice the highest likelihood, less a ridge penalty."""
    features = np.concatenate([f.features for f in frames])
    features = features.reshape(len(features), -1, features.shape[-1])
    targets = np.concatenate([f.targets for f in frames]).reshape(len(features), -1)
    scale = features[:, ::7].std(axis=(0, 1)) + 1e-3

    def loss(scaled: np.ndarray) -> tuple[float, np.ndarray]:
        logit = features @ (scaled / scale).astype(np.float32)
        logit -= logit.max(axis=1, keepdims=True)
        belief = np.exp(logit)
        total = belief.sum(axis=1, keepdims=True)
        entropy = float((targets * (np.log(total) - logit)).sum() / len(features))
        wrong = (belief / total - targets).ravel()
        slope = wrong @ features.reshape(-1, features.shape[-1]) / len(features) / scale
        penalty = PENALTY * float(scaled @ scaled)
        return entropy + penalty, slope.astype(float) + 2 * PENALTY * scaled

    start = np.zeros(features.shape[-1])
    limit = {"maxiter": MAX_ITERATIONS}
    best = minimize(loss, start, jac=True, method="L-BFGS-B", options=limit)
    return best.x / scale


def found_row(weights: np.ndarray, frame: Frame) -> dict[str, object]:
    """Distance from the patch's middle to the nearest operator's box, and whether they overlap."""
    logit = (frame.features[0] @ weights).astype(np.float32)
    finding = best_patch(logit, frame.crop[..., 1], frame.liver, frame.placement)
    row: dict[str, object] = {
        "path": frame.path,
        "patient_id": frame.patient_id,
        "quality": finding.quality,
        "found": finding.box is not None,
    }
    if finding.box is not None:
        half = np.array([finding.box.width, finding.box.height]) / 2
        apart = np.abs(frame.centres - (finding.box.left, finding.box.top) - half)
        row["distance_px"] = float(np.hypot(*apart.T).min())
        row["overlaps"] = float((apart < half + BOX_PX / 2).all(axis=1).any())
    return row


def summary(table: pd.DataFrame) -> dict[str, float]:
    """Per patient first, then over patients."""
    by_patient = table.groupby("patient_id").agg(
        distance_px=("distance_px", "median"),
        overlaps=("overlaps", "mean"),
        found=("found", "mean"),
    )
    return {
        "num_patients": len(by_patient),
        "num_frames": len(table),
        "share_found": float(by_patient["found"].mean()),
        "median_distance_px": float(by_patient["distance_px"].median()),
        "p90_distance_px": float(by_patient["distance_px"].quantile(0.9)),
        "share_of_findings_overlapping": float(by_patient["overlaps"].mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds byra2018/")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and scores")
    arguments = parser.parse_args()
    frames = read_frames(arguments.data / "byra2018")
    folds = fold_of([frame.patient_id for frame in frames])
    rows = []
    for number in range(NUM_FOLDS):
        weights = fitted([f for f in frames if folds[f.patient_id] != number])
        rows += [found_row(weights, f) for f in frames if folds[f.patient_id] == number]
    table = pd.DataFrame(rows)
    scores = summary(table)
    print(json.dumps(scores, indent=1))
    shipped = [float(f"{weight:.6g}") for weight in fitted(frames)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.out / "out_of_fold.csv") as temporary:
        table.to_csv(temporary, index=False)
    write_json(shipped, arguments.out / "kidney_head.json", indent=None)
    with tracking.start_run("kidney_head", "out_of_fold_by_patient", {"penalty": PENALTY}):
        tracking.log_metrics(scores)
        tracking.log_artifacts(arguments.out)


if __name__ == "__main__":
    main()
