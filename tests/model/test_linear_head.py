"""A head solved in closed form: the same numbers as plain layers, and over a patient's frames."""

import keras
import numpy as np
import pandas as pd
import pytest

from steatosis_tf.config import Config, ModelConfig, override
from steatosis_tf.evaluation.metrics.scores import patient_scores
from steatosis_tf.grades import SCORE_COLUMNS
from steatosis_tf.model.heads import linear_head
from steatosis_tf.model.joint import NETWORK, JointModel
from steatosis_tf.model.joint_fit import Part, fit_joint
from steatosis_tf.recipes import RECIPES


@pytest.fixture(scope="module")
def study() -> tuple[np.ndarray, list[str], JointModel]:
    """Features of 40 patients with three frames each, and the rule fitted to them."""
    rng = np.random.default_rng(0)
    fat = np.repeat(np.linspace(0, 90, 40), 3)
    features = np.sqrt(fat)[:, None] + rng.normal(0, 0.8, (120, 8))
    ids = [f"P{place:02d}" for place in np.repeat(np.arange(40), 3)]
    return features, ids, fit_joint([Part(NETWORK)], {NETWORK: features}, ids, fat_percent=fat)


def test_plain_layers_say_what_the_rule_says(study):
    features, _, rule = study
    expected = rule.probabilities(rule.score({NETWORK: features}))
    head = linear_head(rule)
    assert {type(layer) for layer in head.layers} >= {keras.layers.Dense}
    np.testing.assert_allclose(head(features.astype(np.float32)), expected, atol=2e-6)


def test_log_odds_of_frames_make_the_score_of_their_mean(study):
    features, ids, rule = study
    table = pd.DataFrame({"frame_id": [f"f{n}" for n in range(120)], "patient_id": ids,
                          "grade": "Mild"})  # fmt: skip
    table[list(SCORE_COLUMNS)] = rule.probabilities(rule.score({NETWORK: features}))
    joined = patient_scores(table, "log_odds")[list(SCORE_COLUMNS)]
    means = features.reshape(40, 3, 8).mean(axis=1)
    np.testing.assert_allclose(joined, rule.probabilities(rule.score({NETWORK: means})), atol=1e-9)


@pytest.mark.parametrize("setting", ["train.epochs=5", "augment.flip=false", "model.dropout=0.1"])
def test_settings_of_gradient_steps_are_refused(setting):
    with pytest.raises(ValueError, match=r"not read with model\.head=linear"):
        override(RECIPES["linear"].config, [setting])


def test_the_patient_rule_is_its_own():
    with pytest.raises(ValueError, match=r"evaluation\.aggregation=log_odds"):
        Config(model=ModelConfig(head="linear"))
