"""Does outlining the liver help a CNN to grade it?

Command:
    python -m experiments.table1.papers.reddy2021 --manifest MANIFEST_CSV
Paper: Reddy 2021 as Table I of the source paper names it: U-Net segmentation and CNN classifier,
multi-task. The article itself was not at hand; what Table I does not say is ours.
Adapted: the U-Net is the package's own, with the shipped weights to start from; it was trained on
outlines of another data set, because these frames have none. Its answer on the whole frame (largest
piece, holes filled) is what the first output goes on learning on the ROI, so the outline cannot get
better than that. The CNN sees the ROI multiplied by the probability of liver, and both losses are
added. Two of a patient's frames are trained on.
Expected time: about 8 minutes of processor time (1.2 GFLOP a frame).
Expected result: its row of docs/table1.md.
"""

from typing import Any

from experiments.table1.command_line import main
from experiments.table1.method import Fitted, FoldData, Method
from steatosis_tf.config import TrainConfig


def fit(fold_data: FoldData, *, frame_step: int, **train: Any) -> Fitted:
    """Both halves together."""
    from experiments.table1.deep import fit_two_outputs
    from experiments.table1.liver_output import liver_output
    from experiments.table1.networks.unet_cnn import unet_cnn

    second = liver_output(fold_data.study, fold_data.thinned(fold_data.train, frame_step))
    return fit_two_outputs(
        fold_data, unet_cnn, second, frame_step=frame_step, train=TrainConfig(**train)
    )


METHODS = (
    Method(
        name="reddy2021",
        title="Reddy 2021: U-Net + CNN",
        year=2021,
        paper="Reddy 2021, U-Net segmentation and CNN classifier, multi-task",
        tasks=("four_grades",),
        fit=fit,
        settings={"frame_step": 5, "epochs": 8, "batch_size": 16, "learning_rate": 3e-4},
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(__doc__, METHODS))
