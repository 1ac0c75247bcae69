"""How far do AlexNet and VGG-16 go on two classes, and on four?

Command:
    python -m experiments.table1.papers.kim2020 --manifest MANIFEST_CSV
    python -m experiments.table1.papers.kim2020 --manifest MANIFEST_CSV --weights imagenet
Paper: Kim 2020 as Table I of the source paper names it: AlexNet adapted, and VGG-16, two classes.
The article itself was not at hand; what Table I does not say is ours.
Adapted: AlexNet reads grey at 224 px with the frame's gain taken out, ends in two classes and
starts from random weights, because neither Keras nor KerasHub publishes any. VGG-16 is frozen (31
GFLOP a frame: training all of it would take hours here); its last map is averaged over its places
and a new head of 256 units is trained on it in place of the 124 million weights of its own. Both
also train four grades. Two (AlexNet) or four (VGG-16, each in one augmented view) of a patient's
frames are trained on: ten of one clip are nearly one picture. Six epochs are 24 steps: AlexNet runs
within the table's hour, but 61 million weights are hardly trained by that.
Expected time: about 6 minutes of processor time for AlexNet (1.4 GFLOP a frame), 5 for VGG-16.
Expected result: its rows of docs/table1.md.
"""

from typing import Any

from experiments.table1.command_line import main
from experiments.table1.method import Fitted, FoldData, Method
from steatosis_tf.config import TrainConfig


def fit_alexnet(fold_data: FoldData, *, frame_step: int, **train: Any) -> Fitted:
    """All layers, from random weights."""
    from experiments.table1.deep import fit_network
    from experiments.table1.networks.alexnet import alexnet

    return fit_network(fold_data, alexnet, frame_step=frame_step, train=TrainConfig(**train))


def fit_vgg16(fold_data: FoldData, *, weights: str, frame_step: int, **train: Any) -> Fitted:
    """A new head on the frozen network."""
    from experiments.table1.frozen import fit_dense_head

    return fit_dense_head(
        fold_data, "vgg16", weights, frame_step=frame_step, train=TrainConfig(**train)
    )


_TASKS = ("at_least_mild", "four_grades")

METHODS = (
    Method(
        name="kim2020_alexnet",
        title="Kim 2020: AlexNet",
        year=2020,
        paper="Kim 2020, AlexNet adapted, two classes",
        tasks=_TASKS,
        fit=fit_alexnet,
        settings={"frame_step": 5, "epochs": 6, "batch_size": 16, "learning_rate": 1e-4},
    ),
    Method(
        name="kim2020_vgg16",
        title="Kim 2020: VGG-16",
        year=2020,
        paper="Kim 2020, VGG-16, two classes",
        tasks=_TASKS,
        fit=fit_vgg16,
        settings={"weights": "random", "frame_step": 3, "views": 1, "epochs": 60,
                  "batch_size": 32, "learning_rate": 1e-3},
    ),
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main(__doc__, METHODS))
