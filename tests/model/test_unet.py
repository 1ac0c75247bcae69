"""The Keras liver network: size, loss worked out by hand, training that learns and resumes."""

import cv2
import keras
import numpy as np
import pytest

from steatosis_tf.model.outlined_crop import OutlinedCrop
from steatosis_tf.model.unet import build_unet, dice_and_cross_entropy
from steatosis_tf.model.unet_augment import paint_kidney, training_pair
from steatosis_tf.model.unet_train import UnetTraining, train_unet


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


def _disc() -> OutlinedCrop:
    grey = np.full((180, 240), 30, np.uint8)
    sector = np.zeros((180, 240), np.uint8)
    cv2.rectangle(sector, (20, 20), (220, 160), 1, cv2.FILLED)
    liver = np.zeros_like(sector)
    cv2.circle(liver, (120, 80), 50, 1, cv2.FILLED)
    grey[liver > 0] = 140
    return OutlinedCrop(grey * sector, sector, liver, 0 * liver)


def test_a_training_pair_is_what_the_network_takes_and_repeats_with_its_seed():
    pairs = [training_pair(_disc(), np.random.default_rng(5), kidney_share=1.0) for _ in range(2)]
    crop, target = pairs[0]
    assert crop.shape == (160, 224, 2)
    assert crop.dtype == np.float32
    assert target.shape == (80, 112, 1)
    assert target.dtype == np.float32
    assert target.min() >= 0
    assert target.max() <= 1
    assert not crop[crop[..., 1] == 0].any()
    np.testing.assert_array_equal(crop, pairs[1][0])
    np.testing.assert_array_equal(target, pairs[1][1])


def test_a_painted_kidney_takes_liver_away_and_nothing_behind_it_stays():
    disc = _disc()
    grey, liver = disc.grey.astype(np.float32), disc.liver.astype(np.float32)
    painted = 0
    for seed in range(20):
        _, left = paint_kidney(grey, disc.sector, liver, np.random.default_rng(seed))
        gone = (liver > 0) & (left == 0)
        painted += gone.any()
        assert not (left > liver).any()
        for column in np.nonzero(gone.any(axis=0))[0]:
            first = np.nonzero(gone[:, column])[0][0]
            assert not left[first:, column].any()
    assert painted >= 10


SETTINGS = UnetTraining(
    epochs=4, steps_per_epoch=2, learning_rate=1e-2, average_decay=0.5, validate_every=2
)


def _batches(epoch: int):
    for number in range(2):
        random = np.random.default_rng((epoch, number))
        pairs = [training_pair(_disc(), random, kidney_share=0.0) for _ in range(2)]
        yield np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])


def _small_model() -> keras.Model:
    keras.utils.set_random_seed(3)
    return build_unet((4, 8))


def test_training_learns_and_a_killed_run_continues_to_the_same_end(tmp_path):
    straight = _small_model()
    history = train_unet(straight, _batches, lambda model: 0.0, SETTINGS, tmp_path / "a.npz")
    assert [row["epoch"] for row in history] == [0, 1, 2, 3]
    assert history[-1]["loss"] < 0.95 * history[0]["loss"]

    def killed(epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return _batches(epoch)

    with pytest.raises(KeyboardInterrupt):
        train_unet(_small_model(), killed, lambda model: 0.0, SETTINGS, tmp_path / "b.npz")
    keras.utils.set_random_seed(77)  # a new process would start from other weights
    resumed = build_unet((4, 8))
    train_unet(resumed, _batches, lambda model: 0.0, SETTINGS, tmp_path / "b.npz")
    for left, right in zip(resumed.get_weights(), straight.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)


def test_training_stops_early_and_keeps_the_best(tmp_path):
    scores = iter([0.9, 0.5, 0.4, 0.3])
    seen = []

    def validate(model):
        seen.append([weight.copy() for weight in model.get_weights()])
        return next(scores)

    settings = UnetTraining(epochs=9, steps_per_epoch=2, patience=2, validate_every=1)
    model = _small_model()
    history = train_unet(model, _batches, validate, settings, tmp_path / "c.npz")
    assert len(history) == 3
    for left, right in zip(model.get_weights(), seen[0], strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    train_unet(_small_model(), _batches, lambda model: 0.0, SETTINGS, tmp_path / "d.npz")
    other = UnetTraining(epochs=5, steps_per_epoch=2)
    with pytest.raises(ValueError, match=r"settings that d.npz was started with"):
        train_unet(_small_model(), _batches, lambda model: 0.0, other, tmp_path / "d.npz")
