"""How far does the source paper's own method go under the table's protocol?

Command:
    python -m experiments.table1.papers.resnet50 --manifest MANIFEST_CSV
    python -m experiments.table1.papers.resnet50 --manifest MANIFEST_CSV --weights imagenet
Paper: the source paper's own: frozen ResNet-50, dense layer of 256, dropout 0.5, softmax over four
grades, AdamW, batch 32, 100 epochs, class weights.
Adapted: features standardised by the training part, the frame's gain taken out, and two stored
augmented views of every frame instead of new ones in every epoch (experiments/resnet50_frozen.py,
whose run stands in README.md, has four).
Expected time: about 4 minutes of processor time (7.7 GFLOP a frame).
Expected result: its row of docs/table1.md.
"""

from typing import Any

from experiments.table1.command_line import main
from experiments.table1.method import Fitted, FoldData, Method
from steatosis_tf.config import TrainConfig


def fit(fold_data: FoldData, *, weights: str, frame_step: int, **train: Any) -> Fitted:
    """The paper's head on the frozen network."""
    from experiments.table1.frozen import fit_dense_head

    return fit_dense_head(
        fold_data, "resnet50", weights, frame_step=frame_step, train=TrainConfig(**train)
    )


METHODS = (
    Method(
        name="resnet50",
        title="Source paper: frozen ResNet-50",
        year=2023,
        paper="The source paper's own, frozen ResNet-50, four classes",
        tasks=("four_grades",),
        fit=fit,
        settings={"weights": "random", "frame_step": 1, "views": 2, "epochs": 100,
                  "batch_size": 32, "learning_rate": 1e-4},
    ),
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main(__doc__, METHODS))
