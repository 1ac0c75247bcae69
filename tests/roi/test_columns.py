"""Every frame gets a ROI or a reason; what a person has set stays."""

import re
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest

from steatosis_tf.cohort.manifest import build_manifest, read_manifest, write_manifest
from steatosis_tf.cohort.near_duplicates import hash_frames
from steatosis_tf.config import RoiConfig
from steatosis_tf.parallel import beam_options
from steatosis_tf.roi.anatomy.overlays import find_overlays
from steatosis_tf.roi.columns import (
    add_roi_columns,
    cut_roi,
    fill_manifest,
    propose_roi,
    with_roi_columns,
)
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.roi.sector.find import ROI_VERSION, sector_cell
from steatosis_tf.roi.views import Rectangle, model_input
from steatosis_tf.sources.images import read_frame

SECTOR = RoiConfig(method="sector")
BEAMS = RoiConfig(method="beamspace", depth_px=64, num_beams=48)
_BOX = ["roi_top", "roi_left", "roi_height", "roi_width"]


@pytest.fixture
def fan_manifest(tmp_path, drawn_fan):
    """Two fans, one black frame; the manifest lies in another folder than the frames."""
    (tmp_path / "frames").mkdir()
    for name, picture in (
        ("a.png", drawn_fan()[0]),
        ("b.png", drawn_fan(apex=(300, -20), seed=1)[0]),
        ("black.png", np.zeros((300, 400), np.uint8)),
    ):
        cv2.imwrite(str(tmp_path / "frames" / name), picture)
    labels_path = tmp_path / "frames" / "labels.csv"
    labels_path.write_text("path,patient_id,grade\na.png,P1,Mild\nb.png,P2,Normal\nblack.png,P3,\n")
    build_manifest(labels_path, tmp_path / "study" / "manifest.csv")
    return tmp_path / "study" / "manifest.csv"


def test_what_is_found_before_ctrl_c_is_kept(fan_manifest, monkeypatch):
    def interrupted(path):
        if path.endswith("black.png"):
            raise KeyboardInterrupt
        return read_frame(path)

    monkeypatch.setattr("steatosis_tf.roi.columns.read_frame", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill_manifest(fan_manifest, SECTOR)
    monkeypatch.undo()
    assert list(read_manifest(fan_manifest)["roi_source"]) == ["auto", "auto", ""]
    assert list(fill_manifest(fan_manifest, SECTOR)["roi_source"]) == ["auto"] * 3


def test_every_frame_gets_a_roi_or_a_reason(fan_manifest):
    table = read_manifest(fan_manifest)
    before = table.copy()
    found = add_roi_columns(table, fan_manifest, SECTOR)
    pd.testing.assert_frame_equal(table, before)
    pd.testing.assert_frame_equal(found[before.columns], before)
    assert list(found["roi_source"]) == ["auto"] * 3
    assert list(found["roi_reason"][:2]) == ["", ""]
    assert list(found["roi_code"]) == ["", "", "no_roi"]
    assert "sector" in found["roi_reason"][2] or "black" in found["roi_reason"][2]
    assert found.loc[2, _BOX].isna().all()
    for row in found[:2].to_dict("records"):
        frame = read_frame(fan_manifest.parent / row["path"])
        box = propose_roi(frame, SECTOR).rectangle  # what a prediction on the same frame sees
        assert [row[name] for name in _BOX] == [box.top, box.left, box.height, box.width]
        assert row["roi_sector"].startswith(f"v{ROI_VERSION} {row['pixels_sha256'][:16]} convex ")
    assert found.loc[2, "roi_sector"] == ""


def test_columns_survive_the_manifest(fan_manifest):
    found = add_roi_columns(read_manifest(fan_manifest), fan_manifest, SECTOR)
    write_manifest(found, fan_manifest)
    pd.testing.assert_frame_equal(read_manifest(fan_manifest), found)
    # and a second round changes nothing
    pd.testing.assert_frame_equal(add_roi_columns(found, fan_manifest, SECTOR), found)


def test_box_of_a_person_is_kept(fan_manifest):
    found = add_roi_columns(read_manifest(fan_manifest), fan_manifest, SECTOR)
    found.loc[0, [*_BOX, "roi_source"]] = [150, 200, 100, 120, "person"]
    found.loc[1, _BOX] = pd.NA
    found.loc[1, "roi_source"] = "person"  # a person has said: no ROI in this frame
    again = add_roi_columns(found, fan_manifest, SECTOR)
    pd.testing.assert_frame_equal(again, found)


@pytest.mark.parametrize(
    ("row", "box", "reason"),
    [
        (2, [10, 10, 50, 50], "a person's box, but .*(sector|black)"),
        (0, [0, 0, 20, 20], "a person's box, but no pixel of the rectangle is in the sector"),
        (0, [400, 0, 100, 100], "a person's box, but expected a rectangle inside the frame"),
    ],
)
def test_a_persons_box_that_shows_nothing_is_rejected_with_its_reason(
    fan_manifest, row, box, reason
):
    table = add_roi_columns(read_manifest(fan_manifest), fan_manifest, SECTOR)
    table.loc[row, [*_BOX, "roi_source"]] = [*box, "person"]
    found = add_roi_columns(table, fan_manifest, SECTOR)
    assert found.loc[row, _BOX].isna().all()
    assert found.at[row, "roi_source"] == "person"
    assert re.match(reason, found.at[row, "roi_reason"])
    pd.testing.assert_frame_equal(found.drop(row), table.drop(row))


def test_all_accepted_boxes_whose_sector_is_refused_today_are_named(fan_manifest, capsys):
    table = add_roi_columns(read_manifest(fan_manifest), fan_manifest, SECTOR)
    table = table.assign(roi_state=["accepted", "accepted", "accepted"], roi_sector="v1 x")
    for row in (1, 2):
        cv2.imwrite(
            str(fan_manifest.parent / table.at[row, "path"]), np.zeros((300, 400), np.uint8)
        )
        table.loc[row, _BOX] = [100, 100, 50, 50]
    found = add_roi_columns(table, fan_manifest, SECTOR)
    assert found["roi_height"].isna().tolist() == [False, True, True]
    err = capsys.readouterr().err
    assert "2 of 3 boxes that a person drew or accepted are left out here" in err
    assert all(f"frame_id={name} (" in err for name in table["frame_id"][1:])


def test_beam_space_takes_the_whole_sector(fan_manifest):
    found = add_roi_columns(read_manifest(fan_manifest), fan_manifest, BEAMS)
    assert list(found["roi_view"]) == ["beamspace 64 x 48"] * 3
    assert found.loc[2, _BOX].isna().all()
    frame = read_frame(fan_manifest.parent / found.at[0, "path"])
    rows, columns = np.nonzero(find_sector(frame).mask)
    box = [rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1]
    assert list(found.loc[0, _BOX]) == box
    assert found.at[0, "roi_quality"] == find_sector(frame).border_seen
    pd.testing.assert_frame_equal(add_roi_columns(found, fan_manifest, BEAMS), found)


def test_px_per_cm_of_depth_are_kept_where_known(fan_manifest):
    table = read_manifest(fan_manifest).assign(
        pixel_height_mm=["0.5", "", "0.5"], pixel_width_mm=["0.5", "0.5", "0.5"]
    )
    found = add_roi_columns(table, fan_manifest, BEAMS)
    frame = read_frame(fan_manifest.parent / found.at[0, "path"])
    fan = find_sector(frame).fan
    depth_cm = 0.96 * (fan.far_px - fan.near_px) * 0.05
    assert found.at[0, "roi_px_per_cm"] == pytest.approx(64 / depth_cm, abs=1e-3)
    assert found["roi_px_per_cm"].isna().tolist() == [False, True, True]
    write_manifest(found, fan_manifest)
    pd.testing.assert_frame_equal(read_manifest(fan_manifest), found)
    assert "roi_px_per_cm" not in add_roi_columns(table, fan_manifest, SECTOR)


def test_another_kind_of_roi_is_proposed_anew_but_a_rejection_stays(fan_manifest):
    boxes = add_roi_columns(read_manifest(fan_manifest), fan_manifest, SECTOR)
    beams = add_roi_columns(boxes, fan_manifest, BEAMS)
    expected = add_roi_columns(read_manifest(fan_manifest), fan_manifest, BEAMS)
    pd.testing.assert_frame_equal(beams, expected)
    pd.testing.assert_frame_equal(add_roi_columns(beams, fan_manifest, SECTOR), boxes)
    boxes["roi_state"] = ["corrected", "rejected", ""]
    boxes.loc[0, [*_BOX, "roi_source"]] = [150, 200, 100, 120, "person"]
    boxes.loc[1, _BOX] = pd.NA
    boxes.loc[1, "roi_source"] = "person"
    beams = add_roi_columns(boxes, fan_manifest, BEAMS)
    assert list(beams.loc[0, _BOX]) == list(expected.loc[0, _BOX])
    assert beams.at[0, "roi_state"] == ""  # the person had decided on a box
    pd.testing.assert_series_equal(beams.loc[1], boxes.loc[1])


@pytest.mark.parametrize("former", ["liver", "fallback", "sector"])
def test_a_proposal_of_another_method_is_made_anew_but_not_what_a_person_accepted(
    fan_manifest, former
):
    """A drawn fan shows no liver: sector gives a rectangle, liver none, fallback one with why."""
    configs = {"liver": RoiConfig(), "fallback": RoiConfig(sector_fallback=True), "sector": SECTOR}
    table = read_manifest(fan_manifest)
    expected = {name: add_roi_columns(table, fan_manifest, one) for name, one in configs.items()}
    for name, config in configs.items():
        found = add_roi_columns(expected[former], fan_manifest, config)
        pd.testing.assert_frame_equal(found, expected[name])
        accepted = expected[former].assign(roi_state=["accepted", "", ""])
        found = add_roi_columns(accepted, fan_manifest, config)
        pd.testing.assert_series_equal(found.loc[0], accepted.loc[0])


def test_a_proposal_of_an_earlier_version_is_made_anew_but_not_what_a_person_accepted(
    fan_manifest, capsys
):
    expected = add_roi_columns(read_manifest(fan_manifest), fan_manifest, SECTOR)
    assert capsys.readouterr().err == ""
    old = expected.copy()
    old.loc[:1, "roi_top"] += 5
    old.loc[:1, "roi_sector"] = ["", old.at[1, "roi_sector"].replace(f"v{ROI_VERSION}", "v1")]
    pd.testing.assert_frame_equal(add_roi_columns(old, fan_manifest, SECTOR), expected)
    assert "2 ROIs are of an earlier version" in capsys.readouterr().err
    old["roi_state"] = ["accepted", "", ""]
    found = add_roi_columns(old, fan_manifest, SECTOR)
    assert found["roi_top"].tolist()[:2] == [old.at[0, "roi_top"], expected.at[1, "roi_top"]]


def test_a_fan_that_a_person_accepted_is_cut_whatever_finds_others_today(fan_manifest, capsys):
    table = add_roi_columns(read_manifest(fan_manifest), fan_manifest, BEAMS)
    frame = read_frame(fan_manifest.parent / table.at[0, "path"])
    fan = replace(find_sector(frame).fan, far_px=300.0)
    old = sector_cell(fan, table.at[0, "pixels_sha256"]).replace(f"v{ROI_VERSION}", "v1")
    table.loc[:1, "roi_sector"] = [old, table.at[1, "roi_sector"]]
    table["roi_state"] = ["accepted", "accepted", ""]
    table.to_csv(fan_manifest, index=False)
    found = add_roi_columns(read_manifest(fan_manifest), fan_manifest, BEAMS)
    assert found.at[0, "roi_state"] == "accepted"
    row = found.loc[0].to_dict()
    box = Rectangle(*(int(row[name]) for name in _BOX))
    expected = model_input(frame, fan, box, row["roi_view"])
    np.testing.assert_array_equal(cut_roi(row, fan_manifest), expected)
    assert capsys.readouterr().err == ""
    add_roi_columns(found, fan_manifest, SECTOR)  # another kind of ROI: said
    assert "a person had decided on 2 of them" in capsys.readouterr().err


def test_a_persons_fan_is_used_and_kept(fan_manifest):
    found = add_roi_columns(read_manifest(fan_manifest), fan_manifest, BEAMS)
    frame = read_frame(fan_manifest.parent / found.at[0, "path"])
    fan = replace(find_sector(frame).fan, far_px=300.0)
    found.at[0, "roi_sector"] = sector_cell(fan, found.at[0, "pixels_sha256"], by_person=True)
    write_manifest(found, fan_manifest)
    again = fill_manifest(fan_manifest, BEAMS, again=True)
    assert again.at[0, "roi_sector"] == found.at[0, "roi_sector"]
    assert again.at[1, "roi_sector"] == found.at[1, "roi_sector"]
    rows = np.flatnonzero(fan.mask(frame.shape[:2]).any(axis=1))
    assert again.at[0, "roi_height"] == np.ptp(rows) + 1 < found.at[0, "roi_height"]
    middle = add_roi_columns(again, fan_manifest, SECTOR)
    assert middle.at[0, "roi_top"] + middle.at[0, "roi_height"] <= rows.max() + 1


def test_sector_rectangle_stands_in_only_where_the_config_says_so(drawn_fan):
    frame = np.where(drawn_fan()[0] > 0, 90, 0).astype(np.uint8)  # a fan without any texture
    with pytest.raises(ValueError, match="no liver found"):
        propose_roi(frame, RoiConfig())
    stand_in = propose_roi(frame, RoiConfig(sector_fallback=True))
    assert stand_in.rectangle == propose_roi(frame, SECTOR).rectangle
    assert stand_in.quality == 0
    assert stand_in.reason.startswith("no liver found")


def test_marks_inside_the_sector_are_counted(fan_manifest):
    path = fan_manifest.parent.parent / "frames" / "a.png"
    typed = cv2.putText(read_frame(path).copy(), "Severe", (270, 300), 0, 0.8, 255, 2)
    cv2.imwrite(str(path), typed)
    for config in (SECTOR, BEAMS):
        found = add_roi_columns(read_manifest(fan_manifest), fan_manifest, config)
        mask = find_sector(typed).mask
        assert found.at[0, "roi_marks"] == pytest.approx(
            find_overlays(typed, mask)[mask].mean(), abs=1e-6
        )
        assert found.at[0, "roi_marks"] > 0.003
        assert found.at[1, "roi_marks"] == 0
        assert np.isnan(found.at[2, "roi_marks"])


def test_frame_that_cannot_be_read_gets_its_reason(fan_manifest):
    (fan_manifest.parent.parent / "frames" / "a.png").write_bytes(b"")
    found = add_roi_columns(read_manifest(fan_manifest), fan_manifest, SECTOR)
    assert found.at[0, "roi_reason"] == "empty file (0 bytes)"
    assert found.at[0, "roi_code"] == "empty_frame_file"
    assert pd.isna(found.at[0, "roi_top"])
    assert found.at[1, "roi_height"] > 0


@pytest.mark.parametrize("runner", [None, "DirectRunner"])
def test_the_gate_gets_the_hashes_it_would_take_itself(fan_manifest, tmp_path, runner):
    if runner:
        pytest.importorskip("apache_beam", reason="the extra beam is not installed")
    table = read_manifest(fan_manifest)
    options = beam_options(runner) if runner else None
    hash_frames(table.iloc[:2], fan_manifest, tmp_path / "by_gate.csv")
    add_roi_columns(table, fan_manifest, SECTOR, options, tmp_path / "by_roi.csv")
    kept = (tmp_path / "by_roi.csv").read_bytes()  # without the black frame: it has no ROI
    assert kept == (tmp_path / "by_gate.csv").read_bytes()
    hash_frames(table, fan_manifest, tmp_path / "by_roi.csv")  # adds the black one
    add_roi_columns(table, fan_manifest, SECTOR, options, tmp_path / "by_roi.csv")
    assert len((tmp_path / "by_roi.csv").read_text().splitlines()) == 4


def test_the_gate_still_sees_a_frame_that_changed(fan_manifest, tmp_path):
    table = read_manifest(fan_manifest)
    frames = fan_manifest.parent.parent / "frames"
    (frames / "a.png").write_bytes((frames / "b.png").read_bytes())
    found = add_roi_columns(table, fan_manifest, SECTOR, hashes_path=tmp_path / "hashes.csv")
    assert found["roi_height"].notna().tolist() == [True, True, False]
    with pytest.raises(ValueError, match=r"(?s)1 others.*pixels are not those the manifest was"):
        hash_frames(table, fan_manifest, tmp_path / "hashes.csv")


def test_roi_lies_in_the_sector_on_real_frames(real_data_dir, tmp_path):
    labels = pd.read_csv(real_data_dir / "byra2018" / "labels.csv", dtype=str)
    first = labels.drop_duplicates("patient_id").iloc[::6].copy()
    first["path"] = [str(real_data_dir / "byra2018" / path) for path in first["path"]]
    first.to_csv(tmp_path / "labels.csv", index=False)
    build_manifest(tmp_path / "labels.csv", tmp_path / "manifest.csv")
    manifest_path = tmp_path / "manifest.csv"
    found = add_roi_columns(read_manifest(manifest_path), manifest_path, SECTOR)
    assert (found["roi_reason"] == "").all()
    for row in found.to_dict("records"):
        frame = read_frame(tmp_path / row["path"])
        mask = propose_roi(frame, SECTOR).sector.mask
        top, left, height, width = (int(row[name]) for name in _BOX)
        assert mask[top : top + height, left : left + width].all()
        assert height * width > 0.2 * mask.sum()


def test_a_runner_proposes_the_same_and_keeps_persons_boxes(fan_manifest, monkeypatch):
    pytest.importorskip("apache_beam", reason="the extra beam is not installed")
    monkeypatch.setattr("steatosis_tf.parallel.PART_ITEMS", 1)
    table = with_roi_columns(read_manifest(fan_manifest))
    table.loc[1, [*_BOX, "roi_source"]] = [150, 200, 100, 120, "person"]
    copy = fan_manifest.with_name("copy.csv")
    for path in (fan_manifest, copy):
        write_manifest(table, path)
    fill_manifest(fan_manifest, SECTOR)
    fill_manifest(copy, SECTOR, options=beam_options("DirectRunner"))
    assert copy.read_bytes() == fan_manifest.read_bytes()
    found = read_manifest(copy)
    assert list(found["roi_source"]) == ["auto", "person", "auto"]
    assert list(found.loc[1, _BOX]) == [150, 200, 100, 120]
    names = {path.name for path in fan_manifest.parent.iterdir() if path.suffix != ".lock"}
    assert names == {"manifest.csv", "copy.csv", "manifest.rejected.csv"}
    # the same columns for an experiment, which leaves the manifest alone
    write_manifest(table, copy)
    with_runner = add_roi_columns(read_manifest(copy), copy, SECTOR, beam_options("DirectRunner"))
    pd.testing.assert_frame_equal(with_runner, found)
