"""Frames are read as stored; what cannot be a frame is refused with a reason and no patient."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from steatosis_tf.sources.folder import IMAGE_SUFFIXES, read_frame, to_grey


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


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_jpeg_is_read(tmp_path, suffix):
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 3, (48, 1))
    frame = read_frame(_write(tmp_path / f"a{suffix}", ramp, [cv2.IMWRITE_JPEG_QUALITY, 95]))
    assert frame.shape == (48, 64)
    assert np.abs(frame.astype(int) - ramp).max() <= 3


def test_every_suffix_named_is_tested():
    assert set(IMAGE_SUFFIXES) == {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}


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


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path, colour: None, r"missing or unreadable file \(No such file"),
        (lambda path, colour: path.mkdir(), "missing or unreadable file"),
        (lambda path, colour: path.write_bytes(b""), r"empty file \(0 bytes\)"),
        (lambda path, colour: path.write_text("patient list"), "not a readable image"),
        (_cut(".png", 0.6), "truncated PNG.*copy the file again"),
        (_cut(".jpg", 0.6), "truncated JPEG.*copy the file again"),
        (_cut(".bmp", 0.6), "not a readable image"),
        (_cut(".tif", 0.3), "not a readable image"),
        (lambda path, colour: _write(path, colour.astype(np.uint16) * 256),
         "expected 8-bit pixels. Received: uint16"),
        (lambda path, colour: _write(path, colour[:31]), "Received: height=31 width=60"),
        (lambda path, colour: _write(path, np.zeros((32, 8193), np.uint8)), "width=8193"),
    ],
)  # fmt: skip
def test_what_is_no_frame_is_refused(tmp_path, colour, write, reason):
    path = tmp_path / "Doe_Jane" / "a.png"
    path.parent.mkdir()
    write(path, colour)
    with pytest.raises(ValueError, match=reason) as caught:
        read_frame(path)
    assert "Doe" not in str(caught.value)


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
