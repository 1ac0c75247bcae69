"""Bad files: each ends in `rejected.csv` with its reason, none ends the run or goes missing."""

import io
import itertools
import logging
import os
import random
import stat
import struct
import threading
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_dicom import (
    UID_ROOT,
    compress,
    encoded,
    file_bytes,
    made_dataset,
    made_frame,
    region,
    table,
    write_made,
)
from pydicom import dcmread, uid
from pydicom.data import get_testdata_file
from pydicom.encaps import generate_frames
from pydicom.pixels.processing import convert_color_space
from pydicom.sequence import Sequence

from steatosis_tf.sources.dicom import files
from steatosis_tf.sources.dicom.audit import audit_phi
from steatosis_tf.sources.dicom.ingest import ingest_dicom
from steatosis_tf.sources.dicom.read import number_of
from steatosis_tf.sources.images import quiet_readers


def reasons_by_file(out: Path, key: Path) -> dict[str, list[str]]:
    """File -> reasons in rejected.csv, by way of the table beside the key."""
    names = {
        row["source_id"]: row["file"]
        for row in table(key.with_name(key.name + ".sources.csv"))
        if row["output"] == str(out.resolve())
    }
    found: dict[str, list[str]] = {name: [] for name in names.values()}
    for row in table(out / "rejected.csv"):
        found[names[row["source_id"]]].append(row["reason"])
    used = {names[row["source_id"]] for row in table(out / "labels.csv")}
    lost = {name for name, reasons in found.items() if not reasons} - used
    assert not lost, lost
    return found


#: Every made file is an object of its own, not a copy of its neighbour.
NUMBERS = itertools.count(100)


def made(**changes) -> Callable[[], bytes]:
    return lambda: file_bytes(made_dataset(number=next(NUMBERS), **changes))


def regions(*items) -> Callable[[], bytes]:
    return made(SequenceOfUltrasoundRegions=Sequence(items))


def shipped(name: str) -> Callable[[], bytes]:
    return lambda: Path(get_testdata_file(name, download=False)).read_bytes()


def with_region(name: str, corners: tuple[int, int, int, int]) -> Callable[[], bytes]:
    def run() -> bytes:
        dataset = dcmread(get_testdata_file(name, download=False))
        dataset.SequenceOfUltrasoundRegions = Sequence([region(corners)])
        return file_bytes(dataset)

    return run


def cut(num_bytes: int) -> Callable[[], bytes]:
    return lambda: file_bytes(made_dataset(number=next(NUMBERS)))[:num_bytes]


def cut_jpeg() -> bytes:
    dataset = made_dataset(number=next(NUMBERS))
    compress(dataset, [encoded(made_frame(), "JPEG")], uid.JPEGBaseline8Bit, "MONOCHROME2")
    return file_bytes(dataset)[:-500]


def broken_codec(syntax: str, stream: bytes) -> Callable[[], bytes]:
    def run() -> bytes:
        dataset = made_dataset(number=next(NUMBERS))
        compress(dataset, [stream], syntax, "MONOCHROME2")
        return file_bytes(dataset)

    return run


def renamed_syntax(syntax: str, **changes) -> Callable[[], bytes]:
    def run() -> bytes:
        dataset = made_dataset(number=next(NUMBERS), **changes)
        compress(dataset, [encoded(made_frame(), "JPEG")], syntax, "MONOCHROME2")
        return file_bytes(dataset)

    return run


def after_marker(content: bytes) -> Callable[[], bytes]:
    return lambda: b"\0" * 128 + b"DICM" + content


def nested_zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.dcm", file_bytes(made_dataset(number=next(NUMBERS))))
    return stream.getvalue()


def doppler_colours() -> bytes:
    frame = np.stack([made_frame()] * 3, axis=-1)
    frame[60:80, 60:100] = (220, 40, 0)
    return file_bytes(made_dataset(frame, number=next(NUMBERS)))


def jpeg_ls(frame: np.ndarray) -> bytes:
    dataset = made_dataset(frame)
    dataset.compress(uid.JPEGLSLossless)
    return next(generate_frames(dataset.PixelData, number_of_frames=1))


def deflated(data: bytes) -> bytes:
    """A file as of `file_bytes` with all behind its meta group deflated."""
    dataset = made_dataset(number=next(NUMBERS))
    dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    whole = file_bytes(dataset)
    meta = dcmread(io.BytesIO(whole), stop_before_pixels=True).file_meta
    return whole[: 144 + meta.FileMetaInformationGroupLength] + data


def deflated_noise() -> bytes:
    return deflated(RANDOM)


def deflated_bomb() -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    zeros = b"".join(packer.compress(bytes(2**20)) for _ in range(129))
    return deflated(zeros + packer.flush())


JPEG = encoded(made_frame(), "JPEG")
RGB = np.stack([made_frame()] * 3, axis=-1)
J2K = encoded(made_frame(), "JPEG2000", no_jp2=True)
RANDOM = random.Random(7).randbytes(20_000)

#: name -> (content, part of the reason)
BAD_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty file"),
    "text": (lambda: b"patient list", "DICM marker is missing"),
    "short": (lambda: b"\0" * 40, "DICM marker is missing"),
    "csv": (lambda: b"id;name\r\n1;Doe\r\n", "DICM marker is missing"),
    "jpeg": (lambda: JPEG, "DICM marker is missing"),
    "encrypted": (lambda: RANDOM, "looks encrypted"),
    "zip in it": (nested_zip, "an archive, not a DICOM file"),
    "gzip": (lambda: b"\x1f\x8b\x08" + RANDOM, "an archive, not a DICOM file"),
    "marker only": (after_marker(b""), "damaged DICOM header"),
    "marker and noise": (after_marker(RANDOM), "damaged DICOM header"),
    "marker and zeros": (after_marker(b"\0" * 5000), "damaged DICOM header"),
    "cut in the header": (cut(300), "damaged DICOM header"),
    "cut before the image": (cut(900), "without an image"),
    "cut in the pixels": (cut(-5000), "truncated"),
    "cut JPEG": (cut_jpeg, "truncated"),
    "no pixels": (shipped("rtplan.dcm"), "not an ultrasound image"),
    "ct": (shipped("CT_small.dcm"), "not an ultrasound image"),
    "mr cut": (shipped("MR_truncated.dcm"), "not an ultrasound image"),
    "segmentation": (shipped("liver_1frame.dcm"), "not an ultrasound image"),
    "deflated scan of another kind": (shipped("image_dfl.dcm"), "not an ultrasound image"),
    "deflated noise": (deflated_noise, "damaged DICOM header"),
    "deflated bomb": (deflated_bomb, "unpacks to over 128 MiB"),
    "no syntax": (shipped("meta_missing_tsyntax.dcm"), "transfer syntax is missing"),
    "no meta": (shipped("no_meta.dcm"), "DICM marker is missing"),
    "DICOMDIR": (shipped("DICOMDIR-empty.dcm"), "DICOMDIR index"),
    "report": (made(Rows=None, Columns=None, PhotometricInterpretation=None), "without an image"),
    "power Doppler": (
        with_region("examples_rgb_color.dcm", (4, 54, 313, 167)),
        "coloured pixels",
    ),
    "power Doppler J2K": (
        with_region("examples_jpeg2k.dcm", (8, 108, 627, 334)),
        "coloured pixels",
    ),
    "no patient": (shipped("ExplVR_BigEnd.dcm"), "patient unknown"),
    "volume": (made(SOPClassUID="1.2.840.10008.5.1.4.1.1.6.2"), "3-D ultrasound volume"),
    "no rows": (made(Rows=None), "missing or impossible"),
    "zero columns": (made(Columns=0), "missing or impossible"),
    "no bits": (made(BitsAllocated=None), "missing or impossible"),
    "bits stored over allocated": (made(BitsStored=12), "missing or impossible"),
    "negative frames": (made(NumberOfFrames=-3), "missing or impossible"),
    "a billion frames": (made(NumberOfFrames=1_000_000_000), "missing or impossible"),
    "three samples of grey": (made(SamplesPerPixel=3), "missing or impossible"),
    "huge": (made(Rows=65535, Columns=65535), "height=65535 width=65535"),
    "thumbnail": (made(frames=made_frame()[:20, :20]), "height=20 width=20"),
    "32 bits": (made(frames=made_frame().astype(np.uint32)), "bits_allocated=32"),
    "unknown colours": (made(PhotometricInterpretation="CMYK"), "photometric interpretation"),
    "palette without table": (made(PhotometricInterpretation="PALETTE COLOR"), "broken frame"),
    "video": (renamed_syntax(uid.MPEG4HP41), "not read (MPEG-4 AVC/H.264 High Profile"),
    "12-bit JPEG": (
        renamed_syntax(uid.JPEGExtended12Bit, BitsAllocated=16, BitsStored=12),
        "(JPEG Extended (Process 2 and 4) of 12 bits)",
    ),
    "samples at the upper end": (made(BitsStored=6), "missing or impossible"),
    "JPEG as JPEG-LS": (renamed_syntax(uid.JPEGLSLossless), "broken frame"),
    "JPEG-LS half": (broken_codec(uid.JPEGLSLossless, jpeg_ls(made_frame())[:-99]), "broken frame"),
    "JPEG-LS of another size": (
        broken_codec(uid.JPEGLSLossless, jpeg_ls(made_frame()[:64])),
        "broken frame",
    ),
    "JPEG of zeros": (broken_codec(uid.JPEGBaseline8Bit, b"\0" * 900), "broken frame"),
    "JPEG half": (broken_codec(uid.JPEGBaseline8Bit, JPEG[:900]), "broken frame"),
    "JPEG half with an end": (
        broken_codec(uid.JPEGBaseline8Bit, JPEG[: len(JPEG) // 2] + b"\xff\xd9"),
        "broken frame",
    ),
    "J2K half": (broken_codec(uid.JPEG2000, J2K[:900]), "broken frame"),
    "RLE of noise": (broken_codec(uid.RLELossless, RANDOM[:900]), "broken frame"),
    "lossless JPEG of noise": (broken_codec(uid.JPEGLosslessSV1, RANDOM[:900]), "broken frame"),
    "JPEG of another size": (
        broken_codec(uid.JPEGBaseline8Bit, encoded(made_frame()[:64], "JPEG")),
        "broken frame",
    ),
    "YBR that says RGB": (
        made(frames=convert_color_space(RGB, "RGB", "YBR_FULL")),
        "other colours than the header says",
    ),
    "RGB that says YBR": (
        made(frames=RGB, PhotometricInterpretation="YBR_FULL"),
        "other colours than the header says",
    ),
    "burned in": (made(BurnedInAnnotation="YES"), "marked as having burned-in annotation"),
    "colour region": (regions(region(), region((40, 40, 90, 90), kind=2)), "colour Doppler"),
    "M-mode region": (regions(region(), region((0, 90, 150, 110), spatial=2)), "M-mode region"),
    "PW region": (regions(region(), region(spatial=3, kind=3)), "spectral Doppler"),
    "CW trace": (regions(region(spatial=4, kind=5)), "spectral Doppler"),
    "split screen": (
        regions(region((0, 20, 75, 110)), region((80, 20, 155, 110))),
        "split screen: 2 separate 2-D pictures",
    ),
    "split screen without regions": (
        made(frames=np.hstack([made_frame(5), made_frame(6)]), SequenceOfUltrasoundRegions=None),
        "split screen: two pictures side by side",
    ),
    "ECG only": (regions(region(spatial=4, kind=10)), "no 2-D tissue region"),
    "tiny region": (regions(region((50, 50, 60, 60))), "smaller than 32 px"),
    "image type Doppler": (
        made(ImageType=["ORIGINAL", "PRIMARY", "ABDOMINAL", "0011"]),
        "image type says Doppler",
    ),
    "Doppler colours": (doppler_colours, "coloured pixels"),
    "black": (made(frames=np.zeros((120, 160), np.uint8)), "empty frame"),
    "black without region": (
        made(frames=np.zeros((120, 160), np.uint8), SequenceOfUltrasoundRegions=None),
        "no sector found",
    ),
}


def check_corpus(out: Path, key: Path, num_files: int) -> None:
    found = reasons_by_file(out, key)
    assert len(found) == num_files
    for name, (_, reason) in BAD_FILES.items():
        assert len(found[name]) == 1, (name, found[name])
        assert reason in found[name][0], name
    assert not any(found[f"good {number}"] for number in range(3))


def test_the_corpus_of_bad_files(source, key, tmp_path, caplog, capfd):
    assert len(BAD_FILES) >= 40
    for name, (content, _) in BAD_FILES.items():
        (source / name).write_bytes(content())
    for number in range(3):
        write_made(source / f"good {number}", number=number + 10)
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error")  # a warning would quote the value it is about
        summary = ingest_dicom(source, tmp_path / "out", key_path=key)
    assert summary.num_files == len(BAD_FILES) + 3
    check_corpus(tmp_path / "out", key, summary.num_files)
    assert summary.num_files_used == 3
    assert not [record for record in caplog.records if record.name.startswith("pydicom")]
    logged = caplog.text + "".join(capfd.readouterr())
    assert not [value for value in ("Doe", "12345", UID_ROOT, "19500704") if value in logged]
    assert audit_phi(tmp_path / "out", source) == []


def test_threads_that_cross_are_silent_and_leave_the_warnings_as_they_were(recwarn, caplog):
    """One begins to read while another does, and goes on when that one is through."""
    before = list(warnings.filters)
    is_begun, is_over = threading.Event(), threading.Event()

    def other() -> None:
        with quiet_readers():
            is_begun.set()
            assert is_over.wait(60)
            warnings.warn("DOE^JOHN", stacklevel=1)
            logging.getLogger("pydicom").warning("DOE^JOHN")

    thread = threading.Thread(target=other)
    with quiet_readers():
        thread.start()
        assert is_begun.wait(60)
    is_over.set()
    thread.join()
    assert not [*recwarn.list, *caplog.records]
    assert warnings.filters == before
    logging.getLogger("pydicom").warning("heard again")
    assert [record.message for record in caplog.records] == ["heard again"]


def test_the_same_corpus_in_a_zip(source, key, tmp_path):
    with zipfile.ZipFile(tmp_path / "export.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (content, _) in BAD_FILES.items():
            archive.writestr(name, content())
        for number in range(3):
            archive.write(
                write_made(source / f"good {number}", number=number + 10), f"good {number}"
            )
    summary = ingest_dicom(tmp_path / "export.zip", tmp_path / "out", key_path=key)
    check_corpus(tmp_path / "out", key, len(BAD_FILES) + 3)
    assert summary.num_files_used == 3


def test_burned_in_files_are_taken_when_allowed(source, key, tmp_path):
    write_made(source / "a", BurnedInAnnotation="YES")
    summary = ingest_dicom(source, tmp_path / "out", key_path=key, allow_burned_in=True)
    assert summary.num_frames == 1
    (log,) = table(tmp_path / "out" / "deidentification.csv")
    assert log["burned_in_annotation"] == "YES"


def test_a_name_typed_into_the_burned_in_mark_counts_as_yes(source, key, tmp_path):
    write_made(source / "a", BurnedInAnnotation="DOE JOHN")
    assert ingest_dicom(source, tmp_path / "out", key_path=key).num_frames == 0
    ingest_dicom(source, tmp_path / "out", key_path=key, allow_burned_in=True)
    (log,) = table(tmp_path / "out" / "deidentification.csv")
    assert log["burned_in_annotation"] == "YES"


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000", "RLE"])
def test_one_broken_frame_does_not_take_the_clip_along(source, key, tmp_path, kind):
    clip = np.stack([made_frame(seed) for seed in range(5)])
    dataset = made_dataset(clip)
    if kind == "RLE":
        dataset.compress(uid.RLELossless, generate_instance_uid=False)
        frames = list(generate_frames(dataset.PixelData, number_of_frames=5))
        syntax = uid.RLELossless
    else:
        frames = [
            encoded(frame, kind, **({"no_jp2": True} if kind[-1] == "0" else {})) for frame in clip
        ]
        syntax = uid.JPEGBaseline8Bit if kind == "JPEG" else uid.JPEG2000Lossless
    frames[2] = frames[2][: len(frames[2]) // 4 * 2]
    compress(dataset, frames, syntax, "MONOCHROME2")
    (source / "clip").write_bytes(file_bytes(dataset))
    ingest_dicom(source, tmp_path / "out", key_path=key)
    labels, rejected = (table(tmp_path / "out" / f"{name}.csv") for name in ("labels", "rejected"))
    assert [row["frame_index"] for row in labels] == ["0", "1", "3", "4"]
    assert [(row["frame_index"], row["reason"]) for row in rejected] == [
        ("2", "broken frame: it cannot be decoded")
    ]


def test_a_cut_clip_keeps_its_whole_frames(source, key, tmp_path):
    data = file_bytes(made_dataset(np.stack([made_frame(seed) for seed in range(5)])))
    (source / "clip").write_bytes(data[: -2 * 120 * 160 - 100])
    ingest_dicom(source, tmp_path / "out", key_path=key)
    labels, rejected = (table(tmp_path / "out" / f"{name}.csv") for name in ("labels", "rejected"))
    assert [row["frame_index"] for row in labels] == ["0", "1"]
    assert [(row["frame_index"], row["code"]) for row in rejected] == [("2", "missing_frame")]
    assert rejected[0]["reason"] == (
        "truncated: frames from this one on lie beyond the end of the pixel data (3 in all)"
    )
    assert table(tmp_path / "out" / "deidentification.csv")[0]["num_chosen"] == "5"


def test_more_frames_stated_than_stored(source, key, tmp_path):
    dataset = made_dataset(np.stack([made_frame(seed) for seed in range(3)]))
    compress(
        dataset,
        [encoded(made_frame(seed), "JPEG") for seed in range(3)],
        uid.JPEGBaseline8Bit,
        "MONOCHROME2",
    )
    dataset.NumberOfFrames = 5
    (source / "clip").write_bytes(file_bytes(dataset))
    ingest_dicom(source, tmp_path / "out", key_path=key)
    labels, rejected = (table(tmp_path / "out" / f"{name}.csv") for name in ("labels", "rejected"))
    assert [row["frame_index"] for row in labels] == ["0", "1", "2"]
    assert [row["frame_index"] for row in rejected] == ["3"]


def test_a_copy_of_an_object_is_used_once(source, key, tmp_path):
    write_made(source / "a", number=1)
    write_made(source / "b", number=1, StationName="SENT AGAIN")
    ingest_dicom(source, tmp_path / "out", key_path=key)
    found = reasons_by_file(tmp_path / "out", key)
    assert found["a"] == []
    assert found["b"] == [
        "copy of another file (same SOPInstanceUID, same pixels), of which the first is used"
    ]


@pytest.mark.parametrize("change", [{"frames": made_frame(9)}, {"PatientID": "another"}])
def test_one_uid_for_two_contents_is_refused_on_both(source, key, tmp_path, change):
    write_made(source / "a", number=1)
    write_made(source / "b", number=1, **change)
    write_made(source / "c", number=2)
    summary = ingest_dicom(source, tmp_path / "out", key_path=key)
    found = reasons_by_file(tmp_path / "out", key)
    assert summary.num_frames == 1
    assert "one SOPInstanceUID on files with different content" in found["a"][0]
    assert found["a"] == found["b"]


def test_a_truncated_copy_does_not_take_the_whole_one_along(source, key, tmp_path):
    dataset = made_dataset()
    compress(dataset, [JPEG], uid.JPEGBaseline8Bit, "MONOCHROME2")
    (source / "a").write_bytes(file_bytes(dataset)[:-600])
    (source / "b").write_bytes(file_bytes(dataset))
    ingest_dicom(source, tmp_path / "out", key_path=key)
    found = reasons_by_file(tmp_path / "out", key)
    assert "truncated" in found["a"][0]
    assert found["b"] == []


def test_copies_with_damaged_pixel_elements(source, key, tmp_path):
    whole = file_bytes(made_dataset())
    at = whole.find(b"\xe0\x7f\x10\x00OB")
    (source / "a").write_bytes(whole[: at + 4] + b"O#" + whole[at + 6 :])
    (source / "b").write_bytes(whole[:at] + b"\xe0\x7f\x10\x00OB\0\0\0\0\0\0")
    (source / "c").write_bytes(whole)
    summary = ingest_dicom(source, tmp_path / "out", key_path=key)
    found = reasons_by_file(tmp_path / "out", key)
    assert summary.num_files_used == 1
    assert "truncated" in found["a"][0]
    assert "truncated" in found["b"][0]
    assert found["c"] == []


def test_files_that_are_no_files(source, key, tmp_path):
    write_made(source / "good")
    write_made(tmp_path / "elsewhere" / "a", number=2)
    (source / "link").symlink_to(tmp_path / "elsewhere")
    (source / "dangling").symlink_to(tmp_path / "absent")
    os.mkfifo(source / "pipe")  # opening it would wait for ever
    ingest_dicom(source, tmp_path / "out", key_path=key)
    found = reasons_by_file(tmp_path / "out", key)
    assert "link to a folder" in found["link"][0]
    assert "unreadable file" in found["dangling"][0]
    assert "not a regular file" in found["pipe"][0]
    assert found["good"] == []


def test_names_that_are_no_unicode(source, key, tmp_path):
    write_made(source / "ultraschall_\u00fc\u4e2d", number=1)
    (Path(os.fsdecode(os.fsencode(source) + b"/caf\xe9"))).write_bytes(
        file_bytes(made_dataset(number=2))
    )
    summary = ingest_dicom(source, tmp_path / "out", key_path=key)
    assert summary.num_files_used == 2
    assert b"caf\xe9" in summary.private_path.read_bytes()


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "name", ["../evil.dcm", "/etc/evil.dcm", "a/../../evil.dcm", "C:/evil.dcm", "..\\evil.dcm"]
)
def test_a_member_that_points_outside_is_refused(key, tmp_path, name):
    folder = tmp_path / "deep" / "deeper"
    folder.mkdir(parents=True)
    good, evil = (file_bytes(made_dataset(number=number)) for number in (1, 2))
    archive = zip_of(folder / "export.zip", {"good": good, name: evil})
    before = set(tmp_path.rglob("*"))
    summary = ingest_dicom(archive, folder / "out", key_path=key)
    assert summary.num_files_used == 1
    assert list(summary.reasons) == [
        "archive member whose name points outside the archive; not opened"
    ]
    new = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(folder / "out") or "study.key" in path.name for path in new)


def test_a_link_in_an_archive_is_not_followed(key, tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    summary = ingest_dicom(tmp_path / "export.zip", tmp_path / "out", key_path=key)
    assert list(summary.reasons) == ["a link inside an archive is not followed"]


def test_a_damaged_member_costs_itself_only(key, tmp_path):
    files = {str(number): file_bytes(made_dataset(number=number)) for number in (1, 2)}
    path = zip_of(tmp_path / "export.zip", files)
    data = bytearray(path.read_bytes())
    data[5000] ^= 0xFF  # in the pixels of the first member: its CRC is wrong now
    path.write_bytes(data)
    ingest_dicom(path, tmp_path / "out", key_path=key)
    found = reasons_by_file(tmp_path / "out", key)
    assert "damaged or unsupported archive member" in found["1"][0]
    assert found["2"] == []


def test_a_password_protected_member(key, tmp_path):
    path = zip_of(tmp_path / "export.zip", {"a": file_bytes(made_dataset())})
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(mark) + offset] |= 1
    path.write_bytes(data)
    summary = ingest_dicom(path, tmp_path / "out", key_path=key)
    assert "password-protected" in next(iter(summary.reasons))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_name_twice_in_an_archive(key, tmp_path):
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for number in (1, 2):
            archive.writestr("IM1", file_bytes(made_dataset(number=number)))
    summary = ingest_dicom(tmp_path / "export.zip", tmp_path / "out", key_path=key)
    assert (summary.num_files, summary.num_files_used) == (2, 2)


def test_a_million_members_are_refused_unread(key, tmp_path):
    """An end record that states a directory of a million members; zipfile would read it all."""
    size = 1_000_000 * 60
    path = tmp_path / "export.zip"
    with path.open("wb") as stream:
        stream.truncate(size)
        stream.seek(size)
        stream.write(
            struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, size + (1 << 25), 0, 0)
        )
    with pytest.raises(ValueError, match="at most 100000 members"):
        ingest_dicom(path, tmp_path / "out", key_path=key)
    assert not (tmp_path / "out").exists()


def test_members_are_counted_too(key, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_MEMBERS", 3)
    path = zip_of(tmp_path / "export.zip", {str(number): b"x" for number in range(4)})
    with pytest.raises(ValueError, match="Received: members=4"):
        ingest_dicom(path, tmp_path / "out", key_path=key)


def test_a_zip_bomb_is_refused(key, tmp_path, monkeypatch):
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(10_000_000))
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    data[at + 24 : at + 28] = (3 << 30).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ValueError, match="looks like a zip bomb"):
        ingest_dicom(path, tmp_path / "out", key_path=key)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"not a zip"])
def test_a_file_that_is_no_archive_is_refused(key, tmp_path, content):
    path = tmp_path / "export.zip"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a file that is none, or a truncated one"):
        ingest_dicom(path, tmp_path / "out", key_path=key)


@pytest.mark.parametrize("kind", ["plain", "JPEG", "RLE", "palette", "cine"])
def test_random_damage_never_ends_a_run_nor_leaks(source, key, tmp_path, kind):
    """Bytes overwritten, cut out and doubled at random places of a good file, 60 times each."""
    rng = random.Random(kind)
    if kind == "cine":
        whole = shipped("examples_ybr_color.dcm")()
    elif kind == "palette":
        whole = shipped("examples_palette.dcm")()
    else:
        dataset = made_dataset(number=1000)
        if kind == "JPEG":
            compress(dataset, [JPEG], uid.JPEGBaseline8Bit, "MONOCHROME2")
        elif kind == "RLE":
            dataset.compress(uid.RLELossless, generate_instance_uid=False)
        whole = file_bytes(dataset)
    instance_uid = dcmread(io.BytesIO(whole), force=True).SOPInstanceUID.encode()
    for number in range(60):
        # Each an object of its own, or all but one would be refused as copies.
        data = bytearray(whole.replace(instance_uid, instance_uid[:-3] + b"%03d" % number))
        # Mostly in the header, where each byte has a meaning.
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(132, rng.choice((2200, len(data))))
            action = rng.randrange(3)
            if action == 0:
                data[at] = rng.randrange(256)
            elif action == 1:
                del data[at : at + rng.randint(1, 9)]
            else:
                data[at:at] = rng.randbytes(rng.randint(1, 9))
        (source / f"{number:03}").write_bytes(data)
    summary = ingest_dicom(source, tmp_path / "out", key_path=key, frame_choice="evenly:2")
    assert summary.num_files == 60
    assert summary.num_files_used > 0 or kind == "palette"
    assert len(reasons_by_file(tmp_path / "out", key)) == 60
    assert audit_phi(tmp_path / "out", source) == []


def test_zeros_behind_the_marker_end_at_once(key, tmp_path):
    """A member of a zip shrinks a thousandfold; every 8 zeros would be an element of their own."""
    whole = file_bytes(made_dataset())
    meta_end = whole.index(b"\x08\0\x05\0")
    with zipfile.ZipFile(tmp_path / "export.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(128) + b"DICM" + bytes(40 << 20))
        archive.writestr("b", whole[:meta_end] + bytes(40 << 20))
    start = time.process_time()
    summary = ingest_dicom(tmp_path / "export.zip", tmp_path / "out", key_path=key)
    assert time.process_time() - start < 1
    assert summary.num_files_used == 0
    assert {row["code"] for row in table(tmp_path / "out" / "rejected.csv")} == {"damaged_header"}


def test_frames_stated_beyond_the_pixels_are_one_row(source, key, tmp_path):
    write_made(source / "a", np.stack([made_frame(0), made_frame(1)]), NumberOfFrames=100_000)
    summary = ingest_dicom(source, tmp_path / "out", key_path=key)
    assert summary.num_frames == 2
    (row,) = table(tmp_path / "out" / "rejected.csv")
    assert (row["frame_index"], row["code"]) == ("2", "missing_frame")
    assert "(99998 in all)" in row["reason"]


def test_a_number_with_an_underscore_is_none():
    assert number_of(made_dataset(TransducerFrequency="1_0"), "TransducerFrequency") is None
