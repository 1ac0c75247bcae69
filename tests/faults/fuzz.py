"""Coverage-guided fuzzing of what reads other people's bytes, with atheris.

    python tests/faults/fuzz.py TARGET [--seconds 600] [--corpus DIR]
    make fuzz SECONDS=600

Targets: image, dicom, labels, decisions, bundle. A reader may refuse with its documented errors
and nothing else; each target says whether it took the bytes. What is found is mended, and its bytes
are kept in `findings/`, which `test_findings.py` reads again.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

FINDINGS = Path(__file__).parent / "findings"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def read_image(data: bytes) -> bool:
    """A picture of any format: a frame or a reason."""
    from steatosis_tf.sources.images import decode_frame
    from steatosis_tf.sources.rejection import Rejection

    with contextlib.suppress(Rejection):
        frame = decode_frame(data)
        assert frame.dtype.name == "uint8"
        assert frame.ndim in (2, 3)
        return True
    return False


def read_dicom(data: bytes) -> bool:
    """A DICOM file: header, region, its first frames."""
    from steatosis_tf.sources.dicom.pixels import FrameReader, read_layout
    from steatosis_tf.sources.dicom.read import find_region, read_dataset, read_header
    from steatosis_tf.sources.images import quiet_readers
    from steatosis_tf.sources.rejection import Rejection

    with quiet_readers(), contextlib.suppress(Rejection):
        dataset = read_dataset(io.BytesIO(data), with_pixels=True)
        read_header(dataset)
        layout = read_layout(dataset)
        find_region(dataset, layout.rows, layout.columns)
        reader = FrameReader(dataset, layout)
        num_read = 0
        for index in range(min(reader.num_frames, 3)):
            with contextlib.suppress(Rejection):
                reader.read(index)
                num_read += 1
        return num_read > 0
    return False


def read_labels(data: bytes) -> bool:
    """A table of labels, up to the faults of its rows."""
    from steatosis_tf.cohort.labels import check_labels, read_table

    path = _scratch("labels.csv", data)
    with contextlib.suppress(ValueError):
        check_labels(read_table(path), path.name, {})
        return True
    return False


def read_decisions(data: bytes) -> bool:
    """A store of decisions; one without any is no seed."""
    from steatosis_tf.cohort.decision_store import STORE_NAME, read_entries

    path = _scratch(STORE_NAME, data)
    for name in ("-journal", "-wal"):
        path.with_name(path.name + name).unlink(missing_ok=True)
    with contextlib.suppress(ValueError, OSError):
        return len(read_entries(path.with_name("manifest.csv"))) > 0
    return False


def read_bundle(data: bytes) -> bool:
    """The text `bundle.json` of a bundle whose hashes are right: what it says must be checked."""
    from steatosis_tf.deploy.bundle import open_bundle

    with contextlib.suppress(ValueError):
        open_bundle(_scratch("bundle.zip", _zip_with(data)))
        return True
    return False


TARGETS: dict[str, Callable[[bytes], bool]] = {
    "image": read_image,
    "dicom": read_dicom,
    "labels": read_labels,
    "decisions": read_decisions,
    "bundle": read_bundle,
}
_FOLDER = Path(
    tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
)


def _scratch(name: str, data: bytes) -> Path:
    path = _FOLDER / name
    path.write_bytes(data)
    return path


def _zip_with(about: bytes) -> bytes:
    from steatosis_tf.deploy.bundle import SHIPPED
    from steatosis_tf.files import SUMS_NAME

    sums = [
        line
        for line in (SHIPPED / SUMS_NAME).read_text().splitlines()
        if not line.endswith(" bundle.json")
    ]
    sums.append(f"{hashlib.sha256(about).hexdigest()}  bundle.json")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(SHIPPED.iterdir()):
            if path.name not in ("bundle.json", SUMS_NAME):
                archive.write(path, path.name)
        archive.writestr("bundle.json", about)
        archive.writestr(SUMS_NAME, "\n".join(sums) + "\n")
    return packed.getvalue()


def seeds(target: str) -> list[bytes]:
    """Good inputs to begin with."""
    import cv2
    import numpy as np

    from tests.sources.dicom.made_dicom import file_bytes, made_dataset, made_frame

    frame = made_frame(1)
    if target == "image":
        return [cv2.imencode(end, frame)[1].tobytes() for end in (".png", ".jpg", ".bmp", ".tif")]
    if target == "dicom":
        clip = np.stack([made_frame(1), made_frame(2)])
        return [file_bytes(made_dataset(frame)), file_bytes(made_dataset(clip))]
    if target == "labels":
        return [
            b"path,patient_id,grade,fat_percent\n1.png,P1,Mild,12.5\n2.png,P2,S0,\n",
            b"path;patient_id;grade\r\n1.png;P1;0\r\n2.png;P2;3\r\n",
        ]
    if target == "decisions":
        return [_a_store()]
    from steatosis_tf.deploy.bundle import SHIPPED

    return [(SHIPPED / "bundle.json").read_bytes()]


def _a_store() -> bytes:
    from steatosis_tf.cohort.decision_store import STORE_NAME, Entry, writing

    with tempfile.TemporaryDirectory() as folder:
        with writing(Path(folder) / "manifest.csv") as write:
            write([Entry("manifest.csv", "1", "ab", 1, "2026-01-01T00:00:00+00:00", "AB", "accept",
                         "{}", '{"roi_state": "accepted"}')])  # fmt: skip
        return (Path(folder) / STORE_NAME).read_bytes()


def main() -> None:
    """Fuzz one target for some time; a finding ends it with its bytes in `findings/`."""
    import atheris

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=Path)
    args = parser.parse_args()
    with atheris.instrument_imports(include=["steatosis_tf", "pydicom"]):
        for module in (
            "cohort.labels", "cohort.decision_store", "deploy.bundle", "sources.dicom.pixels",
            "sources.dicom.read", "sources.images",
        ):  # fmt: skip
            __import__(f"steatosis_tf.{module}")
    corpus = args.corpus or Path(tempfile.mkdtemp(prefix=f"corpus-{args.target}-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(args.target)):
        (corpus / f"seed-{number}").write_bytes(seed)
    FINDINGS.mkdir(exist_ok=True)

    def one_input(data: bytes) -> None:  # libFuzzer takes an answer for a command
        TARGETS[args.target](data)

    words = [
        sys.argv[0], str(corpus), f"-max_total_time={args.seconds}", "-timeout=20",
        "-rss_limit_mb=3000", f"-artifact_prefix={FINDINGS}/{args.target}-", "-print_final_stats=1",
        "-max_len=200000",
    ]  # fmt: skip
    print(json.dumps({"target": args.target, "seconds": args.seconds}), flush=True)
    atheris.Setup(words, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    main()
