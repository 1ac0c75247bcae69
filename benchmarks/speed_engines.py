"""(b) Engines of the frozen backbone, in alternating rounds of one process; and how far off we are.

The features are of augmented frames, so decoding and augmentation are in the measured time.
ResNet-50 costs 7.7 GFLOP a frame, so what a large matrix product reaches sets the limit.
"""

import tempfile
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from steatosis_tf.config import AugmentConfig, ModelConfig
from steatosis_tf.model.backbone import build_backbone
from steatosis_tf.model.engines import BATCH, Engine, choose_engine, has_bfloat16
from steatosis_tf.records.pipeline import augment

GFLOP_PER_FRAME = 7.7
NUM_FRAMES = 10 * BATCH  # enough that filling and emptying the four batches in flight hardly counts


def engine_rows(*, rounds: int) -> list[tuple[str, ...]]:
    """Rows of the table. An engine the machine has no instructions for is named, not measured."""
    generator = np.random.default_rng(0)
    rois = generator.integers(0, 256, (NUM_FRAMES, 224, 224, 1), np.uint8)
    backbone = build_backbone(ModelConfig(weights="random"))
    engines, rows = [], []
    with tempfile.TemporaryDirectory() as cache_dir:
        for name in ("keras", *(["tf-bf16"] if has_bfloat16() else []), "openvino"):
            try:
                engines.append(choose_engine(name, backbone, rois[:BATCH], cache_dir))
            except RuntimeError as error:
                rows.append(("b", name, f"left out: {error}", "", ""))
        for engine in engines:
            _seconds(engine, rois)  # compile and warm up
        times = np.array([[_seconds(engine, rois) for engine in engines] for _ in range(rounds)])
    products = [_product_gflops() for _ in range(rounds)]
    limit = float(np.median(products)) / GFLOP_PER_FRAME
    rows.append(("b", "limit: float32 matrix product of 2048 x 2048 in TensorFlow",
                 f"{limit:.1f} frames per CPU-s ({limit * GFLOP_PER_FRAME:.0f} GFLOP per CPU-s)",
                 "", ""))  # fmt: skip
    for number, engine in enumerate(engines):
        speeds = NUM_FRAMES / times[:, number, 1]
        ratios = times[:, 0, 1] / times[:, number, 1]  # within a round: the load is nearly the same
        wall = NUM_FRAMES / np.median(times[:, number, 0])
        rows.append(
            (
                "b",
                f"{engine.name} {engine.precision}",
                f"{np.median(speeds):.1f} frames per CPU-s, {np.median(speeds) / limit:.0%} of the "
                f"limit, {wall:.1f} frames per second",
                f"{np.median(ratios):.1f} ({ratios.min():.1f} to {ratios.max():.1f})",
                "7 with bfloat16" if engine.name != "keras" else "",
            )
        )
    if not has_bfloat16():
        rows.append(("b", "tf-bf16", "left out: this processor has no bfloat16", "", ""))
    return rows


def _seconds(engine: Engine, rois: np.ndarray) -> tuple[float, float]:
    """Wall and processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    count = sum(len(features) for features in engine.forward(_augmented(rois)))
    if count != len(rois):
        raise RuntimeError(f"Expected {len(rois)} feature rows. Received: {count}.")
    return time.perf_counter() - wall, time.process_time() - cpu


def _augmented(rois: np.ndarray) -> Iterator[np.ndarray]:
    config = AugmentConfig()
    seeds = tf.data.Dataset.range(len(rois)).map(lambda n: tf.stack([n, tf.constant(1, tf.int64)]))
    pairs = tf.data.Dataset.zip(tf.data.Dataset.from_tensor_slices(rois), seeds)
    views = pairs.map(lambda roi, seed: augment(roi, seed, config), tf.data.AUTOTUNE)
    return views.batch(BATCH).prefetch(4).as_numpy_iterator()


def _product_gflops() -> float:
    """Billions of operations per second of processor time."""
    size = 2048
    matrix = tf.random.stateless_normal((size, size), (0, 0))
    _ = (matrix @ matrix).numpy()
    start = time.process_time()
    for _ in range(5):
        _ = (matrix @ matrix).numpy()
    return 5 * 2 * size**3 / (time.process_time() - start) / 1e9
