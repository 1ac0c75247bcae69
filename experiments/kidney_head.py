"""Can the features of the liver network say where an operator would take renal cortex?

    python experiments/kidney_head.py --data DATA_DIR --out runs/kidney_head

DATA_DIR holds `byra2018/` (see docs/data.md). The liver network, which never saw these frames,
is frozen; a head of 10 thousand parameters learns, from every third frame in six random views,
the distribution of the three operators' kidney boxes. Every figure is out-of-fold, five folds by
patient; patients are dealt by the SHA-256 of their id, since ids are sorted by fat. The shipped
head is then trained on all patients and has no figure of its own on them.

Time: about 10 minutes on 2 cores. Result: see steatosis_tf/roi/liver_unet_card.md.
"""

import argparse
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import layers

from steatosis_tf import tracking
from steatosis_tf.atomic import replacing
from steatosis_tf.roi.kidney import HEAD_INPUTS, best_patch, liver_in_input
from steatosis_tf.roi.liver import Placement, liver_mask, liver_session, network_input
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.folder import read_frame

NUM_FOLDS = 5
EPOCHS = 6
BATCH_SIZE = 16
VIEWS = 6
FRAME_STEP = 3
BOX_PX = 28
# Operators differ by 17 px of the frame, which is 7 px of the network's input.
SPREAD_PX = 6.0
SEED = 20260101


@dataclass(frozen=True)
class Frame:
    """One frame as the head's experiment needs it."""

    path: str
    patient_id: str
    centres: np.ndarray  # (num_operators, 2) x, y of the kidney boxes' middles, px of the frame
    crop: np.ndarray
    liver: np.ndarray
    placement: Placement


def read_frames(byra_dir: Path) -> list[Frame]:
    boxes = pd.read_csv(byra_dir / "operator_boxes_28px.csv", dtype={"path": str})
    patients = pd.read_csv(byra_dir / "labels.csv", dtype=str).set_index("path")["patient_id"]
    frames = []
    for path, of_frame in boxes.dropna(subset=["kidney_x", "kidney_y"]).groupby("path"):
        frame = read_frame(byra_dir / str(path))
        sector = find_sector(frame)
        crop, placement = network_input(frame, sector.mask)
        centres = of_frame[["kidney_x", "kidney_y"]].to_numpy(float) + BOX_PX / 2
        liver = liver_in_input(liver_mask(frame, sector), placement)
        frames.append(Frame(str(path), patients[path], centres, crop, liver, placement))
    return frames


def fold_of(patient_ids: list[str]) -> dict[str, int]:
    ranked = sorted(set(patient_ids), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return {patient_id: rank % NUM_FOLDS for rank, patient_id in enumerate(ranked)}


def views_of(frame: Frame, random: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """The crop and its target, plain and in random placements."""
    place = frame.placement
    scale = place.input_width / place.width
    points = (frame.centres - (place.left, place.top)) * scale
    points += (place.input_left, place.input_top)
    pairs = []
    for view in range(VIEWS):
        matrix = np.array([[1.0, 0, 0], [0, 1, 0]]) if view == 0 else random_matrix(random)
        size = (frame.crop.shape[1], frame.crop.shape[0])
        grey = cv2.warpAffine(frame.crop[..., 0], matrix, size)
        sector = cv2.warpAffine(frame.crop[..., 1], matrix, size, flags=cv2.INTER_NEAREST)
        target = where_clicked(points @ matrix[:, :2].T + matrix[:, 2])
        pairs.append((np.stack([grey * sector, sector], axis=-1), target))
    return pairs


def random_matrix(random: np.random.Generator) -> np.ndarray:
    angle, stretch = random.normal(0, 0.12), np.exp(random.normal(0, 0.1))
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    deform = [[random.choice((-1, 1)) * stretch, random.normal(0, 0.06)], [0, 1 / stretch]]
    linear = np.exp(random.normal(0, 0.1)) * rotate @ np.array(deform)
    centre = np.array([112.0, 80.0])
    return np.column_stack([linear, centre + random.normal(0, 4, 2) - linear @ centre])


def where_clicked(points: np.ndarray) -> np.ndarray:
    """Distribution over the head's 40 x 56 cells; sums to 1."""
    rows, columns = np.mgrid[:40, :56] * 4 + 1.5
    squares = [(columns - x) ** 2 + (rows - y) ** 2 for x, y in points]
    spread = sum(np.exp(-square / (2 * SPREAD_PX**2)) for square in squares) + 1e-9
    return (spread / spread.sum()).astype(np.float32)


def features_of(crops: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What the frozen liver network says, one crop at a time."""
    session = liver_session()
    runs = [session.run(list(HEAD_INPUTS), {"crop": crop[np.newaxis]}) for crop in crops]
    return {name: np.concatenate([run[i] for run in runs]) for i, name in enumerate(HEAD_INPUTS)}


def build_head(width: int = 16) -> keras.Model:
    """From the liver network's answers to `(batch, 40, 56, 1)` logits of the operators' choice."""
    shapes = {node.name: tuple(node.shape[1:]) for node in liver_session().get_outputs()}
    given = {name: keras.Input(shapes[name], name=name) for name in HEAD_INPUTS}
    merged = layers.Add()(
        [
            layers.Conv2D(width, 1)(layers.AveragePooling2D(2)(given["liver_logit"])),
            layers.Conv2D(width, 1)(given["features_40"]),
            enlarged(layers.Conv2D(width, 1)(given["features_20"]), 2),
            enlarged(layers.Conv2D(width, 1)(given["features_10"]), 4),
        ]
    )
    merged = layers.SpatialDropout2D(0.1)(layers.ReLU()(merged))
    for _ in range(2):
        merged = layers.Conv2D(width, 3, padding="same", activation="relu")(merged)
    return keras.Model(given, layers.Conv2D(1, 1)(merged), name="kidney_head")


def enlarged(level: keras.KerasTensor, factor: int) -> keras.KerasTensor:
    return layers.UpSampling2D(factor, interpolation="bilinear")(level)


def spatial_cross_entropy(target: tf.Tensor, logit: tf.Tensor) -> tf.Tensor:
    cells = target.shape[1] * target.shape[2]
    return tf.reduce_mean(
        tf.nn.softmax_cross_entropy_with_logits(
            tf.reshape(target, (-1, cells)), tf.reshape(logit, (-1, cells))
        )
    )


def train_head(features: dict[str, np.ndarray], targets: np.ndarray, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    head = build_head()
    steps = EPOCHS * (len(targets) // BATCH_SIZE)
    schedule = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    head.compile(keras.optimizers.AdamW(schedule, weight_decay=0.01), spatial_cross_entropy)
    head.fit(features, targets, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0)
    return head


def found_rows(head: keras.Model, frames: list[Frame]) -> list[dict[str, object]]:
    """One row per frame: distance from the patch's middle to the nearest operator's box."""
    rows = []
    for frame in frames:
        logit = head.predict_on_batch(features_of([frame.crop]))[0, :, :, 0]
        finding = best_patch(logit, frame.crop[..., 1], frame.liver, frame.placement)
        row: dict[str, object] = {
            "path": frame.path,
            "patient_id": frame.patient_id,
            "quality": finding.quality,
            "found": finding.box is not None,
        }
        if finding.box is not None:
            half = np.array([finding.box.width, finding.box.height]) / 2
            middle = np.array([finding.box.left, finding.box.top]) + half
            apart = np.abs(frame.centres - middle)
            row["distance_px"] = float(np.hypot(*apart.T).min())
            row["overlaps"] = bool((apart < half + BOX_PX / 2).all(axis=1).any())
        rows.append(row)
    return rows


def export(head: keras.Model, path: Path) -> None:
    import tf2onnx  # slow to import, and only needed once

    signature = ({n.name: tf.TensorSpec(n.shape, tf.float32, name=n.name) for n in head.inputs},)

    @tf.function(input_signature=signature)
    def forward(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {"cortex_logit": head(features, training=False)}

    with replacing(path) as unfinished:
        tf2onnx.convert.from_function(
            forward, input_signature=signature, opset=17, output_path=str(unfinished)
        )


def summary(table: pd.DataFrame) -> dict[str, float]:
    """Per patient first, then over patients: ten frames of a patient are almost one picture."""
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
        "patients_mostly_overlapping": int((by_patient["overlaps"] > 0.5).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds byra2018/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the head and scores")
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(2)
    frames = read_frames(arguments.data / "byra2018")
    folds = fold_of([frame.patient_id for frame in frames])
    random = np.random.default_rng(SEED)
    pairs = [(f, *pair) for f in frames[::FRAME_STEP] for pair in views_of(f, random)]
    features = features_of([crop for _, crop, _ in pairs])
    targets = np.stack([target for _, _, target in pairs])[..., np.newaxis]
    fold = np.array([folds[f.patient_id] for f, _, _ in pairs])
    rows: list[dict[str, object]] = []
    for number in range(NUM_FOLDS):
        seen = fold != number
        chosen = {name: values[seen] for name, values in features.items()}
        head = train_head(chosen, targets[seen], SEED + number)
        rows += found_rows(head, [f for f in frames if folds[f.patient_id] == number])
        print(number, summary(pd.DataFrame(rows)), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_csv(arguments.out / "out_of_fold.csv", index=False)
    export(train_head(features, targets, SEED + NUM_FOLDS), arguments.out / "kidney_head.onnx")
    with tracking.start_run("kidney_head", "out_of_fold_by_patient", {"epochs": EPOCHS}):
        tracking.log_metrics(summary(table))
        tracking.log_artifacts(arguments.out)


if __name__ == "__main__":
    main()
