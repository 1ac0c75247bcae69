"""Intervals of proportions of independent patients."""

from typing import Any

import numpy as np
from scipy import special, stats


def wilson_interval(num_successes: int, num_trials: int, confidence: float = 0.95) -> list[float]:
    """Wilson's score interval [low, high] of a proportion of independent trials (patients).

    Raises:
        ValueError: unless 0 <= num_successes <= num_trials and num_trials > 0.
    """
    if num_trials < 1 or not 0 <= num_successes <= num_trials:
        raise ValueError(
            "Expected 0 <= num_successes <= num_trials and num_trials > 0. "
            f"Received: num_successes={num_successes}, num_trials={num_trials}."
        )
    test = stats.binomtest(int(num_successes), int(num_trials))
    bounds = test.proportion_ci(confidence, method="wilson")
    return [float(bounds.low), float(bounds.high)]


def predictive_value_intervals(
    sensitivity: tuple[int, int],
    specificity: tuple[int, int],
    prevalence: float,
    confidence: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """PPV and NPV at a stated prevalence, with logit intervals.

    Mercaldo, Lau and Zhou 2007 (Statistics in Medicine 26, 2170): delta method on the logit
    scale. A rate of exactly 0 or 1 has no logit: for it alone z^2 / 2 successes and failures are
    added. (Added always, as their adjusted interval does, coverage fell to 0.65 for a
    sensitivity of 0.97 in our simulation; this way it was 0.95 to 0.98.) The value itself is not
    adjusted; an interval that would miss it is widened to reach it.

    Args:
        sensitivity: detected and all positive patients.
        specificity: spared and all negative patients.
        prevalence: share of positives to assume, 0 to 1.
        confidence: 0.95 for 95 % intervals.

    Returns:
        `ppv` and `npv`, each `{value, low, high, method}`; value None if nothing is called.

    Raises:
        ValueError: unless 0 < prevalence < 1 and both sides hold a patient.
    """
    if not 0 < prevalence < 1 or sensitivity[1] < 1 or specificity[1] < 1:
        raise ValueError(
            "Expected prevalence between 0 and 1 and patients on both sides. Received: "
            f"prevalence={prevalence}, sensitivity={sensitivity}, specificity={specificity}."
        )
    z = float(stats.norm.ppf((1 + confidence) / 2))
    raw = [hits / trials for hits, trials in (sensitivity, specificity)]
    (sens, num_positive), (spec, num_negative) = (
        (hits / trials, trials)
        if 0 < hits < trials
        else ((hits + z**2 / 2) / (trials + z**2), trials + z**2)
        for hits, trials in (sensitivity, specificity)
    )
    variance = {
        "ppv": (1 - sens) / (sens * num_positive) + spec / ((1 - spec) * num_negative),
        "npv": sens / ((1 - sens) * num_positive) + (1 - spec) / (spec * num_negative),
    }
    values = _predictive(raw[0], raw[1], prevalence)
    centres = _predictive(sens, spec, prevalence)
    result = {}
    for name, value in values.items():
        reach = z * np.sqrt(variance[name])
        centre = special.logit(centres[name])
        low, high = (float(special.expit(centre + side * reach)) for side in (-1, 1))
        if value is not None:
            low, high = min(low, value), max(high, value)
        result[name] = {"value": value, "low": low, "high": high, "method": "logit"}
    return result


def _predictive(sens: float, spec: float, prevalence: float) -> dict[str, float | None]:
    caught, spared = prevalence * sens, (1 - prevalence) * spec
    alarms, missed = (1 - prevalence) * (1 - spec), prevalence * (1 - sens)
    return {
        "ppv": caught / (caught + alarms) if caught + alarms else None,
        "npv": spared / (spared + missed) if spared + missed else None,
    }
