"""A sector kept in the manifest is the one that would be found, or counts for nothing."""

from dataclasses import replace

import numpy as np
import pytest

from steatosis_tf.cohort.manifest import pixels_sha256
from steatosis_tf.roi import sector_cell as module
from steatosis_tf.roi.sector import Fan, find_sector
from steatosis_tf.roi.sector_cell import sector_cell, sector_mask

_FANS = (
    Fan("convex", 320.123456789, -20.1, -33.3, 33.3, 80.2, 420.7, row_stretch=16 / 15),
    Fan("phased", 300.0, 1 / 3, -40.0, 38.0, 2.5, 400.0, 40.5, 600.25, 390.0),
    Fan("linear", 200.0, -np.inf, 0.0, 0.0, 10.5, 300.5, 50.0, 350.0),
)


@pytest.mark.parametrize("fan", _FANS, ids=lambda fan: fan.kind)
def test_a_kept_fan_is_drawn_to_the_last_pixel(drawn_fan, fan):
    frame = drawn_fan()[0]
    digest = pixels_sha256(frame)
    # the cell's, not the one that the frame shows
    mask = sector_mask(frame, digest, sector_cell(fan, digest))
    np.testing.assert_array_equal(mask, fan.mask(frame.shape))
    assert (mask != find_sector(frame).mask).any()


def test_of_other_pixels_or_another_version_the_sector_is_found_anew(drawn_fan, monkeypatch):
    frame, other = drawn_fan()[0], drawn_fan(apex=(300, -20), seed=1)[0]
    digest = pixels_sha256(frame)
    cell = sector_cell(replace(_FANS[0], far_px=200.0), digest)
    found = find_sector(other).mask
    np.testing.assert_array_equal(sector_mask(other, pixels_sha256(other), cell), found)
    np.testing.assert_array_equal(sector_mask(frame, digest, ""), find_sector(frame).mask)
    assert (sector_mask(frame, digest, cell) != find_sector(frame).mask).any()
    monkeypatch.setattr(module, "__version__", "99.0")
    np.testing.assert_array_equal(sector_mask(frame, digest, cell), find_sector(frame).mask)


@pytest.mark.parametrize(
    "damage",
    [lambda cell: cell[:-30], lambda cell: cell + "x", lambda cell: cell.rsplit(" ", 1)[0]],
)
def test_a_damaged_cell_is_named(drawn_fan, damage):
    frame = drawn_fan()[0]
    digest = pixels_sha256(frame)
    with pytest.raises(ValueError, match="expected roi_sector as `steatosis roi` wrote it"):
        sector_mask(frame, digest, damage(sector_cell(_FANS[0], digest)))
