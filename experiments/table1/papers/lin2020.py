"""How well does a ResNet screen for any fat at all?

Command:
    python -m experiments.table1.papers.lin2020 --manifest MANIFEST_CSV
    python -m experiments.table1.papers.lin2020 --manifest MANIFEST_CSV --weights imagenet
Paper: Lin 2020 as Table I of the source paper names it: ResNet screening, Normal against any. The
article itself was not at hand; what Table I does not say is ours, the depth of 50 layers too.
Adapted: grey with the frame's gain taken out; the network is frozen and only the last layer is new:
a softmax on the 2048 features, as He et al. end theirs, normalised over the batch. It lacks the
hidden layer of the source paper's own method (resnet50.py). A second model grades four. Four of a
patient's frames are trained on, each in two augmented views.
Expected time: about 4 minutes of processor time; features are shared with resnet50.py.
Expected result: its rows of docs/table1.md.
"""

from typing import Any

import numpy as np

from experiments.table1.command_line import main
from experiments.table1.method import Fitted, FoldData, Method
from steatosis_tf.config import TrainConfig


def fit(fold_data: FoldData, *, weights: str, frame_step: int, **train: Any) -> Fitted:
    """A new last layer on the frozen network."""
    import keras

    from experiments.table1.frozen import FrozenFeatures, fit_head
    from steatosis_tf.config import ModelConfig
    from steatosis_tf.model.heads import end_network

    def last_layer(plain: np.ndarray) -> keras.Model:
        keras.utils.set_random_seed(fold_data.seed)
        features = keras.Input((plain.shape[1],), name="features")
        normal = keras.layers.BatchNormalization(momentum=0.9, name="features_norm")(features)
        return keras.Model(features, end_network(normal, "softmax", fold_data.num_classes))

    features = FrozenFeatures(
        ModelConfig(weights=weights), False, fold_data.study.folder / "features"
    )
    return fit_head(
        fold_data, features, last_layer, frame_step=frame_step, train=TrainConfig(**train)
    )


METHODS = (
    Method(
        name="lin2020",
        title="Lin 2020: ResNet",
        year=2020,
        paper="Lin 2020, ResNet screening, two classes",
        tasks=("at_least_mild", "four_grades"),
        fit=fit,
        settings={"weights": "random", "frame_step": 3, "views": 2, "epochs": 60,
                  "batch_size": 32, "learning_rate": 1e-3},
    ),
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main(__doc__, METHODS))
