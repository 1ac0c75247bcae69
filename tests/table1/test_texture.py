"""Texture features against values worked out by hand and an independent implementation."""

import numpy as np
import pytest

pytest.importorskip("pywt")
pytest.importorskip("skimage")

from experiments.table1.texture import PROPERTIES, cooccurrence_features
from experiments.table1.thumbnails import thumbnails
from experiments.table1.wavelets import wavelet_features


def picture(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.uint8)[np.newaxis, ..., np.newaxis]


def test_haar_of_a_chessboard_by_hand() -> None:
    # Each 2 x 2 block is (0, 255; 255, 0): mean 1/2, no horizontal or vertical detail, and a
    # diagonal one of (0 - 1 - 1 + 0) / 2 = -1.
    board = picture(np.indices((8, 8)).sum(axis=0) % 2 * 255)
    rest, horizontal, vertical, diagonal = wavelet_features(board, "haar", 1)[0].reshape(4, 3)
    assert rest == pytest.approx([1.0, 0.0, 1.0])  # (0 + 1 + 1 + 0) / 2, energy even over all 16
    assert horizontal == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)
    assert vertical == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)
    assert diagonal == pytest.approx([1.0, 0.0, 1.0])


def test_one_bright_pixel_holds_all_energy_of_its_subbands() -> None:
    values = np.zeros((8, 8))
    values[2, 2] = 255
    features = wavelet_features(picture(values), "haar", 1)[0].reshape(4, 3)
    assert features[:, 0] == pytest.approx(0.5 / 16)  # one of 16 coefficients, half the grey
    assert features[:, 2] == pytest.approx(0.0)


def test_levels_set_the_number_of_wavelet_features() -> None:
    rois = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 1), dtype=np.uint8)
    assert wavelet_features(rois, "db4", 3).shape == (2, 30)
    assert wavelet_features(rois, "db2", 2).shape == (2, 21)


def test_cooccurrence_of_stripes_by_hand() -> None:
    # Columns alternate 0 and 8, levels 0 and 1 of 32: a pair differs if its shift across is odd.
    # Shifts at 0, 45, 90, 135 degrees: d, d / sqrt 2, 0, d / sqrt 2, rounded; 1 1 0 1 for d = 1,
    # 2 1 0 1 for 2, 4 3 0 3 for 4, 8 6 0 6 for 8.
    stripes = picture(np.tile([0, 8], (16, 8)))
    values = cooccurrence_features(stripes)[0].reshape(len(PROPERTIES), 2, 4)
    contrast = values[PROPERTIES.index("contrast")]
    assert contrast[0] == pytest.approx([3 / 4, 2 / 4, 2 / 4, 0])
    assert contrast[1] == pytest.approx([1, 1, 1, 0])
    entropy = values[PROPERTIES.index("entropy")]
    assert entropy[0] == pytest.approx(np.log(2))  # two kinds of pair, equally frequent


def test_cooccurrence_tells_smooth_from_rough_and_ignores_order_of_rois() -> None:
    rng = np.random.default_rng(1)
    rough = rng.integers(0, 256, (32, 32))
    smooth = np.full((32, 32), 100) + rng.integers(0, 2, (32, 32))
    both = cooccurrence_features(np.concatenate([picture(rough), picture(smooth)]))
    homogeneity = 8 * PROPERTIES.index("homogeneity")
    assert both[1, homogeneity] > 0.99 > 0.3 > both[0, homogeneity]
    assert cooccurrence_features(picture(smooth))[0] == pytest.approx(both[1])


def test_a_black_roi_gives_finite_features() -> None:
    black = picture(np.zeros((32, 32)))
    assert np.isfinite(cooccurrence_features(black)).all()
    assert np.isfinite(wavelet_features(black, "db4", 2)).all()


def test_thumbnails_are_means_of_areas() -> None:
    halves = np.zeros((224, 224))
    halves[:112] = 200
    small = thumbnails(picture(halves)).reshape(28, 40)
    assert (small[:14] == 200).all()
    assert (small[14:] == 0).all()
