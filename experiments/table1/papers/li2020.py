"""How far do GoogLeNet and ResNet-18 go on three classes, and on four?

Command:
    python -m experiments.table1.papers.li2020 --manifest MANIFEST_CSV
    python -m experiments.table1.papers.li2020 --manifest MANIFEST_CSV --weights imagenet
Paper: Li 2020 as Table I of the source paper names it: GoogLeNet, and ResNet-18, three classes. The
article itself was not at hand; what Table I does not say is ours.
Adapted: grey with the frame's gain taken out, at 112 px instead of 224 (both networks end in a mean
over all places, so their weights are the same and the arithmetic a quarter); three classes, the
upper two grades as one, and a second model for four. All layers are trained. GoogLeNet is the form
with batch normalisation and without the auxiliary classifiers, from random weights; ResNet-18 is
KerasHub's and starts from what `--weights` names. Two of a patient's frames are trained on.
Expected time: about 6 minutes of processor time each (0.8 and 1.0 GFLOP a frame).
Expected result: its rows of docs/table1.md.
"""

from functools import partial
from typing import Any

from experiments.table1.command_line import main
from experiments.table1.method import Fitted, FoldData, Method
from steatosis_tf.config import TrainConfig


def fit_googlenet(fold_data: FoldData, *, size_px: int, frame_step: int, **train: Any) -> Fitted:
    """All layers, from random weights."""
    from experiments.table1.deep import fit_network
    from experiments.table1.networks.googlenet import googlenet

    network = partial(googlenet, size_px=size_px)
    return fit_network(fold_data, network, frame_step=frame_step, train=TrainConfig(**train))


def fit_resnet18(
    fold_data: FoldData, *, weights: str, size_px: int, frame_step: int, **train: Any
) -> Fitted:
    """All layers, from the weights named."""
    from experiments.table1.deep import fit_network
    from experiments.table1.networks.resnet18 import resnet18

    network = partial(resnet18, size_px=size_px, weights=weights)
    return fit_network(fold_data, network, frame_step=frame_step, train=TrainConfig(**train))


_TASKS = ("three_grades", "four_grades")
_TRAIN = {"size_px": 112, "frame_step": 5, "epochs": 10, "batch_size": 16, "learning_rate": 1e-3}

METHODS = (
    Method(
        name="li2020_googlenet",
        title="Li 2020: GoogLeNet",
        year=2020,
        paper="Li 2020, GoogLeNet, three classes",
        tasks=_TASKS,
        fit=fit_googlenet,
        settings=_TRAIN,
    ),
    Method(
        name="li2020_resnet18",
        title="Li 2020: ResNet-18",
        year=2020,
        paper="Li 2020, ResNet-18, three classes",
        tasks=_TASKS,
        fit=fit_resnet18,
        settings={"weights": "random", **_TRAIN},
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(__doc__, METHODS))
