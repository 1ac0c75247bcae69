"""A tracked model is the exported file, and answers pictures as predict does, also when served."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pandas as pd
import pytest

import steatosis_tf
from steatosis_tf import tracking
from steatosis_tf.deploy.inputs import Inputs
from steatosis_tf.deploy.predict import answer_group, open_model, predict
from steatosis_tf.files import file_sha256
from steatosis_tf.grades import NOTICE, SCORE_COLUMNS
from steatosis_tf.model.answer import plain_answer
from steatosis_tf.sources.phantom.study import simulate_patient


@pytest.fixture(scope="module")
def model_uri(phantom_bundle, tmp_path_factory):
    """The registered model of a run; a store of its own."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEATOSIS_MLRUNS", str(folder))
        with tracking.start_run("joint", "run"):
            for _ in range(2):  # the second time it is there
                tracking.log_model(f"{phantom_bundle}.zip")
        yield "models:/joint/1"


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    """Two patients of two frames in folders; the second's first frame is cut."""
    folder = tmp_path_factory.mktemp("frames")
    for number, fat in enumerate((4.0, 80.0), 1):
        pictures, _ = simulate_patient(
            fat, num_frames=2, generator=np.random.default_rng(number), size_px=(240, 320)
        )
        (folder / f"P{number}").mkdir()
        for place, picture in enumerate(pictures):
            cv2.imwrite(str(folder / f"P{number}" / f"{place}.png"), picture)
    cut = folder / "P2" / "0.png"
    cut.write_bytes(cut.read_bytes()[:1000])
    return folder


def _records(frames: Path) -> list[dict[str, str]]:
    return [
        {"patient": path.parent.name, "image": base64.b64encode(path.read_bytes()).decode()}
        for path in sorted(frames.glob("*/*.png"))
    ] + [{"image": "no base64"}]


def _check(answers: pd.DataFrame, model: str, frames: Path, folder: Path) -> None:
    """Against what predict gives of the same frames by the same model."""
    predict([frames], model=model, output_dir=folder, by_folder=True)
    expected = pd.read_csv(folder / "patients.csv")
    assert list(answers["patient"]) == ["P1", "P2", "row 4"]
    first = answers.iloc[:2]
    numbers = ["fat_percent", *SCORE_COLUMNS, "num_frames", "num_used"]
    np.testing.assert_allclose(first[numbers].astype(float), expected[numbers], atol=1e-4)
    for name in ("kind", "grade", "prediction_set"):
        assert list(first[name].fillna("")) == list(expected[name].fillna("")), name
    assert list(first["num_used"]) == [2, 1]
    assert "row 2: " in first["frames_left_out"][1]
    assert answers["kind"][2] == "unable"
    assert pd.isna(answers["fat_percent"][2])
    assert answers["reason"][2]
    assert set(answers["notice"]) == {NOTICE}


def test_the_tracked_model_is_the_exported_file(model_uri, phantom_bundle):
    assert len(mlflow.MlflowClient().search_model_versions("name='joint'")) == 1
    info = mlflow.models.get_model_info(model_uri)
    assert info.signature.inputs.input_names() == ["image", "patient"]
    assert info.signature.inputs.required_input_names() == ["image"]
    (copy,) = Path(os.environ["STEATOSIS_MLRUNS"]).rglob("phantoms.zip")
    assert file_sha256(copy) == file_sha256(f"{phantom_bundle}.zip")


def test_pictures_are_answered_as_predict_does(model_uri, phantom_bundle, frames, tmp_path):
    served = mlflow.pyfunc.load_model(model_uri)
    answers = served.predict(pd.DataFrame(_records(frames)))
    assert list(answers.columns) == served.metadata.get_output_schema().input_names()
    _check(answers, str(phantom_bundle), frames, tmp_path)


def test_what_registered_models_call_gives_what_it_gave(phantom_bundle, frames):
    """Each holds a copy of served_model.py of its day, which calls this version's functions."""
    inputs = Inputs(by_folder=True)
    path = sorted(frames.rglob("*.png"))[0]
    inputs.add("row 0", path.read_bytes, Path("0"), named=True)
    (group,) = inputs.groups
    answer, figures = answer_group(open_model(phantom_bundle), group)
    assert figures == []
    assert not inputs.passed_over
    values = plain_answer(answer)
    assert values["patient"] == "0"
    assert [frame["name"] for frame in values["frames"]] == ["row 0"]


@pytest.mark.slow
def test_a_served_model_answers_as_predict_does(model_uri, phantom_bundle, frames, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": tracking.store_uri(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONPATH": str(Path(steatosis_tf.__file__).parent.parent),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", "serve", "-m", model_uri, "--env-manager",
         "local", "-h", "127.0.0.1", "-p", str(port)],
        cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        _wait_for(f"{address}/ping", server)
        request = urllib.request.Request(
            f"{address}/invocations",
            json.dumps({"dataframe_records": _records(frames)}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as reply:
            answers = pd.DataFrame(json.load(reply)["predictions"])
    finally:
        os.killpg(server.pid, 15)  # its workers too
        server.wait(timeout=60)
    _check(answers, str(phantom_bundle), frames, tmp_path)


def _wait_for(address: str, server: subprocess.Popen) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        assert server.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail("the server does not answer")
