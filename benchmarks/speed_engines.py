"""How many frames per second each engine puts through the frozen ResNet-50, side by side.

    python benchmarks/speed_engines.py
    python benchmarks/speed_engines.py --rounds 7 --frames 128

One process; in every round each engine in turn runs the same frames, so that a busy machine is
busy for all of them. Read the ratios: frames per second are those of this machine at this moment.
The frames are augmented by tf.data as for the feature store. `GFLOP/s` counts 7.7 GFLOP a frame
(multiply and add apart); beside it stands what one large matrix product reaches in TensorFlow.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from steatosis_tf.config import AugmentConfig, ModelConfig
from steatosis_tf.model.backbone import build_backbone
from steatosis_tf.model.engines import BATCH, Engine, choose_engine
from steatosis_tf.records.augment import augment

GFLOP_PER_FRAME = 7.7
NAMES = ("keras", "tf-bf16", "openvino")


def main(argv: list[str] | None = None) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=64, help="per engine and round")
    arguments = parser.parse_args(argv)
    num_batches = max(1, arguments.frames // BATCH)
    generator = np.random.default_rng(0)
    rois = generator.integers(0, 256, (num_batches * BATCH, 224, 224, 1), np.uint8)
    backbone = build_backbone(ModelConfig(weights="random"))
    engines = []
    with tempfile.TemporaryDirectory() as cache_dir:
        for name in NAMES:
            try:
                engines.append(choose_engine(name, backbone, rois[:BATCH], cache_dir))
            except RuntimeError as error:
                print(f"{name}: left out. {error}")
        for engine in engines:
            _seconds(engine, rois[: 2 * BATCH])  # compile and warm up
        print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        rows = np.array(
            [[_seconds(engine, rois) for engine in engines] for _ in range(arguments.rounds)]
        )
    _print_table(engines, rows, len(rois))
    print(f"matrix product of 2048 x 2048 in TensorFlow: {_product_gflops():.0f} GFLOP/s (float32)")


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


def _print_table(engines: list[Engine], rows: np.ndarray, num_frames: int) -> None:
    """`rows` is `(rounds, engines, 2)`, seconds."""
    print(f"{len(rows)} alternating rounds of {num_frames} augmented frames, batch {BATCH}")
    print(f"{'engine':20} {'frames/s':>9} {'ratio (range)':>20} {'CPU ratio':>10} {'GFLOP/s':>8} "
          f"{'cosine':>9}")  # fmt: skip
    reference = rows[:, 0]
    for number, engine in enumerate(engines):
        ratios = reference / rows[:, number]  # within a round: the load is nearly the same
        speed = num_frames / np.median(rows[:, number, 0])
        low, middle, high = np.quantile(ratios[:, 0], [0, 0.5, 1])
        print(
            f"{engine.name + ' ' + engine.precision:20} {speed:9.1f} "
            f"{f'{middle:.1f} ({low:.1f} to {high:.1f})':>20} {np.median(ratios[:, 1]):10.1f} "
            f"{speed * GFLOP_PER_FRAME:8.0f} {engine.min_cosine:9.6f}"
        )


def _product_gflops() -> float:
    size = 2048
    matrix = tf.random.stateless_normal((size, size), (0, 0))
    _ = (matrix @ matrix).numpy()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        _ = (matrix @ matrix).numpy()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / float(np.median(seconds)) / 1e9


if __name__ == "__main__":
    main()
