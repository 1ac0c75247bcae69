"""What every experiment script takes on its command line, and what a run refuses at its start."""

import argparse
import sys

import pytest

from steatosis_tf.config import Config, override
from steatosis_tf.pipeline import train
from steatosis_tf.verbs.common import add_config_arguments, given_settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    return parser


def test_engine_weights_and_settings_reach_the_config():
    arguments = "--engine keras --weights random --set train.epochs=3 --set train.views=1"
    config = override(Config(), given_settings(_parser().parse_args(arguments.split())))
    assert (config.model.engine, config.model.weights) == ("keras", "random")
    assert (config.train.epochs, config.train.views) == (3, 1)
    assert override(Config(), given_settings(_parser().parse_args([]))) == Config()


def test_unknown_engine_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit, match="2"):
        _parser().parse_args(["--engine", "tensorrt"])
    said = capsys.readouterr().err
    assert all(name in said for name in ("auto", "keras", "tf-bf16", "openvino"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.weights=gone.h5", r"weights='gone\.h5', which is no file"),
        ("model.engine=openvino", "openvino. Received: not installed"),
    ],
)
def test_what_is_not_there_is_missed_before_a_frame_is_looked_at(
    phantom_manifest, tmp_path, monkeypatch, setting, message
):
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(tmp_path / "mlruns"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises((ValueError, RuntimeError), match=message):
        train(phantom_manifest, "demo", [setting], tmp_path / "runs")
    assert not (tmp_path / "runs" / "cache").exists()
    assert not list((tmp_path / "runs").glob("demo/*/manifest.csv"))
