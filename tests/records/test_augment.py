"""Augmentation flips sideways only, turns and zooms about the centre, and fills with 0."""

from dataclasses import replace

import cv2
import numpy as np
import tensorflow as tf

from steatosis_tf.config import AugmentConfig, Config, RoiConfig
from steatosis_tf.records.pipeline import augment, view_seed

_OFF = AugmentConfig(flip=False, rotation_deg=0.0, zoom=0.0)
_CENTRE = (223 / 2, 223 / 2)
_ARM_PX = 80.0


def _views(roi: np.ndarray, config: AugmentConfig, seeds: range) -> np.ndarray:
    pairs = tf.constant([[seed, 7] for seed in seeds], tf.int64)
    return np.stack(
        [augment(tf.constant(roi[..., None]), pair, config).numpy()[..., 0] for pair in pairs]
    )


def _blob(x: float, y: float, sigma: float) -> np.ndarray:
    rows, columns = np.mgrid[:224, :224]
    return 250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))


def _smooth() -> np.ndarray:
    """No symmetry, black at the borders."""
    picture = 0.6 * _blob(90, 70, 22) + 0.3 * _blob(140, 120, 25) + 0.4 * _blob(80, 150, 15)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _where(view: np.ndarray) -> tuple[float, float]:
    """Angle in degrees, clockwise, and zoom that brought the dot right of the centre to here."""
    rows, columns = np.mgrid[:224, :224]
    weight = view / view.sum(dtype=float)
    dx, dy = (columns * weight).sum() - _CENTRE[0], (rows * weight).sum() - _CENTRE[1]
    return np.degrees(np.arctan2(dy, dx)), np.hypot(dx, dy) / _ARM_PX


def _dot() -> np.ndarray:
    return np.rint(_blob(_CENTRE[0] + _ARM_PX, _CENTRE[1], 3.0)).astype(np.uint8)


def test_all_off_is_the_identity():
    noise = np.random.default_rng(0).integers(0, 256, (224, 224), np.uint8)
    for view in _views(noise, _OFF, range(5)):
        np.testing.assert_array_equal(view, noise)


def test_flip_is_horizontal_only():
    noise = np.random.default_rng(0).integers(0, 256, (224, 224), np.uint8)
    views = _views(noise, AugmentConfig(flip=True, rotation_deg=0.0, zoom=0.0), range(60))
    flipped = [np.array_equal(view, noise[:, ::-1]) for view in views]
    same = [np.array_equal(view, noise) for view in views]
    assert all(a or b for a, b in zip(flipped, same, strict=True))
    assert 15 <= sum(flipped) <= 45  # 30 expected, standard deviation 3.9


def test_near_field_stays_on_top():
    near_field = np.zeros((224, 224), np.uint8)
    near_field[:60] = 200
    for view in _views(near_field, AugmentConfig(), range(40)):
        assert view[:90].mean() > 5 * view[134:].mean()


def test_angles_and_zooms_fill_their_range():
    config = AugmentConfig(flip=False, rotation_deg=10.0, zoom=0.1)
    found = np.array([_where(view) for view in _views(_dot(), config, range(120))])
    angles, zooms = found.T
    # The most extreme of 120 uniform draws lies within 5 % of the range's end, all but surely.
    assert -10.1 < angles.min() < -9
    assert 9 < angles.max() < 10.1
    assert 0.899 < zooms.min() < 0.91
    assert 1.09 < zooms.max() < 1.101


def test_same_as_opencv_for_the_same_angle_and_zoom():
    config = AugmentConfig(flip=False, rotation_deg=20.0, zoom=0.2)
    smooth = _smooth()
    for dot, view in zip(
        _views(_dot(), config, range(8)), _views(smooth, config, range(8)), strict=True
    ):
        angle, zoom = _where(dot)
        matrix = cv2.getRotationMatrix2D(_CENTRE, -angle, zoom)
        expected = cv2.warpAffine(smooth.astype(np.float32), matrix, (224, 224))
        assert np.abs(view - expected).max() <= 1.0
        assert np.abs(view - smooth.astype(float)).max() > 10  # it did move


def test_what_comes_from_outside_is_black():
    white = np.full((224, 224), 255, np.uint8)
    config = AugmentConfig(flip=True, rotation_deg=20.0, zoom=0.0)
    for dot, view in zip(
        _views(_dot(), AugmentConfig(flip=False, rotation_deg=20.0, zoom=0.0), range(10)),
        _views(white, config, range(10)),
        strict=True,
    ):
        angle, _ = _where(dot)
        if abs(angle) > 5:
            corners = [view[0, 0], view[0, -1], view[-1, 0], view[-1, -1]]
            assert corners == [0, 0, 0, 0]
        assert (view[60:164, 60:164] == 255).all()


def test_same_in_a_parallel_map_as_eagerly():
    noise = np.random.default_rng(1).integers(0, 256, (12, 224, 224, 1), np.uint8)
    seeds = np.array([[n, 5] for n in range(12)])
    config = AugmentConfig()
    mapped = tf.data.Dataset.from_tensor_slices((noise, seeds)).map(
        lambda roi, seed: augment(roi, seed, config), num_parallel_calls=4
    )
    eager = [
        augment(tf.constant(roi), seed, config) for roi, seed in zip(noise, seeds, strict=True)
    ]
    np.testing.assert_array_equal(np.stack(list(mapped.as_numpy_iterator())), np.stack(eager))
    assert mapped.element_spec.shape == (224, 224, 1)
    assert mapped.element_spec.dtype == tf.uint8


def test_view_is_fixed_by_its_seed():
    smooth = _smooth()
    first, again = (_views(smooth, AugmentConfig(), range(4)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not any(np.array_equal(first[0], other) for other in first[1:])


def test_view_seeds_differ_by_frame_view_and_seed_only():
    def pair(frame_id, seed, view):
        return tuple(view_seed(tf.constant(frame_id), seed, view).numpy().tolist())

    requests = [(f, s, v) for f in ("a1", "b2") for s in (0, 1) for v in (1, 2)]
    assert len({pair(*request) for request in requests}) == 8
    assert pair("a1", 0, 1) == pair("a1", 0, 1)


def test_depth_is_scaled_from_the_probe_on():
    rows = np.repeat(np.arange(200, dtype=np.uint8)[:, None], 60, axis=1)
    views = _views(rows, replace(_OFF, depth_scale=0.2), range(40))
    # Row 100 shows what lay at 100 / scale; the first row and all columns stay.
    scales = 100 / views[:, 100, 30].astype(float)
    assert 0.8 <= scales.min() < 0.84
    assert 1.16 < scales.max() <= 1.21
    assert (views[:, 0] == 0).all()
    assert (views == views[:, :, :1]).all()
    assert (views[scales < 0.9][:, -10:] == 0).all()  # beyond the far end there is nothing


def test_gain_slope_and_dynamic_range_are_those_of_a_log_compressed_display():
    frame = np.tile(np.array([100, 200], np.uint8), (201, 30))
    frame[:, -1] = 0  # outside the sector
    gained = _views(frame, replace(_OFF, gain=20.0), range(60)).astype(int) - frame
    assert (gained[:, :, -1] == 0).all()
    assert (gained[:, :, :-1] == gained[:, :1, :1]).all()
    assert -20 <= gained.min() < -17
    assert 17 < gained.max() <= 20
    sloped = _views(frame, replace(_OFF, gain_slope=20.0), range(60)).astype(int) - frame
    assert (sloped[:, 100] == 0).all()
    assert (np.abs(sloped[:, 0, 0] + sloped[:, 200, 0]) <= 1).all()
    assert 8 < np.abs(sloped[:, 0, 0]).max() <= 10
    ranged = _views(frame, replace(_OFF, dynamic_range=0.2), range(60)).astype(float)
    # White stays white, and distances to it keep their proportion: 155 to 55.
    ratio = (255 - ranged[:, 0, 0]) / (255 - ranged[:, 0, 1])
    np.testing.assert_allclose(ratio, 155 / 55, rtol=0.02)
    assert ranged[:, 0, 0].min() < 75
    assert ranged[:, 0, 0].max() > 120


def test_a_run_uses_what_has_a_meaning_for_its_roi():
    config = Config(augment=AugmentConfig(gain=5.0, depth_scale=0.1))
    assert config.augmentation == replace(config.augment, depth_scale=0.0)
    beams = replace(config, roi=RoiConfig(method="beamspace"))
    assert beams.augmentation == replace(config.augment, rotation_deg=0.0, zoom=0.0)
