"""Does a small CNN that also learns fibrosis grade fat any better?

Command:
    python -m experiments.table1.papers.two_outputs --manifest MANIFEST_CSV
Paper: as Table I of the source paper names it: a small CNN with two outputs, steatosis and
fibrosis. The article itself was not at hand; what Table I does not say is ours: three blocks of two
3 x 3 convolutions and a halving (16 to 64 filters), a mean over the places, one hidden layer of 64.
Adapted: grey at 112 px with the frame's gain taken out. The second output learns `fibrosis` (F0 to
F4) where the manifest has that column, and a patient without a stage is masked out of its loss; a
study without the column trains steatosis alone, and the file's `fibrosis` then means nothing. Two
of a patient's frames are trained on.
Expected time: about 3 minutes of processor time (0.2 GFLOP a frame).
Expected result: its row of docs/table1.md.
"""

from typing import Any

from experiments.table1.command_line import main
from experiments.table1.method import Fitted, FoldData, Method
from steatosis_tf.config import TrainConfig


def fit(fold_data: FoldData, *, frame_step: int, **train: Any) -> Fitted:
    """Both outputs together."""
    import keras

    from experiments.table1.deep import SecondOutput, fit_two_outputs
    from experiments.table1.networks.two_outputs import fibrosis_labels, two_outputs

    index = fold_data.study.index
    stages = index["fibrosis"].tolist() if "fibrosis" in index.columns else None
    labels, known = fibrosis_labels(stages, len(index))
    loss = keras.losses.SparseCategoricalCrossentropy()
    second = SecondOutput("fibrosis", loss, labels, known)
    return fit_two_outputs(
        fold_data, two_outputs, second, frame_step=frame_step, train=TrainConfig(**train)
    )


METHODS = (
    Method(
        name="two_outputs",
        title="Small CNN, steatosis and fibrosis",
        year=2022,
        paper="Small CNN with two outputs, steatosis and fibrosis",
        tasks=("four_grades",),
        fit=fit,
        settings={"frame_step": 5, "epochs": 20, "batch_size": 16, "learning_rate": 1e-3},
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(__doc__, METHODS))
