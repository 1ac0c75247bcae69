"""The search against a count of every bit of every pair."""

import numpy as np
import pytest

from steatosis_tf.cohort import near_duplicates
from steatosis_tf.cohort.near_duplicates import (
    HASH_BYTES,
    NEAR_DISTANCE,
    near_pairs,
    perceptual_hash,
)


def hashes_with_neighbours(num: int, seed: int = 0) -> np.ndarray:
    """Random hashes; each of the last 40 is one of the first with 0 .. 58 bits turned."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (num, 8 * HASH_BYTES), dtype=np.uint8)
    for number in range(40):
        copy = bits[number * 3].copy()
        half = 256 * (number % 2)  # near in the one hash or in the other
        turned = half + rng.choice(256, number * 3 // 2, replace=False)
        copy[turned] ^= 1
        other = slice(256, 512) if half == 0 else slice(0, 256)
        copy[other] = rng.integers(0, 2, 256)
        bits[num - 1 - number] = copy
    return np.packbits(bits, axis=1)


def every_pair(hashes: np.ndarray, groups: np.ndarray, distance: int) -> list[tuple[int, int, int]]:
    found = []
    grid = np.unpackbits(hashes, axis=1).reshape(-1, 2, 16, 16)
    for row in range(len(hashes)):
        views = (grid[row], grid[row, :, :, ::-1])
        differing = [(view != grid[row + 1 :]).sum(axis=(2, 3)) for view in views]
        apart = np.minimum(*differing).min(axis=1)
        found += [
            (row, row + 1 + int(later), int(apart[later]))
            for later in np.flatnonzero(apart <= distance)
            if groups[row] != groups[row + 1 + later]
        ]
    return found


@pytest.mark.parametrize("distance", [0, NEAR_DISTANCE, 80])
def test_the_search_misses_nothing_and_adds_nothing(monkeypatch, distance):
    monkeypatch.setattr(near_duplicates, "_BLOCK", 256)  # so that 1,000 rows cross block borders
    hashes = hashes_with_neighbours(1000)
    groups = np.arange(1000) // 3
    expected = every_pair(hashes, groups, distance)
    assert near_pairs(hashes, groups, distance) == expected
    assert expected


def test_one_group_has_no_pairs_and_no_frames_have_none():
    hashes = hashes_with_neighbours(300)
    assert near_pairs(hashes, np.zeros(300)) == []
    assert near_pairs(np.empty((0, HASH_BYTES), np.uint8), np.empty(0)) == []


def test_a_splash_screen_under_every_patient_is_told(monkeypatch):
    monkeypatch.setattr(near_duplicates, "MAX_PAIRS", 1000)
    hashes = np.tile(hashes_with_neighbours(200)[:1], (200, 1))
    with pytest.raises(ValueError, match=r"over 1000 pairs that look alike.*splash screens"):
        near_pairs(hashes, np.arange(200))


def test_a_mirrored_copy_is_found_and_a_stranger_is_not():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (2, 24, 32), dtype=np.uint8)
    frame, stranger = (np.kron(one, np.ones((15, 15), np.uint8)) for one in blocks)
    hashes = np.array([perceptual_hash(one) for one in (frame, stranger, frame[:, ::-1])])
    assert [pair[:2] for pair in near_pairs(hashes, np.arange(3))] == [(0, 2)]


def test_colour_and_grey_copies_have_one_hash():
    rng = np.random.default_rng(0)
    grey = np.kron(rng.integers(0, 256, (12, 16), dtype=np.uint8), np.ones((20, 20), np.uint8))
    colour = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(perceptual_hash(grey), perceptual_hash(colour))
    assert perceptual_hash(grey).shape == (HASH_BYTES,)
    assert not perceptual_hash(np.zeros((40, 40), np.uint8)).any()


@pytest.mark.slow
def test_a_hundred_thousand_frames_in_memory():
    import resource

    hashes = hashes_with_neighbours(100_000)
    pairs = near_pairs(hashes, np.arange(100_000) // 10)  # its time: docs/data.md
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4e6  # kB
    assert len(pairs) == 22  # 0 to 31 bits turned
