"""Frames are read as stored; what cannot be a frame is refused with a reason and no patient."""

import io
import os
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import generate_frames

from steatosis_tf.sources.images import IMAGE_SUFFIXES, read_frame, to_grey


@pytest.fixture
def colour() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def _write(path, array, *options):
    path.write_bytes(cv2.imencode(path.suffix, array, *options)[1].tobytes())
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff"])
def test_lossless_files_come_back_as_rgb_or_grey(tmp_path, colour, suffix):
    frame = read_frame(_write(tmp_path / f"a{suffix}", colour[..., ::-1]))  # OpenCV writes BGR
    np.testing.assert_array_equal(frame, colour)
    grey = read_frame(_write(tmp_path / f"b{suffix}", colour[..., 0]))
    # BMP has no grey type: it may come back as three equal channels
    np.testing.assert_array_equal(to_grey(grey), colour[..., 0])
    assert grey.dtype == np.uint8


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".jpe", ".jfif"])
def test_jpeg_is_read(tmp_path, suffix):
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 3, (48, 1))
    path = _write(tmp_path / "a.jpg", ramp, [cv2.IMWRITE_JPEG_QUALITY, 95])
    frame = read_frame(path.rename(tmp_path / f"b{suffix}"))
    assert frame.shape == (48, 64)
    assert np.abs(frame.astype(int) - ramp).max() <= 3


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_picture_of_a_phone_stands_upright(tmp_path, orientation, suffix):
    rows, columns = np.mgrid[:48, :64]
    image = Image.fromarray((rows * 4 + columns).astype(np.uint8))
    image.getexif()[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"a{suffix}"
    image.save(path, quality=95, exif=image.getexif())
    expected = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    frame = read_frame(path)
    assert frame.shape == expected.shape
    assert np.abs(frame - expected).max() <= 3


def test_damaged_exif_leaves_a_jpeg_as_it_is(tmp_path, recwarn):
    path = tmp_path / "a.jpg"
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x09" + bytes(range(60))
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(path, exif=exif)
    assert read_frame(path).shape == (48, 64)
    assert not recwarn.list


def test_every_suffix_named_is_tested():
    assert set(IMAGE_SUFFIXES) == {
        ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff",
    }  # fmt: skip


def test_alpha_is_dropped(tmp_path, colour):
    alpha = np.full((40, 60, 1), 128, np.uint8)
    bgra = np.concatenate([colour[..., ::-1], alpha], axis=2)
    np.testing.assert_array_equal(read_frame(_write(tmp_path / "a.png", bgra)), colour)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_grey_png_with_alpha_is_read(tmp_path):
    """PNG colour type 4, written by hand after the PNG specification."""
    grey = np.random.default_rng(1).integers(0, 256, (40, 50), np.uint8)
    pairs = np.stack([grey, np.full_like(grey, 255)], axis=-1)
    lines = b"".join(b"\0" + line.tobytes() for line in pairs)
    header = struct.pack(">IIBBBBB", 50, 40, 8, 4, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(lines))
        + _chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(to_grey(read_frame(path)), grey)


def test_any_unicode_name_is_read(tmp_path, colour):
    path = _write(tmp_path / "Leber längs 肝 é.png", colour)
    assert read_frame(path).shape == (40, 60, 3)


def test_bytes_after_the_end_of_a_whole_png_do_no_harm(tmp_path, colour):
    path = _write(tmp_path / "a.png", colour[..., ::-1])
    path.write_bytes(path.read_bytes() + b"added by an archive\n")
    np.testing.assert_array_equal(read_frame(path), colour)


def _cut(suffix, share):
    def write(path, colour):
        data = cv2.imencode(suffix, colour)[1].tobytes()
        path.write_bytes(data[: int(len(data) * share)])

    return write


def _jpeg_of_12_bits(path, _colour):
    """The stream of a file that pydicom ships."""
    dataset = dcmread(get_testdata_file("JPEG-lossy.dcm", download=False))
    path.write_bytes(next(generate_frames(dataset.PixelData, number_of_frames=1)))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path, colour: None, r"missing or unreadable file \(No such file"),
        (lambda path, colour: path.mkdir(), "missing or unreadable file"),
        (lambda path, colour: path.write_bytes(b""), r"empty file \(0 bytes\)"),
        (lambda path, colour: path.write_text("patient list"), "not a readable image"),
        (_cut(".png", 0.6), "truncated PNG.*copy the file again"),
        (_cut(".jpg", 0.6), "truncated JPEG.*copy the file again"),
        (_jpeg_of_12_bits, "Received: a JPEG of 12 bits, which djpeg of"),
        (_cut(".bmp", 0.6), "not a readable image"),
        (_cut(".tif", 0.3), "not a readable image"),
        (lambda path, colour: Image.fromarray(colour).save(path, "TIFF", compression="zstd"),
         "not a readable image"),
        (lambda path, colour: _write(path, colour.astype(np.uint16) * 256),
         "expected 8-bit pixels. Received: uint16"),
        (lambda path, colour: _write(path, colour[:31]), "Received: height=31 width=60"),
        (lambda path, colour: _write(path, np.zeros((32, 8193), np.uint8)), "width=8193"),
    ],
)  # fmt: skip
def test_what_is_no_frame_is_refused(tmp_path, colour, capfd, write, reason):
    path = tmp_path / "Doe_Jane" / "a.png"
    path.parent.mkdir()
    write(path, colour)
    with pytest.raises(ValueError, match=reason) as caught:
        read_frame(path)
    assert "Doe" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # what OpenCV has to say helps nobody


def test_grey_is_luminance(colour):
    expected = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert np.abs(to_grey(colour) - expected).max() <= 1
    grey = colour[..., 0].copy()
    assert to_grey(grey) is grey


def test_real_frames_are_read(real_data_dir):
    frame = read_frame(next((real_data_dir / "byra2018").rglob("*.png")))
    assert frame.shape[:2] == (434, 636)
    for path in sorted((real_data_dir / "aul").rglob("*.jpg"))[::60]:
        assert read_frame(path).dtype == np.uint8


def _damaged(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """A JPEG with a hole or a cut among its pixels, whose end marker stands all the same."""
    scan = data.index(b"\xff\xda")
    first, last = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4]), len(data) - 2
    at = int(rng.integers(first, last - 1024))
    size = int(rng.integers(100, 1024))
    return {
        "cut": data[:at] + b"\xff\xd9",
        "lost bytes": data[:at] + data[at + size :],
        "zeros": data[:at] + bytes(size) + data[at + size :],
        "lost sector": data[:at] + bytes(512) + data[at + 512 :],
        "noise": data[:at] + rng.bytes(size).replace(b"\xff", b"\xfe") + data[at + size :],
    }[kind]


def _num_taken(files: list[bytes], path, num: int = 90) -> dict[str, int]:
    rng = np.random.default_rng(0)
    taken = dict.fromkeys(("cut", "lost bytes", "zeros", "lost sector", "noise"), 0)
    for index in range(num):
        kind = list(taken)[index % len(taken)]
        path.write_bytes(_damaged(files[int(rng.integers(len(files)))], kind, rng))
        try:
            read_frame(path)
            taken[kind] += 1
        except ValueError:
            continue
    return taken


def _speckled(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    grey = cv2.GaussianBlur(rng.gamma(2.0, 40.0, (480, 640)), (0, 0), 2.0)
    grey[:, :100] = 0  # the margin beside a sector
    return np.clip(grey, 0, 255).astype(np.uint8)


def test_damaged_jpegs_are_refused(tmp_path):
    grey = [cv2.imencode(".jpg", _speckled(seed))[1].tobytes() for seed in range(3)]
    rgb = [cv2.imencode(".jpg", np.dstack([_speckled(9)] * 3))[1].tobytes()]
    taken = _num_taken(grey + rgb, tmp_path / "a.jpg")
    # Without a checksum, noise after which the code falls into step again cannot be told.
    assert taken.pop("noise") <= 2
    assert not any(taken.values())


def test_damaged_real_jpegs_are_refused(tmp_path, real_data_dir):
    paths = sorted((real_data_dir / "aul" / "images").glob("*.jpg"))[::40]
    taken = _num_taken([path.read_bytes() for path in paths], tmp_path / "a.jpg")
    assert taken.pop("noise") <= 2
    assert not any(taken.values())


@pytest.mark.slow
def test_no_undamaged_real_jpeg_is_refused(real_data_dir):
    paths = sorted((real_data_dir / "aul" / "images").glob("*.jpg"))
    assert len(paths) == 588
    for path in paths:
        expected = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(read_frame(path), expected[..., ::-1])


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 30, "subsampling": 0},
        {"quality": 95, "subsampling": 1, "optimize": True},
        {"quality": 80, "subsampling": 2, "progressive": True},
        {"restart_marker_blocks": 5},
        {"keep_rgb": True},
    ],
)
@pytest.mark.parametrize("level", [None, 0, 128])
def test_undamaged_jpegs_are_decoded_as_ever(tmp_path, options, level):
    """Level pictures with tables of their own are honest zeros, which are no hole."""
    frame = np.dstack([_speckled(seed) for seed in range(3)])[:301, :403]
    if level is not None:
        frame[:] = level
    for picture in (frame, frame[..., 0]):
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", **options)
        (tmp_path / "a.jpg").write_bytes(stream.getvalue())
        expected = cv2.imdecode(np.frombuffer(stream.getvalue(), np.uint8), cv2.IMREAD_UNCHANGED)
        read = read_frame(tmp_path / "a.jpg")
        np.testing.assert_array_equal(read, expected if read.ndim == 2 else expected[..., ::-1])


@pytest.mark.parametrize("kind", [b"IDAT", b"tEXt", b"IHDR"])
def test_a_png_with_a_flipped_bit_is_refused(tmp_path, colour, kind):
    stream = io.BytesIO()
    Image.fromarray(colour).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    data[33:33] = _chunk(b"tEXt", b"Title\0" + b"a" * 40)
    data[data.index(kind) + 9] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match="not a readable image"):
        read_frame(tmp_path / "a.png")


def test_a_named_pipe_is_refused_at_once(tmp_path):
    """In a process of its own, which can be ended if it waits for ever."""
    os.mkfifo(tmp_path / "a.png")
    script = (
        "import sys; from steatosis_tf.sources.images import read_frame; read_frame(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.png")],
        timeout=60, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert "missing or unreadable file (not a regular file)" in done.stderr


def _stated(suffix: str, side: int) -> bytes:
    """A picture whose header states `side` px each way; a PNG of that size whole and level."""
    if suffix == ".png":
        packer = zlib.compressobj(9)
        lines = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", lines), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)
    data = bytearray(cv2.imencode(suffix, np.zeros((64, 64), np.uint8))[1].tobytes())
    if suffix == ".jpg":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
    else:
        data[18:26] = struct.pack("<ii", side, side)
    return bytes(data)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_the_size_is_read_before_the_pixels(tmp_path, suffix):
    (tmp_path / "a").write_bytes(_stated(suffix, 20_000))
    script = (
        "import resource, sys\n"
        "from steatosis_tf.sources.images import read_frame\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    read_frame(sys.argv[1])\n"
        "except ValueError as error:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    kilobytes, reason = done.stdout.split(" ", 1)
    assert "expected sides from 32 to 8192 px" in reason
    assert int(kilobytes) < 60_000  # the pixels are 400 MB
