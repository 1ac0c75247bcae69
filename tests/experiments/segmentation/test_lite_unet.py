"""The liver network with a pretrained encoder: size, and weights that land where they belong."""

import numpy as np
import pytest
from old_torch_file import torch_names, write_old  # noqa: F401

from experiments.segmentation.lite_unet import build_lite_unet, load_lite0
from experiments.segmentation.unet import with_features

# (expansion, kernel side, channels in, channels out), from Tan and Le 2019, table 1.
BLOCKS = [
    (1, 3, 32, 16),
    (6, 3, 16, 24),
    (6, 3, 24, 24),
    (6, 5, 24, 40),
    (6, 5, 40, 40),
    (6, 3, 40, 80),
    (6, 3, 80, 80),
    (6, 3, 80, 80),
    (6, 5, 80, 112),
    (6, 5, 112, 112),
    (6, 5, 112, 112),
    (6, 5, 112, 192),
]


def _shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of what the package's file holds of these blocks."""

    def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.{p}": (width,) for p in ("weight", "bias", "running_mean", "running_var")}

    shapes = {"_conv_stem.weight": (32, 3, 3, 3), **norm("_bn0", 32)}
    for number, (expansion, side, before, after) in enumerate(BLOCKS):
        name, wide = f"_blocks.{number}.", expansion * before
        if expansion > 1:
            shapes |= {f"{name}_expand_conv.weight": (wide, before, 1, 1)}
            shapes |= norm(f"{name}_bn0", wide)
        shapes |= {f"{name}_depthwise_conv.weight": (wide, 1, side, side)}
        shapes |= norm(f"{name}_bn1", wide)
        shapes |= {f"{name}_project_conv.weight": (after, wide, 1, 1)}
        shapes |= norm(f"{name}_bn2", after)
    return shapes


def _tensors() -> dict:
    random = np.random.default_rng(4)
    tensors = {}
    for name, shape in _shapes().items():
        values = random.uniform(0.5, 1.5, int(np.prod(shape))).astype(np.float32)
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        tensors[name] = (values, 0, shape, strides)
    return tensors


def test_the_network_is_within_its_limits_and_gives_what_the_kidney_finder_reads():
    model = build_lite_unet()
    assert model.count_params() <= 2_000_000
    assert model.output_shape == (None, 80, 112, 1)
    shapes = {name: tensor.shape[1:] for name, tensor in with_features(model).output.items()}
    assert shapes == {
        "liver_logit": (80, 112, 1),
        "features_40": (40, 56, 32),
        "features_20": (20, 28, 48),
        "features_10": (10, 14, 64),
    }


def test_every_weight_of_the_encoder_is_loaded_and_in_order(tmp_path, torch_names):  # noqa: F811
    tensors = _tensors()
    write_old(tmp_path / "lite0.pth", tensors, torch_names)
    model = build_lite_unet()
    load_lite0(model, tmp_path / "lite0.pth")

    def stored(name: str) -> np.ndarray:
        values, _, shape, _ = tensors[name]
        return values.reshape(shape)

    stem = np.asarray(model.get_layer("stem").kernel)
    # Grey sees the three colours' kernels at once, at half their strength; the sector sees none.
    np.testing.assert_allclose(
        stem[:, :, 0], 0.5 * np.einsum("ocyx->yxo", stored("_conv_stem.weight")), rtol=1e-6
    )
    assert not stem[:, :, 1].any()
    depthwise = np.asarray(model.get_layer("block9_depthwise").kernel)
    assert depthwise[1, 3, 17, 0] == stored("_blocks.9._depthwise_conv.weight")[17, 0, 1, 3]
    project = np.asarray(model.get_layer("block11_project").kernel)
    assert project[0, 0, 600, 7] == stored("_blocks.11._project_conv.weight")[7, 600, 0, 0]
    norm = model.get_layer("block3_project_norm")
    np.testing.assert_array_equal(norm.moving_variance, stored("_blocks.3._bn2.running_var"))
    # No fresh layer of the encoder is left: fresh norms have a variance of exactly 1.
    for layer in model.layers:
        if layer.name.startswith(("stem_norm", "block")) and layer.name.endswith("norm"):
            assert (np.asarray(layer.moving_variance) != 1).any()


def test_other_weights_are_refused(tmp_path, torch_names):  # noqa: F811
    write_old(tmp_path / "b.pth", {"fc": (np.ones(1), 0, (1,), (1,))}, torch_names)
    with pytest.raises(ValueError, match=r"EfficientNet-Lite0.*path=b.pth without _conv_stem"):
        load_lite0(build_lite_unet(), tmp_path / "b.pth")
