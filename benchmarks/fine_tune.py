"""What does fine-tuning cost, and what do maps kept at the cut save?

    python benchmarks/fine_tune.py

Processor seconds per frame, which other load moves less than wall time, of the maps at the cut
(once per frame and view) and of a training epoch that starts from them. Without kept maps every
epoch would compute the maps of its frames anew: the ratio printed. Time: half a minute.
"""

import tempfile
import time

import numpy as np
import tensorflow as tf

from steatosis_tf.config import AugmentConfig, ModelConfig, TrainConfig
from steatosis_tf.model.backbone import build_backbone
from steatosis_tf.model.fine_tune import fine_tune, maps_at_cut
from steatosis_tf.model.heads import assemble, build_head
from steatosis_tf.model.train import feature_batches, frame_order, make_repeatable

NUM_FRAMES = 16
EPOCHS = 3


def main() -> None:
    make_repeatable(0)
    generator = np.random.default_rng(0)
    rois = generator.integers(0, 256, (NUM_FRAMES, 224, 224, 1), np.uint8)
    names = [f"frame{number}" for number in range(NUM_FRAMES)]
    examples = tf.data.Dataset.from_tensor_slices({"roi": rois, "frame_id": names})
    labels = np.arange(NUM_FRAMES) % 4
    config = ModelConfig(weights="random")
    backbone = build_backbone(config)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        maps = maps_at_cut(examples, backbone, AugmentConfig(), 1, folder)
        per_map = (time.process_time() - start) / (2 * NUM_FRAMES)
    features = generator.normal(1, 1, (NUM_FRAMES, backbone.output_shape[-1])).astype(np.float32)
    model = assemble(backbone, build_head(config, features, 0), config)
    order = frame_order(np.arange(NUM_FRAMES), seed=0)
    batches = feature_batches(maps[1:], labels, order, batch_size=NUM_FRAMES, seed=0)
    one = feature_batches(maps[:1], labels, tf.data.Dataset.range(1), batch_size=1, seed=0)
    marks: list[float] = []
    train = TrainConfig(fine_tune_epochs=EPOCHS)
    fine_tune(model, batches, one, None, train, lambda *_: marks.append(time.process_time()))
    per_epoch = float(np.median(np.diff(marks))) / NUM_FRAMES  # the first epoch also compiles
    print(
        f"maps at the cut: {per_map:.3f} CPU-s per frame and view, {maps[0, 0].nbytes / 1e6:.1f} MB"
    )
    print(f"an epoch:        {per_epoch:.3f} CPU-s per training frame")
    print(f"without kept maps an epoch would cost {1 + per_map / per_epoch:.1f} times as much")


if __name__ == "__main__":
    main()
