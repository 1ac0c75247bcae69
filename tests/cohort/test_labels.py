"""Labels as people write them: words, maps, folders, joined tables, cells that nobody may run."""

import shutil

import pandas as pd
import pytest

from steatosis_tf.cli import main
from steatosis_tf.cohort.labels import (
    parse_grade,
)
from steatosis_tf.cohort.manifest import build_manifest, read_manifest
from steatosis_tf.sources.pseudonym import create_key, normal_patient_id, pseudonym, read_key
from steatosis_tf.sources.tables import read_spreadsheet

FOUR = ["a.png", "b.png", "c.png", "d.png"]


def table_of(grades: list[str]) -> str:
    lines = [f'{name},P{name[0]},"{grade}"' for name, grade in zip(FOUR, grades, strict=False)]
    return "path,patient_id,grade\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("texts", "grade"),
    [
        (["normal", "NORMAL", "0", "S0", "grade 0", "G0", "none", "no steatosis"], "Normal"),
        (["Mild", "1", "s1", "Grade 1", "g-1", "mild steatosis", "1.0", "1,0"], "Mild"),
        (["2", "S2", "grade_2", "G2", "Moderate hepatic steatosis", "stage 2"], "Moderate"),
        (["3", "S3", "severe fatty liver", "3.00"], "Severe"),
        (["", "4", "S4", "grade", "S", "mildly", "1.5", "12", "no", "not mild", "S 1 to 2"], ""),
        (["-1", "1-", "1-2", "-", "+", "mild-moderate", "S2/S3", "2-3", "- 1"], ""),
    ],
)
def test_grades_as_people_write_them(texts, grade):
    assert [parse_grade(text) for text in texts] == [grade] * len(texts)


def test_cells_that_hold_nothing(study, tmp_path, capsys):
    rows = ["a.png,P1,Mild,NA", "b.png,P2,n.a.,12", "c.png,P3,NaN,#N/A", "d.png,NA,Mild,12"]
    labels = study("path,Patient ID,grade,fat_percent\n" + "\n".join(rows), FOUR)
    assert main(["manifest", str(labels), "--output", str(tmp_path / "manifest.csv")]) == 0
    assert "rejected rows: 1 (empty patient_id 1)" in capsys.readouterr().out
    assert list(read_manifest(tmp_path / "manifest.csv")["grade"]) == ["Mild", "Mild", ""]


def test_one_id_of_several_hospitals_is_said(study, tmp_path, capsys):
    rows = ["a.png,7,0,Lyon", "b.png,7,0,Bern", "c.png,8,1,Lyon", "d.png,8,1,"]
    labels = study("path,patient_id,grade,site\n" + "\n".join(rows), FOUR)
    call = ["manifest", str(labels), "--output", str(tmp_path / "manifest.csv")]
    assert main(call) == 0
    assert "patient_id under several values of site: 1. " in capsys.readouterr().out
    labels.write_text(labels.read_text().replace("Bern", "Lyon"))
    assert main(call) == 0
    assert "several values of site" not in capsys.readouterr().out


def test_ids_that_a_spreadsheet_has_shortened_are_no_patient(study, tmp_path):
    labels = study("path,patient_id,grade\na.png,1.23E+05,0\nb.png,7.5,0\n", FOUR[:2])
    build_manifest(labels, tmp_path / "manifest.csv")
    manifest = tmp_path / "manifest.csv"
    assert list(read_manifest(manifest)["patient_id"]) == ["7.5"]
    for shortened in ("1.23E+11", "2E+11"):
        labels.write_text(f"path,patient_id,grade\na.png,{shortened},0\n")
        with pytest.raises(ValueError, match="none of 1 rows"):
            build_manifest(labels, tmp_path / "other.csv")
        spoilt = tmp_path / "spoilt.csv"
        spoilt.write_text(manifest.read_text().replace("7.5", shortened))
        with pytest.raises(ValueError, match=r"whole.*Received: '.*E\+11' at row 2"):
            read_manifest(spoilt)


def test_the_next_command_can_be_copied(study, tmp_path, capsys):
    labels = study("path,patient_id,grade\na.png,P1,0\n", FOUR[:1])
    assert main(["manifest", str(labels), "--output", str(tmp_path / "my study.csv")]) == 0
    assert f"now: steatosis train '{tmp_path}/my study.csv'" in capsys.readouterr().out


def test_two_columns_that_may_hold_the_grade_are_asked_back(study, tmp_path):
    labels = study("path,patient_id,grade,Grade\na.png,P1,0,3\n", FOUR[:1])
    with pytest.raises(ValueError, match=r"Received: grade, Grade\. Rename"):
        build_manifest(labels, tmp_path / "manifest.csv")


def test_a_table_in_the_words_of_a_team(study, tmp_path):
    labels = study(table_of(["0", "S2", "moderate steatosis", "3,0"]), FOUR)
    build_manifest(labels, tmp_path / "manifest.csv")
    grades = read_manifest(tmp_path / "manifest.csv")["grade"]
    assert list(grades) == ["Normal", "Moderate", "Moderate", "Severe"]


@pytest.mark.parametrize("grades", [["1", "2", "3", "4"], ["1", "2", "3", "3"], ["S1", "S2", "S4"]])
def test_numbers_without_a_0_are_asked_back(study, tmp_path, grades):
    labels = study(table_of(grades), FOUR)
    with pytest.raises(ValueError, match=r"numbers without a 0, which may count from 1") as found:
        build_manifest(labels, tmp_path / "manifest.csv")
    map_path = tmp_path / "map.csv"
    lines = str(found.value).splitlines()
    lines = lines[lines.index("value,grade") :]
    assert lines == ["value,grade", *(f"{grade}," for grade in sorted(set(grades)))]
    names = dict(zip(sorted(set(grades)), ("Normal", "Mild", "Moderate", "Severe"), strict=False))
    map_path.write_text("\n".join([lines[0], *(f"{v},{g}" for v, g in names.items())]))
    build_manifest(labels, tmp_path / "manifest.csv", grade_map_path=map_path)
    found_grades = read_manifest(tmp_path / "manifest.csv")["grade"]
    assert list(found_grades) == [names[grade] for grade in grades]


def test_numbers_that_say_what_they_count_are_taken_without_a_0(study, tmp_path):
    build_manifest(study(table_of(["S1", "grade 2"]), FOUR[:2]), tmp_path / "manifest.csv")
    assert list(read_manifest(tmp_path / "manifest.csv")["grade"]) == ["Mild", "Moderate"]


def test_an_unknown_grade_shows_the_counts_and_the_map_to_write(study, tmp_path, capsys):
    labels = study(table_of(["fatty++", "fatty++", "=2b", "Mild"]), FOUR)
    output = tmp_path / "manifest.csv"
    assert main(["manifest", str(labels), "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "'fatty++' in 2 rows, '=2b' in 1 rows" in shown
    assert "--grade-map:\nvalue,grade\n=2b,\nfatty++,\n" in shown
    with pytest.raises(ValueError, match=r"(?s)row 2, a\.png: unknown grade.*value,grade\n=2b,"):
        build_manifest(labels, output, strict=True)
    (tmp_path / "map.csv").write_text("value;grade\nFATTY++;Severe\n=2b;\n")
    verb = ["manifest", labels, "--output", output, "--grade-map", tmp_path / "map.csv"]
    assert main([str(word) for word in verb]) == 0
    assert list(read_manifest(output)["grade"]) == ["Severe", "Severe", "", "Mild"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("value,name\nx,Mild\n", "columns value and grade"),
        ("value,grade\nx,Grave\n", "'x' grade='Grave' at row 2"),
        ("value,grade\nx,Mild\nX,Severe\n", "'X' grade='Severe' at row 3"),
    ],
)
def test_an_unusable_map_is_refused(study, tmp_path, text, message):
    (tmp_path / "map.csv").write_text(text)
    labels = study(table_of(["Mild"]), FOUR[:1])
    with pytest.raises(ValueError, match=message):
        build_manifest(labels, tmp_path / "m.csv", grade_map_path=tmp_path / "map.csv")


def test_grades_from_folder_names(study, tmp_path):
    folder = study("", ["S0/P1/a.png", "S0/P1/b.png", "severe/P2/a.png"]).parent
    (folder / "labels.csv").unlink()
    (folder / "S0" / ".DS_Store").write_bytes(b"x")
    build_manifest(folder, tmp_path / "manifest.csv")
    table = read_manifest(tmp_path / "manifest.csv")
    assert list(table["grade"]) == ["Normal", "Normal", "Severe"]
    assert list(table["patient_id"]) == ["P1", "P1", "P2"]
    (folder / "S0").rename(folder / "1")
    (folder / "severe").rename(folder / "4")
    with pytest.raises(ValueError, match="numbers without a 0"):
        build_manifest(folder, tmp_path / "manifest.csv")
    shutil.move(folder / "1" / "P1" / "a.png", folder / "1" / "a.png")
    with pytest.raises(ValueError, match=r"1 of 3 files elsewhere\. Without a patient"):
        build_manifest(folder, tmp_path / "manifest.csv")


def test_grades_are_joined_by_patient(study, tmp_path):
    labels = study("path,patient_id,site\na.png,P1,x\nb.png,P1,x\nc.png,P2,y\n", FOUR[:3])
    (tmp_path / "grades.csv").write_text("patient_id,grade,bmi\nP1,S1,31\nP9,S3,20\n")
    summary = build_manifest(labels, tmp_path / "manifest.csv", grades_path=tmp_path / "grades.csv")
    table = read_manifest(tmp_path / "manifest.csv")
    assert list(table["grade"]) == ["Mild", "Mild", ""]
    assert list(table["bmi"]) == ["31", "31", ""]
    assert summary.num_grades_unused == 1
    assert summary.joined == (
        "joined by patient_id: grade, bmi\n1 rows of grades.csv fit no frame, first row 3."
    )


@pytest.mark.parametrize("by", ["patient_id", "original_patient_id"])
def test_zeros_that_a_spreadsheet_has_taken_away_are_told_of(study, tmp_path, by):
    key = create_key(tmp_path / "study.key")
    ids = ["0012", "0345"]
    if by == "original_patient_id":
        ids = [pseudonym(read_key(key), "patient", "id", id_) for id_ in ids]
    labels = study(f"path,patient_id\na.png,{ids[0]}\nb.png,{ids[1]}\n", FOUR[:2])
    grades = tmp_path / "grades.csv"
    how = {"grades_path": grades, "key_path": key}
    grades.write_text(f"{by},grade\n0012,S0\n345,S1\n")
    summary = build_manifest(labels, tmp_path / "manifest.csv", **how)
    assert "fit no frame, first row 3. Some would fit with another number of z" in summary.joined
    assert list(read_manifest(tmp_path / "manifest.csv")["grade"]) == ["Normal", ""]
    grades.write_text(f"{by},grade\n12,S0\n345,S1\n")
    with pytest.raises(ValueError, match=r"none that is in the label table\. Some would fit"):
        build_manifest(labels, tmp_path / "manifest.csv", **how)


def test_grades_are_joined_by_the_hospitals_own_id_and_the_key(study, tmp_path):
    key = create_key(tmp_path / "study.key")
    one = pseudonym(read_key(key), "patient", "id", normal_patient_id("77 A"))
    labels = study(f"path,patient_id\na.png,{one}\nb.png,other\n", FOUR[:2])
    (tmp_path / "grades.csv").write_text("original_patient_id,fat_percent\n77a,40\n")
    with pytest.raises(ValueError, match="Give --key FILE"):
        build_manifest(labels, tmp_path / "m.csv", grades_path=tmp_path / "grades.csv")
    how = {"grades_path": tmp_path / "grades.csv", "key_path": key}
    build_manifest(labels, tmp_path / "m.csv", **how)
    assert list(read_manifest(tmp_path / "m.csv")["grade"]) == ["Moderate", ""]
    (tmp_path / "grades.csv").write_text("patient_id,fat_percent\n77a,40\n")
    with pytest.raises(ValueError, match="Name the column original_patient_id where"):
        build_manifest(labels, tmp_path / "n.csv", **how)
    assert "77a" not in (tmp_path / "m.csv").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patient_id,bmi\nP1,20\n", "and grade or fat_percent"),
        ("who,grade\nP1,Mild\n", "a column out of path, study_id.*Received: who, grade\\.$"),
        ("patient_id,grade,roi_source\nP1,Mild,person\n", "but none out of"),
        ("patient_id,grade\nP1,Mild\nP1,Severe\n", "2 rows that are empty, broken or at odds"),
        ("patient_id,grade\n,Mild\n", "1 rows that are empty"),
        ("patient_id,grade\nP7,Mild\n", "none that is in the label table"),
        ("patient_id,grade\nP1,Severe\n", "no grade where the label table has another"),
    ],
)
def test_a_table_of_grades_that_cannot_be_joined(study, tmp_path, text, message):
    labels = study("path,patient_id,grade\na.png,P1,Mild\n", FOUR[:1])
    (tmp_path / "grades.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        build_manifest(labels, tmp_path / "m.csv", grades_path=tmp_path / "grades.csv")


@pytest.mark.parametrize("column", ["patient_id", "original_patient_id"])
def test_a_row_that_names_a_study_and_another_patient_is_no_grade(study, tmp_path, column):
    """Two lists pasted side by side, one row apart: each grade would go to the next patient."""
    key = create_key(tmp_path / "study.key")
    one, two = (pseudonym(read_key(key), "patient", "id", id_) for id_ in ("11", "22"))
    labels = study(f"path,study_id,patient_id\na.png,s1,{one}\nb.png,s2,{two}\n", FOUR[:2])
    ids = (one, two) if column == "patient_id" else ("11", "22")
    grades = tmp_path / "grades.csv"
    how = {"grades_path": grades, "key_path": key}
    grades.write_text(f"study_id,{column},grade\ns1,{ids[0]},Mild\ns2,,Severe\ns9,x,Mild\n")
    assert build_manifest(labels, tmp_path / "m.csv", **how).num_grades_unused == 1
    grades.write_text(f"study_id,{column},grade\ns1,{ids[1]},Mild\ns2,{ids[0]},Severe\n")
    with pytest.raises(ValueError, match=rf"whose {column} is .*2 with another, first row 2"):
        build_manifest(labels, tmp_path / "m.csv", **how)


@pytest.mark.parametrize("column", ["roi_source", "roi_state", "roi_reviewer", "roi_marks"])
def test_a_label_table_cannot_bring_what_only_a_review_says(study, tmp_path, column):
    labels = study(f"path,patient_id,{column}\na.png,P1,person\n", FOUR[:1])
    with pytest.raises(ValueError, match=f"Received: {column}"):
        build_manifest(labels, tmp_path / "manifest.csv")


@pytest.mark.parametrize("column", ["original_patient_id", "Original Study UID"])
def test_a_label_table_cannot_bring_the_hospitals_own_ids(study, tmp_path, column):
    labels = study(f"path,patient_id,{column}\na.png,P1,77\n", FOUR[:1])
    with pytest.raises(ValueError, match=r"pseudonyms alone.*Take it out; --grades CSV with --key"):
        build_manifest(labels, tmp_path / "m.csv")


@pytest.mark.parametrize("column", ["Name", "Patient Name", "Vorname", "birth-date", "Apellidos"])
def test_what_names_a_person_is_brought_by_no_table(study, tmp_path, column):
    labels = study(f"path,patient_id,{column}\na.png,P1,x\n", FOUR[:1])
    with pytest.raises(ValueError, match=rf"names a person.*Received: {column}\. Take it out"):
        build_manifest(labels, tmp_path / "m.csv")
    labels.write_text("path,patient_id,scanner_name\na.png,P1,E9\n")
    grades = tmp_path / "grades.csv"
    grades.write_text(f"patient_id,grade,{column}\nP1,Mild,x\n")
    with pytest.raises(ValueError, match=r"^grades\.csv: expected nothing that names a person"):
        build_manifest(labels, tmp_path / "m.csv", grades_path=grades)
    assert build_manifest(labels, tmp_path / "m.csv").num_accepted == 1


def test_a_split_in_a_label_table_is_told_its_way(study, tmp_path):
    labels = study("path,patient_id,grade,split\na.png,P1,Mild,test\n", FOUR[:1])
    way = r"Received: split\. Rename .*`steatosis split MANIFEST_CSV --import labels\.csv`"
    with pytest.raises(ValueError, match=way):
        build_manifest(labels, tmp_path / "manifest.csv")


@pytest.mark.parametrize("box", ["1,2,3,", "1,2,0,5", "1,2,-3,5", "1,2,3.5,5", "1,2,1_0,5", "a,,,"])
def test_a_box_of_a_label_table_is_checked(study, tmp_path, box):
    head = "path,patient_id,roi_top,roi_left,roi_height,roi_width"
    labels = study(f"{head}\na.png,P1,{box}\nb.png,P2,1,2,30,40\nc.png,P3,,,,\n", FOUR[:3])
    build_manifest(labels, tmp_path / "manifest.csv")
    rejected = pd.read_csv(tmp_path / "manifest.rejected.csv", dtype=str)
    assert list(rejected["code"]) == ["bad_box"]
    assert list(read_manifest(tmp_path / "manifest.csv")["patient_id"]) == ["P2", "P3"]


@pytest.mark.parametrize("fat", ["1_0", "0x1", "١٢", "12,5,1", "1e", "+5", "inf"])
def test_what_is_no_number_is_no_fat(study, tmp_path, fat):
    labels = study(f'path,patient_id,fat_percent\na.png,P1,"{fat}"\nb.png,P2,"12,5"\n', FOUR[:2])
    build_manifest(labels, tmp_path / "manifest.csv")
    assert list(read_manifest(tmp_path / "manifest.csv")["fat_percent"]) == [12.5]
    assert list(pd.read_csv(tmp_path / "manifest.rejected.csv")["code"]) == ["fat_percent"]


def test_a_percent_sign_and_spelt_out_headings_are_taken(study, tmp_path):
    text = "Path;Patient ID;Fat-Percent;Fat remark\na.png;P1;12,5 %;x\nb.png;P2;70%;y\n"
    build_manifest(study(text, FOUR[:2]), tmp_path / "manifest.csv")
    table = read_manifest(tmp_path / "manifest.csv")
    assert list(table["fat_percent"]) == [12.5, 70.0]
    assert list(table["grade"]) == ["Mild", "Severe"]
    assert list(table["Fat remark"]) == ["x", "y"]


def test_decimal_commas_of_known_numbers_become_points(study, tmp_path):
    rows = "path;patient_id;grade;bmi;pixel_height_mm;segments", "a.png;P;0;27,5;0,31;5,6"
    labels = study("\n".join(rows), FOUR)
    build_manifest(labels, tmp_path / "manifest.csv")
    (row,) = read_manifest(tmp_path / "manifest.csv").to_dict("records")
    assert (row["bmi"], row["pixel_height_mm"], row["segments"]) == ("27.5", "0.31", "5,6")


def test_fractions_are_asked_back_unless_a_grade_stands_beside_them(study, tmp_path):
    rows = ["a.png,P1,0.02,Normal", "b.png,P2,0.4,Normal", "c.png,P3,0.9,Normal"]
    text = "\n".join(["path,patient_id,fat_percent,grade", *rows])
    build_manifest(study(text, FOUR[:3]), tmp_path / "manifest.csv")
    assert list(read_manifest(tmp_path / "manifest.csv")["fat_percent"]) == [0.02, 0.4, 0.9]
    bare = study(text.replace("Normal", ""), FOUR[:3])
    with pytest.raises(ValueError, match=r"3 cells from 0\.02 to 0\.9, which may be fractions"):
        build_manifest(bare, tmp_path / "other.csv")


def test_two_fat_values_of_one_patient_are_a_conflict(study, tmp_path):
    text = "path,patient_id,fat_percent\na.png,P1,40\nb.png,P1,41\nc.png,P2,7\nd.png,P2,7.0\n"
    build_manifest(study(text, FOUR), tmp_path / "manifest.csv")
    assert list(read_manifest(tmp_path / "manifest.csv")["patient_id"]) == ["P2", "P2"]
    reasons = pd.read_csv(tmp_path / "manifest.rejected.csv")["reason"]
    assert set(reasons) == {"one patient with two fat percentages: 40.0 and 41.0"}


def test_fat_is_of_the_patient_and_not_of_the_row(study, tmp_path):
    """Else a model would be fitted to grades where the fat of everybody is known."""
    rows = ["a.png,P1,40,Moderate", "b.png,P1,,Moderate", "c.png,P2,,Mild", "d.png,P1,,"]
    text = "\n".join(["path,patient_id,fat_percent,grade", *rows])
    build_manifest(study(text, FOUR), tmp_path / "manifest.csv")
    fat = read_manifest(tmp_path / "manifest.csv")["fat_percent"]
    assert list(fat.fillna(-1)) == [40, 40, -1, -1]
    two = study(text.replace("b.png,P1,,", "b.png,P1,41,") + "Moderate", FOUR)
    build_manifest(two, tmp_path / "manifest.csv")
    fat = read_manifest(tmp_path / "manifest.csv").set_index("patient_id")["fat_percent"]
    assert fat.isna().to_dict() == {"P1": True, "P2": True}


def test_no_spreadsheet_runs_a_cell_and_no_cell_changes(study, tmp_path):
    cells = ["=1+1", "@x", "+cmd", "-cmd", "-3.5", "+1e3", "'=1", "'quoted", "plain"]
    rows = [f"{n}.png,P{n},{cell}" for n, cell in enumerate(cells)]
    text = "path,patient_id,note\n" + "\n".join([*rows, "x.png,=bad,=note"])
    labels = study(text, [f"{n}.png" for n in range(len(cells))])
    build_manifest(labels, tmp_path / "manifest.csv")
    raw = pd.read_csv(tmp_path / "manifest.csv", dtype=str)["note"]
    assert list(raw) == [
        "'=1+1", "'@x", "'+cmd", "'-cmd", "-3.5", "+1e3", "'=1", "'quoted", "plain",
    ]  # fmt: skip
    cells[6] = "=1"  # as a spreadsheet shows it
    assert list(read_manifest(tmp_path / "manifest.csv")["note"]) == cells
    assert list(pd.read_csv(tmp_path / "manifest.rejected.csv")["patient_id"]) == ["'=bad"]
    assert list(read_spreadsheet(tmp_path / "manifest.csv")["note"]) == cells
