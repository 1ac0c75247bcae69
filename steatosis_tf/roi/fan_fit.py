"""Fit a fan to the bright area of a small frame."""

from collections.abc import Iterator

import cv2
import numpy as np

from steatosis_tf.roi.fan_guess import Border, find_border, guess_fans, guess_rectangle
from steatosis_tf.roi.fan_refine import NUM_SAMPLES, num_aligned, refine, with_cuts
from steatosis_tf.roi.geometry import Fan

# Log-likelihood per pixel against "outside", where two of a hundred pixels are bright (marks).
# Inside a fan most are; dark ones come in whole shadows, so each weighs little.
_LOG_BRIGHT_INSIDE = float(np.log(0.70 / 0.02))
_LOG_DARK_INSIDE = -0.3
# Nats for each sample of the border that lies where bright turns dark.
_EDGE_GAIN = 28.0
# px^2 per rad^2: one degree between the sides weighs as much as 18 samples one px off.
_SYMMETRY, _WEAK_SYMMETRY = 60000.0, 500.0
# Nats a skewed fan has to be better by: shadows make lopsided fans more often than scanners do.
_SKEW_COST, _FULL_SKEW_DEG = 900.0, 3.0
_MAX_GUESSES = 3
# With so much of the border in place, no other guess is looked at.
_SURE_SHARE = 0.66


def fit_fan(bright: np.ndarray) -> tuple[Fan, float, float]:
    """Find the fan that best divides bright from dark.

    Args:
        bright: `(height, width)` uint8, 1 on bright pixels and 0 elsewhere; about 256 px wide,
            with at least one bright pixel.

    Returns:
        The fan in px of `bright`; its mean log-likelihood gain per pixel over "no fan here" (at
        most 3.6; about 1 to 3 for a real fan); and the share of its border, 0 to 1, that lies
        where bright turns dark (0.35 and more for a real fan).
    """
    border = find_border(bright)
    fits = []
    for fan in _candidates(border, bright):
        aligned, gain = num_aligned(fan, bright), score(fan, bright)
        skew = min(1.0, abs(fan.left_deg + fan.right_deg) / _FULL_SKEW_DEG)
        fits.append((gain + _EDGE_GAIN * aligned - _SKEW_COST * skew, gain, aligned, fan))
        if aligned > _SURE_SHARE * NUM_SAMPLES:
            break
    _, gain, aligned, best = max(fits, key=lambda fit: fit[0])
    num_inside = cv2.countNonZero(best.mask(bright.shape).view(np.uint8))
    return best, gain / max(1, num_inside), aligned / NUM_SAMPLES


def _candidates(border: Border, bright: np.ndarray) -> Iterator[Fan]:
    """Refined fans, the likeliest first, each when it is asked for: mostly the first will do."""
    symmetric, skewed = guess_fans(border)
    symmetric = _distinct(sorted(symmetric, key=lambda fan: -score(fan, bright)))
    for guesses, symmetry in ((symmetric, _SYMMETRY), (skewed, _WEAK_SYMMETRY)):
        for guess in guesses:
            yield with_cuts(refine(guess, bright, symmetry), border, bright)
    yield from guess_rectangle(border, bright.shape)


def _distinct(fans: list[Fan]) -> list[Fan]:
    """The first few fans that are not almost the same as one before them."""
    kept: list[Fan] = []
    for fan in fans:
        same = any(
            abs(fan.right_deg - other.right_deg) < 2
            and abs(fan.apex_x_px - other.apex_x_px) < 4
            and abs(fan.apex_y_px - other.apex_y_px) < 6
            and abs(fan.far_px + fan.apex_y_px - other.far_px - other.apex_y_px) < 3
            for other in kept
        )
        if not same:
            kept.append(fan)
        if len(kept) == _MAX_GUESSES:
            break
    return kept


def score(fan: Fan, bright: np.ndarray) -> float:
    """Log-likelihood gain of a fan over an empty frame, in nats."""
    inside = fan.mask(bright.shape).view(np.uint8)
    num_inside = cv2.countNonZero(inside)
    num_bright = cv2.countNonZero(cv2.bitwise_and(inside, bright))
    return _LOG_BRIGHT_INSIDE * num_bright + _LOG_DARK_INSIDE * (num_inside - num_bright)
