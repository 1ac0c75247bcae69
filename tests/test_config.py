"""Settings in, checked config out; and the way to config.json and back."""

import dataclasses
import json

import pytest

from steatosis_tf.config import (
    Config,
    EvaluationConfig,
    SplitConfig,
    TrainConfig,
    flatten,
    load_config,
    override,
    save_config,
)
from steatosis_tf.recipes import RECIPES


def test_defaults_are_those_of_the_paper():
    config = Config()
    assert (config.split.test_fraction, config.split.validation_fraction) == (0.1, 0.1)
    assert (config.train.epochs, config.train.batch_size) == (100, 32)
    assert config.train.learning_rate == 1e-4
    assert config.train.class_weights
    assert config.model.dropout == 0.5
    assert config.model.weights == "imagenet"


def test_settings_take_the_type_of_their_field():
    config = override(
        Config(),
        ["train.epochs=5", "train.learning_rate=1e-3", "augment.flip=False", "model.weights=a=b"],
    )
    assert config.train.epochs == 5
    assert config.train.learning_rate == 0.001
    assert config.augment.flip is False
    assert config.model.weights == "a=b"
    assert Config().train.epochs == 100


def test_settings_that_need_each_other_may_come_in_any_order():
    for settings in (
        ["split.column=scanner", "split.kind=logo"],
        ["split.kind=logo", "split.column=scanner"],
    ):
        assert override(Config(), settings).split.column == "scanner"
    config = override(Config(), ["split.test_fraction=0.95", "split.validation_fraction=0.04"])
    assert config.split.test_fraction == 0.95


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epoch=5", r"out of split\.kind.*train\.epochs.*'train\.epoch=5'"),
        ("epochs=5", r"stage\.name=value"),
        ("train.epochs", r"stage\.name=value"),
        ("train.epochs=five", r"train\.epochs as int. Received: 'five'"),
        ("train.epochs=2.5", r"train\.epochs as int"),
        ("train.epochs=0", r"train\.epochs of 1 or more. Received: epochs=0"),
        ("train.learning_rate=nan", r"learning_rate over 0"),
        ("train.learning_rate=inf", r"learning_rate over 0"),
        ("train.weight_decay=-1", r"weight_decay of 0 or more"),
        ("train.plateau_factor=1", r"plateau_factor in \(0, 1\)"),
        ("train.views=-1", r"views of 0 or more"),
        ("model.head=tree", r"model\.head out of softmax, ordinal, regression"),
        ("train.sampling=grades", r"train\.sampling out of frames, patients"),
        ("train.checkpoint=newest", r"train\.checkpoint out of best, last"),
        ("augment.flip=yes", r"augment\.flip true or false"),
        ("augment.rotation_deg=90", r"rotation_deg from 0 to 45"),
        ("augment.zoom=0.5", r"augment\.zoom from 0 to 0\.5"),
        ("model.weights=", r"model\.weights"),
        ("model.dropout=1", r"dropout in \[0, 1\)"),
        ("model.hidden_units=0", r"hidden_units of 1 or more"),
        ("split.kind=random", r"split\.kind out of auto, holdout, kfold, lopo, logo, temporal"),
        ("split.folds=1", r"split\.folds of 2 or more"),
        ("split.test_fraction=0", r"test_fraction in \(0, 1\)"),
        ("split.validation_fraction=1", r"validation_fraction in \(0, 1\)"),
        ("split.test_fraction=0.9", r"leave patients to train on"),
        ("split.repeats=0", r"split\.repeats of 1 or more"),
        ("split.repeats=3", r"split\.repeats with split\.kind=kfold"),
        ("split.kind=logo", r"split\.column with split\.kind=logo"),
        ("train.fine_tune_epochs=1 model.backbone=vgg16", "fine_tune_epochs with model.backbone"),
        ("split.column=scanner", r"split\.column with split\.kind=logo"),
        ("evaluation.aggregation=max", r"evaluation\.aggregation out of mean, log_odds"),
    ],
)
def test_a_bad_setting_is_refused_with_what_was_expected(setting, message):
    with pytest.raises(ValueError, match=message):
        override(Config(), setting.split())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("model.backbone=resnet50 model.pooling=global", "model.head=linear takes others"),
        ("model.pooling=global", "model.pooling=depth with model.head=joint"),
        ("roi.method=sector", "roi.method=beamspace"),
        ("roi.num_beams=80", "multiples of 32 with model.head=joint"),
        ("roi.depth_px=32", "depth_px of 64 or more"),
    ],
)
def test_what_the_bundle_of_a_joint_run_cannot_be_made_of_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        override(RECIPES["joint"].config, settings.split())
    small = override(RECIPES["joint"].config, ["roi.depth_px=64", "roi.num_beams=320"])
    assert small.roi.view == "beamspace 64 x 320"


def test_one_setting_has_one_value():
    with pytest.raises(ValueError, match=r"one value of split\.kind.*'kfold', second='lopo'"):
        override(Config(), ["split.kind=kfold", "train.epochs=3", "split.kind=lopo"])
    same = override(
        Config(), ["train.epochs=3", "train.epochs=3"]
    )  # as --set and --weights may say
    assert same.train.epochs == 3


def test_a_config_built_in_code_is_checked_too():
    with pytest.raises(ValueError, match="kind out of"):
        SplitConfig(kind="images")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"evaluation\.aggregation out of mean"):
        EvaluationConfig("max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size of 1 or more"):
        TrainConfig(batch_size=0)
    with pytest.raises(dataclasses.FrozenInstanceError, match="epochs"):
        TrainConfig().epochs = 3  # type: ignore[misc]


def test_a_config_survives_the_way_to_disk(tmp_path):
    config = override(
        Config(),
        ["split.kind=temporal", "split.column=study_date", "train.learning_rate=0.0003",
         "model.weights=weights/rad.h5", "augment.flip=false"],
    )  # fmt: skip
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config


def test_flat_names_are_those_of_the_command_line():
    flat = flatten(Config())
    assert flat["train.epochs"] == 100
    assert next(iter(flat)) == "split.kind"
    used = [f"{key}={flat[key]}" for key in ("train.epochs", "roi.method", "model.hidden_units")]
    assert override(Config(), used) == Config()


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"train": 3}', "not json", '{"train": {"epoch": 3}}', '{"x": {"y": 1}}']
)
def test_a_file_that_is_no_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"Expected (the config\.json of a run|stage\.name=value)"):
        load_config(tmp_path / "config.json")


def test_a_config_of_an_older_version_fills_in_defaults(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"train": {"epochs": 7}}))
    assert load_config(tmp_path / "config.json") == override(Config(), ["train.epochs=7"])


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["model.head=regression", "train.class_weights=false"], "model.head=regression"),
        (["train.fine_tune_learning_rate=1e-4"], "train.fine_tune_epochs=0"),
        (["split.kind=holdout", "split.folds=7"], "split.kind=holdout"),
        (["split.kind=lopo", "split.test_fraction=0.3"], "split.kind=lopo"),
        (["split.kind=temporal", "split.column=day", "split.split_seed=3"], "kind=temporal"),
        (["model.backbone_seed=3"], "model.weights=imagenet"),
        (["train.views=0", "augment.seed=3"], "train.views=0"),
        (["augment.depth_scale=0.1"], "roi.method=liver"),
        (["roi.method=beamspace", "augment.zoom=0.2"], "roi.method=beamspace"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        override(Config(), settings)


def test_a_saved_config_holds_unread_settings_and_loads(tmp_path):
    config = override(Config(), ["model.head=regression"])
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config
