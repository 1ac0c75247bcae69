"""`steatosis roi` from the outside: columns, masks, contact sheet, and a run that was killed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from steatosis_tf import cli
from steatosis_tf.cohort.decisions import manifest_lock
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.images import read_frame

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_COPIES = 700


def call(*words: object) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """Four simulated patients and a frame without a sector."""
    folder = tmp_path_factory.mktemp("study")
    assert call("phantom", folder / "phantoms", "--patients", 4, "--frames", 1) == 0
    labels_path = folder / "phantoms" / "labels.csv"
    cv2.imwrite(str(labels_path.with_name("black.png")), np.zeros((300, 400), np.uint8))
    labels = pd.read_csv(labels_path)
    labels.loc[4, ["path", "patient_id"]] = ["black.png", "P99"]
    labels.to_csv(labels_path, index=False)
    assert call("manifest", labels_path, "--output", folder / "manifest.csv") == 0
    return folder / "manifest.csv"


def test_columns_masks_and_a_sheet(manifest, tmp_path, capsys):
    masks, sheet = tmp_path / "masks", tmp_path / "sheet.png"
    assert call("roi", manifest, "--masks", masks, "--sheet", sheet) == 0
    assert "4 of 5 frames have a ROI" in capsys.readouterr().out

    table = pd.read_csv(manifest)
    boxes = table[["roi_top", "roi_left", "roi_height", "roi_width"]]
    assert boxes.notna().all(axis=1).tolist() == [True] * 4 + [False]
    assert table["roi_source"].tolist() == ["auto"] * 5
    assert table["roi_quality"][:4].between(0.4, 1).all()
    assert table["roi_reason"].notna().tolist() == [False] * 4 + [True]

    stems = [Path(path).stem for path in table["path"]]
    expected = {f"{stem}_{what}.png" for stem in stems[:4] for what in ("sector", "liver")}
    assert {path.name for path in masks.iterdir()} == expected
    for row in table[:4].to_dict("records"):
        frame = read_frame(manifest.parent / row["path"])
        stem = Path(row["path"]).stem
        sector = cv2.imread(str(masks / f"{stem}_sector.png"), cv2.IMREAD_UNCHANGED)
        liver = cv2.imread(str(masks / f"{stem}_liver.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(sector, find_sector(frame).mask * np.uint8(255))
        assert liver.shape == sector.shape
        assert set(np.unique(liver)) == {0, 255}
        assert not liver[sector == 0].any()
        box = tuple(int(row[name]) for name in boxes)
        assert liver[box[0] : box[0] + box[2], box[1] : box[1] + box[3]].mean() > 0.9 * 255

    assert cv2.imread(str(sheet)).shape[0] > 300


def test_masks_that_are_there_stay_unless_asked_for_again(manifest, tmp_path):
    assert call("roi", manifest, "--masks", tmp_path) == 0
    first, second, *_ = sorted(tmp_path.glob("*_liver.png"))
    drawn = np.full((5, 5), 255, np.uint8)  # a person's, from `steatosis import-boxes`
    cv2.imwrite(str(first), drawn)
    second.unlink()  # where a killed run has stopped
    assert call("roi", manifest, "--masks", tmp_path) == 0
    np.testing.assert_array_equal(cv2.imread(str(first), cv2.IMREAD_UNCHANGED), drawn)
    assert second.is_file()
    assert call("roi", manifest, "--masks", tmp_path, "--again") == 0
    assert cv2.imread(str(first)).shape[:2] != (5, 5)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path, drawn_fan):
    (tmp_path / "frames").mkdir()
    cv2.imwrite(str(tmp_path / "frames" / "0.png"), drawn_fan(240, 320, (160, -20), (50, 220))[0])
    for number in range(1, NUM_COPIES):
        os.link(tmp_path / "frames" / "0.png", tmp_path / "frames" / f"{number}.png")
    manifest = tmp_path / "manifest.csv"
    columns = "frame_id,path,patient_id,grade,fat_percent,pixels_sha256\n"
    manifest.write_text(
        columns + "".join(f"f{i},frames/{i}.png,P{i},,,\n" for i in range(NUM_COPIES))
    )
    command = [sys.executable, "-m", "steatosis_tf.cli", "roi", str(manifest),
               "--set", "roi.method=sector"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TQDM_DELAY": "0"}
    killed = subprocess.Popen(
        command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 240
    while True:
        with manifest_lock(manifest):  # so that the run cannot write its second step meanwhile
            if "roi_source" in manifest.read_text()[:200]:
                os.killpg(killed.pid, signal.SIGKILL)
                killed.wait()
                break
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    before = pd.read_csv(manifest)
    num_done = int(before["roi_height"].notna().sum())
    assert num_done == 500

    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    assert f"{NUM_COPIES} of {NUM_COPIES} frames have a ROI" in done.stdout
    # The bar counts what was left to do.
    assert re.search(rf"ROI: 100%.* {NUM_COPIES - num_done}/{NUM_COPIES - num_done} ", done.stderr)
    after = pd.read_csv(manifest)
    pd.testing.assert_frame_equal(after[:num_done], before[:num_done], check_dtype=False)
    assert after["roi_height"].nunique() == 1
    assert {path.name for path in tmp_path.iterdir()} - {"manifest.csv.lock"} == {
        "frames", "manifest.csv",
    }  # fmt: skip
