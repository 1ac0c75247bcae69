"""How far does the source paper's own system go under the table's protocol?

Command:
    python experiments/table1/resnet50.py --manifest MANIFEST_CSV
    python experiments/table1/resnet50.py --manifest MANIFEST_CSV --weights imagenet
Paper: the source paper's own: frozen ResNet-50, dense layer of 256, dropout 0.5, softmax over four
grades, AdamW, batch 32, 100 epochs, class weights.
Adapted: features standardised by the training part, the frame's gain taken out, and two stored
augmented views of every frame instead of new ones in every epoch (experiments/resnet50_frozen.py,
whose run stands in README.md, has four).
Expected time: about 4 minutes of processor time (7.7 GFLOP a frame).
Expected result: its row of docs/table1.md.
"""

from steatosis_tf.config import TrainConfig
from steatosis_tf.table1.main import main
from steatosis_tf.table1.system import Fitted, Lesson, System


def fit(lesson: Lesson, *, weights: str, frame_step: int, **train: float) -> Fitted:
    """The paper's head on the frozen network."""
    from steatosis_tf.table1.frozen import fit_dense_head

    return fit_dense_head(
        lesson, "resnet50", weights, frame_step=frame_step, train=TrainConfig(**train)
    )


SYSTEMS = (
    System(
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
    raise SystemExit(main(__doc__, SYSTEMS))
