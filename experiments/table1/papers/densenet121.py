"""How far does a frozen DenseNet-121 with a new head go on four grades?

Command:
    python -m experiments.table1.papers.densenet121 --manifest MANIFEST_CSV
    python -m experiments.table1.papers.densenet121 --manifest MANIFEST_CSV --weights imagenet
Paper: as Table I of the source paper names it: DenseNet-121 transfer learning, four classes. The
article itself was not at hand; what Table I does not say is ours.
Adapted: grey with the frame's gain taken out; the network stays frozen, a head of 256 units is
trained on its 1024 features. Four of a patient's frames are trained on, each in two augmented
views.
Expected time: about 3 minutes of processor time (5.7 GFLOP a frame).
Expected result: its row of docs/table1.md.
"""

from typing import Any

from experiments.table1.command_line import main
from experiments.table1.method import Fitted, FoldData, Method
from steatosis_tf.config import TrainConfig


def fit(fold_data: FoldData, *, weights: str, frame_step: int, **train: Any) -> Fitted:
    """A new head on the frozen network."""
    from experiments.table1.frozen import fit_dense_head

    return fit_dense_head(
        fold_data, "densenet121", weights, frame_step=frame_step, train=TrainConfig(**train)
    )


METHODS = (
    Method(
        name="densenet121",
        title="DenseNet-121 transfer",
        year=2022,
        paper="DenseNet-121 transfer learning, four classes",
        tasks=("four_grades",),
        fit=fit,
        settings={"weights": "random", "frame_step": 3, "views": 2, "epochs": 60,
                  "batch_size": 32, "learning_rate": 1e-3},
    ),
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main(__doc__, METHODS))
