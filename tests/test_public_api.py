"""The names that the package itself offers: lazy, and each with an example that runs."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import steatosis_tf
from steatosis_tf.config import RoiConfig
from steatosis_tf.sources.phantom.study import simulate_patient

QUICK = sorted(set(steatosis_tf.__all__) - {"train", "predict"})


def _run_example(name: str) -> doctest.TestResults:
    function = getattr(steatosis_tf, name)
    module = importlib.import_module(function.__module__)
    (test,) = doctest.DocTestFinder(recurse=False).find(
        function, f"steatosis_tf.{name}", globs=dict(vars(module))
    )
    assert test.examples, f"{name} has no example"
    return doctest.DocTestRunner().run(test)


@pytest.mark.parametrize("name", QUICK)
def test_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run_example(name).failed == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["predict", "train"])
def test_long_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(tmp_path / "mlruns"))
    assert _run_example(name).failed == 0


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import steatosis_tf, sys; print({'numpy', 'tensorflow', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_training_by_python_is_as_quiet_as_by_the_verb() -> None:
    code = "import steatosis_tf; steatosis_tf.train"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "loading TensorFlow\n")


def test_a_clip_or_channels_in_front_are_no_frame() -> None:
    made, _ = simulate_patient(20.0, num_frames=1, generator=np.random.default_rng(0))
    rgb = np.repeat(made[0][np.newaxis], 3, axis=0)
    for measured in (steatosis_tf.measure, lambda one: steatosis_tf.propose_roi(one, RoiConfig())):
        for wrong in (made, rgb):
            with pytest.raises(ValueError, match=r"expected one frame .* Received: shape=\("):
                measured(wrong)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'grade'"):
        _ = steatosis_tf.grade  # type: ignore[attr-defined]
