"""Which errors are shown, and that nothing outside the sector reaches the picture."""

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from steatosis_tf.cohort.manifest import build_manifest, read_manifest, write_manifest
from steatosis_tf.evaluation.figures.curves import COLOURS
from steatosis_tf.evaluation.figures.results import (
    draw_run_gallery,
    gallery_figure,
    sector_pictures,
    worst_errors,
)
from steatosis_tf.grades import GRADES, SCORE_COLUMNS, grade_from_fat_percent
from tests.evaluation.figures.conftest import texts

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


def test_tiles_show_the_picture_its_roi_and_its_scores(tmp_path, sheets):
    """Five patients in rows of four; a picture of 840 px is halved, one of 80 px stays."""
    errors = worst_errors(pd.DataFrame({
        "frame_id": list("abcde"), "patient_id": [f"P{k}" for k in range(5)], "grade": "Mild",
        **dict(zip(SCORE_COLUMNS, (0.25, 0.05, 0.1, 0.6), strict=True)),
    }))  # fmt: skip
    wide = np.full((420, 840), 90, np.uint8)
    pictures = {name: (wide, None) for name in "abcd"}
    pictures["a"] = (wide, (40, 100, 200, 300))
    pictures["e"] = (np.full((160, 80), 7, np.uint8), (10, 20, 30, 40))
    gallery_figure(errors, pictures, tmp_path / "g.png")
    (figure,) = sheets
    assert texts(figure)[0] == "Worst errors, one frame per patient"
    assert texts(figure)[1] == "n = 5 patients; box: ROI the model saw"
    # The tallest picture is twice as high as wide; 1.5 times is allowed for.
    assert figure.get_size_inches().tolist() == pytest.approx([10.4, 2 * (3.75 + 0.55) + 1.15])
    assert len(figure.axes) == 8
    assert not any(axes.axison for axes in figure.axes)
    drawn = [axes.images[0] for axes in figure.axes if axes.images]
    assert [image.get_array().shape for image in drawn] == [(210, 420)] * 4 + [(160, 80)]
    assert [image.get_array().mean() for image in drawn] == [90] * 4 + [7]
    assert {(image.get_cmap().name, *image.get_clim()) for image in drawn} == {("gray", 0, 255)}
    first, *plain, last = figure.axes[:5]
    assert [len(axes.patches) for axes in plain] == [0, 0, 0]
    for axes, bounds in ((first, (50, 20, 150, 100)), (last, (20, 10, 40, 30))):
        under, over = axes.patches
        assert under.get_bbox().bounds == over.get_bbox().bounds == bounds
        assert (under.get_edgecolor(), over.get_edgecolor()) == (
            to_rgba("white"), to_rgba(COLOURS[3]),
        )  # fmt: skip
        assert under.get_linewidth() > over.get_linewidth() > 1
        assert not under.get_fill()
        assert not over.get_fill()
    assert first.get_title(loc="left") == "Mild, called Severe (60 %)"
    (who,) = first.texts
    assert who.get_text() == "patient P0; scores 25 / 5 / 10 / 60 %"
    assert (*who.get_position(), who.get_transform()) == (0, 1.02, first.transAxes)


def test_one_flat_picture_still_has_room_for_its_title(tmp_path, sheets):
    flat = {"f1": (np.zeros((50, 100), np.uint8), None)}
    gallery_figure(worst_errors(FRAMES.iloc[:1]), flat, tmp_path / "g.png")
    assert len(sheets[0].axes) == 1
    assert sheets[0].get_size_inches().tolist() == pytest.approx([5.6, 1.25 + 0.55 + 1.15])


def test_a_frame_without_a_sector_is_shown_inside_its_roi_only(tmp_path):
    noise = np.random.default_rng(0).integers(50, 200, (300, 400), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), noise)
    (tmp_path / "labels.csv").write_text("path,patient_id,grade\na.png,A,Mild\n")
    build_manifest(tmp_path / "labels.csv", tmp_path / "manifest.csv")
    frames = read_manifest(tmp_path / "manifest.csv").assign(
        roi_top=20, roi_left=40, roi_height=100, roi_width=150
    )
    write_manifest(frames, tmp_path / "manifest.csv")
    ((picture, roi),) = sector_pictures(frames, tmp_path / "manifest.csv").values()
    assert roi == (20, 40, 100, 150)
    np.testing.assert_array_equal(picture[20:120, 40:190], noise[20:120, 40:190])
    assert np.count_nonzero(picture) == 100 * 150


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
        assert len(axes.patches) == 2  # white under the colour
        for box in axes.patches:
            assert box.get_bbox().bounds == pytest.approx([scale * k for k in (220, 150, 150, 150)])
        best = GRADES[int(np.argmax(row[list(SCORE_COLUMNS)].to_numpy(float)))]
        assert axes.get_title(loc="left") == f"{row['grade']}, called {best} (100 %)"
        assert f"patient {row['patient_id']}; scores" in axes.texts[0].get_text()
    assert path.stat().st_size < 1_500_000
