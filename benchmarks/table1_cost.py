"""What do the deep systems of the table cost: arithmetic counted, time measured on one batch.

    python benchmarks/table1_cost.py

Prints per system: 10^9 floating-point operations of one frame forward (a multiplication and an
addition count as two), parameters, processor milliseconds of a frame (trained: forward and back; of
a frozen network: forward), and what the rows of the table then take in processor minutes: five
folds and the split by image for every task, 44 patients of ten frames. Heads on stored features
take about 10 seconds a fit, which is counted.
"""

import time
from collections.abc import Callable
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from experiments.table1.networks.alexnet import alexnet
from experiments.table1.networks.googlenet import googlenet
from experiments.table1.networks.plain_cnn import plain_cnn
from experiments.table1.networks.resnet18 import resnet18
from experiments.table1.networks.two_outputs import two_outputs
from experiments.table1.networks.unet_cnn import unet_cnn
from steatosis_tf.config import ModelConfig
from steatosis_tf.grades import OUTPUT_LAYER
from steatosis_tf.model.backbone import build_backbone
from steatosis_tf.model.engines import constant_graph

_BATCH = 16
_FITS = 6  # five folds, and once split by image
_HEAD_SECONDS = 10
# System: network, number of tasks, epochs; every epoch reads two frames of each of 31 patients.
_TRAINED: dict[str, tuple[Callable[[int, int], keras.Model], int, int]] = {
    "kim2020_alexnet": (alexnet, 2, 6),
    "li2020_googlenet": (partial(googlenet, size_px=112), 2, 10),
    "li2020_resnet18": (partial(resnet18, size_px=112), 2, 10),
    "zhou2020": (plain_cnn, 1, 20),
    "reddy2021": (unet_cnn, 1, 8),
    "two_outputs": (two_outputs, 1, 20),
}
# System: backbone, number of tasks, augmented frames (views times frames that are trained on).
_FROZEN = {
    "kim2020_vgg16": ("vgg16", 2, 176),
    "lin2020 and resnet50": ("resnet50", 3, 2 * 440),
    "densenet121": ("densenet121", 1, 2 * 176),
    "vgg19_attention": ("vgg19", 2, 176),
}


def gflop(model: keras.Model) -> float:
    """10^9 floating-point operations of one frame, as TensorFlow's profiler counts the graph."""
    graph = constant_graph(model, 1).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    return tf.compat.v1.profiler.profile(graph, options=options).total_float_ops / 1e9


def milliseconds(step: Callable[[], object]) -> float:
    """Processor milliseconds of a frame, the first call left out."""
    step()
    start = time.process_time()
    step()
    return 1000 * (time.process_time() - start) / _BATCH


def main() -> None:
    rois = np.random.default_rng(0).integers(0, 200, (_BATCH, 224, 224, 1), dtype=np.uint8)
    labels = np.arange(_BATCH) % 4
    print(f"{'system':22} {'GFLOP':>6} {'parameters':>12} {'ms/frame':>9} {'minutes':>8}")
    total = 0.0
    for name, (network, tasks, epochs) in _TRAINED.items():
        model = network(4, 0)
        cost, size = gflop(model), model.count_params()
        grader = keras.Model(model.input, model.get_layer(OUTPUT_LAYER).output)
        grader.compile(keras.optimizers.AdamW(), "sparse_categorical_crossentropy")
        each = milliseconds(partial(grader.train_on_batch, rois, labels))
        minutes = _FITS * tasks * epochs * 2 * 31 * each / 60_000
        total += minutes
        print(f"{name:22} {cost:6.2f} {size:12,} {each:9.1f} {minutes:8.1f}", flush=True)
    for name, (backbone, tasks, augmented) in _FROZEN.items():
        model = build_backbone(ModelConfig(backbone=backbone, weights="random"))  # type: ignore[arg-type]
        cost, size = gflop(model), model.count_params()
        each = milliseconds(partial(model.predict_on_batch, rois))
        minutes = (440 + augmented) * each / 60_000 + _FITS * tasks * _HEAD_SECONDS / 60
        total += minutes
        print(f"{name:22} {cost:6.2f} {size:12,} {each:9.1f} {minutes:8.1f}", flush=True)
    print(f"{'together':22} {'':6} {'':12} {'':9} {total:8.1f} processor minutes")


if __name__ == "__main__":
    main()
