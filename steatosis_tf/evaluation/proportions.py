"""Intervals of a proportion of independent patients."""

from scipy import stats


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
