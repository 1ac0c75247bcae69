"""The plain Keras liver network: size, and loss worked out by hand."""

import numpy as np
import pytest

from experiments.segmentation.unet import build_unet, dice_and_cross_entropy


def test_the_network_is_small_and_answers_at_half_resolution():
    model = build_unet()
    assert model.count_params() <= 2_000_000
    assert model.output_shape == (None, 80, 112, 1)


@pytest.mark.parametrize("widths", [(8,), (8,) * 6])
def test_depths_that_do_not_fit_are_refused(widths):
    with pytest.raises(ValueError, match=r"2 to 5 levels.*Received: widths="):
        build_unet(widths)


def test_the_loss_is_nought_for_a_sure_right_answer_and_known_for_a_wrong_one():
    target = np.zeros((1, 2, 2, 1), np.float32)
    target[0, 0] = 1
    sure = np.where(target > 0, 30.0, -30.0).astype(np.float32)
    assert float(dice_and_cross_entropy(target, sure)) == pytest.approx(0, abs=1e-6)
    # Logit 0 everywhere: cross-entropy ln 2; overlap 4 * 0.5 (p + t - |p - t| is 1 on liver, 0
    # elsewhere) = 2, total 4 * 0.5 + 2 = 4, Dice (2 + 1) / (4 + 1).
    undecided = np.zeros_like(target)
    assert float(dice_and_cross_entropy(target, undecided)) == pytest.approx(
        np.log(2) + 1 - 3 / 5, rel=1e-6
    )


def test_a_right_fraction_at_the_border_costs_nothing():
    target = np.full((1, 2, 2, 1), 0.25, np.float32)
    logit = np.full_like(target, np.log(0.25 / 0.75))
    assert float(dice_and_cross_entropy(target, logit)) == pytest.approx(0, abs=1e-6)
