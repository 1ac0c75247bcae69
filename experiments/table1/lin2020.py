"""How well does a ResNet screen for any fat at all?

Command:
    python experiments/table1/lin2020.py --manifest MANIFEST_CSV
    python experiments/table1/lin2020.py --manifest MANIFEST_CSV --weights imagenet
Paper: Lin 2020 as Table I of the source paper names it: ResNet screening, Normal against any. The
article itself was not at hand; what Table I does not say is ours, the depth of 50 layers too.
Adapted: grey with the frame's gain taken out; the network is frozen and only the last layer is
new, a softmax on the 2048 features as He et al. end theirs, without the hidden layer of the source
paper's own system (resnet50.py). A second model grades four. Four of a patient's frames are trained
on, each in two augmented views.
Expected time: about 4 minutes of processor time; features are shared with resnet50.py.
Expected result: its rows of docs/table1.md.
"""

from steatosis_tf.config import TrainConfig
from steatosis_tf.table1.main import main
from steatosis_tf.table1.system import Fitted, Lesson, System


def fit(lesson: Lesson, *, weights: str, frame_step: int, **train: float) -> Fitted:
    """A new last layer on the frozen network."""
    from steatosis_tf.table1.frozen import fit_dense_head

    return fit_dense_head(
        lesson, "resnet50", weights, hidden_units=0, frame_step=frame_step,
        train=TrainConfig(**train),
    )  # fmt: skip


SYSTEMS = (
    System(
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
    raise SystemExit(main(__doc__, SYSTEMS))
