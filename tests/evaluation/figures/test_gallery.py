"""Which errors are shown, and that nothing outside the sector reaches the picture."""

import numpy as np
import pandas as pd
import pytest

from steatosis_tf.cohort.manifest import build_manifest, read_manifest, write_manifest
from steatosis_tf.evaluation.figures.gallery import (
    draw_run_gallery,
    gallery_figure,
    sector_pictures,
    worst_errors,
)
from steatosis_tf.grades import GRADES, SCORE_COLUMNS, grade_from_fat_percent

# Expected grades by hand: 0*.. + 1*.. + 2*.. + 3*..
FRAMES = pd.DataFrame(
    [
        ("f1", "A", "Normal", 0.0, 0.0, 0.0, 1.0),  # 3 grades off
        ("f2", "A", "Normal", 0.1, 0.9, 0.0, 0.0),  # 0.9 off, patient A again
        ("f3", "B", "Severe", 0.0, 0.8, 0.2, 0.0),  # 1.8 off
        ("f4", "C", "Mild", 0.0, 1.0, 0.0, 0.0),  # right
        ("f5", "D", "Mild", 0.6, 0.4, 0.0, 0.0),  # 0.6 off
        ("f6", "E", "", 0.6, 0.4, 0.0, 0.0),  # unknown grade
    ],
    columns=["frame_id", "patient_id", "grade", *SCORE_COLUMNS],
)


def test_worst_errors_one_frame_per_patient_worst_first():
    errors = worst_errors(FRAMES)
    assert list(errors["frame_id"]) == ["f1", "f3", "f5"]
    np.testing.assert_allclose(errors["distance"], [3.0, 1.8, 0.6])
    assert list(worst_errors(FRAMES, max_frames=1)["frame_id"]) == ["f1"]


def test_gallery_refuses_nothing_and_missing_pictures(tmp_path):
    with pytest.raises(ValueError, match="at least one wrong frame"):
        gallery_figure(worst_errors(FRAMES.iloc[3:4]), {}, tmp_path / "g.png")
    with pytest.raises(ValueError, match="3 without, first frame_id=f1"):
        gallery_figure(worst_errors(FRAMES), {}, tmp_path / "g.png")


def test_gallery_of_real_frames_shows_nothing_outside_the_sector(real_data_dir, tmp_path, sheets):
    labels = pd.read_csv(real_data_dir / "byra2018" / "labels.csv", dtype={"patient_id": str})
    few = labels[labels["frame_index"] == labels["frame_index"].min()].iloc[::9].copy()
    few["path"] = [str((real_data_dir / "byra2018" / path).resolve()) for path in few["path"]]
    few.to_csv(tmp_path / "labels.csv", index=False)
    build_manifest(tmp_path / "labels.csv", tmp_path / "manifest.csv")
    frames = read_manifest(tmp_path / "manifest.csv").assign(
        roi_top=150, roi_left=220, roi_height=150, roi_width=150
    )
    write_manifest(frames, tmp_path / "manifest.csv")
    frames["grade"] = [grade_from_fat_percent(fat) for fat in frames["fat_percent"]]
    wrong = [(GRADES.index(grade) + 2) % 4 for grade in frames["grade"]]
    frames[list(SCORE_COLUMNS)] = np.eye(4)[wrong]
    errors = worst_errors(frames)
    assert len(errors) == len(few)
    pictures = sector_pictures(errors, tmp_path / "manifest.csv")
    for picture, roi in pictures.values():
        assert roi == (150, 220, 150, 150)
        assert not picture[:40, -60:].any(), "the grey bar at the upper right is still there"
        assert not picture[-60:, :130].any(), "the ECG trace at the lower left is still there"
        assert picture[200:300, 250:350].any()
    scored = frames[["frame_id", "patient_id", "grade", "fat_percent", *SCORE_COLUMNS]]
    scored.assign(fold=0, predicted=[GRADES[k] for k in wrong]).to_csv(
        tmp_path / "frame_scores.csv", index=False
    )
    path = draw_run_gallery(tmp_path)
    assert path == tmp_path / "figures" / "gallery.png"
    tiles = [axes for axes in sheets[-1].axes if axes.images]
    assert len(tiles) == len(errors)
    for axes, (_, row) in zip(tiles, errors.iterrows(), strict=True):
        shown, (picture, _) = axes.images[0].get_array(), pictures[row["frame_id"]]
        scale = shown.shape[1] / picture.shape[1]
        assert shown.shape[1] <= 420
        assert abs(float(shown.mean()) - picture.mean()) < 1, "the picture is another"
        for box in axes.patches:  # white under the colour
            assert box.get_bbox().bounds == pytest.approx([scale * k for k in (220, 150, 150, 150)])
        best = GRADES[int(np.argmax(row[list(SCORE_COLUMNS)].to_numpy(float)))]
        assert axes.get_title(loc="left") == f"{row['grade']}, called {best} (100 %)"
        assert f"patient {row['patient_id']}; scores" in axes.texts[0].get_text()
    assert path.stat().st_size < 1_500_000
    with pytest.raises(ValueError, match=r"manifest\.csv does not have"):
        sector_pictures(errors.assign(frame_id="0"), tmp_path / "manifest.csv")
