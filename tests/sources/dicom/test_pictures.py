"""Pixels: every encoding comes out as it went in, and nothing outside the region leaves."""

import base64

import cv2
import numpy as np
import pytest
from made_dicom import (
    HEIGHT,
    REGION,
    WIDTH,
    compress,
    encoded,
    file_bytes,
    made_dataset,
    made_frame,
    region,
)
from pydicom import dcmread, uid
from pydicom.data import get_testdata_file
from pydicom.pixels.processing import convert_color_space
from pydicom.sequence import Sequence

from steatosis_tf.sources.dicom.deidentify import sector_mask
from steatosis_tf.sources.dicom.ingest import ingest_dicom
from steatosis_tf.sources.dicom.pixels import FrameReader, read_layout
from steatosis_tf.sources.images import read_frame
from steatosis_tf.sources.pseudonym import create_key
from steatosis_tf.sources.rejection import Rejection

INSIDE = np.zeros((HEIGHT, WIDTH), bool)
INSIDE[REGION[1] : REGION[3] + 1, REGION[0] : REGION[2] + 1] = True

# By OpenJPH, of `4 * row + 3 * column`, 32 x 32; nothing that is installed writes one.
HTJ2K = base64.b64decode(
    "/0//UQApQAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAABBwEB/1AACAACAAAAAv9SAAwAAgABAAUEBEAB"
    "/1wAEyBIUFBQUFBQUFBQUFBQSEhI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAI0AAf+TwCX9AId0AMAS"
    "wBKA7ACHdACQAQd0AMATQBMA1v4AAnQASOQAI1QAwBPAFSCqqqCnwnUAohDiwAAB7LYAwBVwBWgkSZLnwKenp0J4ABAA"
    "AAD+/fJ798nsuADALQgFogAAAAD5/ynp6enp6enifABWVVVV/3hle/de/de/dey9AP/Z"
)


@pytest.fixture
def pictures(tmp_path):
    """Ingests data sets as one export and returns the frames written, in frame order."""

    def run(dataset, **options) -> list[np.ndarray]:
        source = tmp_path / "source"
        source.mkdir()
        (source / "a.dcm").write_bytes(file_bytes(dataset))
        key = create_key(tmp_path / "study.key")
        options = {"keep_region": True, **options}
        summary = ingest_dicom(source, tmp_path / "out", key_path=key, **options)
        assert not summary.reasons, summary.reasons
        paths = sorted((tmp_path / "out" / "images").iterdir())
        return [
            cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., ::-1]
            if _is_colour(path)
            else cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            for path in paths
        ]

    return run


def _is_colour(path) -> bool:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED).ndim == 3


def expected(frame: np.ndarray) -> np.ndarray:
    return np.where(INSIDE if frame.ndim == 2 else INSIDE[..., None], frame, 0)


def tinted(frame: np.ndarray) -> np.ndarray:
    """A grey map with a slight tint, so that channel order shows."""
    return np.stack([frame, frame - frame // 16, frame - frame // 8], axis=-1)


@pytest.mark.parametrize(
    "syntax",
    [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian],
)
def test_plain_grey(pictures, syntax):
    dataset = made_dataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    (picture,) = pictures(dataset)
    assert np.array_equal(picture, expected(made_frame(1)))


def test_monochrome1_is_inverted(pictures):
    dataset = made_dataset(255 - made_frame(1), PhotometricInterpretation="MONOCHROME1")
    (picture,) = pictures(dataset)
    assert np.array_equal(picture, expected(made_frame(1)))


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_in_both_plane_orders(pictures, planar):
    frame = tinted(made_frame(1))
    dataset = made_dataset(frame, PlanarConfiguration=planar)
    if planar:
        dataset.PixelData = frame.transpose(2, 0, 1).tobytes()
    (picture,) = pictures(dataset)
    assert np.array_equal(picture, expected(frame))


def test_grey_stored_as_rgb_is_written_as_one_channel(pictures):
    frame = made_frame(1)
    (picture,) = pictures(made_dataset(np.stack([frame] * 3, axis=-1)))
    assert np.array_equal(picture, expected(frame))


def test_ybr_full(pictures):
    frame = tinted(made_frame(1))
    ybr = convert_color_space(frame, "RGB", "YBR_FULL")
    (picture,) = pictures(made_dataset(ybr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(picture.astype(int) - expected(frame)).max() <= 2  # rounding there and back


def test_ybr_full_422_uncompressed(pictures):
    """Two pixels share one colour pair; with a neutral one the luminance is the picture."""
    frame = made_frame(1)
    pairs = np.full((HEIGHT, WIDTH // 2, 4), 128, np.uint8)
    pairs[..., 0], pairs[..., 1] = frame[:, ::2], frame[:, 1::2]
    dataset = made_dataset(np.stack([frame] * 3, -1), PhotometricInterpretation="YBR_FULL_422")
    dataset.PixelData = pairs.tobytes()
    (picture,) = pictures(dataset)
    assert np.array_equal(picture, expected(frame))


def test_halved_colours_in_the_header_alone(pictures):
    """What decompresses JPEG may store whole colours and leave YBR_FULL_422 in the header."""
    frame = tinted(made_frame(1))
    ybr = convert_color_space(np.stack([frame, frame[:, ::-1]]), "RGB", "YBR_FULL")
    dataset = made_dataset(ybr, PhotometricInterpretation="YBR_FULL_422")
    first, second = pictures(dataset)
    assert np.abs(first.astype(int) - expected(frame)).max() <= 2
    assert np.abs(second.astype(int) - expected(frame[:, ::-1])).max() <= 2


@pytest.mark.parametrize(("bits", "scale"), [(16, 256), (16, 1), (8, 1), (16, 0)])
def test_palette(pictures, bits, scale):
    """16-bit entries, 16-bit entries of which a scanner filled 8 only, 8-bit entries, segments."""
    frame = made_frame(1)
    dataset = made_dataset(frame, PhotometricInterpretation="PALETTE COLOR")
    ramp = np.arange(256)
    for name, values in (("Red", ramp), ("Green", ramp - ramp // 16), ("Blue", ramp - ramp // 8)):
        entries = (values * (scale or 256)).astype("<u2" if bits == 16 else "u1")
        if not scale:  # one discrete segment (PS3.3 C.7.9.2)
            name = f"Segmented{name}"
            entries = np.array([0, 256, *entries], "<u2")
        stem = f"{name}PaletteColorLookupTable"
        setattr(dataset, f"{stem.removeprefix('Segmented')}Descriptor", [256, 0, bits])
        setattr(dataset, f"{stem}Data", entries.tobytes())
    (picture,) = pictures(dataset)
    assert np.array_equal(picture, expected(tinted(frame)))


def test_16_bit_over_the_full_range_of_its_stored_bits(pictures):
    frame = made_frame(1)
    dataset = made_dataset(frame.astype(np.uint16) * 16, BitsStored=12, HighBit=11)
    (picture,) = pictures(dataset)
    assert np.array_equal(
        picture, expected(np.round(frame.astype(int) * 16 / 4095 * 255).astype(np.uint8))
    )


def test_16_bit_through_its_window(pictures):
    """PS3.3 C.11.2.1.2.1: center 2048, width 4096 maps 0..4095 to the full range."""
    frame = made_frame(1).astype(np.uint16) * 16
    dataset = made_dataset(
        frame, BitsStored=16, WindowCenter=["2048", "40"], WindowWidth=["4096", "400"]
    )
    (picture,) = pictures(dataset)
    share = np.clip((frame - 2047.5) / 4095 + 0.5, 0, 1)
    assert np.array_equal(picture, expected(np.round(share * 255).astype(np.uint8)))


def test_signed_16_bit_with_a_slope(pictures):
    frame = made_frame(1).astype(np.int16) * 8 - 1024
    dataset = made_dataset(frame, RescaleSlope=2, RescaleIntercept=100, BitsStored=12, HighBit=11)
    (picture,) = pictures(dataset)
    share = (frame.astype(float) + 2048) / 4095
    assert np.array_equal(picture, expected(np.round(share * 255).astype(np.uint8)))


def test_six_bits_in_a_byte_fill_the_range(pictures):
    frame = made_frame(1) // 4
    (picture,) = pictures(made_dataset(frame, BitsStored=6, HighBit=5))
    assert np.array_equal(picture, expected(np.round(frame / 63 * 255).astype(np.uint8)))


def test_elements_that_older_converters_leave_out(pictures):
    frame = tinted(made_frame(1))
    dataset = made_dataset(frame, NumberOfFrames=0)
    del dataset.PlanarConfiguration, dataset.PixelRepresentation, dataset.BitsStored
    (picture,) = pictures(dataset)
    assert np.array_equal(picture, expected(frame))


def test_rle(pictures):
    frames = np.stack([tinted(made_frame(seed)) for seed in (1, 2, 3)])
    dataset = made_dataset(frames)
    dataset.compress(uid.RLELossless, generate_instance_uid=False)
    for picture, frame in zip(pictures(dataset), frames, strict=True):
        assert np.array_equal(picture, expected(frame))


@pytest.mark.parametrize("kind", ["grey", "colour", "near", "12 bits"])
def test_jpeg_ls(pictures, kind):
    frame = tinted(made_frame(1)) if kind == "colour" else made_frame(1)
    stored = frame.astype(np.uint16) * 16 if kind == "12 bits" else frame
    bits = {"BitsStored": 12, "HighBit": 11} if kind == "12 bits" else {}
    dataset = made_dataset(np.stack([stored, stored[:, ::-1]]), **bits)
    syntax, near = (uid.JPEGLSNearLossless, 2) if kind == "near" else (uid.JPEGLSLossless, 0)
    dataset.compress(syntax, jls_error=near or None, generate_instance_uid=False)
    shown = np.round(stored / 4095 * 255).astype(np.uint8) if kind == "12 bits" else frame
    for picture, whole in zip(pictures(dataset), (shown, shown[:, ::-1]), strict=True):
        assert np.abs(picture.astype(int) - expected(whole)).max() <= near


def test_high_throughput_jpeg_2000():
    frame = np.add.outer(np.arange(32) * 4, np.arange(32) * 3).astype(np.uint8)
    dataset = made_dataset(frame)
    compress(dataset, [HTJ2K], uid.HTJ2KLossless, "MONOCHROME2")
    assert np.array_equal(FrameReader(dataset, read_layout(dataset)).read(0), frame)


def test_deflated(pictures):
    dataset = made_dataset(made_frame(1))
    dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    (picture,) = pictures(dataset)
    assert np.array_equal(picture, expected(made_frame(1)))


def test_jpeg_baseline_grey(pictures):
    frame = made_frame(1)
    dataset = made_dataset()
    compress(dataset, [encoded(frame, "JPEG", quality=95)], uid.JPEGBaseline8Bit, "MONOCHROME2")
    (picture,) = pictures(dataset)
    assert np.abs(picture.astype(int) - expected(frame)).mean() < 2


def test_jpeg_baseline_ybr_clip(pictures):
    frames = [tinted(made_frame(seed)) for seed in (1, 2)]
    dataset = made_dataset(np.stack(frames))
    stream = [encoded(frame, "JPEG", quality=95) for frame in frames]
    compress(dataset, stream, uid.JPEGBaseline8Bit, "YBR_FULL_422")
    for picture, frame in zip(pictures(dataset), frames, strict=True):
        assert np.abs(picture.astype(int) - expected(frame)).mean() < 3


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422"])
def test_jpeg_whose_components_are_called_r_g_b(pictures, photometric):
    """Without the marker of Adobe that Pillow writes in 16 bytes behind the first two."""
    frame = tinted(made_frame(1))
    stream = encoded(frame, "JPEG", quality=95, keep_rgb=True)
    assert stream[2:12] == b"\xff\xee\0\x0eAdobe\0"
    dataset = made_dataset(frame)
    compress(dataset, [stream[:2] + stream[18:]], uid.JPEGBaseline8Bit, photometric)
    (picture,) = pictures(dataset)
    assert np.abs(picture.astype(int) - expected(frame)).mean() < 2


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "YBR_RCT", "YBR_FULL_422"])
def test_jpeg_2000_lossless(pictures, photometric):
    """The last is that of the JPEG which it was made from: the stream knows its colours better."""
    colour = photometric != "MONOCHROME2"
    frame = tinted(made_frame(1)) if colour else made_frame(1)
    dataset = made_dataset(frame)
    stream = [encoded(frame, "JPEG2000", no_jp2=True, irreversible=False, mct=int(colour))]
    compress(dataset, stream, uid.JPEG2000Lossless, photometric)
    (picture,) = pictures(dataset)
    assert np.array_equal(picture, expected(frame))


def test_lossless_jpeg_equals_its_rle_twin():
    """pydicom ships one picture in both encodings; libjpeg-turbo 3 in Pillow reads the first."""
    pair = [
        dcmread(get_testdata_file(name, download=False))
        for name in ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm")
    ]
    first, second = (FrameReader(dataset, read_layout(dataset)).read(0) for dataset in pair)
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    "name", ["examples_ybr_color.dcm", "examples_rgb_color.dcm", "examples_jpeg2k.dcm"]
)
def test_ultrasound_examples_of_pydicom_equal_its_own_decoding(name):
    dataset = dcmread(get_testdata_file(name, download=False))
    layout = read_layout(dataset)
    reference = dataset.pixel_array.reshape(-1, layout.rows, layout.columns, 3)
    for index in (0, layout.num_frames - 1):
        frame = FrameReader(dataset, layout).read(index)
        # pydicom may take another JPEG decoder, which rounds differently.
        assert np.abs(frame.astype(int) - reference[index]).max() <= 3


@pytest.mark.parametrize(
    ("choice", "frames"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("every:4", [0, 4, 8]),
        ("every:99", [0]),
        ("evenly:1", [5]),
        ("evenly:3", [1, 5, 8]),
        ("evenly:99", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_frame_choice(pictures, choice, frames):
    clip = np.stack([made_frame(seed) for seed in range(10)])
    written = pictures(made_dataset(clip), frame_choice=choice)
    assert len(written) == len(frames)
    for picture, index in zip(written, frames, strict=True):
        assert np.array_equal(picture, expected(clip[index]))


def test_without_a_region_the_sector_is_kept_and_the_banner_blanked(pictures):
    frame = made_frame(1)
    (picture,) = pictures(made_dataset(SequenceOfUltrasoundRegions=None))
    assert not picture[:18].any()
    fan = frame.copy()
    fan[:20] = 0
    # The sector finder works to about a pixel of a 256 px copy; hardly any echo may be lost.
    assert np.count_nonzero(picture) > 0.95 * np.count_nonzero(fan)


def test_a_region_that_leaves_the_picture_is_not_believed(pictures):
    """A picture rescaled after the scan keeps the regions of its first size."""
    big = Sequence([region((40, 48, 279, 223))])
    (picture,) = pictures(made_dataset(SequenceOfUltrasoundRegions=big))
    assert not picture[:18].any()
    assert picture.any()


def test_a_region_as_large_as_the_screen_does_not_keep_the_banner(pictures):
    whole = Sequence([region((0, 0, WIDTH - 1, HEIGHT - 1))])
    (picture,) = pictures(made_dataset(SequenceOfUltrasoundRegions=whole))
    assert not picture[:18].any()
    assert picture.any()


def test_real_frames_side_by_side_are_a_split_screen_and_alone_are_not(real_data_dir):
    images = real_data_dir / "byra2018" / "images"
    one, other = (read_frame(images / name) for name in ("P02_F00.png", "P50_F00.png"))
    clip = np.stack([np.hstack([read_frame(images / f"P02_F0{k}.png"), other]) for k in range(3)])
    for two in (clip[:1], clip, np.repeat(clip[..., None], 3, axis=-1)):
        with pytest.raises(Rejection, match=r"^split screen: two pictures side by side"):
            sector_mask(two)
    # A body mark beside a single picture leaves a dark gap, but is no second picture.
    marked = np.hstack([one, np.zeros_like(one)])
    cv2.circle(marked, (1000, 300), 30, 200, 2)
    assert sector_mask(marked[None]).any()
