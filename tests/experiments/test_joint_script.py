"""The joint experiment's own arithmetic, on made-up features."""

import numpy as np

from experiments.joint import left_out_rule
from experiments.joint_features import SETTINGS, pooled


def test_a_patients_own_fat_does_not_reach_its_prediction_nor_the_choice_of_its_penalty():
    rng = np.random.default_rng(2)
    features, target = rng.normal(size=(14, 20)), rng.uniform(0, 9, 14)
    predicted, inner = left_out_rule(features, target)
    changed = target.copy()
    changed[3] = 9.9
    again, inner_again = left_out_rule(features, changed)
    assert predicted[3] == again[3]
    np.testing.assert_array_equal(inner[3], inner_again[3])
    assert (predicted != again).sum() == 13


def test_pooling_of_row_means_is_that_of_the_maps():
    near, far = np.arange(48.0).reshape(1, 24, 2), np.ones((1, 12, 3))
    assert pooled((near, far)).tolist() == [[5, 6, 17, 18, 29, 30, 41, 42, 1, 1, 1]]
    assert pooled((near, far), near_bands=1, far=False).tolist() == [[23, 24]]
    assert pooled((near, far), near_bands=0).tolist() == [[1, 1, 1]]


def test_settings_move_grey_levels_as_a_display_of_60_db_does():
    grey, inside = np.full((5, 2), 100.0), np.ones((5, 2), bool)
    gain = SETTINGS["gain +6 dB"](grey, inside)
    np.testing.assert_allclose(gain, 125.5)
    slope = SETTINGS["time gain slope +6 dB"](grey, inside)
    np.testing.assert_allclose(slope[:, 0], [87.25, 93.625, 100, 106.375, 112.75])
    np.testing.assert_allclose(SETTINGS["dynamic range 50 dB"](grey, inside), 69.0)
