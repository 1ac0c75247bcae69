"""How far do AlexNet and VGG-16 go on two classes, and on four?

Command:
    python experiments/table1/kim2020.py --manifest MANIFEST_CSV
    python experiments/table1/kim2020.py --manifest MANIFEST_CSV --weights imagenet
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

from steatosis_tf.config import TrainConfig
from steatosis_tf.table1.main import main
from steatosis_tf.table1.system import Fitted, Lesson, System


def fit_alexnet(lesson: Lesson, *, frame_step: int, **train: float) -> Fitted:
    """All layers, from random weights."""
    from steatosis_tf.model.networks.alexnet import alexnet
    from steatosis_tf.table1.deep import fit_network

    return fit_network(lesson, alexnet, frame_step=frame_step, train=TrainConfig(**train))


def fit_vgg16(lesson: Lesson, *, weights: str, frame_step: int, **train: float) -> Fitted:
    """A new head on the frozen network."""
    from steatosis_tf.table1.frozen import fit_dense_head

    return fit_dense_head(
        lesson, "vgg16", weights, frame_step=frame_step, train=TrainConfig(**train)
    )


_TASKS = ("at_least_mild", "four_grades")

SYSTEMS = (
    System(
        name="kim2020_alexnet",
        title="Kim 2020: AlexNet",
        year=2020,
        paper="Kim 2020, AlexNet adapted, two classes",
        tasks=_TASKS,
        fit=fit_alexnet,
        settings={"frame_step": 5, "epochs": 6, "batch_size": 16, "learning_rate": 1e-4},
    ),
    System(
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
    raise SystemExit(main(__doc__, SYSTEMS))
