"""A sector kept in the manifest is the one that would be found, or counts for nothing."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from steatosis_tf.cohort.manifest import pixels_sha256
from steatosis_tf.roi.sector import Fan, find_sector
from steatosis_tf.roi.sector import find as module
from steatosis_tf.roi.sector.find import is_persons, persons_fan, sector_cell, sector_fan

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
    assert sector_fan(frame, digest, sector_cell(fan, digest)) == fan
    assert fan != find_sector(frame).fan


def test_of_other_pixels_or_another_version_the_sector_is_found_anew(drawn_fan, monkeypatch):
    frame, other = drawn_fan()[0], drawn_fan(apex=(300, -20), seed=1)[0]
    digest = pixels_sha256(frame)
    cell = sector_cell(replace(_FANS[0], far_px=200.0), digest)
    assert sector_fan(other, pixels_sha256(other), cell) == find_sector(other).fan
    assert sector_fan(frame, digest, "") == find_sector(frame).fan
    assert sector_fan(frame, digest, cell) != find_sector(frame).fan
    monkeypatch.setattr(module, "_CODE", "v99")
    assert sector_fan(frame, digest, cell) == find_sector(frame).fan


def test_a_persons_fan_outlives_the_version_but_not_the_pixels(drawn_fan, monkeypatch):
    frame, other = drawn_fan()[0], drawn_fan(apex=(300, -20), seed=1)[0]
    digest = pixels_sha256(frame)
    cell = sector_cell(_FANS[0], digest, by_person=True)
    assert persons_fan(digest, sector_cell(_FANS[0], digest)) is None
    assert is_persons(pd.Series([cell, sector_cell(_FANS[0], digest), ""])).tolist() == [1, 0, 0]
    monkeypatch.setattr(module, "_CODE", "v99")
    assert sector_fan(frame, digest, cell) == persons_fan(digest, cell) == _FANS[0]
    assert persons_fan(pixels_sha256(other), cell) is None
    assert sector_fan(other, pixels_sha256(other), cell) == find_sector(other).fan


@pytest.mark.parametrize(
    "damage",
    [lambda cell: cell[:-30], lambda cell: cell + "x", lambda cell: cell.rsplit(" ", 1)[0]],
)
def test_a_damaged_cell_is_named(drawn_fan, damage):
    frame = drawn_fan()[0]
    digest = pixels_sha256(frame)
    with pytest.raises(ValueError, match="expected roi_sector as `steatosis roi` wrote it"):
        sector_fan(frame, digest, damage(sector_cell(_FANS[0], digest)))
