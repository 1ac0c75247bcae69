"""Phantoms hold what they claim: geometry, physics, labels and no easy shortcut to the grade."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from steatosis_tf.grades import GRADES, grade_from_fat_percent
from steatosis_tf.sources.phantom.study import PhantomTruth, simulate_patient, write_phantoms


def _simulate(fat_percent=20.0, seed=0, num_frames=1, **options):
    generator = np.random.default_rng(seed)
    return simulate_patient(fat_percent, num_frames=num_frames, generator=generator, **options)


def _polar(truth: PhantomTruth, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Depth below the probe in cm and beam angle in degrees of each pixel."""
    rows, columns = np.indices(shape)
    x, y = columns - truth.apex_x_px, rows - truth.apex_y_px
    return (
        (np.hypot(x, y) - truth.near_radius_px) / truth.px_per_cm,
        np.degrees(np.arctan2(x, y)),
    )


def _sector(truth: PhantomTruth, shape: tuple[int, int], margin: float = 0.0) -> np.ndarray:
    """Sector by the truth's geometry; `margin` in cm and, times ten, in degrees widens it."""
    depth, angle = _polar(truth, shape)
    in_depth = (depth >= -margin) & (depth <= truth.depth_mm / 10 + margin)
    return in_depth & (np.abs(angle) <= truth.half_angle_deg + 10 * margin)


def _decibel(frame: np.ndarray, truth: PhantomTruth) -> np.ndarray:
    return frame.astype(float) * truth.dynamic_range_db / 255


def _cut(box: tuple[int, int, int, int]) -> tuple[slice, slice]:
    top, left, height, width = box
    return slice(top, top + height), slice(left, left + width)


def _measured_slope(frame: np.ndarray, truth: PhantomTruth) -> float:
    box = _cut(truth.liver_box)
    rows, columns = np.mgrid[box]
    radius_px = np.hypot(columns - truth.apex_x_px, rows - truth.apex_y_px)
    decibel = _decibel(frame[box], truth)
    return -np.polyfit(radius_px.ravel() / truth.px_per_cm, decibel.ravel(), 1)[0]


def _measured_index(frame: np.ndarray, truth: PhantomTruth) -> float:
    pair, kidney = frame[_cut(truth.pair_box)], frame[_cut(truth.kidney_box)]
    return _decibel(pair, truth).mean() - _decibel(kidney, truth).mean()


@pytest.fixture(scope="module")
def cohort() -> pd.DataFrame:
    """120 patients, one frame each, fat spread over the grades as 36, 40, 24, 20."""
    generator = np.random.default_rng(1)
    groups = ((0, 4, 36), (5, 33, 40), (34, 66, 24), (67, 95, 20))
    fat_percents = np.concatenate([generator.integers(a, b + 1, n) for a, b, n in groups])
    rows = []
    for number, fat_percent in enumerate(fat_percents):
        frames, truth = _simulate(float(fat_percent), seed=[7, number])
        inside = _sector(truth, frames[0].shape)
        rows.append(
            {
                "fat_percent": fat_percent,
                "grade": grade_from_fat_percent(fat_percent),
                "mean_grey": frames[0][inside].mean(),
                "slope": _measured_slope(frames[0], truth),
                "true_slope": truth.attenuation_slope_db_per_cm,
                "index_db": _measured_index(frames[0], truth),
                "true_ratio": truth.hepatorenal_ratio,
            }
        )
    return pd.DataFrame(rows)


# --- one patient


def test_frames_have_the_promised_shape_and_type():
    frames, truth = _simulate(num_frames=3)
    assert frames.shape == (3, 434, 636)
    assert frames.dtype == np.uint8
    assert truth.fat_percent == 20
    assert _simulate(size_px=(320, 400))[0].shape == (1, 320, 400)


def test_same_generator_state_gives_the_same_pixels_and_truth():
    frames, truth = _simulate(seed=3, num_frames=2)
    again, truth_again = _simulate(seed=3, num_frames=2)
    np.testing.assert_array_equal(frames, again)
    assert truth == truth_again
    other, _ = _simulate(seed=4, num_frames=2)
    assert (frames != other).mean() > 0.3


def test_frames_of_a_patient_are_alike_but_not_equal():
    def speckle(frame: np.ndarray) -> np.ndarray:
        grey = frame.astype(np.float32)
        return grey - cv2.GaussianBlur(grey, (0, 0), 8)  # without shading, which all frames share

    frames, truth = _simulate(seed=5, num_frames=4)
    (stranger,), _ = _simulate(seed=6)
    top, left, height, width = truth.liver_box
    patch = speckle(frames[0])[_cut((top + 8, left + 8, height - 16, width - 16))]
    window = _cut(truth.liver_box)  # leaves the patch 8 px of motion each way

    def likeness(frame: np.ndarray) -> float:
        return cv2.matchTemplate(speckle(frame)[window], patch, cv2.TM_CCOEFF_NORMED).max()

    assert min(likeness(frame) for frame in frames[1:]) > 0.5
    assert likeness(stranger) < 0.3
    assert all((frames[0] != frame).mean() > 0.2 for frame in frames[1:])


@pytest.mark.parametrize("seed", range(6))
def test_outside_the_sector_is_black_but_for_marks(seed):
    frames, truth = _simulate(seed=seed, num_frames=2)
    outside = ~_sector(truth, frames[0].shape, margin=0.05)
    assert (frames[0][outside] > 0).mean() < 0.05
    np.testing.assert_array_equal(frames[0][outside], frames[1][outside])
    inside = _sector(truth, frames[0].shape, margin=-0.05)
    assert (frames[0][inside] > 0).mean() > 0.95


@pytest.mark.parametrize("size_px", [(434, 636), (320, 400), (868, 1272)])
def test_every_frame_says_simulated(size_px):
    unit = size_px[0] / 434
    text = np.zeros((round(26 * unit), round(110 * unit)), np.uint8)
    place, font = (round(8 * unit), round(20 * unit)), cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(text, "SIMULATED", place, font, 0.5 * unit, 200, 1, cv2.LINE_AA)
    frames, _ = _simulate(size_px=size_px, num_frames=2)
    for frame in frames:
        corner = frame[: size_px[0] // 8, : size_px[1] // 3]
        assert cv2.matchTemplate(corner, text, cv2.TM_CCOEFF_NORMED).max() > 0.95


@pytest.mark.parametrize("seed", range(12))
def test_truth_boxes_lie_in_the_sector_and_the_pair_at_one_range(seed):
    frames, truth = _simulate(seed=seed, fat_percent=8.0 * seed)
    inside = _sector(truth, frames[0].shape)
    for box in (truth.liver_box, truth.kidney_box, truth.pair_box):
        assert inside[_cut(box)].all()
        assert inside[_cut(box)].size == box[2] * box[3]
    depth, _ = _polar(truth, frames[0].shape)
    kidney, pair = depth[_cut(truth.kidney_box)].mean(), depth[_cut(truth.pair_box)].mean()
    assert abs(kidney - pair) < 1.0


# --- physics


def test_median_error_of_the_attenuation_slope_is_under_ten_percent(cohort):
    error = (cohort.slope / cohort.true_slope - 1).abs()
    assert error.median() < 0.10
    assert abs((cohort.slope / cohort.true_slope - 1).median()) < 0.03
    assert spearmanr(cohort.slope, cohort.true_slope).statistic > 0.95


def test_hepatorenal_index_follows_the_true_ratio(cohort):
    assert spearmanr(cohort.index_db, cohort.true_ratio).statistic >= 0.95
    error_db = cohort.index_db - 20 * np.log10(cohort.true_ratio)
    assert error_db.abs().median() < 1.0


@pytest.mark.parametrize("gain_db", [-6.0, 6.0])
@pytest.mark.parametrize("fat_percent", [2.0, 50.0, 90.0])
def test_gain_moves_grey_by_its_decibels_and_leaves_index_and_slope(gain_db, fat_percent):
    (frame,), truth = _simulate(fat_percent, seed=11)
    (louder,), louder_truth = _simulate(fat_percent, seed=11, gain_offset_db=gain_db)
    box = _cut(truth.liver_box)
    moved = louder[box].astype(float).mean() - frame[box].astype(float).mean()
    assert moved == pytest.approx(gain_db * 255 / truth.dynamic_range_db, abs=0.3)
    assert louder_truth.gain_db - truth.gain_db == pytest.approx(gain_db)
    index = _measured_index(frame, truth)
    assert _measured_index(louder, truth) == pytest.approx(index, abs=0.15)
    assert _measured_slope(louder, truth) == pytest.approx(_measured_slope(frame, truth), abs=0.06)


def test_speckle_contrast_is_that_of_two_compounded_looks():
    # Power of n looks is gamma-distributed with shape n; for two looks the variance of its
    # natural logarithm is trigamma(2) = pi^2 / 6 - 1, in decibel times (10 / ln 10)^2: 3.49 dB.
    expected_db = 10 / np.log(10) * np.sqrt(np.pi**2 / 6 - 1)
    spreads = []
    for seed in range(8):
        (frame,), truth = _simulate(seed=seed)
        box = _cut(truth.liver_box)
        depth, _ = _polar(truth, frame.shape)
        decibel, depth = _decibel(frame, truth)[box].ravel(), depth[box].ravel()
        spreads.append(np.std(decibel - np.polyval(np.polyfit(depth, decibel, 1), depth)))
    # Interpolation from beams to pixels takes some of the contrast away, and adds none.
    assert 0.7 * expected_db < np.mean(spreads) < 1.1 * expected_db


def test_fat_blurs_the_diaphragm():
    def edge_db(fat_percent: float, seed: int) -> float:
        (frame,), truth = _simulate(fat_percent, seed=seed)
        depth, angle = _polar(truth, frame.shape)
        decibel = cv2.GaussianBlur(_decibel(frame, truth), (0, 0), 2)
        standing_out = decibel - cv2.GaussianBlur(decibel, (0, 0), 12)
        region = (depth > 10) & (depth < truth.depth_mm / 10 - 0.8) & (angle > 15)
        return np.percentile(standing_out[region & _sector(truth, frame.shape, -0.3)], 99)

    sharp = np.mean([edge_db(0, seed) for seed in range(8)])
    blurred = np.mean([edge_db(95, seed) for seed in range(8)])
    assert sharp > 1.5 * blurred


# --- no shortcut


@pytest.mark.parametrize(
    "classifier",
    [
        DecisionTreeClassifier(max_depth=3, random_state=0),
        make_pipeline(StandardScaler(), LogisticRegression()),
    ],
    ids=["tree", "logistic"],
)
def test_mean_brightness_does_not_give_the_grade_away(cohort, classifier):
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    accuracy = cross_val_score(classifier, cohort[["mean_grey"]], cohort.grade, cv=folds).mean()
    assert accuracy < 0.6


def test_the_grade_is_in_the_picture(cohort):
    assert spearmanr(cohort.index_db, cohort.fat_percent).statistic >= 0.8
    assert spearmanr(cohort.slope, cohort.fat_percent).statistic >= 0.8


# --- a study on disk


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "phantoms"
    labels_path = write_phantoms(folder, num_patients=60, frames_per_patient=1, seed=0)
    return labels_path, pd.read_csv(labels_path), pd.read_csv(folder / "truth.csv")


def test_study_tables_name_every_frame(study):
    labels_path, labels, truth = study
    assert labels_path.name == "labels.csv"
    assert list(labels.columns[:4]) == ["path", "patient_id", "fat_percent", "simulated"]
    assert labels.simulated.all()
    assert labels.path.tolist() == truth.path.tolist()
    assert labels.path[0] == "images/SIM001_F00.png"
    images = {f"images/{path.name}" for path in (labels_path.parent / "images").iterdir()}
    assert images == set(labels.path)
    np.testing.assert_allclose(truth.fat_percent, labels.fat_percent)
    frame = cv2.imread(str(labels_path.parent / labels.path[0]), cv2.IMREAD_UNCHANGED)
    assert frame.shape == (434, 636)
    assert frame.dtype == np.uint8


def test_truth_table_describes_the_frame_on_disk(study):
    labels_path, _, truth = study
    row = truth.iloc[7]
    frame = cv2.imread(str(labels_path.parent / row.path), cv2.IMREAD_UNCHANGED)
    rows, columns = np.indices(frame.shape)
    radius = np.hypot(columns - row.apex_x_px, rows - row.apex_y_px)
    angle = np.degrees(np.arctan2(columns - row.apex_x_px, rows - row.apex_y_px))
    ring = (radius > row.near_radius_px + 2) & (radius < row.far_radius_px - 2)
    assert (frame[ring & (np.abs(angle) < row.half_angle_deg - 1)] > 0).mean() > 0.95
    depth_px = row.far_radius_px - row.near_radius_px
    assert depth_px / row.px_per_cm * 10 == pytest.approx(row.depth_mm, abs=1e-3)
    assert row.attenuation_db_per_cm - row.tgc_db_per_cm == pytest.approx(
        row.attenuation_slope_db_per_cm, abs=1e-5
    )
    for box in ("liver", "kidney", "pair"):
        assert 0 < row[f"{box}_top"] < row[f"{box}_top"] + row[f"{box}_height"] < 434
        assert 0 < row[f"{box}_left"] < row[f"{box}_left"] + row[f"{box}_width"] < 636


def test_every_grade_has_fifteen_percent_and_ids_hide_it(study):
    _, labels, _ = study
    grades = labels.fat_percent.map(grade_from_fat_percent)
    shares = grades.value_counts(normalize=True)
    assert set(shares.index) == set(GRADES)
    assert shares.min() >= 0.15
    assert abs(spearmanr(np.arange(len(labels)), labels.fat_percent).statistic) < 0.3


def test_same_seed_same_study_and_another_seed_another(tmp_path):
    first, again, other = (
        write_phantoms(tmp_path / name, num_patients=5, frames_per_patient=2, seed=seed)
        for name, seed in (("first", 4), ("again", 4), ("other", 5))
    )
    assert first.read_bytes() == again.read_bytes()
    # Once in many runs OpenCV rounds otherwise: 1e-6 in a gain, a grey level in a pixel or two.
    one, two = (pd.read_csv(path.with_name("truth.csv")) for path in (first, again))
    pd.testing.assert_frame_equal(one, two, rtol=0, atol=1e-5)
    frames = [
        cv2.imread(str(path.parent / "images/SIM003_F01.png"), cv2.IMREAD_UNCHANGED)
        for path in (first, again)
    ]
    change = cv2.absdiff(*frames)
    assert change.max() <= 1
    assert np.count_nonzero(change) < 20
    assert first.read_bytes() != other.read_bytes()


def test_progress_goes_to_stderr(tmp_path):
    """In a process of its own: tqdm takes its settings when it is imported."""
    call = [sys.executable, "-m", "steatosis_tf.cli", "phantom", str(tmp_path / "few"),
            "--patients", "4", "--frames", "1"]  # fmt: skip
    said = subprocess.run(
        call, env=os.environ | {"TQDM_DELAY": "0"}, capture_output=True, text=True, check=True
    )
    assert "phantoms: 100%" in said.stderr
    assert "phantoms:" not in said.stdout


def test_replaces_its_own_folder_but_no_other(tmp_path):
    folder = tmp_path / "phantoms"
    write_phantoms(folder, num_patients=6, frames_per_patient=1)
    write_phantoms(folder, num_patients=4, frames_per_patient=1)
    assert len(list((folder / "images").iterdir())) == 4
    (folder / "manifest.csv").write_text("work of a person")
    with pytest.raises(FileExistsError, match="output_dir='phantoms', which holds something else"):
        write_phantoms(folder, num_patients=4, frames_per_patient=1)
    assert (folder / "manifest.csv").read_text() == "work of a person"
    assert [path.name for path in tmp_path.iterdir()] == ["phantoms"]


def test_a_failure_on_the_way_leaves_the_old_study(tmp_path, monkeypatch):
    folder = tmp_path / "phantoms"
    labels = write_phantoms(folder, num_patients=4, frames_per_patient=1).read_bytes()
    encode, calls = cv2.imencode, []

    def fail_late(*arguments):
        calls.append(arguments)
        if len(calls) > 3:
            raise OSError("disk full")
        return encode(*arguments)

    monkeypatch.setattr(cv2, "imencode", fail_late)
    with pytest.raises(OSError, match="disk full"):
        write_phantoms(folder, num_patients=8, frames_per_patient=1, seed=9)
    assert (folder / "labels.csv").read_bytes() == labels
    assert [path.name for path in tmp_path.iterdir()] == ["phantoms"]


@pytest.mark.parametrize(("num_patients", "frames"), [(3, 1), (4, 0), (4, 101)])
def test_refuses_impossible_counts(tmp_path, num_patients, frames):
    with pytest.raises(
        ValueError, match=f"num_patients={num_patients} frames_per_patient={frames}"
    ):
        write_phantoms(tmp_path / "x", num_patients=num_patients, frames_per_patient=frames)
    assert not (tmp_path / "x").exists()
