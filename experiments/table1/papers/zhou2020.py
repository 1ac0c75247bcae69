"""How far does a plain deep CNN go on four grades?

Command:
    python -m experiments.table1.papers.zhou2020 --manifest MANIFEST_CSV
Paper: Zhou 2020 as Table I of the source paper names it: a plain deep CNN, four classes. The
article itself was not at hand; what Table I does not say is ours: four blocks of two 3 x 3
convolutions and a halving (16 to 128 filters), one hidden layer of 128.
Adapted: grey at 112 px with the frame's gain taken out; batch normalisation, because sixty steps
without it move nothing. Two of a patient's frames are trained on.
Expected time: about 4 minutes of processor time (0.3 GFLOP a frame).
Expected result: its row of docs/table1.md.
"""

from typing import Any

from experiments.table1.command_line import main
from experiments.table1.method import Fitted, FoldData, Method
from steatosis_tf.config import TrainConfig


def fit(fold_data: FoldData, *, frame_step: int, **train: Any) -> Fitted:
    """All layers, from random weights."""
    from experiments.table1.deep import fit_network
    from experiments.table1.networks.plain_cnn import plain_cnn

    return fit_network(fold_data, plain_cnn, frame_step=frame_step, train=TrainConfig(**train))


METHODS = (
    Method(
        name="zhou2020",
        title="Zhou 2020: deep CNN",
        year=2020,
        paper="Zhou 2020, plain deep CNN, four classes",
        tasks=("four_grades",),
        fit=fit,
        settings={"frame_step": 5, "epochs": 20, "batch_size": 16, "learning_rate": 3e-4},
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(__doc__, METHODS))
