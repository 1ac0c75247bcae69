"""Training of the liver network: it learns, a killed run goes on, and the best is kept."""

import cv2
import keras
import numpy as np
import pytest

from experiments.segmentation.augment import OutlinedCrop, training_pair
from experiments.segmentation.training import UnetTraining, train_unet
from experiments.segmentation.unet import build_unet


def _disc() -> OutlinedCrop:
    grey = np.full((180, 240), 30, np.uint8)
    sector = np.zeros((180, 240), np.uint8)
    cv2.rectangle(sector, (20, 20), (220, 160), 1, cv2.FILLED)
    liver = np.zeros_like(sector)
    cv2.circle(liver, (120, 80), 50, 1, cv2.FILLED)
    grey[liver > 0] = 140
    return OutlinedCrop(grey * sector, sector, liver, 0 * liver)


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
