"""Each number on pictures whose answer is known by hand or from the literature."""

import numpy as np
import pytest

from steatosis_tf.quantitative.display import ASSUMED_DYNAMIC_RANGE_DB, Beams, Display, level_of
from steatosis_tf.quantitative.features import (
    measure_attenuation,
    measure_hepatorenal,
    measure_landmarks,
    measure_speckle,
)
from steatosis_tf.roi.views import Rectangle

SHAPE = (400, 300)
#: A linear probe: depth is the row, the beam is the column.
DEPTH, ACROSS = (part.astype(np.float32) for part in np.indices(SHAPE))
WHOLE = np.ones(SHAPE, bool)
#: 51 dB over 255 grey levels: 0.2 dB per grey.
DISPLAY = Display(dynamic_range_db=51.0, px_per_cm=20.0)


def place() -> tuple:
    return Beams(DEPTH, ACROSS, float(SHAPE[0])), DISPLAY


def rayleigh_grey(seed: int) -> np.ndarray:
    """Fully developed speckle, one pixel per grain, log-compressed over 60 dB."""
    envelope = np.random.default_rng(seed).rayleigh(1.0, SHAPE)
    return np.clip(np.rint(150 + 20 * np.log10(envelope) * 255 / 60), 0, 255).astype(np.uint8)


def test_amplitude_undoes_log_compression():
    # 100 grey levels of 0.2 dB are 20 dB: ten times the amplitude.
    assert DISPLAY.amplitude(np.array([0, 100])) == pytest.approx([1, 10])
    assert Display().db_per_grey == pytest.approx(ASSUMED_DYNAMIC_RANGE_DB / 255)


@pytest.mark.parametrize("name", ["dynamic_range_db", "px_per_cm"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(name, value):
    with pytest.raises(ValueError, match=f"Received: {name}="):
        Display(**{name: value})


def test_level_is_the_mean_of_the_middle_half():
    assert level_of(np.array([0, 10, 12, 255])) == 11


def test_slope_of_a_ramp_by_hand():
    # A quarter of a grey level per px: 0.05 dB per px, 1 dB per cm, 20 dB over 400 px.
    ramp = np.rint(200 - 0.25 * DEPTH).astype(np.uint8)
    found = measure_attenuation(ramp, WHOLE, *place())
    assert found["attenuation_grey_per_px"] == pytest.approx(0.25, rel=0.01)
    assert found["attenuation_db_per_cm"] == pytest.approx(1.0, rel=0.01)
    assert found["attenuation_db_per_depth"] == pytest.approx(20.0, rel=0.01)


def test_slope_ignores_poor_contact_and_vessels():
    ramp = 220 - 0.25 * DEPTH - 0.3 * ACROSS * (DEPTH > -1)
    ramp[150:190, 40:120] = 10  # a vessel
    ragged = WHOLE.copy()
    ragged[:200, 200:] = False  # the dim side is seen at depth only
    found = measure_attenuation(np.rint(ramp).clip(0, 255).astype(np.uint8), ragged, *place())
    assert found["attenuation_grey_per_px"] == pytest.approx(0.25, rel=0.05)


def test_black_far_field_does_not_flatten_the_slope():
    ramp = np.rint(np.clip(150 - 0.6 * DEPTH, 0, 255)).astype(np.uint8)  # black from row 250 on
    assert measure_attenuation(ramp, WHOLE, *place())["attenuation_grey_per_px"] == pytest.approx(
        0.6, rel=0.03
    )


def test_slope_needs_liver():
    speck = np.zeros(SHAPE, bool)
    speck[200:205, 100:105] = True
    grey = np.full(SHAPE, 90, np.uint8)
    assert measure_attenuation(grey, speck, *place()) == {}
    assert measure_attenuation(grey, np.zeros(SHAPE, bool), *place()) == {}


def test_index_by_hand():
    # Liver 30 grey levels above cortex: 6 dB, ratio 10 ** 0.3 = 1.9953. Only what lies 0.14 of the
    # sector's 400 px before the patch's middle, give or take 0.06, is as bright.
    grey = np.full(SHAPE, 60, np.uint8)
    grey[133:184] = 120
    cortex = Rectangle(200, 50, 28, 28)
    grey[200:228, 50:78] = 90
    liver = WHOLE.copy()
    liver[:, :90] = False
    found = measure_hepatorenal(grey, liver, cortex, *place())
    assert found["hepatorenal_db"] == pytest.approx(6.0)
    assert found["hepatorenal_ratio"] == pytest.approx(1.9953, rel=1e-4)


def test_index_takes_the_liver_before_the_cortex_on_its_own_beams():
    grey = np.full(SHAPE, 30, np.uint8)  # liver in the dark edge, at any depth
    cortex = Rectangle(200, 50, 28, 28)
    grey[200:228, 50:78] = 90
    grey[:200, 30:110] = 120
    found = measure_hepatorenal(grey, WHOLE, cortex, *place())
    assert found["hepatorenal_db"] == pytest.approx(6.0)


def test_index_needs_liver_near_the_cortex():
    grey = np.full(SHAPE, 120, np.uint8)
    cortex = Rectangle(200, 50, 28, 28)
    grey[200:228, 50:78] = 90
    liver = np.zeros(SHAPE, bool)
    liver[200:, 100:] = True  # none before the cortex, but some beside it
    beside = measure_hepatorenal(grey, liver, cortex, *place())
    assert beside["hepatorenal_db"] == pytest.approx(6.0)
    liver[:] = False
    liver[:85] = True  # all liver is far above the cortex
    assert measure_hepatorenal(grey, liver, cortex, *place()) == {}


def test_rayleigh_speckle_has_its_textbook_numbers():
    # Mean over standard deviation sqrt(pi / (4 - pi)) = 1.913, and m = 1.
    found = measure_speckle(rayleigh_grey(0), WHOLE, 400.0, Display(60.0))
    assert found["speckle_snr"] == pytest.approx(1.913, rel=0.02)
    assert found["nakagami_m"] == pytest.approx(1.0, rel=0.04)


def test_shading_is_no_speckle():
    grey = rayleigh_grey(1).astype(float)
    plain = measure_speckle(rayleigh_grey(1), WHOLE, 400.0, Display(60.0))
    shaded = np.clip(np.rint(grey + 30 - 0.15 * DEPTH), 0, 255).astype(np.uint8)
    found = measure_speckle(shaded, WHOLE, 400.0, Display(60.0))
    assert found["speckle_snr"] == pytest.approx(plain["speckle_snr"], rel=0.02)


def test_too_little_liver_has_no_speckle():
    speck = np.zeros(SHAPE, bool)
    speck[:30, :30] = True
    assert measure_speckle(rayleigh_grey(0), speck, 400.0, DISPLAY) == {}


def test_vessels_and_diaphragm_by_hand():
    # Vessels 60 grey levels (12 dB) below the liver in 4 % of it; diaphragm 50 above it (10 dB).
    grey = np.full(SHAPE, 130, np.uint8)
    liver = np.zeros(SHAPE, bool)
    liver[60:300] = True
    grey[300:312] = 180
    plain = measure_landmarks(grey, liver, WHOLE, *place())
    assert plain["vessel_percent"] == 0
    assert plain["diaphragm_db"] == pytest.approx(10, abs=1.0)  # smoothing takes a little
    grey[100:124, 50:170] = 70  # 2880 of 72000 px
    found = measure_landmarks(grey, liver, WHOLE, *place())
    assert found["vessel_percent"] == pytest.approx(4, abs=1)
    assert found["vessel_contrast_db"] > plain["vessel_contrast_db"]


def test_a_liver_that_ends_at_the_edge_shows_no_diaphragm():
    grey = np.full(SHAPE, 130, np.uint8)
    assert np.isnan(measure_landmarks(grey, WHOLE, WHOLE, *place())["diaphragm_db"])
