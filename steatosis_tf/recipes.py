"""Recipes: named configs, so that a training run is one word and what differs from it."""

from dataclasses import dataclass

from steatosis_tf.config import (
    Config,
    EvaluationConfig,
    HeadKind,
    ModelConfig,
    RoiConfig,
    SplitConfig,
    TrainConfig,
)


@dataclass(frozen=True)
class Recipe:
    """A config with a name.

    Attributes:
        summary: one line for `steatosis train --help`.
        config: all stages; `--set` changes single values of it.
    """

    summary: str
    config: Config


def _solved(head: HeadKind) -> Config:
    """A head in closed form on ImageNet features of beam space."""
    return Config(
        roi=RoiConfig(method="beamspace"),
        model=ModelConfig(backbone="efficientnet_lite0", pooling="depth", head=head),
        train=TrainConfig(views=0),
        evaluation=EvaluationConfig(aggregation="log_odds"),
    )


#: Name -> recipe. The first is what `train` takes where none is named.
RECIPES = {
    "joint": Recipe(
        "EfficientNet-Lite0 with the ImageNet weights of the package on beam space, joined with "
        "measured features (hepatorenal index, attenuation, diaphragm), solved in closed form; "
        "exports a bundle",
        _solved("joint"),
    ),
    "paper": Recipe(
        "frozen ResNet-50 with a dense head on the best rectangle of liver, as the paper has it: "
        "80/10/10 by patient, flips, rotations, zoom, AdamW 1e-4, batch 32, 100 epochs",
        Config(split=SplitConfig(kind="holdout")),
    ),
    "linear": Recipe("as joint, without the measured features", _solved("linear")),
    "demo": Recipe(
        "what `make demo` trains on simulated phantoms: random weights, few epochs",
        Config(
            # Phantoms are no livers: what the liver network says of them would mean nothing.
            roi=RoiConfig(method="sector"),
            model=ModelConfig(weights="random"),  # no network needed
            train=TrainConfig(views=2, epochs=20, learning_rate=1e-3),
        ),
    ),
}
