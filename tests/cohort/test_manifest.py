"""build_manifest and read_manifest from the outside: what goes in, what lands in which file."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import openpyxl
import pandas as pd
import pytest
from PIL import Image

from steatosis_tf.cli import main
from steatosis_tf.cohort.manifest import (
    build_manifest,
    frame_path,
    read_manifest,
    write_manifest,
)
from steatosis_tf.sources.images import read_frame

TWO = ["a.png", "b.png"]


def rejected(output_path: Path) -> dict[str, str]:
    table = pd.read_csv(output_path.with_suffix(".rejected.csv"), dtype=str, keep_default_na=False)
    return {f"{row.row}:{row.path}": row.reason for row in table.itertuples()}


def test_manifest_holds_every_good_row_with_its_covariates(study, tmp_path):
    labels = study("path,patient_id,fat_percent,scanner\na.png,007,4,E9\nb.png,P2,66.5,\n", TWO)
    output = tmp_path / "out" / "manifest.csv"

    summary = build_manifest(labels, output)

    table = read_manifest(output)
    assert list(table.columns) == [
        "frame_id", "path", "patient_id", "grade", "fat_percent", "pixels_sha256", "scanner",
    ]  # fmt: skip
    assert list(table["patient_id"]) == ["007", "P2"]
    assert list(table["grade"]) == ["Normal", "Severe"]
    assert list(table["fat_percent"]) == [4.0, 66.5]
    assert list(table["scanner"]) == ["E9", ""]
    assert list(table["path"]) == ["../study/a.png", "../study/b.png"]
    assert table["frame_id"][0] == hashlib.sha256(b"a.png").hexdigest()[:16]
    assert frame_path(output, table["path"][0]).samefile(labels.parent / "a.png")
    assert (summary.num_rows, summary.num_accepted, summary.num_rejected) == (2, 2, 0)
    assert summary.patients_per_grade == {"Normal": 1, "Severe": 1}
    assert rejected(output) == {}


def test_pixel_hash_is_of_pixels_not_of_the_file(study, tmp_path):
    labels = study("path,patient_id\na.png,P1\nb.bmp,P1\nc.png,P1\n", ["a.png", "c.png"])
    frame = read_frame(labels.parent / "a.png")
    (labels.parent / "b.bmp").write_bytes(cv2.imencode(".bmp", frame)[1].tobytes())
    build_manifest(labels, tmp_path / "manifest.csv")
    hashes = list(read_manifest(tmp_path / "manifest.csv")["pixels_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_rows_without_a_grade_are_kept(study, tmp_path):
    labels = study("path,patient_id,grade\na.png,P1,\nb.png,P2,mild\n", TWO)
    summary = build_manifest(labels, tmp_path / "manifest.csv")
    assert list(read_manifest(tmp_path / "manifest.csv")["grade"]) == ["", "Mild"]
    assert summary.num_ungraded == 1


@pytest.mark.parametrize(
    ("rows", "row", "reason"),
    [
        ("gone.png,P1,Mild,", 2, "missing or unreadable file"),
        ("zero.png,P1,Mild,", 2, "empty file"),
        ("half.png,P1,Mild,", 2, "truncated PNG"),
        ("text.png,P1,Mild,", 2, "not a readable image"),
        ("deep.png,P1,Mild,", 2, "expected 8-bit pixels. Received: uint16"),
        ("folder,P1,Mild,", 2, "missing or unreadable file"),
        ("a.png,P1,Grave,", 2, "unknown grade 'Grave', expected one of Normal, Mild"),
        ("a.png,P1,,101", 2, "fat_percent '101' is not a number from 0 to 100"),
        ("a.png,P1,,-1", 2, "fat_percent '-1' is not a number from 0 to 100"),
        ("a.png,P1,,inf", 2, "fat_percent 'inf' is not a number from 0 to 100"),
        ("a.png,P1,,7%%", 2, "fat_percent '7%%' is not a number from 0 to 100"),
        ("a.png,P1,Severe,4", 2, "grade Severe does not agree with fat_percent 4"),
        ("a.png,,Mild,", 2, "empty patient_id"),
        (",P1,Mild,", 2, "empty path"),
        ("a.png,P1,Mild,,stray", 2, "more cells than the header has"),
        ("b.png,P1,Mild,\na.png,P1,Normal,", 3, "one patient with two grades: Normal and Mild"),
        ("a.png,P1,Mild,\na.png,P1,Mild,", 3, "duplicate path, first at row 2"),
        ("a.png,P1,Mild,\n./a.png,P1,Mild,", 3, "duplicate path, first at row 2"),
        ("a.png,P1,Mild,\na.png,P2,Mild,", 2, "duplicate path under 2 patients"),
        ("a.png,P1,Mild,\na.png,P2,Mild,", 3, "duplicate path under 2 patients"),
    ],
)
def test_every_fault_lands_in_rejected_with_its_row(study, tmp_path, rows, row, reason):
    labels = study(f"path,patient_id,grade,fat_percent\n{rows}\ngood.png,P9,Severe,\n",
                   ["a.png", "b.png", "good.png"])  # fmt: skip
    folder = labels.parent
    whole = (folder / "a.png").read_bytes()
    (folder / "zero.png").write_bytes(b"")
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_bytes(b"this is a letter")
    (folder / "deep.png").write_bytes(
        cv2.imencode(".png", np.zeros((40, 40), np.uint16))[1].tobytes()
    )
    (folder / "folder").mkdir()

    summary = build_manifest(labels, tmp_path / "manifest.csv")

    found = rejected(tmp_path / "manifest.csv")
    assert reason in next(text for key, text in found.items() if key.startswith(f"{row}:"))
    accepted = read_manifest(tmp_path / "manifest.csv")
    assert "good.png" in {Path(path).name for path in accepted["path"]}
    assert len(accepted) + len(found) == summary.num_rows == len(rows.splitlines()) + 1


def test_one_file_named_in_two_ways_stands_once(study, tmp_path):
    labels = study("", TWO)
    rows = ["a.png,P1,0", f"{labels.parent}/a.png,P1,0", "b.png,P2,0", "../study/b.png,P3,3"]
    labels.write_text("\n".join(["path,patient_id,grade", *rows]))
    build_manifest(labels, tmp_path / "manifest.csv")
    assert list(read_manifest(tmp_path / "manifest.csv")["patient_id"]) == ["P1"]
    assert [reason.split(",")[0] for reason in rejected(tmp_path / "manifest.csv").values()] == [
        "duplicate path", *["duplicate path under 2 patients"] * 2,
    ]  # fmt: skip


def test_later_pages_are_counted_and_named_by_row(study, tmp_path, capsys):
    labels = study("path,patient_id,grade\na.png,P1,Mild\nb.tif,P2,Mild\n", ["a.png"])
    pages = [Image.fromarray(np.full((48, 64), level, np.uint8)) for level in (9, 40, 90)]
    pages[0].save(labels.with_name("b.tif"), save_all=True, append_images=pages[1:])
    assert main(["manifest", str(labels), "--output", str(tmp_path / "manifest.csv")]) == 0
    assert "later pages of 1 files are not used: row 3 (2)" in capsys.readouterr().out


def test_a_split_outlives_a_second_manifest_of_the_same_patients(study, tmp_path, capsys):
    rows = ["path,patient_id,grade", "a.png,=7,0", "b.png,P2,0", "c.png,P3,"]
    labels, manifest = study("\n".join(rows), [*TWO, "c.png"]), tmp_path / "manifest.csv"
    build_manifest(labels, manifest)
    write_manifest(read_manifest(manifest).assign(split=["train", "test", ""]), manifest)
    labels.write_text("\n".join(rows).replace("b.png,P2,0", "b.png,P2,1"))
    assert build_manifest(labels, manifest).lost_split == ""
    table = read_manifest(manifest)
    assert list(table["grade"]) == ["Normal", "Mild", ""]
    assert list(table["split"]) == ["train", "test", ""]
    labels.write_text("\n".join(rows) + "3")
    assert main(["manifest", str(labels), "--output", str(manifest)]) == 0
    assert "is gone: it has not 1 patients; split again" in capsys.readouterr().out
    assert "split" not in read_manifest(manifest).columns


def test_a_zero_byte_in_a_path_costs_its_row_alone(study, tmp_path):
    labels = study("path,patient_id,grade\na.png,P1,0\nb\0.png,P2,0\n", TWO)
    build_manifest(labels, tmp_path / "manifest.csv")
    (reason,) = rejected(tmp_path / "manifest.csv").values()
    assert reason == "missing or unreadable file (embedded null byte)"


def test_a_manifest_saved_with_semicolons_is_told_so(study, tmp_path):
    manifest = tmp_path / "manifest.csv"
    build_manifest(study("path,patient_id,grade\na.png,P1,0\n", TWO), manifest)
    manifest.write_text(manifest.read_text().replace(",", ";"))
    with pytest.raises(ValueError, match="with semicolons or tabs"):
        read_manifest(manifest)


def test_all_faults_are_reported_at_once_and_strict_writes_nothing(study, tmp_path):
    labels = study(
        "path,patient_id,fat_percent\na.png,P1,300\ngone.png,P2,5\nb.png,P3,5\n", TWO
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"(?s)2 rows with faults.*row 2, a\.png.*row 3, gone"):
        build_manifest(labels, tmp_path / "out" / "manifest.csv", strict=True)
    assert not (tmp_path / "out").exists()


def test_no_good_row_says_so_and_leaves_the_reasons(study, tmp_path):
    labels = study("path,patient_id\ngone.png,P1\n", [])
    with pytest.raises(ValueError, match=r"(?s)none of 1 rows .*\.csv\.\n  row 2, gone\.png"):
        build_manifest(labels, tmp_path / "manifest.csv")
    assert len(rejected(tmp_path / "manifest.csv")) == 1


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfpath,patient_id,fat_percent\na.png,P1,4.5\nb.png,P2,40\n",
        b"path;patient_id;fat_percent\na.png;P1;4,5\nb.png;P2;40\n",
        b"path\tpatient_id\tfat_percent\na.png\tP1\t4.5\nb.png\tP2\t40\n",
        b"path,patient_id,fat_percent\r\na.png,P1,4.5\r\n\r\nb.png,P2,40\r\n",
        b"path,patient_id,fat_percent\ra.png,P1,4.5\rb.png,P2,40\r",
        b'"path","patient_id","fat_percent"\n" a.png ", P1 ,4.5\n"b.png",P2,40\n',
        b"path,patient_id,fat_percent,,\na.png,P1,4.5,,\nb.png,P2,40,,\n",
        b"\xef\xbb\xbfpath;patient_id;fat_percent\r\n.\\a.png;P1;4,5\r\nb.png;P2;40",
        "path\tpatient_id\tfat_percent\r\na.png\tP1\t4.5\r\nb.png\tP2\t40\r\n".encode("utf-16"),
    ],
    ids=["bom", "semicolons", "tabs", "windows", "old mac", "quotes", "trailing", "excel", "utf16"],
)
def test_spreadsheet_dialects_give_one_manifest(study, tmp_path, text):
    build_manifest(study(text, TWO), tmp_path / "manifest.csv")
    table = read_manifest(tmp_path / "manifest.csv")
    assert list(table["path"]) == ["study/a.png", "study/b.png"]
    assert list(table["patient_id"]) == ["P1", "P2"]
    assert list(table["fat_percent"]) == [4.5, 40.0]
    assert rejected(tmp_path / "manifest.csv") == {}


def test_row_numbers_are_those_of_the_spreadsheet(study, tmp_path):
    labels = study("path,patient_id\r\na.png,P1\r\n\r\ngone.png,P2\r\n", TWO)
    build_manifest(labels, tmp_path / "manifest.csv")
    assert list(rejected(tmp_path / "manifest.csv")) == ["4:gone.png"]


def test_unicode_names_survive(study, tmp_path):
    names = ["Лівер/кадр 1.png", "肝臓, 一.png"]
    labels = study(f'path,patient_id\n{names[0]},Ü1\n"{names[1]}",Ü1\n', names)
    build_manifest(labels, tmp_path / "manifest.csv")
    table = read_manifest(tmp_path / "manifest.csv")
    assert [str(Path(path).relative_to("study")) for path in table["path"]] == names
    assert set(table["patient_id"]) == {"Ü1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "an empty file"),
        (b"\n\n", "an empty file"),
        (b"path,patient_id\n", "a header only"),
        (b"file,patient\na.png,P1\n", "missing: path, patient_id"),
        (b"path,patient_id,path\na.png,P1,a.png\n", "every column once"),
        (b"path,patient_id,split\na.png,P1,train\n", "no column named .*split"),
        (b"path,patient_id,\na.png,P1,Mild\n", "a name over every column"),
        (b'path,patient_id\n"a.png,P1\nb.png,P2\n', "Close the quotes"),
        ("path,patient_id\nä.png,P1\n".encode("latin-1"), "save as 'CSV UTF-8'"),
        ("path,patient_id\na.png,P1\n".encode("utf-16")[:-1], "save as 'CSV UTF-8'"),
    ],
)
def test_unusable_tables_are_refused_with_the_remedy(study, tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        build_manifest(study(text, TWO), tmp_path / "manifest.csv")


def test_missing_table_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"path='labels\.csv' \(No such file"):
        build_manifest(tmp_path / "labels.csv", tmp_path / "manifest.csv")


@pytest.mark.parametrize("output", ["labels.csv", "manifest.csv"])
def test_the_label_table_is_never_overwritten(study, output):
    labels = study("path,patient_id\na.png,P1\n", TWO)
    if output == "manifest.csv":  # a team mends it and feeds it back
        labels = labels.rename(labels.with_name("manifest.rejected.csv"))
    before = labels.read_bytes()
    with pytest.raises(ValueError, match="keep them whole"):
        build_manifest(labels, labels.parent / output)
    assert labels.read_bytes() == before


def test_a_manifest_is_made_of_a_workbook(study, tmp_path):
    labels = study("", TWO).with_suffix(".xlsx")
    book = openpyxl.Workbook()
    for row in (["path", "patient_id", "grade"], ["a.png", "012", 0], ["b.png", 1.23456789e15, 1]):
        book.active.append(row)
    book.save(labels)
    summary = build_manifest(labels, tmp_path / "manifest.csv")
    assert summary.rejected_kinds == {"patient_id shortened by a spreadsheet": 1}
    (row,) = read_manifest(tmp_path / "manifest.csv").to_dict("records")
    assert (row["patient_id"], row["grade"]) == ("012", "Normal")


def test_same_labels_give_the_same_bytes(study, tmp_path):
    labels = study("path,patient_id,fat_percent\na.png,P1,4\ngone.png,P1,4\nb.png,P2,50\n", TWO)
    for name in ("one", "two"):
        build_manifest(labels, tmp_path / name / "manifest.csv")
    for name in ("manifest.csv", "manifest.rejected.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(os.listdir(tmp_path / "one")) == ["manifest.csv", "manifest.rejected.csv"]


def test_reading_gives_back_what_was_written(study, tmp_path):
    labels = study("path,patient_id,fat_percent\na.png,0012,\nb.png,None,50\n", TWO)
    build_manifest(labels, tmp_path / "manifest.csv")
    table = read_manifest(tmp_path / "manifest.csv")
    table["roi_top"] = pd.array([12, None], dtype="Int64")
    write_manifest(table, tmp_path / "manifest.csv")
    again = read_manifest(tmp_path / "manifest.csv")
    pd.testing.assert_frame_equal(table, again)
    assert list(again["patient_id"]) == ["0012", "None"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"manifest\.csv.*not a CSV table"),
        ("path,patient_id\na.png,P1\n", "without frame_id, grade"),
        ("frame_id,path,patient_id,grade,fat_percent,pixels_sha256\n1,a,P,,,\n1,b,P,,,\n",
         "1 repeated, first frame_id=1 at row 3"),
        ("frame_id,path,patient_id,grade,fat_percent,pixels_sha256\n1,a,P,,much,\n",
         "fat_percent.*number.*'much'.*row 2"),
        ("frame_id,path,patient_id,grade,fat_percent,pixels_sha256,roi_top\n1,a,P,,,,1.5\n",
         "roi_top.*whole number.*'1.5'.*row 2"),
        ("frame_id,path,patient_id,grade,fat_percent,pixels_sha256\n1,a,P,severe,,\n",
         "grade.*Normal, Mild.*'severe'.*row 2"),
        ("frame_id,path,patient_id,grade,fat_percent,pixels_sha256\n1,a,,Mild,,\n",
         "patient_id.*row 2"),
    ],
)  # fmt: skip
def test_a_manifest_spoilt_by_hand_is_refused(tmp_path, text, message):
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path / "manifest.csv")


def test_missing_manifest_tells_how_to_make_one(tmp_path):
    with pytest.raises(ValueError, match="steatosis manifest LABELS_CSV"):
        read_manifest(tmp_path / "manifest.csv")


def test_the_real_frames_all_pass(real_data_dir, tmp_path):
    summary = build_manifest(real_data_dir / "byra2018" / "labels.csv", tmp_path / "manifest.csv")
    assert (summary.num_accepted, summary.num_rejected, summary.num_patients) == (440, 0, 44)
    assert summary.patients_per_grade == {"Normal": 14, "Mild": 16, "Moderate": 6, "Severe": 8}
    # Counted by `sha256sum *.png | sort | uniq -w64 -D` over the files themselves.
    table = read_manifest(tmp_path / "manifest.csv")
    copies = table.loc[table["pixels_sha256"].duplicated(keep=False)]
    assert set(copies["patient_id"]) == {"P06", "P43"}


def test_a_named_pipe_instead_of_labels_is_refused_at_once(tmp_path):
    """In a process of its own, which can be ended if it waits for ever."""
    os.mkfifo(tmp_path / "labels.csv")
    command = ("manifest", str(tmp_path / "labels.csv"), "--output", str(tmp_path / "manifest.csv"))
    done = subprocess.run(
        [sys.executable, "-m", "steatosis_tf.cli", *command],
        timeout=60, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "path='labels.csv' (not a regular file)" in done.stderr


@pytest.mark.parametrize(("grade", "fat"), [("Severe", "12.0"), ("Mild", "250.0")])
def test_a_grade_or_fat_changed_by_hand_is_refused(study, tmp_path, grade, fat):
    path = tmp_path / "manifest.csv"
    build_manifest(study("path,patient_id,fat_percent\na.png,P1,12\n", ["a.png"]), path)
    path.write_text(path.read_text().replace("Mild,12.0", f"{grade},{fat}"))
    with pytest.raises(ValueError, match=r"expected (grade|fat_percent) to be .* at row 2"):
        read_manifest(path)


def test_an_id_that_differs_by_a_letter_nobody_sees_is_named(study, tmp_path, capsys):
    labels = study("path,patient_id,grade\na.png,P7,Mild\nb.png,P\u200b7,Mild\n", TWO)
    assert main(["manifest", str(labels), "--output", str(tmp_path / "manifest.csv")]) == 0
    printed = capsys.readouterr().out
    assert "one patient in two spellings counts as two: 'P7' = 'P\\u200b7'" in printed
