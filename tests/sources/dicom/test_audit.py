"""`audit_phi` finds what was planted and nothing in our own output."""

import base64
import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from made_dicom import UID_ROOT, file_bytes, made_dataset, made_frame, write_made
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from steatosis_tf.sources.dicom import audit as audit_module
from steatosis_tf.sources.dicom.audit import UNREAD, Finding, audit_phi
from steatosis_tf.sources.dicom.ingest import ingest_dicom
from steatosis_tf.sources.pseudonym import create_key


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> tuple[Path, Path, Path]:
    """(source, output, key) of an export of three patients and their four studies."""
    folder = tmp_path_factory.mktemp("export")
    source = folder / "source"
    clip = np.stack([made_frame(seed) for seed in range(3)])
    write_made(source / "DOE_JOHN_1.dcm", clip, number=1)
    write_made(
        source / "DOE_JOHN_2.dcm",
        number=2,
        StudyDate="20211105",
        StudyInstanceUID=f"{UID_ROOT}.1.2",
    )
    request = Dataset()
    request.RequestingPhysician = "Strangelove^Merkwürdig"
    write_made(
        source / "second" / "IM1",
        number=3,
        PatientName="Wójcik^Agnieszka=ヴイチク^アグニエシュカ",
        PatientID="204",
        PatientBirthDate="19880229",
        RequestAttributesSequence=Sequence([request]),
    )
    write_made(
        source / "third" / "IM1",
        number=4,
        PatientName="TEST^FRAME",
        PatientID="19",
        PatientComments="Normal",
        PatientAge="093Y",
    )
    key = create_key(folder / "study.key")
    ingest_dicom(source, folder / "out", key_path=key)
    return source, folder / "out", key


@pytest.fixture
def out(export, tmp_path) -> Path:
    """A copy of the output to plant things in."""
    return Path(shutil.copytree(export[1], tmp_path / "out"))


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))


def set_cell(path: Path, column: str, value: str) -> None:
    content = rows(path)
    content[1][content[0].index(column)] = value
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(content)


def add_column(path: Path, column: str, value: str) -> None:
    content = rows(path)
    content[0].append(column)
    for row in content[1:]:
        row.append(value)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(content)


def add_chunk(path: Path, kind: bytes, body: bytes) -> None:
    data = path.read_bytes()
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(data[:33] + chunk + data[33:])  # after the IHDR chunk


def first_image(out: Path) -> Path:
    return sorted((out / "images").iterdir())[0]


def test_our_own_output_is_clean(export):
    source, output, _ = export
    assert len(list((output / "images").iterdir())) == 6
    assert audit_phi(output, source) == []


def test_the_output_of_later_steps_is_clean(export, out):
    """Merged grades, a split and a region of interest bring words and small numbers."""
    for column, value in (
        ("grade", "Normal"),
        ("split", "test"),
        ("roi_top", "204"),
        ("bmi", "19"),
    ):
        add_column(out / "labels.csv", column, value)
    (out / "steatosis-train.tfrecord-00000-of-00204").write_bytes(b"")
    assert audit_phi(out, export[0]) == []


@pytest.mark.parametrize(
    ("planted", "tag"),
    [
        ("DOE^JOHN", "PatientName"),
        ("john doe", "PatientName"),
        ("JohnDoe1950", "PatientName"),
        ("Wojcik", "PatientName"),
        ("WÓJCIK", "PatientName"),
        ("アグニエシュカ", "PatientName"),
        ("Dr. Welby", "ReferringPhysicianName"),
        ("merkwuerdig strangelove", "RequestingPhysician"),
        ("MRN-0012345", "PatientID"),
        ("mrn0012345", "PatientID"),
        ("0012345", "PatientID"),
        ("12345.0", "PatientID"),
        ("patient 12345 again", "PatientID"),
        ("Woj\u00adcik", "PatientName"),
        ("Woj\u200bcik", "PatientName"),
        ("204", "PatientID"),
        ("ACC7788123", "AccessionNumber"),
        ("SN4433221", "DeviceSerialNumber"),
        ("saint elsewhere hospital", "InstitutionName"),
        ("12 Elm Street, Springfield", "PatientAddress"),
        (f"{UID_ROOT}.1.2", "StudyInstanceUID"),
        (f"{UID_ROOT}.9.1".replace(".", "_"), "SOPInstanceUID"),
        ("19500704", "PatientBirthDate"),
        ("1950-07-04", "PatientBirthDate"),
        ("4.7.1950", "PatientBirthDate"),
        ("07/04/1950", "PatientBirthDate"),
        ("4 July 1950", "PatientBirthDate"),
        ("Feb 29, 1988", "PatientBirthDate"),
        ("05-Nov-2021", "StudyDate"),
        ("DOE_JOHN_1", "source file name"),
    ],
)
def test_a_value_planted_in_a_table(export, out, planted, tag):
    set_cell(out / "labels.csv", "study_id", planted)
    findings = audit_phi(out, export[0])
    assert tag in {finding.tag for finding in findings}
    assert {(finding.file, finding.place) for finding in findings} == {
        ("labels.csv", "row 1, column 3")
    }


@pytest.mark.parametrize("column", ["frame_index", "days_since_first_study", "age", "model"])
def test_a_date_planted_in_a_column_of_numbers_or_text(export, out, column):
    set_cell(out / "labels.csv", column, "20211105")
    findings = audit_phi(out, export[0])
    assert ("labels.csv", "date") in {(finding.file, finding.kind) for finding in findings}


def test_a_name_in_a_column_header_and_in_the_reasons(export, out):
    add_column(out / "labels.csv", "wojcik", "1")
    with (out / "rejected.csv").open("a") as stream:
        stream.write("0123456789abcdef,1,,Ratched could not export it\n")
    tags = {(finding.file, finding.tag) for finding in audit_phi(out, export[0])}
    assert tags == {("labels.csv", "PatientName"), ("rejected.csv", "OperatorsName")}


def test_an_age_over_the_cap(export, out):
    assert sorted(row[-2] for row in rows(out / "labels.csv"))[-2:] == ["89", "age"]
    set_cell(out / "labels.csv", "age", "93")
    assert Finding("labels.csv", "row 1, column 12", "PatientAge", "age") in audit_phi(
        out, export[0]
    )


@pytest.mark.parametrize(
    "name", ["DOE_JOHN.png", "john-doe.png", "20211105_0001.png", "scan 204/a.txt", "204.png"]
)
def test_a_planted_file_name_is_found_and_not_repeated(export, out, name):
    path = out / "images" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(first_image(out).read_bytes())
    findings = audit_phi(out, export[0])
    if name.startswith("scan"):  # a short id among other words cannot be told from a count
        assert findings == []
        return
    assert [finding.place for finding in findings if finding.place != "file name"] == []
    assert findings
    assert not any(
        "doe" in finding.file.casefold() or "2021" in finding.file for finding in findings
    )


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"tEXt", b"Comment\0John Doe"),
        (b"zTXt", b"Comment\0\0" + zlib.compress(b"PatientID=MRN 0012345")),
        (b"iTXt", b"Title\0\0\0\0\0" + "Wójcik".encode()),
        (b"iTXt", b"Title\0\1\0\0\0" + zlib.compress("Wójcik".encode())),
        (b"tIME", struct.pack(">HBBBBB", 2021, 11, 5, 12, 0, 0)),
        (b"eXIf", b"II*\0" + b"\x03\x01" * 9 + b"2020:03:10 12:00:00\0"),
        (b"prIv", b"\0\1\2" + b"SN4433221" + b"\xff\xfe"),
    ],
)
def test_png_metadata(export, out, kind, body):
    path = first_image(out)
    add_chunk(path, kind, body)
    findings = audit_phi(out, export[0])
    assert {(finding.file, finding.place) for finding in findings} == {
        (f"images/{path.name}", f"PNG chunk {kind.decode()}")
    }


def test_bytes_after_the_end_of_a_png(export, out):
    path = first_image(out)
    path.write_bytes(path.read_bytes() + b"\0\0ACC7788123\0")
    assert [finding.tag for finding in audit_phi(out, export[0])] == ["AccessionNumber"]


def test_any_other_file(export, out):
    (out / "notes.json").write_text('{"from": "Doe, John"}')
    (out / "weights.bin").write_bytes(b"\x80\xff" * 50 + b"MRN 0012345" + b"\x80\xff" * 50)
    (out / "wide.bin").write_bytes(b"\x80\xff" + "Springfield Wojcik".encode("utf-16-le"))
    files = {finding.file for finding in audit_phi(out, export[0])}
    assert files == {"notes.json", "weights.bin", "wide.bin"}


def test_archives_and_large_files(export, out):
    np.savez_compressed(out / "a.npz", names=np.array(["Wojcik Agnieszka"]))
    with zipfile.ZipFile(out / "model.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", '{"institution": "Saint Elsewhere Hospital"}')
    # Across the border of two blocks of 4 MiB.
    (out / "large.txt").write_bytes(b". " * (2 << 20) + b"x Agnieszka Wojcik")
    content = bytearray((out / "large.txt").read_bytes())
    content[(4 << 20) - 8 : (4 << 20) + 10] = b"  Agnieszka Wojcik"
    (out / "large.txt").write_bytes(content[: (4 << 20) + 10])
    found = {(finding.file, finding.tag) for finding in audit_phi(out, export[0])}
    assert found == {
        ("a.npz", "PatientName"),
        ("model.keras", "InstitutionName"),
        ("large.txt", "PatientName"),
    }


def test_random_bytes_are_no_finding(export, out):
    (out / "weights.bin").write_bytes(np.random.default_rng(0).bytes(8 << 20))
    assert audit_phi(out, export[0]) == []


def test_a_table_with_semicolons(export, out):
    (out / "excel.csv").write_bytes("\ufeffid;age;site\r\n204;60;A\r\n".encode())
    (finding,) = audit_phi(out, export[0])
    assert (finding.place, finding.tag) == ("row 1, column 1", "PatientID")


def test_a_patient_called_like_a_column_is_no_finding_by_that_word(tmp_path):
    """Every word of our own tables and settings; the full name is still looked for."""
    write_made(tmp_path / "source" / "a", PatientName="DOE^JOHN", OperatorsName="X^Y")
    key = create_key(tmp_path / "study.key")
    ingest_dicom(tmp_path / "source", tmp_path / "out", key_path=key)
    headers = [rows(path)[0] for path in (tmp_path / "out").glob("*.csv")]
    words = {word for header in headers for name in header for word in name.split("_")}
    words |= set(re.findall("[a-z]+", (tmp_path / "out" / "ingest.json").read_text()))
    assert len(headers) == 4
    (tmp_path / "source" / "a").unlink()
    for number, word in enumerate(sorted(words)):
        write_made(tmp_path / "source" / f"b{number}", number=number, PatientName=f"{word}^zoe")
    assert audit_phi(tmp_path / "out", tmp_path / "source") == []
    (tmp_path / "out" / "a.txt").write_text("Zoe Format")
    assert audit_phi(tmp_path / "out", tmp_path / "source") != []


def test_a_key_in_the_output(export, out):
    shutil.copy(export[2], out / "study.key")
    assert audit_phi(out, export[0]) == [Finding("study.key", "content", "key file", "key")]


def write_records(path: Path, records: list[bytes]) -> None:
    """TFRecord framing; the checksums are not what the audit reads."""
    framed = b"".join(struct.pack("<QI", len(data), 0) + data + bytes(4) for data in records)
    path.write_bytes(gzip.compress(framed) if path.suffix == ".gz" else framed)


def example(**features) -> bytes:
    import tensorflow as tf

    def feature(value):
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    made = {name: feature(value) for name, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_records(export, out, suffix):
    image = first_image(out).read_bytes()
    clean = example(patient_id=b"0123456789abcdef", label=2, roi=image, frame_index=204)
    write_records(out / f"clean.tfrecord{suffix}", [clean] * 3)
    assert audit_phi(out, export[0]) == []
    planted = [
        clean,
        example(patient_id=b"204"),
        example(study=b"Doe^John"),
        example(day=20211105),
        example(wojcik=1),
    ]
    write_records(out / f"planted.tfrecord{suffix}", planted)
    findings = audit_phi(out, export[0])
    assert {(finding.place, finding.tag) for finding in findings} == {
        ("record 1, feature 1", "PatientID"),
        ("record 2, feature 1", "PatientName"),
        ("record 3, feature 1", "StudyDate"),
        ("record 4, feature 1 name", "PatientName"),
    }


def test_png_inside_a_record(export, out):
    path = first_image(out)
    add_chunk(path, b"tEXt", b"Comment\0Springfield Wojcik")
    write_records(out / "a.tfrecord", [example(roi=path.read_bytes())])
    path.unlink()
    (finding,) = audit_phi(out, export[0])
    assert finding.place == "record 0, feature 1, PNG chunk tEXt"


def test_a_damaged_record_file_is_searched_all_the_same(export, out):
    write_records(out / "a.tfrecord", [example(study=b"Doe^John")])
    data = (out / "a.tfrecord").read_bytes()
    (out / "a.tfrecord").write_bytes(data[:-6])
    assert "PatientName" in {finding.tag for finding in audit_phi(out, export[0])}


@pytest.mark.parametrize(
    ("patient_id", "model"),
    [("MRN 0012345", "DOE JOHN 12345"), ("KL 55 210", "KL55210 special"), ("12-34.56", "X 123456")],
    ids=["name", "blanks", "dashes"],
)
def test_a_name_typed_into_a_technical_field_does_not_leave(tmp_path, patient_id, model):
    write_made(tmp_path / "source" / "a", PatientID=patient_id, ManufacturerModelName=model)
    key = create_key(tmp_path / "study.key")
    ingest_dicom(tmp_path / "source", tmp_path / "out", key_path=key)
    assert rows(tmp_path / "out" / "labels.csv")[1][6] == ""
    assert audit_phi(tmp_path / "out", tmp_path / "source") == []


def test_a_station_called_like_its_scanner_keeps_the_model(tmp_path):
    write_made(tmp_path / "source" / "a", StationName="LOGIQE9", ManufacturerModelName="LOGIQE9")
    key = create_key(tmp_path / "study.key")
    ingest_dicom(tmp_path / "source", tmp_path / "out", key_path=key)
    assert rows(tmp_path / "out" / "labels.csv")[1][6] == "LOGIQE9"
    assert audit_phi(tmp_path / "out", tmp_path / "source") == []


def test_a_source_that_proves_nothing_is_refused(export, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="without a readable DICOM file"):
        audit_phi(export[1], tmp_path / "empty")


def test_a_missing_output_is_refused(export, tmp_path):
    with pytest.raises(ValueError, match="Received: no such folder"):
        audit_phi(tmp_path / "absent", export[0])


def zipped(content: bytes, name: str = "a.txt") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def tarred(content: bytes, mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


NAME = "Agnieszka Wójcik".encode()


def picture(text: bytes) -> bytes:
    stream = io.BytesIO()
    about = PngInfo()
    about.add_text("who", text.decode())
    Image.new("L", (40, 40)).save(stream, "PNG", pnginfo=about)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("file_name", "content"),
    [
        ("a.json", json.dumps({"who": "Wójcik"}).encode()),
        ("a.html", b"<p>W&oacute;jcik</p>"),
        ("b.html", b"<p>W&#243;jcik</p>"),
        ("a.txt", b"?name=W%C3%B3jcik"),
        ("a.csv", "id,who\n1,Wójcik\n".encode("utf-16")),
        ("b.csv", "id,who\n1,Wójcik\n".encode("utf-16-be")),
        ("c.csv", "id,who\n1,Wójcik\n".encode("cp1252")),
        ("d.csv", b"id,who\n1,W\\u00f3jcik\n"),
        ("b.txt", "Agnieszka Wójcik".encode("utf-16")),
        ("c.txt", "Agnieszka Wójcik".encode("cp1252")),
        ("b.json", b'{"who": "' + base64.b64encode(NAME) + b'"}'),
        ("c.json", base64.urlsafe_b64encode("Agnieszka Wójcik".encode("utf-16-le"))),
        ("a.svg", b"<svg><text><tspan>Agni</tspan>\n<tspan>eszka</tspan></text></svg>"),
        ("d.txt", b"born 573094800"),
        ("d.json", b'{"when": 1636070400}'),
        ("e.json", b'{"when": 1636070400123}'),
        ("c.html", b'<img src="data:image/png;base64,' + base64.b64encode(picture(NAME)) + b'">'),
        ("a.gz", gzip.compress(NAME)),
        ("a.csv.gz", gzip.compress(b"id\n204\n")),
        ("a.bz2", bz2.compress(NAME)),
        ("a.xz", lzma.compress(NAME)),
        ("a.tar.gz", tarred(NAME)),
        ("a.tar", tarred(NAME, "w")),
        ("a.zip", zipped(zipped(gzip.compress(NAME), "b.gz"), "c.zip")),
        ("b.zip", zipped(b"id,who\n204,x\n", "a.csv")),
        ("c.zip", zipped(b"nothing", "Wojcik.txt")),
    ],
    # The bytes hold the time of packing: every worker of a parallel run must see the same names.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_name_written_or_packed_in_another_way(export, out, file_name, content):
    (out / file_name).write_bytes(content)
    found = audit_phi(out, export[0])
    assert {finding.file for finding in found} == {file_name}
    assert UNREAD not in {finding.kind for finding in found}


@pytest.mark.parametrize(
    "content",
    [
        b"7z\xbc\xaf\x27\x1c" + bytes(50),
        b"Rar!\x1a\x07" + bytes(50),
        b"%PDF-1.7\n",
        b"PAR1" + bytes(50),
        b"\x28\xb5\x2f\xfd" + bytes(50),
        b"see data:x;base64," + base64.b64encode(gzip.compress(bytes(range(99)))),
        gzip.compress(b"nothing" * 100)[:-12],
        zipped(b"nothing" * 100)[:-30],
        zipped(zipped(zipped(zipped(zipped(zipped(zipped(b"nothing"))))))),
    ],
    ids=["7z", "rar", "pdf", "parquet", "zstd", "base64", "cut gzip", "cut zip", "deep zip"],
)
def test_what_was_not_looked_into_is_named(export, out, content):
    (out / "a.bin").write_bytes(content)
    found = audit_phi(out, export[0])
    assert ("a.bin", UNREAD) in {(finding.file, finding.kind) for finding in found}


def test_a_bomb_is_not_unpacked(export, out, monkeypatch):
    monkeypatch.setattr(audit_module, "_MAX_UNPACKED_BYTES", 1 << 20)
    (out / "a.gz").write_bytes(gzip.compress(bytes(2 << 20)))
    (out / "b.zip").write_bytes(zipped(bytes(2 << 20)))
    found = audit_phi(out, export[0])
    assert {(finding.file, finding.kind) for finding in found} == {
        ("a.gz", UNREAD),
        ("b.zip", UNREAD),
    }


def test_links_pipes_and_empty_folders(export, out, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_bytes(NAME)
    (out / "linked").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(out / "pipe")
    (out / "Wojcik").mkdir()
    found = audit_phi(out, export[0])
    assert {(finding.file, finding.kind) for finding in found if finding.kind == UNREAD} == {
        ("linked", UNREAD),
        ("pipe", UNREAD),
    }
    assert [finding.place for finding in found if finding.kind == "name"] == ["file name"]


@pytest.mark.parametrize("vr", ["UN", "OB"])
@pytest.mark.parametrize("value", [b"Zoltan^Szabo\0", b"\1\2\xff\0" * 9 + b"Zoltan Szabo\0\3\xfe"])
def test_a_name_in_a_private_value_of_unknown_kind(tmp_path, vr, value):
    private = Dataset()
    private.add_new(0x00110010, "LO", "VENDOR")
    private.add_new(0x00111001, vr, value + bytes(len(value) % 2))
    dataset = made_dataset()
    dataset.update(private)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(file_bytes(dataset))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").write_text("for Szabo, see above")
    assert audit_phi(tmp_path / "out", tmp_path / "source") == []  # one word of a text is none
    (tmp_path / "out" / "a.txt").write_text("for Zoltan Szabo")
    (finding,) = audit_phi(tmp_path / "out", tmp_path / "source")
    assert finding.tag == "PrivateTag"


def test_the_verb_names_what_it_did_not_read_and_exits_with_1(export, out, capsys):
    from steatosis_tf.cli import main

    assert main(["audit-phi", str(out), "--source", str(export[0])]) == 0
    assert "pixels were not looked at" in capsys.readouterr().out
    (out / "a.pdf").write_bytes(b"%PDF-1.7")
    assert main(["audit-phi", str(out), "--source", str(export[0])]) == 1
    assert "a.pdf, content: not looked into" in capsys.readouterr().out
