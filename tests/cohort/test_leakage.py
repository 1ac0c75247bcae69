"""The data-leakage check from the outside: frames, a manifest, partitions; every kind of leak."""

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from steatosis_tf.cohort.leakage import (
    KINDS,
    check_leaks,
    drop_copies,
    merge_patients,
    pass_check,
)
from steatosis_tf.cohort.manifest import build_manifest, read_manifest
from steatosis_tf.cohort.partition import Partition
from steatosis_tf.cohort.splits import make_partitions
from steatosis_tf.config import SplitConfig
from steatosis_tf.sources.pseudonym import spelling_key


def passed(table, partitions, path, **kept):
    """What records ask for before they are written."""
    return pass_check(table, partitions, check_leaks(table, partitions, path, **kept))


def sector(seed: int) -> np.ndarray:
    """A made-up sector of smooth texture on black, `(240, 320)` uint8."""
    rng = np.random.default_rng(seed)
    coarse = cv2.GaussianBlur(rng.normal(size=(240, 320)).astype(np.float32), (0, 0), 6)
    fine = cv2.GaussianBlur(rng.normal(size=(240, 320)).astype(np.float32), (0, 0), 1.5)
    echoes = 110 + 35 * coarse / coarse.std() + 15 * fine / fine.std()
    fan = np.zeros((240, 320), np.uint8)
    cv2.ellipse(fan, (160, -20), (250, 250), 0, 50, 130, 1, -1)
    return (np.clip(echoes, 1, 255) * fan).astype(np.uint8)


@pytest.fixture
def gated(tmp_path: Path) -> Callable[..., tuple[pd.DataFrame, Path]]:
    """`gated({"a.png": frame}, "path,patient_id,grade\\n...")` gives manifest and its path."""

    def make(frames: dict[str, np.ndarray], labels: str) -> tuple[pd.DataFrame, Path]:
        for name, frame in frames.items():
            path = tmp_path / name
            path.write_bytes(cv2.imencode(path.suffix, frame)[1].tobytes())
        (tmp_path / "labels.csv").write_text(labels)
        build_manifest(tmp_path / "labels.csv", tmp_path / "manifest.csv", strict=True)
        return read_manifest(tmp_path / "manifest.csv"), tmp_path / "manifest.csv"

    return make


def partition(train: str, test: str, name: str = "holdout", validation: str = "") -> Partition:
    return Partition(
        name, frozenset(train.split()), frozenset(validation.split()), frozenset(test.split())
    )


def labels(*rows: str) -> str:
    return "path,patient_id,grade\n" + "".join(f"{row}\n" for row in rows)


def test_marks_inside_the_sector_are_named_but_refuse_nothing(gated, capsys):
    frames = {f"{n}.png": sector(n) for n in range(3)}
    table, path = gated(frames, labels(*(f"{n}.png,P{n},Mild" for n in range(3))))
    partitions = [partition("P0", "P2", validation="P1")]
    marked = table.assign(roi_marks=[0.0, 0.01, np.nan])
    gate = passed(marked, partitions, path)
    assert gate["frames_with_marks"] == [table["frame_id"][1]]
    warning = capsys.readouterr().err
    assert f"frames=1, frame_id={table['frame_id'][1]}. They are painted out" in warning
    assert "not looked for marks inside the sector: frames=1." in warning
    passed(table.assign(roi_marks=0.0, roi_height=[9, None, 9]), partitions, path)
    assert capsys.readouterr().err == (
        "warning: left out, since there is no ROI: frames=1, and with them all of patients=1, "
        "patient_id=P1. The column roi_reason says why\n"
    )
    passed(table.assign(roi_marks=0.0), partitions, path)
    assert capsys.readouterr().err.count("warning") == 0


def test_a_clean_study_passes(gated):
    frames = {f"{n}.png": sector(n) for n in range(6)}
    table, path = gated(frames, labels(*(f"{n}.png,P{n // 2},Mild" for n in range(6))))
    partitions = [partition("P0", "P2", validation="P1")]
    summary = passed(table, partitions, path)
    assert summary["passed"]
    assert (summary["num_frames"], summary["num_patients"]) == (6, 3)
    assert list(summary["num_findings"]) == list(KINDS)


def test_copies_of_one_patient_or_one_side_are_no_leak(gated):
    frames = {"a.png": sector(1), "b.png": sector(1), "c.png": sector(1), "d.png": sector(2)}
    table, path = gated(
        frames, labels("a.png,P0,Mild", "b.png,P0,Mild", "c.png,P1,Mild", "d.png,P2,Mild")
    )
    assert check_leaks(table, [partition("P0 P1", "P2")], path) == []


def test_a_patient_in_two_splits_is_found(gated):
    table, path = gated({"a.png": sector(1)}, labels("a.png,P0,Mild"))
    [finding] = check_leaks(table, [partition("P0", "P0", name="fold_3")], path)
    assert finding.kind == "patient_in_two_splits"
    assert finding.text == "patient_id=P0 in train and test (fold_3)"
    with pytest.raises(ValueError, match=r"(?s)findings=1.*one patient in two splits: 1.*P0"):
        passed(table, [partition("P0", "P0")], path)


def test_a_split_column_by_image_is_found(gated):
    frames = {"a.png": sector(1), "b.png": sector(2)}
    table, path = gated(frames, labels("a.png,P0,Mild", "b.png,P0,Mild"))
    table["split"] = ["train", "test"]
    [finding] = check_leaks(table, [partition("P0", "P1")], path)
    assert finding.text == "patient_id=P0 in train and test (split column)"


def test_the_same_pixels_under_two_patients_are_found(gated):
    frames = {"a.png": sector(1), "b.bmp": sector(1), "c.png": sector(2)}
    table, path = gated(frames, labels("a.png,P0,Mild", "b.bmp,P1,Mild", "c.png,P1,Mild"))
    findings = check_leaks(table, [partition("P0", "P1"), partition("P0", "P1", "again")], path)
    [finding] = findings
    assert finding.kind == "same_pixels"
    assert finding.patients == ("P0", "P1")
    assert (
        "train and test (holdout and 1 more partitions); frames with the same pixels: 1, first"
        in finding.text
    )
    assert finding.frame_pairs == ((table["frame_id"][0], table["frame_id"][1]),)


COPIES = {
    "jpeg": lambda f: cv2.imdecode(cv2.imencode(".jpg", f, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], 0),
    "smaller": lambda f: cv2.resize(f, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA),
    "larger": lambda f: cv2.resize(f, None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC),
    "darker": lambda f: (f * 0.8).astype(np.uint8),
    "margins": lambda f: cv2.copyMakeBorder(f, 30, 10, 60, 60, cv2.BORDER_CONSTANT),
    "trimmed": lambda f: f[6:-6, 6:-6].copy(),
    "text": lambda f: cv2.putText(f.copy(), "ID 77 MI 1.2", (4, 14), 0, 0.4, 255, 1),
    "colour": lambda f: cv2.cvtColor(f, cv2.COLOR_GRAY2BGR),
}


@pytest.mark.parametrize("change", COPIES)
def test_a_changed_copy_under_two_patients_is_found(gated, change):
    frames = {"a.png": sector(1), "b.png": COPIES[change](sector(1)), "c.png": sector(2)}
    table, path = gated(frames, labels("a.png,P0,Mild", "b.png,P1,Mild", "c.png,P2,Mild"))
    [finding] = check_leaks(table, [partition("P0", "P1 P2")], path)
    assert finding.kind == "near_duplicate"
    assert finding.patients == ("P0", "P1")


def test_frames_without_texture_resemble_nothing(gated):
    flat = {f"{n}.png": np.full((64, 64), n, np.uint8) for n in (0, 1, 200)}
    table, path = gated(flat, labels("0.png,P0,Mild", "1.png,P1,Mild", "200.png,P2,Mild"))
    assert check_leaks(table, [partition("P0", "P1 P2")], path) == []


def test_the_same_pixels_with_two_grades_are_found_even_in_one_split(gated):
    frames = {"a.png": sector(1), "b.png": sector(1)}
    table, path = gated(frames, labels("a.png,P0,Mild", "b.png,P1,Severe"))
    [finding] = check_leaks(table, [partition("P0 P1", "P2")], path)
    assert finding.kind == "two_grades"
    first, second = table["frame_id"]
    assert finding.text == (
        f"Mild at frame_id={first} of patient_id=P0 and "
        f"Severe at frame_id={second} of patient_id=P1"
    )


def test_a_patient_under_two_spellings_is_found(gated):
    frames = {f"{n}.png": sector(n) for n in range(3)}
    table, path = gated(frames, labels("0.png,P-07,Mild", "1.png,p7,Mild", "2.png,P8,Mild"))
    [finding] = check_leaks(table, [partition("P-07", "p7 P8")], path)
    assert finding.kind == "patient_under_two_spellings"
    assert "'P-07' and 'p7' in train and test" in finding.text


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("P7", "p07", True), ("P 7", "P_7", True), ("MÜLLER-3", "mu\u0308ller 3", True),
        ("Ｐ７", "P7", True), ("1-11", "11-1", False), ("P1", "P11", False), ("A-B", "AB", False),
        ("P10", "P1", False), ("0", "00", True), ("P\u200b7", "P7", True), ("P\u00ad7", "P7", True),
        ("\u0420\u0410-7", "PA7", True), ("\u0391\u03927", "AB7", True), ("7", "7.0", True),
        ("7", "7,00", True), ("7", "70", False), ("\u00c1sa", "asa", True), ("1.2", "12", False),
    ],
)  # fmt: skip
def test_spellings(one, other, same):
    assert (spelling_key(one) == spelling_key(other)) is same


@pytest.mark.parametrize(
    ("days", "parts"),
    [
        (("1", "2", "3"), []),
        (("3", "2", "1"), ["train .* validation", "train .* test", "validation .* test"]),
        (("1", "3", "3"), ["validation .* test"]),
    ],
)
def test_the_order_of_dates_is_checked_in_a_temporal_split(gated, days, parts):
    frames = {f"{n}.png": sector(n) for n in range(3)}
    rows = [f"{n}.png,P{n},Mild,{day}" for n, day in enumerate(days)]
    table, path = gated(frames, "path,patient_id,grade,study_day\n" + "\n".join(rows) + "\n")
    partitions = [partition("P0", "P2", "temporal", validation="P1")]
    assert check_leaks(table, partitions, path) == []  # no order asked for
    findings = check_leaks(table, partitions, path, time_column="study_day")
    assert [finding.kind for finding in findings] == ["date_order"] * len(parts)
    for finding, part in zip(findings, parts, strict=True):
        assert re.search(f"temporal: frames in {part} by study_day: 1, first", finding.text)


def test_all_findings_are_listed_at_once(gated):
    frames = {"a.png": sector(1), "b.png": sector(1), "c.png": sector(2), "d.jpg": sector(2)}
    table, path = gated(
        frames, labels("a.png,P0,Mild", "b.png,P1,Severe", "c.png,P2,Mild", "d.jpg,P3,Mild")
    )
    with pytest.raises(ValueError, match="Expected no leak") as caught:
        passed(table, [partition("P0 P2 P9", "P1 P3 P9")], path)
    for kind in ("patient_in_two_splits", "same_pixels", "near_duplicate", "two_grades"):
        assert f"{KINDS[kind]}: 1" in str(caught.value)


def test_frames_changed_or_lost_since_the_manifest_are_refused(gated):
    frames = {f"{n}.png": sector(n) for n in range(3)}
    table, path = gated(frames, labels("0.png,P0,Mild", "1.png,P1,Mild", "2.png,P2,Mild"))
    (path.parent / "0.png").write_bytes((path.parent / "1.png").read_bytes())
    (path.parent / "2.png").unlink()
    with pytest.raises(ValueError, match=r"(?s)Received: 2 others.*not those.*missing") as caught:
        check_leaks(table, [partition("P0", "P1 P2")], path)
    assert str(path.parent) not in str(caught.value)


def test_hashes_are_kept_by_pixels(gated, tmp_path):
    frames = {"a.png": sector(1), "b.jpg": sector(1)}
    table, path = gated(frames, labels("a.png,P0,Mild", "b.jpg,P1,Mild"))
    cache = tmp_path / "hashes.csv"
    partitions = [partition("P0", "P1")]
    first = check_leaks(table, partitions, path, cache_path=cache)
    for name in frames:
        (tmp_path / name).unlink()  # so a second decode would fail
    assert check_leaks(table, partitions, path, cache_path=cache) == first
    cache.write_text("pixels_sha256,other_hash\nx,y\n")  # of another version: hashed anew
    with pytest.raises(ValueError, match="2 others"):
        check_leaks(table, partitions, path, cache_path=cache)


def test_merging_patients_repairs_and_says_what_it_did(gated):
    frames = {f"{n}.png": sector(n) for n in range(3)} | {"3.jpg": sector(0), "4.png": sector(1)}
    table, path = gated(
        frames,
        labels("0.png,P0,Mild", "1.png,P1,Mild", "2.png,P2,Mild", "3.jpg,P1,Mild", "4.png,P3,"),
    )
    partitions = [partition("P0", "P1 P2 P3")]
    findings = check_leaks(table, partitions, path)
    repaired, done = merge_patients(table, findings)
    assert list(repaired["patient_id"]) == ["P0", "P0", "P2", "P0", "P3"]
    assert done == ["merged patient_id=P1 into P0"]
    assert check_leaks(repaired, [partition("P0 P3", "P2")], path) == []
    assert list(table["patient_id"]) == ["P0", "P1", "P2", "P1", "P3"]


def test_patients_of_two_grades_are_not_merged(gated):
    table, path = gated(
        {"a.png": sector(1), "b.jpg": sector(1)}, labels("a.png,P0,Mild", "b.jpg,P1,Severe")
    )
    findings = check_leaks(table, [partition("P0", "P1")], path)
    with pytest.raises(ValueError, match=r"P0 and P1: Mild and Severe"):
        merge_patients(table, findings)


def test_dropping_copies_repairs_and_says_what_it_did(gated):
    frames = {
        "a.png": sector(1), "b.png": sector(1), "c.jpg": sector(1), "d.png": sector(2),
        "e.png": sector(3), "f.png": sector(3), "g.png": sector(1),
    }  # fmt: skip
    table, path = gated(
        frames,
        labels(
            "a.png,P0,Mild", "b.png,P1,Mild", "c.jpg,P1,Mild", "d.png,P1,Mild",
            "e.png,P0,Mild", "f.png,P2,Normal", "g.png,P1,Mild",
        ),
    )  # fmt: skip
    partitions = [partition("P0", "P1 P2")]
    findings = check_leaks(table, partitions, path)
    repaired, dropped = drop_copies(table, findings)
    assert [Path(name).name for name in repaired["path"]] == ["a.png", "d.png"]
    assert list(dropped.columns) == ["path", "patient_id", "reason", "code"]
    assert list(dropped["path"]) == ["b.png", "c.jpg", "e.png", "f.png", "g.png"]
    keeper = table["frame_id"][0]
    assert list(dropped.iloc[0]) == ["b.png", "P1", f"copy of frame_id={keeper}", "copied_frame"]
    assert sum(dropped["reason"] == "the same pixels with two grades") == 2
    assert check_leaks(repaired, partitions, path) == []


def test_the_real_study_split_by_patient_passes(real_data_dir, tmp_path):
    build_manifest(real_data_dir / "byra2018" / "labels.csv", tmp_path / "manifest.csv")
    table = read_manifest(tmp_path / "manifest.csv")
    partitions = make_partitions(table, SplitConfig(kind="kfold"))
    passed(table, partitions, tmp_path / "manifest.csv", cache_path=tmp_path / "hashes.csv")

    # One clip under two ids, as happens when a patient comes back under a new number.
    second = (table["patient_id"] == "P30") & (table["frame_index"].astype(int) >= 5)
    table.loc[second, "patient_id"] = "P99"
    findings = check_leaks(
        table, [partition("P30", "P99")], tmp_path / "manifest.csv",
        cache_path=tmp_path / "hashes.csv",
    )  # fmt: skip
    assert [finding.patients for finding in findings] == [("P30", "P99")]
