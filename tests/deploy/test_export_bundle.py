"""A run's bundle leaves the house as it was evaluated, and JavaScript reads its network alike."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from steatosis_tf import cli
from steatosis_tf.deploy.bundle import MAX_DIFFERENCE, OUTPUTS, open_bundle


@pytest.fixture
def run_dir(phantom_bundle, tmp_path) -> Path:
    """What a run whose rule reads features keeps of its model."""
    folder = tmp_path / "runs" / "joint" / "7f3a"
    shutil.copytree(phantom_bundle, folder / "bundle")
    return folder


def _export(run_dir: Path, output: Path) -> int:
    return cli.main(["export", str(run_dir), "--output", str(output), "--json"])


def test_folder_and_zip_are_the_bundle_of_the_run(run_dir, tmp_path, capsys):
    output = tmp_path / "out" / "sealed"
    for _ in range(2):  # an earlier one is replaced
        assert _export(run_dir, output) == 0
    said = json.loads(capsys.readouterr().out.split("\n{")[0])
    expected = open_bundle(run_dir / "bundle").sha256
    assert said["sha256"] == expected
    assert said["zip"] == f"{output}.zip"
    assert [open_bundle(said[name]).sha256 for name in ("model", "zip")] == [expected] * 2


def test_a_run_without_a_bundle_is_told_what_it_has(tmp_path, capsys):
    run_dir = tmp_path / "paper" / "12ab"
    run_dir.mkdir(parents=True)
    (run_dir / "model.keras").touch()
    assert _export(run_dir, tmp_path / "sealed") == 1
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert "Expected a run with a bundle" in line
    assert "--output FILE.onnx" in line
    assert not list(tmp_path.glob("sealed*"))


@pytest.mark.parametrize("taken", ["sealed/frame.png", "sealed.zip"])
def test_what_is_no_bundle_is_left_alone(run_dir, tmp_path, capsys, taken):
    path = tmp_path / taken
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"mine")
    assert _export(run_dir, tmp_path / "sealed") == 1
    assert "where something else is" in capsys.readouterr().err
    assert path.read_bytes() == b"mine"
    assert [one for one in tmp_path.rglob("*") if "sealed" in one.name] == [
        tmp_path / taken.split("/")[0]
    ]


def test_the_bundle_of_the_run_is_not_written_over_itself(run_dir, capsys):
    assert _export(run_dir, run_dir / "bundle") == 1
    assert "another name" in capsys.readouterr().err
    assert not (run_dir / "bundle.zip").exists()


_JAVASCRIPT = """
const ort = require("onnxruntime-node");
const fs = require("fs");
const [model, pixels, dims] = process.argv.slice(2);
const roi = new ort.Tensor("uint8", new Uint8Array(fs.readFileSync(pixels)), JSON.parse(dims));
ort.InferenceSession.create(model).then(session => session.run({roi})).then(found => {
  const named = Object.entries(found).map(([name, one]) => [name, [one.dims, [...one.data]]]);
  console.log(JSON.stringify(Object.fromEntries(named)));
});
"""


@pytest.mark.slow
def test_onnxruntime_of_node_gives_the_outputs_of_the_network(phantom_bundle, tmp_path):
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    # Without scripts: they would fetch libraries for graphics cards from elsewhere.
    install = [
        "npm",
        "install",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "onnxruntime-node@1",
    ]
    done = subprocess.run(install, cwd=tmp_path, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"onnxruntime-node could not be installed: {done.stderr.strip()[-200:]}")
    stored = open_bundle(phantom_bundle).vectors
    pictures = stored["pictures"]
    (tmp_path / "pixels").write_bytes(pictures.tobytes())
    (tmp_path / "run.js").write_text(_JAVASCRIPT)
    model, dims = str(phantom_bundle / "model.onnx"), json.dumps([*pictures.shape, 1])
    done = subprocess.run(
        ["node", "run.js", model, "pixels", dims], cwd=tmp_path, check=True, capture_output=True,
        text=True, env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert set(found) == set(OUTPUTS)
    for name, (shape, values) in found.items():
        np.testing.assert_allclose(np.reshape(values, shape), stored[name], atol=MAX_DIFFERENCE)


def test_a_folder_that_is_no_run_is_called_none(tmp_path, capsys):
    (tmp_path / "frames").mkdir()
    assert cli.main(["export", str(tmp_path / "frames"), "--output", str(tmp_path / "b")]) == 1
    assert "Received: 'frames', which is none." in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
