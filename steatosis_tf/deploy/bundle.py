"""One sealed model: a folder, or a zip of it, that holds all that an answer needs.

`model.onnx` (frame in beam space to features, score, probabilities, map), `bundle.json` (input,
grading rule as data, training, versions, licences, hashes), `card.md`, `instructions.md`, reference
frames with their answers, `SHA256SUMS`. Every load compares every hash. Opening needs no
TensorFlow; `bundle_write.py` writes. docs/deployment.md says what `training` may hold.
"""

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from steatosis_tf.config import RoiConfig
from steatosis_tf.deploy.frames import Look, look_at
from steatosis_tf.deploy.onnx_file import check_network, open_network, run_network
from steatosis_tf.files import SUMS_NAME, open_regular, reason_of
from steatosis_tf.model.answer import PatientAnswer, plain_answer
from steatosis_tf.model.joint import NETWORK, JointModel, grade_patient
from steatosis_tf.roi.views import input_shape

#: Raised whenever an older program could not read a bundle rightly. 2: the rule that knows livers;
#: 3: the distance from them.
SCHEMA = 3
#: The model that comes with the package.
SHIPPED = Path(__file__).parent / "models" / "byra2018_joint"
ABOUT_NAME, NETWORK_NAME = "bundle.json", "model.onnx"
#: How far network outputs may lie from the stored ones, and answers, which OpenCV rounds into.
MAX_DIFFERENCE, MAX_ANSWER_DIFFERENCE = 1e-4, 1e-3

#: Of the network, in order.
OUTPUTS = ("features", "score", "probabilities", "map")
#: Files of a bundle, the sums aside.
VECTORS_NAME, ANSWERS_NAME = "reference.npz", "reference.json"
FILES = (NETWORK_NAME, ABOUT_NAME, "card.md", "instructions.md", VECTORS_NAME, ANSWERS_NAME)
_MAX_BYTES = 256 << 20
_SEALED = "Copy it again whole, or export it again with `steatosis export RUN_DIR`."


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, every hash compared.

    Attributes:
        about: what `bundle.json` says.
        joint: the grading rule.
        roi: how frames become the network's input.
        sha256: of its `SHA256SUMS`, so of all its files; names this model in an answer.
        session: the network.
        files: name -> bytes.
    """

    about: dict[str, Any]
    joint: JointModel
    roi: RoiConfig
    sha256: str
    session: onnxruntime.InferenceSession
    files: Mapping[str, bytes]

    @property
    def name(self) -> str:
        """Name and version, for a person."""
        return f"{self.about['name']} {self.about['version']}"

    @property
    def points(self) -> tuple[str, ...]:
        """Names of the operating points."""
        return tuple(point.name for point in self.joint.calibration.operating_points)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what adds to a score: the network, and each measured feature."""
        return tuple(name for part in self.joint.parts for name in part.columns or (part.name,))

    @property
    def num_training(self) -> int:
        """Patients among whom a score has its rank: those it was trained or recalibrated on."""
        return len(self.joint.calibration.left_out)

    @property
    def change_limit(self) -> float:
        """Square root of fat percent by which visits differ without a change; NaN if not known."""
        known = self.about["training"].get("repeatability", {})
        if "recalibration" in self.about or known.get("scale") != "sqrt_fat":
            return math.nan
        return float(known["coefficient"] or math.nan)

    @property
    def look(self) -> Callable[..., Look]:
        """`frames.look_at` with the view that the network sees; other processes can be given it."""
        return partial(look_at, view=self.roi.view)

    def run(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        """What the network says of pictures `(n, depth, beams)` uint8: output name -> array."""
        return run_network(self.session, OUTPUTS, pictures)

    def answer(
        self, patient: str, looks: Sequence[Look], date: str = "", *, maps: bool = False
    ) -> PatientAnswer:
        """Grade a patient by `joint.grade_patient`, or say why not.

        Args:
            patient: pseudonymous id, study UID or folder.
            looks: one per frame, by `look`.
            date: of the study.
            maps: also give what each place of each frame adds.
        """
        network = np.full((len(looks), _width(self.joint)), np.nan)
        seen = [place for place, look in enumerate(looks) if look.picture is not None]
        answers = [look.answer for look in looks]
        if seen:
            found = self.run(np.stack([looks[place].picture for place in seen]))  # type: ignore[misc]
            network[seen] = found["features"]
            for index, place in enumerate(seen):
                if maps:
                    answers[place] = replace(answers[place], map=found["map"][index])
        return grade_patient(self.joint, patient, answers, network, date)

    @cached_property
    def vectors(self) -> dict[str, np.ndarray]:
        """Reference frames, their pictures, and what the network said of them."""
        with np.load(io.BytesIO(self.files[VECTORS_NAME]), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}


def open_bundle(path: str | Path | None = None) -> Bundle:
    """Open a bundle and compare every hash.

    Args:
        path: folder or zip; None is the model that comes with the package.

    Raises:
        ValueError: with one line, if a file is missing or changed, the schema is newer, or the
            network is not of our making: other inputs or outputs, weights in another file, other
            operators than ONNX's own.

    Example:
        >>> open_bundle("no_such_folder")
        Traceback (most recent call last):
        ValueError: Expected a bundle: ... with bundle.json. Received: 'no_such_folder', ...
    """
    path = SHIPPED if path is None else Path(path)
    files = _read_zip(path) if path.is_file() else _read_folder(path)
    sums = files.get(SUMS_NAME, b"")
    about = _about(files, path.name)
    _compare(files, sums, about, path.name)
    try:
        joint = JointModel.from_json(json.dumps(about["grading"]))
        roi = RoiConfig(**about["roi"])
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError,
            ValueError) as error:  # fmt: skip
        raise ValueError(
            f"Expected a bundle with a grading rule and a ROI config. Received: {path.name!r}, "
            f"whose {ABOUT_NAME} has none that can be used ({error}). {_SEALED}"
        ) from error
    session = open_rule_network(files[NETWORK_NAME], roi, joint, path.name)
    return Bundle(about, joint, roi, hashlib.sha256(sums).hexdigest(), session, files)


def is_bundle(path: str | Path) -> bool:
    """Whether a path is a bundle, by its `bundle.json`; nothing else of it is looked at."""
    path = Path(path)
    if path.is_dir():
        return (path / ABOUT_NAME).is_file()
    if path.suffix.lower() != ".zip" or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(Path(name).name == ABOUT_NAME for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def check_bundle_folder(folder: str | Path, source: str | Path | None) -> None:
    """Refuse to write a bundle where something else is.

    Args:
        folder: of the bundle to write; its zip lies beside it.
        source: bundle that it is made from, folder or zip; None is the one of the package.

    Raises:
        ValueError: if the folder holds anything but an earlier bundle, its zip is none, or one of
            the two is the source.

    Example:
        >>> check_bundle_folder("new_model", None)
    """
    folder = Path(folder)
    archive = folder.with_name(f"{folder.name}.zip")
    own = None if source is None else Path(source).resolve()
    taken = folder.is_dir() and any(folder.iterdir()) and not is_bundle(folder)
    if (taken or archive.exists() > is_bundle(archive)
            or own in (folder.resolve(), archive.resolve())):  # fmt: skip
        raise ValueError(
            "Expected a new folder for the bundle, or that of an earlier one with its zip. "
            f"Received: {folder.name!r}, where something else is. Give --output another name."
        )


def find_faults(bundle: Bundle) -> dict[str, str]:
    """Grade the reference frames of an opened bundle and compare with what is stored.

    Returns:
        what differs by name; empty if all is as it was when the bundle was written.
    """
    found, stored = {}, bundle.vectors
    for name, values in bundle.run(stored["pictures"]).items():
        difference = float(np.abs(values - stored[name]).max())
        if not difference <= MAX_DIFFERENCE:  # NaN too
            found[f"network output {name}"] = f"differs by {difference:.2g}"
    expected = json.loads(bundle.files[ANSWERS_NAME])
    received = reference_answers(bundle, stored["frames"], stored["patients"])
    for place, where in _differences(expected, received, "answer"):
        found[place] = where
    return found


def _read_folder(folder: Path) -> dict[str, bytes]:
    if not (folder / ABOUT_NAME).is_file():
        raise ValueError(
            f"Expected a bundle: a folder or zip with {ABOUT_NAME}. Received: {folder.name!r}, "
            "which is none."
        )
    files = {}
    for name in (*FILES, SUMS_NAME):
        try:
            with open_regular(folder / name) as file:
                files[name] = file.read(_MAX_BYTES)
        except OSError:
            continue  # told of when hashes are compared
    return files


def _read_zip(path: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {Path(one.filename).name: one for one in archive.infolist()}
            chosen = {name: members[name] for name in (*FILES, SUMS_NAME) if name in members}
            if sum(one.file_size for one in chosen.values()) > _MAX_BYTES:
                raise ValueError("it is larger than any bundle")
            return {name: archive.read(one) for name, one in chosen.items()}
    except (zipfile.BadZipFile, OSError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"Expected a bundle: a folder or zip with {ABOUT_NAME}. Received: {path.name!r}, "
            f"which cannot be read ({reason_of(error)}). {_SEALED}"
        ) from error


def _about(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        about = json.loads(files[ABOUT_NAME])
        schema = about["schema"]
        _ = about["name"], about["version"], about["training"].items(), about["card"].items()
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected a readable {ABOUT_NAME} with schema, name, version, training and card. "
            f"Received: {name!r} without one. {_SEALED}"
        ) from error
    if schema not in range(1, SCHEMA + 1):
        raise ValueError(
            f"Expected a bundle of schema 1 to {SCHEMA}. Received: {name!r} of schema {schema!r}. "
            "Install the version of steatosis_tf that it names under versions: "
            f"{dict(about.get('versions') or {}).get('steatosis_tf', 'unknown')!r}."
        )
    return dict(about)


def _compare(files: Mapping[str, bytes], sums: bytes, about: dict[str, Any], name: str) -> None:
    listed = {}
    for line in sums.decode("utf-8", "replace").splitlines():
        digest, _, path = line.partition("  ")
        listed[path] = digest
    faults = []
    for one in FILES:
        if one not in files:
            faults.append(f"{one} is missing")
        elif hashlib.sha256(files[one]).hexdigest() != listed.get(one):
            faults.append(f"{one} is changed")
        elif one != ABOUT_NAME and about.get("files", {}).get(one) != listed[one]:
            faults.append(f"{one} is not the one that {ABOUT_NAME} names")
    if SUMS_NAME not in files:
        faults = [f"{SUMS_NAME} is missing"]
    if faults:
        raise ValueError(
            f"Expected a bundle as it was written. Received: {name!r}, in which "
            f"{', '.join(faults)}. {_SEALED}"
        )


def _width(joint: JointModel) -> int:
    """How many numbers the rule takes from the network."""
    return max((len(part.rule.fill) for part in joint.parts if part.name == NETWORK), default=0)


def open_rule_network(
    network: bytes, roi: RoiConfig, joint: JointModel, name: str
) -> onnxruntime.InferenceSession:
    """Open a bundle's network, and hold it against what the rule takes; raises as `open_bundle`."""
    name = f"{name}/{NETWORK_NAME}"
    session = open_network(network, name, _SEALED)
    found = check_network(session, input_shape(roi.view), OUTPUTS, name, _SEALED)
    if found["features"] != (_width(joint),):
        raise ValueError(
            f"Expected {_width(joint)} features, which the grading rule takes. Received: "
            f"model={name!r} with {found['features']}. {_SEALED}"
        )
    return session


def reference_answers(
    bundle: Bundle, frames: np.ndarray, patients: np.ndarray
) -> dict[str, list[dict[str, Any]]]:
    """Answers of the bundle, and of the same rule that grades whatever it is shown.

    A model of real patients refuses phantoms; the second kind still runs through all of the rule.
    """
    blind = replace(bundle, joint=replace(bundle.joint, novelty=None))
    found: dict[str, list] = {"as it answers": [], "without the look at novelty": []}
    for patient in np.unique(patients):
        looks = [
            bundle.look(f"frame {place}", frames[place])
            for place in np.flatnonzero(patients == patient)
        ]
        for kind, grader in zip(found, (bundle, blind), strict=True):
            answer = plain_answer(grader.answer(f"phantom {patient}", looks))
            # A point of an outline more or less, or a sentence told better, is no other answer.
            del answer["reason"]
            for frame in answer["frames"]:
                del frame["sector"], frame["liver"], frame["reason"]
            found[kind].append(answer)
    return found


def _differences(expected: Any, received: Any, place: str) -> Iterator[tuple[str, str]]:
    """Where two JSON values differ by more than rounding; what is received beside is newer."""
    if isinstance(expected, dict) and isinstance(received, dict):
        for name in expected:
            yield from _differences(expected.get(name), received.get(name), f"{place}, {name}")
    elif isinstance(expected, list) and isinstance(received, list):
        if len(expected) != len(received):
            yield place, f"expected {len(expected)} entries, received {len(received)}"
            return
        for number, pair in enumerate(zip(expected, received, strict=True)):
            yield from _differences(*pair, f"{place} {number}")
    elif isinstance(expected, float) and isinstance(received, float):
        if not math.isclose(expected, received, rel_tol=MAX_ANSWER_DIFFERENCE,
                            abs_tol=MAX_ANSWER_DIFFERENCE):  # fmt: skip
            yield place, f"expected {expected:.6g}, received {received:.6g}"
    elif expected != received:
        yield place, f"expected {expected!r}, received {received!r}"
