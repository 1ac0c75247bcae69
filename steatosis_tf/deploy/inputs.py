"""The frames that paths hold, by patient; every file is answered for or named as passed over.

Frames, folders, zips, DICOM stills and clips, and manifests are read where they are, in memory. No
TensorFlow.
"""

import contextlib
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from steatosis_tf.files import open_regular
from steatosis_tf.quantitative.display import Display
from steatosis_tf.sources.images import IMAGE_SUFFIXES, decode_frame, later_pages, quiet_readers

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

    from steatosis_tf.sources.dicom.pixels import Layout
    from steatosis_tf.sources.dicom.read import Header, Person, Region

#: So many frames of a clip are looked at, spread evenly; neighbours are almost one picture.
CLIP_FRAMES = 10

# What a search comes across that nobody takes for a frame.
_TABLES = (".csv", ".xlsx")
_NOT_FRAMES = (*_TABLES, ".json", ".txt", ".md", ".pdf", ".html", ".xml", ".log", ".onnx", ".keras",
               ".sqlite", ".npz", ".npy", ".lock")  # fmt: skip
# Pictures and films that nobody reads here, and no DICOM either.
_UNREAD = (".gif", ".webp", ".avif", ".heic", ".jp2", ".avi", ".mp4", ".mov", ".wmv", ".mpg")
_MIXED_STUDY = "one study with the files of two patients: nobody can tell whose answer it would be"
_TWICE = "given twice; it counts once"
# As `predict --figures` names what it draws into its output folder.
_OWN_FIGURE = re.compile(r"(.*/)?figures/(\d{4}_\d\d+|trend_\d{4})\.png")
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
        time: of the study, HHMMSS, or ""; where it was made.
        utc: the same moment in UTC, ISO 8601, or "" where no file states its time zone.
        names: of its files, but for those of a table.
        is_mixed: whether its files are of two persons, so that nobody can tell whose answer it
            would be.
    """

    patient: str
    date: str = ""
    person: str = ""
    time: str = ""
    utc: str = ""
    names: list[str] = field(default_factory=list)
    is_mixed: bool = False
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
        num_joined: patients of a table with several `study_id`, whose visits are one answer.
    """

    def __init__(self, by_folder: bool = False) -> None:
        self.passed_over: list[tuple[str, str]] = []
        self.are_single_pictures = False
        self.num_joined = 0
        self._by_folder = by_folder
        self._groups: dict[tuple[str, ...], Group] = {}
        self._names: Counter[str] = Counter()
        self._seen: set[tuple[str, ...]] = set()
        # Of each patient id the persons who have it, each by all that is said of them.
        self._persons: dict[tuple[str, ...], list[set[Person]]] = {}

    @property
    def groups(self) -> list[Group]:
        """In order of first appearance; studies of one person together, by date and time.

        Those without a date come before the others. A study of two persons is none of them. Where
        all studies of a person state their time zone, they are compared across zones.
        """
        first: dict[str, int] = {}
        groups = [group for group in self._groups.values() if not group.is_mixed]
        for group in groups:
            first.setdefault(group.person, len(first))
        zoneless = {group.person for group in groups if not group.utc}
        return sorted(
            groups,
            key=lambda one: (
                first[one.person],
                *((one.date, one.time) if one.person in zoneless else (one.utc,)),
            ),
        )

    def add_path(self, path: str | Path, stack: contextlib.ExitStack) -> None:
        """Look through a path; what it opens is closed by `stack`.

        Raises:
            ValueError: if a manifest has no `path` and `patient_id`.
        """
        path = Path(path)
        if path.suffix.lower() in _TABLES and path.is_file():
            self._add_manifest(path)
        elif path.is_dir() or (path.suffix.lower() == ".zip" and path.is_file()):
            from steatosis_tf.sources.dicom.files import Source

            try:
                source = stack.enter_context(Source(path))
            except ValueError as error:  # a damaged archive costs nothing but itself
                self.passed_over.append((path.name, str(error)))
                return
            for file in source.files:
                name = file.name.decode("utf-8", "backslashreplace").replace("\0", " ")
                self.add(name, lambda file=file: source.read(file), path.resolve())  # type: ignore[misc]
        else:
            folder = path.resolve().parent
            self.add(path.name, lambda: _bytes_of(path), folder, named=True)

    def _add_manifest(self, path: Path) -> None:
        from steatosis_tf.cohort.labels import with_our_names

        table = with_our_names(path)
        if not {"path", "patient_id"} <= set(table.columns):
            raise ValueError(
                "Expected a table with the columns path and patient_id. Received: "
                f"{path.name!r} with other columns. Give frames or folders, or such a table."
            )
        if "study_id" in table:
            visits = table[table["study_id"] != ""].groupby("patient_id")["study_id"].nunique()
            self.num_joined += int((visits > 1).sum())
        for row in table.to_dict("records"):
            name, patient = row["path"].replace("\\", "/"), row["patient_id"]
            fault = row["fault"] or ("" if name and patient else "without path or patient_id")
            if fault:
                self.passed_over.append((f"{path.name}, line {row['row']}", fault))
                continue
            place = path.parent / name
            key = (str(path.resolve()), patient)
            if self._is_new(name, *key, name):
                read = self._image(name, lambda place=place: _bytes_of(place))  # type: ignore[misc]
                self._group(key, patient)._files.append(read)

    def _is_new(self, name: str, *key: str) -> bool:
        """Whether a file was not met before; else it is named as passed over."""
        if key in self._seen:
            self.passed_over.append((name, _TWICE))
            return False
        self._seen.add(key)
        return True

    def add(self, name: str, load: Callable[[], bytes], root: Path, *, named: bool = False) -> None:
        """Take one file: an image by its suffix, else DICOM, else passed over.

        Args:
            name: its path inside `root`.
            load: gives its bytes; called again for every look at it.
            root: of the images that belong together.
            named: a person has named this file, so it is no stray one.
        """
        if not self._is_new(name, str(root), name):
            return
        suffix = PurePosixPath(name).suffix.lower()
        if not named and _OWN_FIGURE.fullmatch(f"{root.name}/{name}"):
            self.passed_over.append((name, "drawn by an earlier call; no frame"))
        elif suffix in IMAGE_SUFFIXES or (named and not _looks_like_dicom(load)):
            folder = PurePosixPath(name).parent.as_posix()
            inside = root.name if folder == "." else f"{root.name}/{folder}"
            key, shown = (
                ((str(root), folder), inside) if self._by_folder else ((str(root), name), name)
            )
            self.are_single_pictures |= not self._by_folder
            group = self._group(key, shown)
            group.names.append(name)
            group._files.append(self._image(name, load))
        elif suffix in _NOT_FRAMES or PurePosixPath(name).name.startswith("."):
            self.passed_over.append((name, f"no frame ({suffix or 'hidden'})"))
        elif suffix in _UNREAD:
            self.passed_over.append((name, f"{suffix} is not read; export as PNG, JPEG or DICOM"))
        else:
            self._add_dicom(name, load)

    def _group(self, key: tuple[str, ...], shown: str, person: str = "") -> Group:
        if key not in self._groups:
            # One name in two places is two patients.
            self._names[shown] += 1
            label = f"{shown} ({self._names[shown]})" if self._names[shown] > 1 else shown
            self._groups[key] = Group(label, person=person or "\0".join(key))
        return self._groups[key]

    def _image(self, name: str, load: Callable[[], bytes]) -> _Read:
        def read() -> Iterator[Shot]:
            try:
                data = load()
                yield Shot(name, decode_frame(data))
            except ValueError as error:
                yield Shot(name, None, "unreadable", str(error))
                return
            later = later_pages(data)
            if later:
                self.passed_over.append((name, f"{later} later pages; the first is answered"))

        return read

    def _add_dicom(self, name: str, load: Callable[[], bytes]) -> None:
        from steatosis_tf.sources.dicom.pixels import read_layout
        from steatosis_tf.sources.dicom.read import find_region, read_dataset, text_of

        try:
            data = load()
            with quiet_readers():
                dataset = read_dataset(io.BytesIO(data), with_pixels=False)
                header = _header_of(dataset)
                layout = read_layout(dataset)
                region = find_region(dataset, layout.rows, layout.columns)
                person = self._person_of(header)
                time = text_of(dataset, "StudyTime").partition(".")[0]
                zone = text_of(dataset, "TimezoneOffsetFromUTC")
        except ValueError as rejection:  # a Rejection; its text holds nothing personal
            self.passed_over.append((name, str(rejection)))
            return
        uid = header.study_uid
        if "\0" in uid:  # a stand-in made of who it is: not to be shown
            uid = f"study {hashlib.sha256(uid.encode()).hexdigest()[:12]}"
        if not self._is_new(name, uid, hashlib.sha256(data).hexdigest()):
            return
        group = self._group(("study", uid), uid, person)
        group.date = group.date or (header.study_date.isoformat() if header.study_date else "")
        group.time = group.time or time
        group.utc = group.utc or _in_utc(group.date, group.time, zone)
        group.names.append(name)
        if group.is_mixed or group.person != person:
            mixed = group.names[-1:] if group.is_mixed else group.names
            self.passed_over += [(one, _MIXED_STUDY) for one in mixed]
            group.is_mixed = True
            return
        group.add_dicom(name, load, layout, region, self.passed_over)

    def _person_of(self, header: "Header") -> str:
        """Who has this patient id: two hospitals may have given it to two persons."""
        persons = self._persons.setdefault(header.patient, [])
        place = 0
        while persons[place:] and not all(one.may_be(header.person) for one in persons[place]):
            place += 1
        if not persons[place:]:
            persons.append(set())
        persons[place].add(header.person)
        return "\0".join((*header.patient, str(place)))


def _in_utc(date: str, time: str, zone: str) -> str:
    """A moment in ISO 8601, or "" where any part of it is not known."""
    try:
        moment = datetime.strptime(f"{date} {time:0<6} {zone}", "%Y-%m-%d %H%M%S %z")
        return moment.astimezone(UTC).isoformat() if time else ""
    except (ValueError, OverflowError):
        return ""


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
        ValueError: if no path exists, there is no frame, or a table cannot be used.
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
    from steatosis_tf.sources.dicom.read import read_dataset
    from steatosis_tf.sources.rejection import Rejection

    try:
        with quiet_readers():
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
            with quiet_readers():
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
