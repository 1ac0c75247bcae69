"""Does pretraining a small backbone, on phantoms or on pictures without labels, bring anything?

    python -m experiments.pretrain --data DATA_DIR --byra runs/byra --out runs/pretraining

DATA_DIR holds `byra2018/` and `aul/` (see docs/data.md); runs/byra is the folder of `make byra`,
whose measured numbers are taken, or measured there now. ResNet-18 at 112 px reads the middle
rectangle of the sector, as the systems of Table I do, with its mean grey level taken out. Its
512 features are read by the ridge and the odds model of `make byra`, leave-one-patient-out,
alone and beside the three signs, with these weights:

- `random`: drawn, never trained; what any pretraining has to beat.
- `phantoms`: trained to say of simulated patients (fat evenly spread on the square root scale,
  drawn scanner, gain within 6 dB) what the simulator knows: fat, and the liver's loss with depth
  and its level over the cortex in the grey levels that the picture shows. Its three answers, which
  have a known direction, are a system too.
- `pairs`: Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230): two turned, zoomed, mirrored views
  of other contrast of one picture shall give the same numbers, and no two numbers the same. The
  pictures are those of aul, other patients and scanners, no grades.

No pixel of the 44 graded patients trains any of it, and no setting was chosen by their scores.
bfloat16 where the processor multiplies it. A killed run goes on after the last finished batch of
phantoms or network. Time: by estimate 15 minutes of processor time. Result: docs/research/best.md.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from experiments import byra
from experiments.fat_rules.comparison import MeasuredStudy, compare_systems
from experiments.table1.networks.resnet18 import resnet18
from steatosis_tf import tracking
from steatosis_tf.cohort.manifest import frame_path
from steatosis_tf.config import AugmentConfig
from steatosis_tf.files import replacing
from steatosis_tf.grades import GRADES, NOTICE
from steatosis_tf.model.engines import has_bfloat16
from steatosis_tf.model.joint_fit import Part
from steatosis_tf.records.augment import augment
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.roi.views import central_rectangle, crop_roi
from steatosis_tf.sources.images import read_frame
from steatosis_tf.sources.phantom.study import simulate_patient

EXPERIMENT = "pretraining"
#: Counts up whenever phantoms, views or networks change, so that what is stored is made anew.
VERSION = 1


@dataclass(frozen=True)
class Config:
    num_phantoms: int = 2400
    held_out: int = 400
    phantom_epochs: int = 6
    pair_epochs: int = 15
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 4e-3
    seed: int = 0
    version: int = VERSION


#: Simulated patients per stored file.
CHUNK = 200
MAX_FAT_PERCENT, MAX_GAIN_DB = 95.0, 6.0
CHANGES = AugmentConfig()
VIEWS = AugmentConfig(rotation_deg=15.0, zoom=0.2)
#: How much the contrast of a view may differ, as a share.
CONTRAST = 0.3
PROJECTED = 256
#: Weight of the correlations between different numbers, as in the paper.
REDUNDANCY = 5e-3

WAYS = ("random", "phantoms", "pairs")
ANSWERS = ("phantom_fat", "phantom_loss", "phantom_index")
NUM_FEATURES = 512


def columns_of(way: str) -> tuple[str, ...]:
    return tuple(f"{way}_{number:03d}" for number in range(NUM_FEATURES))


PARTS = {f"{way} weights": Part(way, columns_of(way)) for way in WAYS}
PARTS["answers of phantoms"] = Part("answers", ANSWERS, (1, 1, 1))
#: Every system that was looked at; the first of a table is what the others are compared with.
ALONE = {name: (part,) for name, part in PARTS.items()}
SIGNS = byra.METHODS[byra.BEST]
ADDED = {byra.BEST: SIGNS} | {f"+ {name}": (*SIGNS, part) for name, part in PARTS.items()}


def roi_of(frame: np.ndarray) -> np.ndarray:
    """`(224, 224, 1)` uint8: the middle of the sector, none of its outline.

    Raises:
        ValueError: if the frame shows no sector.
    """
    sector = find_sector(frame)
    return crop_roi(frame, sector.mask, central_rectangle(sector))[..., None]


def phantoms(config: Config, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """ROIs `(n, 224, 224, 1)` uint8 of simulated patients, and `ANSWERS` `(n, 3)` float32."""
    chunks = []
    for start in tqdm(range(0, config.num_phantoms, CHUNK), "phantoms", file=sys.stderr):
        numbers = range(start, min(start + CHUNK, config.num_phantoms))
        path = folder / f"phantoms-{VERSION}-{numbers.start}-{numbers.stop}.npz"
        if not path.is_file():
            drawn = [phantom(number) for number in numbers]
            with replacing(path) as temporary:
                np.savez(temporary, *(np.stack(kind) for kind in zip(*drawn, strict=True)))
        with np.load(path) as stored:
            chunks.append((stored["arr_0"], stored["arr_1"]))
    rois, answers = (np.concatenate(kind) for kind in zip(*chunks, strict=True))
    return rois, answers


def phantom(number: int) -> tuple[np.ndarray, np.ndarray]:
    """ROI of one simulated patient and what the simulator knows, as far as a picture shows it."""
    generator = np.random.default_rng((VERSION, number))
    frames, truth = simulate_patient(
        generator.uniform(0, MAX_FAT_PERCENT**0.5) ** 2,
        num_frames=1,
        generator=generator,
        gain_offset_db=generator.uniform(-MAX_GAIN_DB, MAX_GAIN_DB),
    )
    # In grey levels: the picture tells neither its dynamic range nor its depth.
    grey_per_db = 255 / truth.dynamic_range_db
    loss = truth.attenuation_slope_db_per_cm * truth.depth_mm / 10 * grey_per_db
    index = 20 * np.log10(truth.hepatorenal_ratio) * grey_per_db
    return roi_of(frames[0]), np.array([truth.fat_percent**0.5, loss, index], np.float32)


def pictures(folder: Path) -> np.ndarray:
    """ROIs of all pictures of a folder that show a sector; the number of others is printed."""
    rois, without = [], 0
    for path in tqdm(sorted(folder.iterdir()), "pictures", file=sys.stderr):
        try:
            rois.append(roi_of(read_frame(path)))
        except ValueError:
            without += 1
    print(f"{len(rois)} pictures without labels; {without} more show no sector that is found")
    return np.stack(rois)


def backbone(seed: int) -> keras.Model:
    """`roi` `(batch, 224, 224, 1)` uint8 -> features `(batch, 512)` float32."""
    network = resnet18(len(GRADES), seed, size_px=112)
    return keras.Model(network.input, network.get_layer("features").output)


def answering(config: Config) -> keras.Model:
    """The backbone, and `ANSWERS` in standard units on top."""
    features = backbone(config.seed)
    return keras.Model(features.input, keras.layers.Dense(len(ANSWERS))(features.output))


def projecting(config: Config) -> keras.Model:
    """The backbone, and a projection on top that is thrown away afterwards."""
    features = backbone(config.seed)
    x = keras.layers.Dense(PROJECTED, use_bias=False)(features.output)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
    return keras.Model(features.input, keras.layers.Dense(PROJECTED)(x))


def barlow_twins(_: tf.Tensor, projected: tf.Tensor) -> tf.Tensor:
    """Correlations of the first half of a batch with the second, its other views, made one."""
    halves = tf.stack(tf.split(projected, 2))
    centred = halves - tf.reduce_mean(halves, axis=1, keepdims=True)
    one, other = tf.unstack(centred / (tf.math.reduce_std(halves, axis=1, keepdims=True) + 1e-4))
    correlation = tf.matmul(one, other, transpose_a=True) / tf.cast(tf.shape(one)[0], tf.float32)
    diagonal = tf.eye(projected.shape[-1])
    weights = REDUNDANCY + (1 - REDUNDANCY) * diagonal
    return tf.reduce_sum(weights * tf.square(correlation - diagonal))


def seeded(rois: np.ndarray, answers: np.ndarray, seed: int) -> tf.data.Dataset:
    """ROI, answer and a seed of two numbers, shuffled; every pass draws anew."""
    draws = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)
    examples = tf.data.Dataset.from_tensor_slices((rois, answers))
    return tf.data.Dataset.zip(examples.shuffle(len(rois), seed=seed), draws)


def changed_batches(rois: np.ndarray, answers: np.ndarray, config: Config) -> tf.data.Dataset:
    """Turned, zoomed and mirrored phantoms with their answers."""
    return (
        seeded(rois, answers, config.seed)
        .map(lambda example, draw: (augment(example[0], draw, CHANGES), example[1]))
        .batch(config.batch_size, drop_remainder=True)
        .prefetch(2)
    )


def pair_batches(rois: np.ndarray, config: Config) -> tf.data.Dataset:
    """First the one views of a batch of pictures, then the others, and targets nobody reads."""

    def view(roi: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
        contrast = tf.random.stateless_uniform([], draw + 1, 1 - CONTRAST, 1 + CONTRAST)
        grey = tf.cast(augment(roi, draw, VIEWS), tf.float32) * contrast
        return tf.cast(tf.clip_by_value(grey, 0, 255), tf.uint8)

    size = config.batch_size
    return (
        seeded(rois, np.zeros(len(rois), np.float32), config.seed)
        .map(lambda example, draw: (view(example[0], draw), view(example[0], draw[::-1])))
        .batch(size, drop_remainder=True)
        .map(lambda one, other: (tf.concat([one, other], axis=0), tf.zeros(2 * size)))
        .prefetch(2)
    )


def train(
    model: keras.Model, loss: object, batches: tf.data.Dataset, epochs: int, config: Config
) -> list[float]:
    """Train in place: AdamW, one cosine; returns the loss of every epoch."""
    steps = epochs * int(batches.cardinality())
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=config.learning_rate, warmup_steps=steps // 10
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=config.weight_decay)
    tf.config.optimizer.set_experimental_options(
        {"auto_mixed_precision_onednn_bfloat16": has_bfloat16()}
    )
    # Compiled by XLA, convolutions would not take the fast path of oneDNN.
    model.compile(optimizer, loss, jit_compile=False)
    history = model.fit(batches, epochs=epochs, shuffle=False, verbose=2)
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": False})
    return [float(value) for value in history.history["loss"]]


def train_on_phantoms(config: Config, folder: Path) -> tuple[keras.Model, dict[str, float]]:
    """The answering network and, of phantoms it never saw, the share of variance it explains."""
    rois, answers = phantoms(config, folder)
    seen, unseen = np.split(np.arange(len(rois)), [len(rois) - config.held_out])
    standard = (answers - answers[seen].mean(axis=0)) / answers[seen].std(axis=0)
    model = answering(config)
    batches = changed_batches(rois[seen], standard[seen], config)
    losses = train(model, "mse", batches, config.phantom_epochs, config)
    wrong = np.square(model.predict(rois[unseen], verbose=0) - standard[unseen])
    explained = 1 - wrong.mean(axis=0) / standard[unseen].var(axis=0)
    found = {f"R2_{name}": float(share) for name, share in zip(ANSWERS, explained, strict=True)}
    return model, found | {"loss": losses[-1]}


def train_on_pairs(config: Config, folder: Path) -> tuple[keras.Model, dict[str, float]]:
    """The projecting network, and its loss in the first and the last epoch."""
    model = projecting(config)
    batches = pair_batches(pictures(folder), config)
    losses = train(model, barlow_twins, batches, config.pair_epochs, config)
    return model, {"first_loss": losses[0], "loss": losses[-1]}


def trained(way: str, config: Config, data_dir: Path, store: Path) -> keras.Model:
    """A network with these weights, trained unless it was before."""
    if way == "random":
        return backbone(config.seed)
    settings = json.dumps(asdict(config), sort_keys=True)
    path = store / f"{way}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.npz"
    if path.is_file():
        model = answering(config) if way == "phantoms" else projecting(config)
        with np.load(path) as stored:
            model.set_weights([stored[name] for name in stored.files])
        return model
    with tracking.start_run(EXPERIMENT, f"pretrain {way}", asdict(config)):
        if way == "phantoms":
            model, found = train_on_phantoms(config, store)
        else:
            model, found = train_on_pairs(config, data_dir / "aul" / "images")
        tracking.log_metrics(found)
        with replacing(path) as temporary:
            np.savez(temporary, *model.get_weights())
    print(f"{way}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return model


def features_of(way: str, model: keras.Model, rois: np.ndarray) -> pd.DataFrame:
    """The 512 features of every ROI, and of `phantoms` its answers."""
    layer = model.get_layer("features")
    features = keras.Model(model.input, layer.output).predict(rois, verbose=0)
    table = pd.DataFrame(features, columns=columns_of(way))
    if way == "phantoms":
        table[list(ANSWERS)] = np.asarray(model.layers[-1](features))
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="has byra2018/ and aul/")
    parser.add_argument("--byra", type=Path, required=True, help="folder of `make byra`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    cv2.setNumThreads(1)
    config, out = Config(seed=arguments.seed), arguments.out
    measured = byra.measured(arguments.data / "byra2018", arguments.byra)
    rois = np.stack(
        [roi_of(read_frame(frame_path(measured.manifest_path, p))) for p in measured.frames["path"]]
    )
    tables = [
        features_of(way, trained(way, config, arguments.data, out / "store"), rois) for way in WAYS
    ]
    features = pd.concat([measured.features, *tables], axis=1)
    study = MeasuredStudy(measured.manifest_path, measured.frames, features)
    texts = [compare_systems(EXPERIMENT, systems, study, out)[0] for systems in (ALONE, ADDED)]
    with replacing(out / f"table-{config.seed}.md") as temporary:
        temporary.write_text("\n".join(texts))
    print("\n".join(texts), NOTICE, sep="\n")


if __name__ == "__main__":
    main()
