"""Online augmentation is one stored view per epoch, and the default is chosen by validation."""

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from experiments.head_search.compiled_fit import Fold, HeadSettings, StoredStudy, fit_compiled
from steatosis_tf.config import AugmentConfig, ModelConfig, TrainConfig
from steatosis_tf.grades import GRADES, SCORE_COLUMNS
from steatosis_tf.model.engines import choose_engine
from steatosis_tf.model.features import stored_features
from steatosis_tf.model.heads import assemble, build_head
from steatosis_tf.records.augment import augment, view_seed

_MODEL = ModelConfig(weights="random", hidden_units=8, dropout=0.0)
_AUGMENT = AugmentConfig()


@pytest.fixture(scope="module")
def views_script():
    path = Path(__file__).resolve().parents[3] / "experiments" / "views.py"
    spec = importlib.util.spec_from_file_location("views_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_online_augmentation_is_one_stored_view_per_epoch(views_script, tiny_backbone, tmp_path):
    """A fit of the whole model on pixels, augmented anew in every epoch, ends at the same head."""
    generator = np.random.default_rng(0)
    rois = generator.integers(0, 256, (12, 224, 224, 1), np.uint8)
    names = [f"{number:016x}" for number in range(12)]
    labels = np.arange(12) % 4
    examples = tf.data.Dataset.from_tensor_slices({"roi": rois, "frame_id": names})
    config = TrainConfig(epochs=3, batch_size=4, learning_rate=1e-2)
    engine = choose_engine("keras", tiny_backbone, rois, tmp_path)
    stored = stored_features(examples, tmp_path, tiny_backbone, engine, _AUGMENT, config.epochs)
    fold = Fold(np.arange(9), np.arange(9, 12))
    study = StoredStudy(stored, labels)
    passes = views_script.passes_of(views_script.ONLINE, fold, study, config)
    head = build_head(_MODEL, stored[0, fold.train], seed=0)
    start = [variable.numpy() for variable in head.trainable_variables]

    model = assemble(tiny_backbone, head, _MODEL)
    model.compile(
        keras.optimizers.AdamW(config.learning_rate, weight_decay=config.weight_decay),
        "sparse_categorical_crossentropy",
    )
    for epoch in range(config.epochs):
        for frames in np.split(passes[epoch] % 12, [4, 8]):
            seeds = [view_seed(tf.constant(names[n]), _AUGMENT.seed, epoch + 1) for n in frames]
            pixels = [augment(tf.constant(rois[n]), seed, _AUGMENT)
                      for n, seed in zip(frames, seeds, strict=True)]  # fmt: skip
            model.train_on_batch(np.stack(pixels), labels[frames])
    settings = HeadSettings(0.0, np.ones(4), config)
    weights, _ = fit_compiled(start, study, fold, settings, passes)
    expected = [variable.numpy() for variable in model.trainable_variables]
    for weight, wanted in zip(weights, expected, strict=True):
        np.testing.assert_allclose(weight, wanted, atol=1e-4)
    # Other views would have been noticed.
    others = views_script.passes_of(views_script.NONE, fold, study, config)
    plain = fit_compiled(start, study, fold, settings, others)[0]
    assert np.abs(plain[0] - expected[0]).max() > 1e-2


def test_passes_read_the_views_they_are_meant_to(views_script):
    study = StoredStudy(np.zeros((7, 5, 2), np.float32), np.arange(5) % 4)
    fold, config = Fold(np.array([0, 1, 3]), np.array([2])), TrainConfig(epochs=6)

    def views_and_frames(num_views):
        return np.divmod(views_script.passes_of(num_views, fold, study, config), 5)

    for num_views, drawn in ((views_script.NONE, {0}), (1, {1}), (2, {1, 2}), (4, {1, 2, 3, 4})):
        views, frames = views_and_frames(num_views)
        assert set(views.ravel()) == drawn
        assert (np.sort(frames, axis=1) == [0, 1, 3]).all()
    views, _ = views_and_frames(views_script.ONLINE)
    assert (views == np.arange(1, 7)[:, None]).all()


def _scores(healthy_mild_share: float) -> pd.DataFrame:
    """Eight patients; how surely the four healthy ones are taken for ill."""
    ill = np.array([healthy_mild_share] * 4 + [0.5] * 4)
    table = pd.DataFrame(
        {
            "frame_id": [f"{number:016x}" for number in range(8)],
            "patient_id": list("abcdefgh"),
            "repeat": 0,
            "fold": 0,
            "grade": ["Normal"] * 4 + ["Mild", "Moderate", "Severe", "Mild"],
            "fat_percent": np.nan,
        }
    )
    table[list(SCORE_COLUMNS)] = np.stack([1 - ill, ill / 3, ill / 3, ill / 3], axis=1)
    best = table[list(SCORE_COLUMNS)].to_numpy().argmax(axis=1)
    return table.assign(predicted=[GRADES[label] for label in best])


def test_the_smallest_number_of_views_as_good_as_online_is_chosen(views_script):
    good, bad = _scores(0.1), _scores(0.9)  # AUC 1 and 0
    choose = views_script.choose
    assert choose({-1: good, 0: good, 1: bad, 2: good, 4: good}) == 2
    assert choose({-1: good, 0: bad, 1: good, 2: good}) == 1
    assert choose({-1: good, 0: good, 1: bad, 2: bad}) == 0  # none: online


def test_what_the_compiled_fit_does_not_do_is_refused(views_script, tmp_path, capsys):
    words = ["--manifest", str(tmp_path / "none.csv"), "--runs-dir", str(tmp_path)]
    assert views_script.main([*words, "--set", "model.head=ordinal"]) == 1
    assert "Expected model.head=softmax" in capsys.readouterr().err
