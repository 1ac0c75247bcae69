"""Does attention over a frozen VGG-19's last map grade better than its mean?

Command:
    python -m experiments.table1.papers.vgg19_attention --manifest MANIFEST_CSV
    python -m experiments.table1.papers.vgg19_attention --manifest MANIFEST_CSV --weights imagenet
Paper: as Table I of the source paper names it: VGG-19 with attention, three classes. The article
itself was not at hand; what Table I does not say is ours: attention is CBAM (Woo et al. 2018), over
channels and then places.
Adapted: grey with the frame's gain taken out; VGG-19 is frozen (39 GFLOP a frame) and its whole
last map is kept, 7 x 7 x 512; attention, mean and softmax are trained on it. Three classes, the
upper two grades as one, and a second model for four. Four of a patient's frames are trained on,
each in one augmented view.
Expected time: about 8 minutes of processor time.
Expected result: its rows of docs/table1.md.
"""

from typing import Any

from experiments.table1.command_line import main
from experiments.table1.method import Fitted, FoldData, Method
from steatosis_tf.config import TrainConfig


def fit(fold_data: FoldData, *, weights: str, frame_step: int, **train: Any) -> Fitted:
    """Attention on the frozen network's last map."""
    from experiments.table1.frozen import FrozenFeatures, fit_head
    from experiments.table1.networks.attention import attention_head
    from steatosis_tf.config import ModelConfig

    config = ModelConfig(backbone="vgg19", weights=weights)
    features = FrozenFeatures(config, True, fold_data.study.folder / "features")
    return fit_head(
        fold_data,
        features,
        lambda _: attention_head((7, 7, 512), fold_data.num_classes, fold_data.seed),
        frame_step=frame_step,
        train=TrainConfig(**train),
    )


METHODS = (
    Method(
        name="vgg19_attention",
        title="VGG-19 + attention",
        year=2022,
        paper="VGG-19 with attention, three classes",
        tasks=("three_grades", "four_grades"),
        fit=fit,
        settings={"weights": "random", "frame_step": 3, "views": 1, "epochs": 30,
                  "batch_size": 32, "learning_rate": 1e-3},
    ),
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main(__doc__, METHODS))
