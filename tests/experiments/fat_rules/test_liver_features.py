"""Pooled features of the liver network: zones, names, and what they do not depend on."""

import numpy as np
import pytest

from experiments.fat_rules.liver_features import LIVER_COLUMNS, liver_features
from steatosis_tf.roi.anatomy.kidney import cortex_features
from steatosis_tf.roi.anatomy.liver import liver_mask, network_input
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.phantom.study import simulate_patient


@pytest.fixture(scope="module")
def measured() -> tuple:
    frames, _ = simulate_patient(30.0, num_frames=1, generator=np.random.default_rng(2))
    sector = find_sector(frames[0])
    crop, place = network_input(frames[0], sector.mask)
    return crop, liver_mask(frames[0], sector), place


def test_zones_hold_what_their_names_say(measured):
    crop, liver, place = measured
    found = dict(zip(LIVER_COLUMNS, liver_features(crop, liver, place), strict=True))
    assert np.isfinite(list(found.values())).all()
    # Feature 144 is the network's own probability of liver.
    assert found["liver_mean_144"] > 0.9
    assert found["rest_mean_144"] < 0.3
    everywhere = cortex_features(crop)[..., 144]
    assert everywhere.min() < found["rest_mean_144"] < found["liver_mean_144"] < everywhere.max()


def test_no_liver_is_not_measured(measured):
    crop, liver, place = measured
    found = liver_features(crop, np.zeros_like(liver), place)
    half = 4 * 148
    assert np.isnan(found[:half]).all()
    assert np.isfinite(found[half:]).all()


def test_a_kept_answer_is_that_of_the_crop_asked_about(measured):
    crop, mirrored = measured[0], measured[0][:, ::-1]
    once, other, again = (cortex_features(each) for each in (crop, mirrored, crop))
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - other).max() > 0.1
    with pytest.raises(ValueError, match="read-only"):
        again += 1
