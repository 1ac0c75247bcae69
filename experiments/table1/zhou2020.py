"""How far does a plain deep CNN go on four grades?

Command:
    python experiments/table1/zhou2020.py --manifest MANIFEST_CSV
Paper: Zhou 2020 as Table I of the source paper names it: a plain deep CNN, four classes. The
article itself was not at hand; what Table I does not say is ours: four blocks of two 3 x 3
convolutions and a halving (16 to 128 filters), one hidden layer of 128.
Adapted: grey at 112 px with the frame's gain taken out; batch normalisation, because sixty steps
without it move nothing. Two of a patient's frames are trained on.
Expected time: about 4 minutes of processor time (0.3 GFLOP a frame).
Expected result: its row of docs/table1.md.
"""

from steatosis_tf.config import TrainConfig
from steatosis_tf.table1.main import main
from steatosis_tf.table1.system import Fitted, Lesson, System


def fit(lesson: Lesson, *, frame_step: int, **train: float) -> Fitted:
    """All layers, from random weights."""
    from steatosis_tf.model.networks.plain_cnn import plain_cnn
    from steatosis_tf.table1.deep import fit_network

    return fit_network(lesson, plain_cnn, frame_step=frame_step, train=TrainConfig(**train))


SYSTEMS = (
    System(
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
    raise SystemExit(main(__doc__, SYSTEMS))
