"""The frames that paths hold, by patient; every file is answered for or named as passed over.

Frames, folders, zips, DICOM stills and clips, and manifests are read where they are, in memory. No
TensorFlow.
"""

import contextlib
import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from steatosis_tf.files import open_regular
from steatosis_tf.quantitative.display import Display
from steatosis_tf.sources.images import IMAGE_SUFFIXES, decode_frame

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

    from steatosis_tf.sources.dicom.pixels import Layout
    from steatosis_tf.sources.dicom.read import Header, Region

#: So many frames of a clip are looked at, spread evenly; neighbours are almost one picture.
CLIP_FRAMES = 10

# What a search comes across that nobody takes for a frame.
_NOT_FRAMES = (".csv", ".json", ".txt", ".md", ".pdf", ".html", ".xml", ".log", ".onnx", ".keras",
               ".sqlite", ".npz", ".npy", ".lock")  # fmt: skip
_MIXED_STUDY = "one study with the files of two patients: nobody can tell whose answer it would be"
# Of rejections: the picture is whole, but another kind of picture.
_OTHER_KINDS = frozenset(("colour_pixels", "flat_frame"))


@dataclass(frozen=True)
class Shot:
    """One frame, or why there is none.

    Attributes:
        name: of its file inside the path given, with `#3` behind it for frame 3 of a clip.
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8; None if it cannot be read.
        code: of `answer.REASONS` where there is no frame.
        reason: a closer one.
        display: scale, where the file states it.
    """

    name: str
    frame: np.ndarray | None
    code: str = ""
    reason: str = ""
    display: Display | None = None


_Read = Callable[[], Iterator[Shot]]


@dataclass
class Group:
    """A patient's files.

    Attributes:
        patient: study UID, patient id of a manifest, folder, or the file's own name.
        date: of the study, YYYY-MM-DD, or "".
        person: tells studies of one person; never shown.
    """

    patient: str
    date: str = ""
    person: str = ""
    _files: list[_Read] = field(default_factory=list)

    def add_dicom(
        self,
        name: str,
        load: Callable[[], bytes],
        layout: "Layout",
        region: "Region | None",
        passed_over: list[tuple[str, str]],
    ) -> None:
        """Add a DICOM still or clip, whose header was looked at."""
        spacing = region.pixel_height_mm if region else None
        display = Display(px_per_cm=10 / spacing) if spacing else None
        self._files.append(lambda: _dicom_shots(name, load, layout, region, display, passed_over))

    def shots(self) -> Iterator[Shot]:
        """The frames, one at a time."""
        for read in self._files:
            yield from read()


class Inputs:
    """What paths hold.

    Attributes:
        passed_over: (name, reason) of what is no frame; grows while shots are read.
        are_single_pictures: whether some pictures are a patient each because nobody said whose
            they are.
    """

    def __init__(self, by_folder: bool = False) -> None:
        self.passed_over: list[tuple[str, str]] = []
        self.are_single_pictures = False
        self._by_folder = by_folder
        self._groups: dict[tuple[str, ...], Group] = {}

    @property
    def groups(self) -> list[Group]:
        """In order of first appearance; studies of one person together, by date."""
        first: dict[str, int] = {}
        for group in self._groups.values():
            first.setdefault(group.person, len(first))
        return sorted(self._groups.values(), key=lambda one: (first[one.person], one.date))

    def add_path(self, path: str | Path, stack: contextlib.ExitStack) -> None:
        """Look through a path; what it opens is closed by `stack`.

        Raises:
            ValueError: if a manifest has no `path` and `patient_id`, or an archive is damaged.
        """
        path = Path(path)
        if path.suffix.lower() == ".csv" and path.is_file():
            self._add_manifest(path)
        elif path.is_dir() or (path.suffix.lower() == ".zip" and path.is_file()):
            from steatosis_tf.sources.dicom.files import Source

            source = stack.enter_context(Source(path))
            for file in source.files:
                name = file.name.decode("utf-8", "backslashreplace").replace("\0", " ")
                self.add(name, lambda file=file: source.read(file), path.resolve())  # type: ignore[misc]
        else:
            folder = path.resolve().parent
            self.add(path.name, lambda: _bytes_of(path), folder, named=True)

    def _add_manifest(self, path: Path) -> None:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"path", "patient_id"} <= set(reader.fieldnames or ()):
                raise ValueError(
                    "Expected a table with the columns path and patient_id. Received: "
                    f"{path.name!r} with other columns. Give frames or folders, or such a table."
                )
            for row in reader:
                name, patient = row["path"] or "", row["patient_id"] or ""
                place = path.parent / name
                if not name or not patient:
                    line = f"{path.name}, line {reader.line_num}"
                    self.passed_over.append((line, "without path or patient_id"))
                    continue
                read = self._image(name, lambda place=place: _bytes_of(place))  # type: ignore[misc]
                self._group((str(path.resolve()), patient), patient)._files.append(read)

    def add(self, name: str, load: Callable[[], bytes], root: Path, *, named: bool = False) -> None:
        """Take one file: an image by its suffix, else DICOM, else passed over.

        Args:
            name: its path inside `root`.
            load: gives its bytes; called again for every look at it.
            root: of the images that belong together.
            named: a person has named this file, so it is no stray one.
        """
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in IMAGE_SUFFIXES or (named and not _looks_like_dicom(load)):
            folder = PurePosixPath(name).parent.as_posix()
            inside = root.name if folder == "." else f"{root.name}/{folder}"
            key, shown = (
                ((str(root), folder), inside) if self._by_folder else ((str(root), name), name)
            )
            self.are_single_pictures |= not self._by_folder
            self._group(key, shown)._files.append(self._image(name, load))
        elif suffix in _NOT_FRAMES or PurePosixPath(name).name.startswith("."):
            self.passed_over.append((name, f"no frame ({suffix or 'hidden'})"))
        else:
            self._add_dicom(name, load)

    def _group(self, key: tuple[str, ...], shown: str, date: str = "", person: str = "") -> Group:
        if key not in self._groups:
            # One name in two places is two patients.
            same = sum(one.patient.split(" (")[0] == shown for one in self._groups.values())
            label = f"{shown} ({same + 1})" if same else shown
            self._groups[key] = Group(label, date, person or "\0".join(key))
        return self._groups[key]

    def _image(self, name: str, load: Callable[[], bytes]) -> _Read:
        def read() -> Iterator[Shot]:
            try:
                data = load()
                yield Shot(name, decode_frame(data))
            except ValueError as error:
                yield Shot(name, None, "unreadable", str(error))
                return
            later = _later_pages(data)
            if later:
                self.passed_over.append((name, f"{later} later pages; the first is answered"))

        return read

    def _add_dicom(self, name: str, load: Callable[[], bytes]) -> None:
        from steatosis_tf.sources.dicom.pixels import read_layout
        from steatosis_tf.sources.dicom.read import (
            find_region,
            quiet_pydicom,
            read_dataset,
        )

        try:
            with quiet_pydicom():
                dataset = read_dataset(io.BytesIO(load()), with_pixels=False)
                header = _header_of(dataset)
                layout = read_layout(dataset)
                region = find_region(dataset, layout.rows, layout.columns)
        except ValueError as rejection:  # a Rejection; its text holds nothing personal
            self.passed_over.append((name, str(rejection)))
            return
        person = "\0".join(header.patient)
        uid = header.study_uid
        if "\0" in uid:  # a stand-in made of who it is: not to be shown
            uid = f"study {hashlib.sha256(uid.encode()).hexdigest()[:12]}"
        date = header.study_date.isoformat() if header.study_date else ""
        group = self._group(("study", uid), uid, date, person)
        if group.person != person:
            self.passed_over.append((name, _MIXED_STUDY))
            return
        group.add_dicom(name, load, layout, region, self.passed_over)


@contextlib.contextmanager
def open_inputs(paths: Iterable[str | Path], *, by_folder: bool = False) -> Iterator[Inputs]:
    """Find the frames of paths, by patient.

    A patient is a DICOM study, a manifest's `patient_id`, or with `by_folder` a folder of images;
    an image of its own else, since nobody said whose it is.

    Args:
        paths: image files, DICOM files, folders and zips of both, tables with `path` and
            `patient_id`.
        by_folder: images of one folder are one patient's.

    Raises:
        ValueError: if no path exists, there is no frame, or a table or archive cannot be used.
    """
    inputs = Inputs(by_folder)
    paths = list(paths)
    if paths and not any(os.path.lexists(path) for path in paths):
        more = f", and {len(paths) - 1} more" if paths[1:] else ""
        raise ValueError(
            f"Expected frames, folders or zips that exist. Received: {str(paths[0])!r}, which is "
            f"not there{more}. Check how it is spelt."
        )
    with contextlib.ExitStack() as stack:
        for path in paths:
            inputs.add_path(path, stack)
        if not inputs.groups:
            passed = "".join(f"; {name}: {why}" for name, why in inputs.passed_over[:1])
            raise ValueError(
                f"Expected frames ({', '.join(IMAGE_SUFFIXES)}, DICOM), or folders or zips of "
                f"them. Received: none, {len(inputs.passed_over)} files passed over{passed}."
            )
        yield inputs


def _header_of(dataset: "FileDataset") -> "Header":
    """Whose picture it is; of a study that names nobody, the study stands for the person.

    Raises:
        Rejection: as `read_header`.
    """
    from steatosis_tf.sources.dicom.read import read_header, text_of
    from steatosis_tf.sources.rejection import Rejection

    try:
        return read_header(dataset)
    except Rejection as rejection:
        if rejection.code != "no_patient":
            raise
        dataset.PatientID = text_of(dataset, "StudyInstanceUID")
        return read_header(dataset)


def _dicom_shots(
    name: str,
    load: Callable[[], bytes],
    layout: "Layout",
    region: "Region | None",
    display: Display | None,
    passed_over: list[tuple[str, str]],
) -> Iterator[Shot]:
    from steatosis_tf.sources.dicom.deidentify import (
        blanked,
        chosen_frames,
        region_mask,
        says_nothing,
    )
    from steatosis_tf.sources.dicom.pixels import FrameReader
    from steatosis_tf.sources.dicom.read import quiet_pydicom, read_dataset
    from steatosis_tf.sources.rejection import Rejection

    try:
        with quiet_pydicom():
            reader = FrameReader(read_dataset(io.BytesIO(load()), with_pixels=True), layout)
    except Rejection as rejection:
        yield Shot(name, None, "unreadable", str(rejection))
        return
    chosen = chosen_frames(f"evenly:{CLIP_FRAMES}", layout.num_frames)
    if len(chosen) < layout.num_frames:
        rest = layout.num_frames - len(chosen)
        passed_over.append((name, f"{rest} of the clip's {layout.num_frames} frames; answered are "
                                  f"{len(chosen)}, spread over it"))  # fmt: skip
    mask = None
    if region is not None and not says_nothing(region, layout):
        mask = region_mask(region, layout.rows, layout.columns)
    for index in chosen:
        shown = name if layout.num_frames == 1 else f"{name}#{index + 1}"
        try:
            with quiet_pydicom():
                frame = reader.read(index)
            frame = frame if mask is None else blanked(frame, mask)
        except Rejection as rejection:
            code = "not_b_mode" if rejection.code in _OTHER_KINDS else "unreadable"
            yield Shot(shown, None, code, str(rejection))
        else:
            yield Shot(shown, frame, display=display)


def _bytes_of(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"missing or unreadable file ({error.strerror})") from error


def _looks_like_dicom(load: Callable[[], bytes]) -> bool:
    try:
        return load()[128:132] == b"DICM"
    except ValueError:
        return False


def _later_pages(data: bytes) -> int:
    """Pages behind the first of a TIFF or an animated PNG."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "TIFF")) as image:
            return int(getattr(image, "n_frames", 1)) - 1
    except (OSError, ValueError, SyntaxError, OverflowError, KeyError):
        return 0
