"""What is measured on simulated patients against what was put in, and on real frames."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from steatosis_tf.cohort.manifest import build_manifest, pixels_sha256, read_manifest
from steatosis_tf.config import RoiConfig
from steatosis_tf.quantitative.display import Beams, Display
from steatosis_tf.quantitative.features import (
    measure_attenuation,
    measure_hepatorenal,
)
from steatosis_tf.quantitative.measure import (
    UNITS,
    MeasuredFeatures,
    measure_frame,
    measure_regions,
)
from steatosis_tf.quantitative.study import measured_features, measured_table
from steatosis_tf.roi.anatomy.liver import liver_mask
from steatosis_tf.roi.propose import propose_roi
from steatosis_tf.roi.sector import Sector, find_sector
from steatosis_tf.roi.views import Rectangle
from steatosis_tf.sources.images import read_frame, write_png
from steatosis_tf.sources.phantom.study import PhantomTruth, simulate_patient

NUM_PATIENTS = 24


def simulated(seed: int, gain_offset_db: float = 0.0) -> tuple[np.ndarray, PhantomTruth]:
    """One frame; fat goes evenly from 0 to 95 percent with the seed."""
    frames, truth = simulate_patient(
        95 * seed / (NUM_PATIENTS - 1),
        num_frames=1,
        generator=np.random.default_rng(seed),
        gain_offset_db=gain_offset_db,
    )
    return frames[0], truth


@pytest.mark.parametrize(
    "look", [measure_frame, lambda frame: propose_roi(frame, RoiConfig())], ids=["measure", "roi"]
)
def test_a_frame_with_doppler_colours_is_refused(look):
    frame, _ = simulated(0)
    frame = np.stack([frame] * 3, axis=-1)
    look(frame)
    frame[200:240, 280:340] = 220, 30, 30
    with pytest.raises(ValueError, match="coloured pixels inside the sector: Doppler"):
        look(frame)


def display_of(truth: PhantomTruth) -> Display:
    return Display(truth.dynamic_range_db, truth.px_per_cm)


def place_of(frame: np.ndarray, sector: Sector, truth: PhantomTruth) -> tuple:
    """Beams and scale, as the measuring functions take them."""
    fan, shape = sector.fan, frame.shape
    beams = Beams(fan.depth_px(shape), fan.angle_deg(shape), fan.far_px - fan.near_px)
    return beams, display_of(truth)


def mask_of(box: tuple[int, int, int, int], shape: tuple[int, int]) -> np.ndarray:
    top, left, height, width = box
    mask = np.zeros(shape, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def in_truth_boxes(
    frame: np.ndarray, truth: PhantomTruth
) -> tuple[dict[str, float], dict[str, float]]:
    place = place_of(frame, find_sector(frame), truth)
    pair, liver = (mask_of(box, frame.shape) for box in (truth.pair_box, truth.liver_box))
    cortex = Rectangle(*truth.kidney_box)
    return (
        measure_attenuation(frame, liver, *place),
        measure_hepatorenal(frame, pair, cortex, *place),
    )


def in_found_liver(frame: np.ndarray, truth: PhantomTruth) -> MeasuredFeatures:
    """Everything automatic but the kidney: its finder is for real anatomy."""
    sector = find_sector(frame)
    cortex = Rectangle(*truth.kidney_box)
    return measure_regions(frame, sector, liver_mask(frame, sector), cortex, display_of(truth))


@pytest.fixture(scope="module")
def patients() -> pd.DataFrame:
    rows = []
    for seed in range(NUM_PATIENTS):
        frame, truth = simulated(seed)
        slope, index = in_truth_boxes(frame, truth)
        found = in_found_liver(frame, truth)
        rows.append(
            {
                "slope_share": slope["attenuation_db_per_cm"] / truth.attenuation_slope_db_per_cm,
                "found_slope_share": found.attenuation_db_per_cm
                / truth.attenuation_slope_db_per_cm,
                "ratio": index["hepatorenal_ratio"],
                "found_ratio": found.hepatorenal_ratio,
                "true_ratio": truth.hepatorenal_ratio,
            }
        )
    return pd.DataFrame(rows)


def test_attenuation_slope_is_the_simulated_one(patients):
    in_box, found = patients["slope_share"], patients["found_slope_share"]
    assert in_box.median() == pytest.approx(1, abs=0.10)
    assert found.median() == pytest.approx(1, abs=0.10)
    # One frame's slope: half of them within 10 %, nine of ten within 25 %.
    for shares in (in_box, found):
        errors = (shares - 1).abs()
        assert errors.median() < 0.10
        assert errors.quantile(0.9) < 0.25


def test_hepatorenal_index_ranks_as_the_simulated_ratio(patients):
    assert stats.spearmanr(patients["ratio"], patients["true_ratio"]).statistic >= 0.95
    # The found liver lies before the kidney: attenuation in between adds, in order of fat.
    assert stats.spearmanr(patients["found_ratio"], patients["true_ratio"]).statistic >= 0.95
    # Not only the rank: the ratio itself, without bias.
    assert (patients["ratio"] / patients["true_ratio"]).median() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("gain_offset_db", [-6.0, 6.0])
def test_gain_moves_index_and_snr_by_less_than_two_percent(gain_offset_db):
    for seed in (1, 8, 15, 22):
        (plain, truth), (other, _) = simulated(seed), simulated(seed, gain_offset_db)
        indices = (in_truth_boxes(frame, truth)[1]["hepatorenal_ratio"] for frame in (other, plain))
        ratio = np.divide(*indices)
        assert ratio == pytest.approx(1, abs=0.02)
        sector = find_sector(plain)
        liver = liver_mask(plain, sector)
        cortex = Rectangle(*truth.kidney_box)
        before, after = (
            measure_regions(frame, sector, liver, cortex, display_of(truth))
            for frame in (plain, other)
        )
        assert after.speckle_snr == pytest.approx(before.speckle_snr, rel=0.02)
        assert after.hepatorenal_ratio == pytest.approx(before.hepatorenal_ratio, rel=0.02)
        assert after.attenuation_db_per_cm == pytest.approx(before.attenuation_db_per_cm, rel=0.05)
        assert after.vessel_contrast_db == pytest.approx(before.vessel_contrast_db, abs=0.5)


def test_mirror_image_and_larger_frame_change_nothing_that_they_should_not():
    frame, truth = simulated(12)
    sector = find_sector(frame)
    liver = liver_mask(frame, sector)
    before = measure_regions(frame, sector, liver, Rectangle(*truth.kidney_box))
    size = (frame.shape[1] * 3 // 2, frame.shape[0] * 3 // 2)
    large = cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)
    fan = sector.fan.scaled(1.5)
    large_liver = cv2.resize(liver.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    box = Rectangle(*(round(side * 1.5) for side in truth.kidney_box))
    wide = Sector(fan.mask(large.shape), fan, sector.score, sector.border_seen)
    after = measure_regions(large, wide, large_liver, box)
    assert after.attenuation_db_per_depth == pytest.approx(
        before.attenuation_db_per_depth, rel=0.05
    )
    assert after.attenuation_grey_per_px * 1.5 == pytest.approx(
        before.attenuation_grey_per_px, rel=0.05
    )
    assert after.hepatorenal_db == pytest.approx(before.hepatorenal_db, abs=0.3)


def test_without_scale_the_reading_says_so():
    frame, _ = simulated(20)
    numbers = measure_frame(frame)
    assert numbers.is_assumed_scale
    assert np.isnan(numbers.attenuation_db_per_cm)
    assert numbers.attenuation_db_per_depth > 0
    reading = numbers.text()
    assert reading.startswith("Hepatorenal index: ")
    assert "Attenuation per cm: not measured" in reading
    assert "assumed dynamic range" in reading
    assert len(reading.splitlines()) == len(UNITS) + 1
    assert [field.name for field in fields(MeasuredFeatures)][:-1] == list(UNITS)


def test_a_frame_without_liver_or_cortex_gives_no_numbers():
    frame, _ = simulated(3)
    sector = find_sector(frame)
    numbers = measure_regions(frame, sector, np.zeros(frame.shape, bool), None)
    assert all(np.isnan(getattr(numbers, name)) for name in UNITS)


def test_real_frames_are_measured_and_fat_darkens_the_depth(real_data_dir: Path):
    """Shipped finders, one frame of every second patient; the ranks, not the size, are claimed."""
    labels = pd.read_csv(real_data_dir / "byra2018" / "labels.csv", dtype={"patient_id": str})
    first = labels.drop_duplicates("patient_id").iloc[::2]
    numbers = pd.DataFrame(
        [measure_frame(read_frame(real_data_dir / "byra2018" / path)) for path in first["path"]]
    )
    fat = first["fat_percent"].to_numpy()
    assert numbers["attenuation_db_per_depth"].notna().all()
    assert numbers["speckle_snr"].notna().mean() > 0.9
    slope = stats.spearmanr(numbers["attenuation_db_per_depth"], fat).statistic
    assert slope > 0.5
    measured = numbers["hepatorenal_db"].notna()
    assert measured.mean() > 0.5
    assert stats.spearmanr(numbers["hepatorenal_db"][measured], fat[measured]).statistic > 0.6


def test_a_screen_of_thousands_of_px_gives_the_numbers_of_its_frame():
    # Wide means are taken on fewer px there: on all of them they took minutes.
    frame, _ = simulated(20)
    sector = find_sector(frame)
    liver = liver_mask(frame, sector)
    large = cv2.resize(frame, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    large_liver = cv2.resize(liver.astype(np.uint8), large.shape[::-1]).astype(bool)
    found = measure_regions(frame, sector, liver, None)
    again = measure_regions(
        large, Sector.of_fan(sector.fan.scaled(3), large.shape), large_liver, None
    )
    assert again.vessel_contrast_db == pytest.approx(found.vessel_contrast_db, abs=0.2)
    assert again.diaphragm_db == pytest.approx(found.diaphragm_db, abs=0.2)


def test_a_frame_that_was_changed_is_not_measured_under_its_old_hash(tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((300, 400), 90, np.uint8))
    (tmp_path / "labels.csv").write_text("path,patient_id,grade\na.png,P1,Mild\n")
    build_manifest(tmp_path / "labels.csv", tmp_path / "manifest.csv")
    frames = read_manifest(tmp_path / "manifest.csv")
    blank = measured_features(frames, tmp_path / "manifest.csv", tmp_path / "another")
    assert np.isnan(blank).all()
    said = capsys.readouterr().err
    assert f"no liver to measure is seen in frames=1, frame_id={frames.at[0, 'frame_id']}. " in said
    cv2.imwrite(str(tmp_path / "a.png"), np.full((300, 400), 91, np.uint8))
    with pytest.raises(ValueError, match=r"a\.png, whose pixels are others"):
        measured_table(frames, tmp_path / "manifest.csv", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_two_runs_that_measure_at_once_keep_each_others_rows(tmp_path):
    """The second has read the store before the first has written it."""
    store = tmp_path / "store"
    generator = np.random.default_rng(0)
    pictures, _ = simulate_patient(9.0, num_frames=2, generator=generator, size_px=(240, 320))
    hashes = [*map(pixels_sha256, pictures)]
    frames = pd.DataFrame({"path": ["a.png", "b.png"], "pixels_sha256": hashes})
    for path, frame in zip(frames["path"], pictures, strict=True):
        write_png(frame, tmp_path / path)
    both = threading.Barrier(2)

    def work(rows):
        both.wait(60)
        return measured_table(rows, tmp_path / "manifest.csv", store)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (frames[:1], frames[1:])))
    (kept,) = store.glob("*.csv")
    assert set(pd.read_csv(kept, index_col=0).index) == set(frames["pixels_sha256"])
    again = measured_table(frames, tmp_path / "gone" / "manifest.csv", store)  # nothing is measured
    assert again["attenuation_db_per_depth"].notna().all()
