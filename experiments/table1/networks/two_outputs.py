"""A small CNN with two outputs, steatosis and fibrosis, on shared convolutions."""

import keras
import numpy as np
from keras import layers

from experiments.table1.networks.grey import grey_input
from experiments.table1.networks.plain_cnn import convolution_blocks
from steatosis_tf.grades import OUTPUT_LAYER
from steatosis_tf.model.heads import end_network

#: Fibrosis stages after METAVIR and NASH CRN.
FIBROSIS_STAGES = ("F0", "F1", "F2", "F3", "F4")


def two_outputs(num_classes: int, seed: int) -> keras.Model:
    """The untrained network.

    Args:
        num_classes: probabilities of steatosis to give.
        seed: of the initial weights and the dropout.

    Returns:
        flat model: `roi` `(batch, 224, 224, 1)` uint8 -> `probabilities` `(batch, num_classes)` and
        `fibrosis` `(batch, 5)`, float32.
    """
    keras.utils.set_random_seed(seed)
    roi, x = grey_input(112, channels=1)
    x = convolution_blocks(x, (16, 32, 64))
    x = layers.GlobalAveragePooling2D(name="features")(x)
    x = layers.Dense(64, activation="relu", name="dense")(x)
    x = layers.Dropout(0.3)(x)
    outputs = {
        OUTPUT_LAYER: end_network(x, "softmax", num_classes),
        "fibrosis": layers.Dense(len(FIBROSIS_STAGES), activation="softmax", name="fibrosis")(x),
    }
    return keras.Model(roi, outputs, name="two_outputs")


def fibrosis_labels(stages: list[str] | None, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the second output, and the weights that mask what is unknown out of its loss.

    Args:
        stages: `F0` to `F4` or empty per frame; None if the study has no such column.
        num_frames: length of the answer.

    Returns:
        `(num_frames,)` int64, 0 where unknown; `(num_frames,)` float32, 1 where known, else 0.

    Raises:
        ValueError: if a stage has another name.
    """
    stages = [""] * num_frames if stages is None else stages
    wrong = sorted(set(stages) - {"", *FIBROSIS_STAGES})
    if wrong:
        raise ValueError(
            f"Expected fibrosis out of {', '.join(FIBROSIS_STAGES)} or empty. Received: {wrong}."
        )
    known = np.array([bool(stage) for stage in stages])
    labels = [FIBROSIS_STAGES.index(stage) if stage else 0 for stage in stages]
    return np.array(labels, np.int64), known.astype(np.float32)
