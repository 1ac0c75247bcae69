"""The records hold what the manifest says, each patient in one split, and never half of it."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tensorflow_datasets as tfds

from steatosis_tf.cohort.manifest import ROI_COLUMNS, frame_path, read_manifest, write_manifest
from steatosis_tf.config import RoiConfig
from steatosis_tf.records.builder import (
    records_fingerprint,
    records_location,
    usable_rows,
    write_records,
)
from steatosis_tf.records.pipeline import read_index, read_records
from steatosis_tf.roi.anatomy.overlays import paint_out
from steatosis_tf.roi.columns import add_roi_columns
from steatosis_tf.roi.sector import Fan, find_sector
from steatosis_tf.roi.sector.find import sector_cell
from steatosis_tf.roi.views import Rectangle, beam_space, crop_roi
from steatosis_tf.sources.images import read_frame


@pytest.fixture
def small_manifest(phantom_manifest: Path):
    """`small_manifest(change)` writes four rows of the study beside it, changed, another name."""
    written = []

    def make(change=lambda table: table, rows=slice(0, 4)) -> Path:
        path = phantom_manifest.with_name(f"small_{len(written)}.csv")
        write_manifest(change(read_manifest(phantom_manifest).iloc[rows].copy()), path)
        written.append(path)
        return path

    yield make
    for path in written:
        path.unlink()


def _files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_examples_are_the_crops_of_their_frames(phantom_manifest, phantom_records):
    table = read_manifest(phantom_manifest).set_index("frame_id")
    examples = list(read_records(phantom_records).as_numpy_iterator())
    assert sorted(example["frame_id"].decode() for example in examples) == sorted(table.index)
    for example in examples:
        row = table.loc[example["frame_id"].decode()]
        frame = read_frame(frame_path(phantom_manifest, row["path"]))
        box = Rectangle(row["roi_top"], row["roi_left"], row["roi_height"], row["roi_width"])
        mask = find_sector(frame).mask
        expected = crop_roi(paint_out(frame, mask), mask, box)
        np.testing.assert_array_equal(example["roi"][..., 0], expected)
        assert example["roi"].dtype == np.uint8
        assert ("Normal", "Mild", "Moderate", "Severe")[example["label"]] == row["grade"]
        assert example["patient_id"].decode() == row["patient_id"]
        assert example["fat_percent"] == np.float32(row["fat_percent"])


def test_no_patient_and_no_frame_is_in_two_splits(phantom_manifest, phantom_records):
    parts = tfds.builder_from_directory(str(records_location(phantom_records))).as_dataset()
    assert sorted(parts) == ["test", "train", "validation"]
    for name in ("frame_id", "patient_id"):
        seen = [example[name] for part in parts.values() for example in part.as_numpy_iterator()]
        assert len(seen) == len(set(seen)) == 12
    table = read_manifest(phantom_manifest)
    for split, part in parts.items():
        received = {example["patient_id"].decode() for example in part.as_numpy_iterator()}
        assert received == set(table.loc[table["split"] == split, "patient_id"])


def test_pixels_outside_the_sector_are_zero(small_manifest, tmp_path):
    def whole_frame(table: pd.DataFrame) -> pd.DataFrame:
        table[["roi_top", "roi_left", "roi_height", "roi_width"]] = [0, 0, 434, 636]
        return table

    manifest_path = small_manifest(whole_frame)
    write_records(manifest_path, tmp_path)
    table = read_manifest(manifest_path).set_index("frame_id")
    for example in read_records(tmp_path).as_numpy_iterator():
        path = table.at[example["frame_id"].decode(), "path"]
        frame = cv2.imread(str(frame_path(manifest_path, path)), cv2.IMREAD_GRAYSCALE)
        share = cv2.resize(find_sector(frame).mask.astype(np.float32), (224, 224), None, 0, 0, 3)
        roi = example["roi"][..., 0]
        # The frames have burned-in marks out there, so this does not hold by itself.
        assert cv2.resize(frame, (224, 224))[share == 0].max() > 100
        assert roi[share == 0].max() == 0
        assert roi[share == 1].mean() > 20


def test_beam_space_gives_records_of_its_size(small_manifest, tmp_path, monkeypatch):
    config = RoiConfig(method="beamspace", depth_px=96, num_beams=80)
    rectangles = small_manifest()

    def beams(table: pd.DataFrame) -> pd.DataFrame:
        return add_roi_columns(table, rectangles, config)

    manifest_path = small_manifest(beams)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    write_records(manifest_path, tmp_path / "beams")
    assert not [*tmp_path.glob("*tfds")]  # which tensorflow-datasets would leave there
    table = read_manifest(manifest_path).set_index("frame_id")
    for example in read_records(tmp_path / "beams").as_numpy_iterator():
        path = table.at[example["frame_id"].decode(), "path"]
        frame = read_frame(frame_path(manifest_path, path))
        fan = find_sector(frame).fan
        expected = beam_space(paint_out(frame, fan.mask(frame.shape[:2])), fan, 96, 80)
        np.testing.assert_array_equal(example["roi"], expected[..., np.newaxis])

    def mixed(table: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([table.iloc[:2].assign(roi_view=""), beams(table).iloc[2:]])

    with pytest.raises(ValueError, match=r"one kind of ROI.*roi_view='', 'beamspace 96 x 80'"):
        write_records(small_manifest(mixed), tmp_path / "mixed")


def test_a_persons_fan_makes_other_records(small_manifest, tmp_path):
    rows = usable_rows(read_manifest(small_manifest()))
    fan = Fan("convex", 320.0, -20.0, -33.0, 33.0, 80.0, 300.0)
    changed = rows.copy()
    changed.loc[changed.index[0], "roi_sector"] = sector_cell(
        fan, changed["pixels_sha256"].iloc[0], by_person=True
    )
    assert records_fingerprint(changed) != records_fingerprint(rows)
    unknown = rows.assign(roi_sector="")
    assert records_fingerprint(unknown) == records_fingerprint(rows)


def test_a_manifest_without_sectors_gives_the_same_bytes(small_manifest, tmp_path):
    def older(table: pd.DataFrame) -> pd.DataFrame:
        return table.drop(columns="roi_sector")

    def corrected(table: pd.DataFrame) -> pd.DataFrame:
        table[[*ROI_COLUMNS, "roi_source"]] = [150, 220, 101, 203, "person"]
        return table

    for name, change in (("auto", lambda table: table), ("person", corrected)):
        write_records(small_manifest(change), tmp_path / name)
        write_records(small_manifest(lambda t, f=change: older(f(t))), tmp_path / f"{name}_older")
        kept, found = (
            {file: content for file, (_, content) in _files(tmp_path / folder).items()}
            for folder in (name, f"{name}_older")
        )
        assert kept == found


@pytest.mark.parametrize(
    "config",
    [RoiConfig(method="sector"), RoiConfig(method="beamspace", depth_px=96, num_beams=80)],
    ids=["sector", "beamspace"],
)
def test_rois_that_the_proposal_left_give_the_same_records(phantom_manifest, tmp_path, config):
    """No frame is decoded again, unless a killed run left half of its ROI."""
    table = read_manifest(phantom_manifest).iloc[:4].drop(columns=["roi_source", *ROI_COLUMNS])
    for number, path in enumerate(table["path"]):
        shutil.copy(frame_path(phantom_manifest, path), tmp_path / f"{number}.png")
    table["path"] = [f"{number}.png" for number in range(4)]
    manifest_path, crops_dir = tmp_path / "manifest.csv", tmp_path / "crops"
    kept = {"hashes_path": tmp_path / "hashes.csv", "crops_dir": crops_dir}
    write_manifest(add_roi_columns(table, manifest_path, config, **kept), manifest_path)
    write_records(manifest_path, tmp_path / "decoded")
    one = sorted(crops_dir.iterdir())[0]
    data = one.read_bytes()
    one.write_bytes(data[:50])
    write_records(manifest_path, tmp_path / "half", **kept)
    one.write_bytes(data)
    for number in range(4):
        (tmp_path / f"{number}.png").unlink()
    write_records(manifest_path, tmp_path / "kept", **kept)
    decoded, half, taken = (
        {name: content for name, (_, content) in _files(tmp_path / folder).items()}
        for folder in ("decoded", "half", "kept")
    )
    assert decoded == half == taken


def test_a_frame_that_changed_after_the_gate_is_refused(phantom_manifest, tmp_path):
    """The check hashes each picture once; its sector and box would be those of another picture."""
    table = read_manifest(phantom_manifest).iloc[:4].copy()
    for number, path in enumerate(table["path"]):
        shutil.copy(frame_path(phantom_manifest, path), tmp_path / f"{number}.png")
    table["path"] = [f"{number}.png" for number in range(4)]
    write_manifest(table, tmp_path / "manifest.csv")
    hashes_path = tmp_path / "hashes.csv"
    write_records(tmp_path / "manifest.csv", tmp_path / "before", hashes_path=hashes_path)
    frame = cv2.imread(str(tmp_path / "2.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "2.png"), frame[:, ::-1])
    with pytest.raises(ValueError, match=r"2\.png .*pixels are not those the manifest was made"):
        write_records(tmp_path / "manifest.csv", tmp_path / "after", hashes_path=hashes_path)
    assert not (tmp_path / "after" / "records.json").exists()


def test_row_order_of_the_manifest_does_not_matter(small_manifest, tmp_path):
    write_records(small_manifest(), tmp_path / "a")
    write_records(small_manifest(lambda table: table.iloc[[2, 0, 3, 1]]), tmp_path / "b")
    pd.testing.assert_frame_equal(read_index(tmp_path / "a"), read_index(tmp_path / "b"))
    # and what is the same study is not written twice
    before = _files(tmp_path / "a")
    write_records(small_manifest(lambda table: table.iloc[::-1]), tmp_path / "a")
    assert _files(tmp_path / "a") == before


def test_second_call_uses_what_is_there(phantom_manifest, phantom_records):
    before = _files(phantom_records)
    assert write_records(phantom_manifest, phantom_records) == records_location(phantom_records)
    assert _files(phantom_records) == before


def test_records_of_another_manifest_are_refused(small_manifest, tmp_path):
    write_records(small_manifest(), tmp_path)
    before = _files(tmp_path)

    def other_split(table: pd.DataFrame) -> pd.DataFrame:
        table["split"] = "train"
        return table

    def other_box(table: pd.DataFrame) -> pd.DataFrame:
        table["roi_top"] = table["roi_top"] + 1
        return table

    for changed in (small_manifest(other_split), small_manifest(other_box)):
        with pytest.raises(ValueError, match="records of other frames, splits or ROIs"):
            write_records(changed, tmp_path)
    assert _files(tmp_path) == before


def test_remains_of_a_killed_run_are_written_again(small_manifest, tmp_path):
    manifest_path = small_manifest()
    location = write_records(manifest_path, tmp_path)
    expected = [example["roi"] for example in read_records(tmp_path).as_numpy_iterator()]
    # records.json comes last, so a killed run has none; its shards may be cut short.
    (tmp_path / "records.json").unlink()
    shard = next(location.glob("*.tfrecord*"))
    shard.write_bytes(shard.read_bytes()[:1000])
    shutil.copytree(location, location.with_name("1.0.0.incompleteABC"))
    with pytest.raises(ValueError, match=r"finished records.*without records\.json"):
        read_records(tmp_path)
    write_records(manifest_path, tmp_path)
    received = [example["roi"] for example in read_records(tmp_path).as_numpy_iterator()]
    np.testing.assert_array_equal(received, expected)
    assert [path.name for path in location.parent.iterdir()] == ["1.0.0"]


def test_frames_without_grade_stay_out_and_unknown_fat_stays_unknown(small_manifest, tmp_path):
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[table.index[0], ["grade", "fat_percent"]] = ["", np.nan]
        table.loc[table.index[1], "fat_percent"] = np.nan
        return table

    manifest_path = small_manifest(change)
    write_records(manifest_path, tmp_path)
    table = read_manifest(manifest_path)
    index = read_index(tmp_path).set_index("frame_id")
    assert set(index.index) == set(table["frame_id"][1:])
    assert np.isnan(index.at[table["frame_id"][1], "fat_percent"])
    assert index.loc[table["frame_id"][2:], "fat_percent"].notna().all()


def test_patient_in_two_splits_is_refused(small_manifest, tmp_path):
    def one_patient(table: pd.DataFrame) -> pd.DataFrame:
        table["patient_id"] = "P07"
        table["split"] = ["train", "train", "test", "train"]
        return table

    with pytest.raises(ValueError, match=r"(?s)one patient in two splits: 1.*P07"):
        write_records(small_manifest(one_patient), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_manifest_without_split_or_roi_or_usable_rows_is_refused(small_manifest, tmp_path):
    with pytest.raises(ValueError, match=r"without split\. Run `steatosis split"):
        write_records(small_manifest(lambda table: table.drop(columns="split")), tmp_path)
    with pytest.raises(ValueError, match="without roi_top, roi_left, roi_height, roi_width"):
        write_records(small_manifest(lambda table: table.drop(columns=list(ROI_COLUMNS))), tmp_path)
    with pytest.raises(ValueError, match=r"at least one frame.*none out of 4"):
        write_records(small_manifest(lambda table: table.assign(grade="")), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_frame_that_is_gone_is_named(small_manifest, tmp_path):
    def lose(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(path=["phantoms/images/gone.png", *table["path"][1:]])

    with pytest.raises(ValueError, match="missing or unreadable file"):
        write_records(small_manifest(lose), tmp_path)
    # nothing that looks finished is left
    assert not (tmp_path / "records.json").exists()
