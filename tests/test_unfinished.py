"""A run that has not come to its end says so, is found again, and is computed once at a time."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from steatosis_tf import cli, tracking
from steatosis_tf.config import Config, ModelConfig, TrainConfig
from steatosis_tf.files import write_sums
from steatosis_tf.unfinished import (
    find_unfinished,
    finish,
    finished_before,
    forget,
    is_computed,
    keeping,
    kept,
    marked,
    only_one,
    refuse_unfinished,
    run_key,
)

_HOLD = """
import pathlib, sys
from steatosis_tf.unfinished import only_one
with only_one(pathlib.Path(sys.argv[1]), "key"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "joint" / "r1"
    folder.mkdir(parents=True)
    return folder


def _fail(run_dir: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), marked(run_dir, "key"):
        raise error


def test_content_of_manifest_config_and_weights_make_the_key(tmp_path):
    manifest, weights = tmp_path / "manifest.csv", tmp_path / "w.h5"
    manifest.write_text("a\n")
    weights.write_bytes(b"1")
    config = Config(model=ModelConfig(weights=str(weights)))
    seeded = Config(model=config.model, train=TrainConfig(seed=1))
    key = run_key("e", manifest, config, 0)
    assert key == run_key("e", manifest, config, 0)
    others = {run_key("f", manifest, config, 0), run_key("e", manifest, config, 1)}
    others.add(run_key("e", manifest, seeded, 0))
    weights.write_bytes(b"2")
    others.add(run_key("e", manifest, config, 0))
    manifest.write_text("b\n")
    others.add(run_key("e", manifest, config, 0))
    manifest.with_name("rejected.csv").write_text("c\n")  # as an earlier version named it
    others.add(run_key("e", manifest, config, 0))
    manifest.with_name("manifest.rejected.csv").write_text("d\n")
    others.add(run_key("e", manifest, config, 0))
    assert len(others | {key}) == 8


def test_the_second_process_says_so(run_dir):
    folder = run_dir.parent
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout.readline() == "held\n"
        assert is_computed(folder, "key")
        assert not is_computed(folder, "other")
        with pytest.raises(RuntimeError, match=r"another one.*same run of joint"):
            only_one(folder, "key").__enter__()
        holder.kill()
    with only_one(folder, "key"):  # the system has freed it
        assert is_computed(folder, "key")
    assert not list(folder.glob(".*.lock"))


def test_a_mark_says_why_and_how_to_go_on(run_dir, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/a/b/cli.py", "train", "my labels.csv"])
    left = run_dir / "figures" / ".unfinished-roc-1.png"
    left.parent.mkdir()
    left.touch()
    _fail(run_dir, ValueError("no such frame\nand more"))
    assert not left.exists()
    assert find_unfinished(run_dir.parent, "key") == "r1"
    assert find_unfinished(run_dir.parent, "other") is None
    said = "'r1', which is not: ValueError: no such frame. The.*: steatosis train 'my labels.csv'$"
    with pytest.raises(ValueError, match=said):
        refuse_unfinished(run_dir)
    with (
        marked(run_dir, "key"),
        pytest.raises(ValueError, match="is being computed, or was killed"),
    ):
        refuse_unfinished(run_dir)
    (run_dir / "metrics.json").write_text("{}")
    write_sums(run_dir)
    assert "UNFINISHED" not in (run_dir / "SHA256SUMS").read_text()
    finish(run_dir, "key")
    refuse_unfinished(run_dir)
    assert find_unfinished(run_dir.parent, "key") is None


def test_a_finished_run_is_known_until_its_command_is_done(run_dir):
    with marked(run_dir, "key"):
        (run_dir / "metrics.json").write_text("{}")
        write_sums(run_dir)
    assert finished_before(run_dir.parent, "key") is None
    finish(run_dir, "key")
    (run_dir / ".work").mkdir()  # killed before it was gone
    assert finished_before(run_dir.parent, "key") == run_dir
    assert not (run_dir / ".work").exists()
    with marked(run_dir, "key"):  # killed before the mark was gone: it is gone on with
        assert finished_before(run_dir.parent, "key") is None
    finish(run_dir, "key")
    forget(run_dir.parent, "key")
    assert finished_before(run_dir.parent, "key") is None


def test_a_kept_part_is_whole_or_none(run_dir):
    assert kept(run_dir, "fold_0") is None
    with contextlib.suppress(OSError), keeping(run_dir, "fold_0") as folder:
        (folder / "half").write_bytes(b"1")
        raise OSError("full")
    assert kept(run_dir, "fold_0") is None
    with keeping(run_dir, "fold_0") as folder:
        np.savez(folder / "outcome.npz", tested=np.ones(3))
    found = kept(run_dir, "fold_0")
    assert [path.name for path in found.iterdir() if path.name != "SHA256SUMS"] == ["outcome.npz"]
    with (found / "outcome.npz").open("r+b") as file:
        file.write(b"x")
    assert kept(run_dir, "fold_0") is None


@pytest.mark.parametrize(
    "words",
    ["report RUN", "evaluate RUN", "robustness RUN", "export RUN --output m.onnx",
     "predict frames --model RUN"],
    ids=lambda words: words.split()[0],
)  # fmt: skip
def test_verbs_on_an_unfinished_run_say_so_in_one_line(
    run_dir, tmp_path, monkeypatch, capsys, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "frames").mkdir()
    _fail(run_dir, OSError(28, "No space left on device"))
    assert cli.main(words.replace("RUN", str(run_dir)).split()) == 1
    line = capsys.readouterr().err.removeprefix("loading TensorFlow\n").removesuffix("\n")
    assert "\n" not in line
    assert line.startswith("error: Expected a finished run. Received: 'r1', which is not: OSError")
    assert {path.name for path in run_dir.iterdir()} == {"UNFINISHED.json"}


def test_compare_names_the_runs_that_it_leaves_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(tmp_path / "mlruns"))
    with pytest.raises(ValueError, match="no such"), tracking.start_run("e", "bad") as bad:
        raise ValueError("no such frame")
    assert cli.main(["compare", "e"]) == 1
    said = capsys.readouterr().err
    line = f"{bad.run_id[:8]}, not finished: ValueError: no such frame"
    assert said.endswith(f"error: Expected finished runs. Received: none in e; {line}.\n")
    scores = "patient_id,fold,grade,fat_percent,num_frames,p_normal,p_mild,p_moderate,p_severe"
    rows = [f"p{n},0,{grade},,1,0.4,0.3,0.2,0.1,Normal" for n, grade in
            enumerate(["Normal", "Mild", "Moderate", "Severe"] * 3)]  # fmt: skip
    (tmp_path / "patient_scores.csv").write_text("\n".join([f"{scores},predicted", *rows]) + "\n")
    for code in "ab":  # nothing is set otherwise, but the version is another one
        with tracking.start_run("e", "good", {"train.seed": 0}):
            tracking.log_artifacts(tmp_path / "patient_scores.csv")
            tracking.log_tags({"manifest_sha256": "0" * 64, "code_sha256": code * 64})
    assert cli.main(["compare", "e", "--resamples", "100", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["left_out"] == [line]
    assert [run["differs"] for run in told["runs"]] == [{"code": "b" * 8}, {"code": "a" * 8}]
    assert cli.main(["compare", "e", "--baseline", bad.run_id]) == 1
    assert f"as baseline. Received: {line}" in capsys.readouterr().err
    with tracking.start_run("e", "now") as now:  # has no reason, beside one that has
        assert cli.main(["compare", "e", "--resamples", "100", "--json"]) == 0
    computed = f"{now.run_id[:8]}, not finished: it is computed, or was killed"
    assert json.loads(capsys.readouterr().out)["left_out"] == [computed, line]
