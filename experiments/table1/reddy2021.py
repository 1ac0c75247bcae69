"""Does outlining the liver help a CNN to grade it?

Command:
    python experiments/table1/reddy2021.py --manifest MANIFEST_CSV
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

from steatosis_tf.config import TrainConfig
from steatosis_tf.table1.main import main
from steatosis_tf.table1.system import Fitted, Lesson, System


def fit(lesson: Lesson, *, frame_step: int, **train: float) -> Fitted:
    """Both halves together."""
    from steatosis_tf.model.networks.unet_cnn import unet_cnn
    from steatosis_tf.table1.deep import fit_two_outputs
    from steatosis_tf.table1.liver_output import liver_output

    second = liver_output(lesson.study, lesson.thinned(lesson.train, frame_step))
    return fit_two_outputs(
        lesson, unet_cnn, second, frame_step=frame_step, train=TrainConfig(**train)
    )


SYSTEMS = (
    System(
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
    raise SystemExit(main(__doc__, SYSTEMS))
