"""Answers for patients, by onnxruntime alone: this file and what it imports need no TensorFlow."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from tqdm import tqdm

from steatosis_tf import __version__
from steatosis_tf.config import EvaluationConfig, RoiConfig
from steatosis_tf.deploy.bundle import ABOUT_NAME, SHIPPED, Bundle, is_bundle, open_bundle
from steatosis_tf.deploy.figures import draw_frame, draw_trends
from steatosis_tf.deploy.frames import Look, unable
from steatosis_tf.deploy.inputs import Group, Shot, open_inputs
from steatosis_tf.deploy.onnx_file import (
    MAX_FILE_BYTES,
    WEIGHTS_KEY,
    check_network,
    open_network,
    run_network,
)
from steatosis_tf.deploy.tables import (
    AnswerTables,
    Visits,
    count_answers,
    on_one_line,
    patient_text,
    values_of,
)
from steatosis_tf.files import open_regular
from steatosis_tf.grades import GRADES, NOTICE, OUTPUT_LAYER
from steatosis_tf.model.answer import REASONS, FrameAnswer, PatientAnswer, join_frames
from steatosis_tf.parallel import map_on_cores
from steatosis_tf.quantitative.display import Display
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.roi.views import input_shape, model_input
from steatosis_tf.unfinished import refuse_unfinished

if TYPE_CHECKING:
    from steatosis_tf.deploy.explain import PlaceExplainer

#: How far the sum of a frame's probabilities may lie from 1: rounding, also of an int8 model.
MAX_SUM_DIFFERENCE = 1e-3

# Decoded frames that are held at a time, to be looked at on all cores.
_BLOCK_BYTES = 256 << 20
# Names of files passed over that are printed.
_SHOWN = 5
_SHOWN_LETTERS = 200  # of what a model says of itself
_KINDS = "a bundle, an ONNX file or a run directory"
_AGAIN = "Copy it again whole, or export it again with `steatosis export RUN_DIR`."
_ALONE = "Each picture was answered for itself; --patient folder joins the pictures of a folder."


@dataclass(frozen=True)
class BareNetwork:
    """A network without a grading rule: a patient's probabilities are joined from the frames'.

    Attributes:
        name: of its file.
        sha256: of its file.
        session: the network.
        roi: how frames were cut for it.
        aggregation: how a patient's frames are joined, as the run was evaluated.
        path: of its file; without it there are no maps.
        change_limit: it has no score to compare.
    """

    name: str
    sha256: str
    session: onnxruntime.InferenceSession
    roi: RoiConfig
    aggregation: str = "mean"
    points: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    num_training: int = 0
    path: Path | None = None
    change_limit: float = float("nan")

    @property
    def look(self) -> Callable[..., Look]:
        """A frame's ROI, or why it has none; other processes can be given it."""
        return partial(_look_for_roi, roi=self.roi)

    def answer(
        self, patient: str, looks: Sequence[Look], date: str = "", *, maps: bool = False
    ) -> PatientAnswer:
        """The frames' probabilities joined, the most probable grade.

        Raises:
            RuntimeError: if a frame's are no probabilities: do not use the model.
        """
        frames = tuple(look.answer for look in looks)
        pictures = [look.picture for look in looks if look.picture is not None]
        about: dict[str, Any] = {"num_frames": len(frames), "frames": frames, "date": date}
        if not pictures:
            code = frames[0].reason_code if frames else "no_frames"
            return PatientAnswer(patient, "unable", code, REASONS[code], **about)
        scores = run_network(self.session, (OUTPUT_LAYER,), np.stack(pictures))[OUTPUT_LAYER]
        if not are_probabilities(scores).all():
            worst = scores[~are_probabilities(scores)][0]
            raise RuntimeError(
                "Expected probabilities within 0 to 1 that sum to 1. Received: "
                f"{', '.join(f'{score:.4g}' for score in worst)} from {self.name!r}. The model is "
                "at fault: do not use its other grades either. Export or copy it again."
            )
        joined = join_frames(scores.astype(float), self.aggregation)
        if not joined.any():
            code = "frames_disagree"
            return PatientAnswer(patient, "unable", code, REASONS[code], **about)
        if maps:
            about["frames"] = self._with_maps(frames, pictures, int(joined.argmax()))
        return PatientAnswer(patient, "graded", grade=GRADES[int(joined.argmax())],
                             probabilities=dict(zip(GRADES, joined.tolist(), strict=True)),
                             num_used=len(pictures), **about)  # fmt: skip

    def _with_maps(
        self, frames: tuple[FrameAnswer, ...], pictures: Sequence[np.ndarray], label: int
    ) -> tuple[FrameAnswer, ...]:
        """What each place adds to the logit of a grade; without maps if the network has none."""
        if self._explainer is None:
            return frames
        places = iter(self._explainer.explain(np.stack(pictures), label))
        return tuple(
            one if one.kind == "unable" else replace(one, map=next(places)) for one in frames
        )

    @cached_property
    def _explainer(self) -> "PlaceExplainer | None":
        """Opened once: the file is read and a second session made of it."""
        from steatosis_tf.deploy.explain import open_explainer  # needs the package onnx

        return None if self.path is None or self.roi.view else open_explainer(self.path)


#: What answers.
Grader = Bundle | BareNetwork


def _look_for_roi(
    name: str, frame: np.ndarray, roi: RoiConfig, display: Display | None = None
) -> Look:
    """What a network without a grading rule sees of a frame; it has no use for the scale."""
    from steatosis_tf.roi.propose import propose_roi

    code = "no_sector"
    try:
        fan = find_sector(frame).fan
        code = "no_liver"
        found = propose_roi(frame, roi, fan)
    except ValueError as error:
        return unable(name, code, str(error))
    box = found.rectangle
    answer = FrameAnswer(name, "graded", boxes={"roi": (box.top, box.left, box.height, box.width)})
    return Look(answer, model_input(frame, fan, box, roi.view, found.overlay_mask), fan)


def open_model(path: str | Path | None = None) -> Grader:
    """Open what grades.

    Args:
        path: a bundle (folder or zip), an ONNX file, or a run directory, of which the bundle is
            taken, else `model.onnx`. None is the model that comes with the package.

    Raises:
        ValueError: if it is none of these, damaged, not of our making, or of a run that has not
            come to its end.
    """
    if path is None:
        return open_bundle(SHIPPED)
    path = Path(path)
    if is_bundle(path) or path.suffix.lower() == ".zip":
        return open_bundle(path)
    if path.is_dir():
        refuse_unfinished(path)
        if (path / "bundle" / ABOUT_NAME).is_file():
            return open_bundle(path / "bundle")
        path = path / "model.onnx"
    return _open_bare(path)


@dataclass(frozen=True)
class Predicted:
    """What `predict` found.

    Attributes:
        model, sha256: name of what graded, and its hash.
        is_shipped: whether it is the model that comes with the package.
        counts: patients, frames, patients by kind of answer, files passed over.
        passed_over: (name, reason) of what is no frame.
        texts: three lines for each patient.
        patients: the same for programs, as `predictions.json` has them.
        output_dir: where the tables are.
        advice: what the caller may not have meant.
    """

    model: str
    sha256: str
    is_shipped: bool
    counts: dict[str, int]
    passed_over: tuple[tuple[str, str], ...]
    texts: tuple[str, ...]
    patients: tuple[dict[str, Any], ...]
    output_dir: str | None
    advice: str

    def text(self) -> str:
        """For a person."""
        comes = " (comes with the package; --model takes another)" if self.is_shipped else ""
        words = {name: name.replace("_", " ") for name in self.counts}
        counted = ", ".join(
            f"{many} {words[name].rstrip('s') if many == 1 else words[name]}"
            for name, many in self.counts.items()
        )
        lines = [*self.texts, "", f"model: {self.model}{comes}", counted]
        lines += [
            f"  passed over: {on_one_line(name)}: {why}" for name, why in self.passed_over[:_SHOWN]
        ]
        if len(self.passed_over) > _SHOWN:
            where = ", all in predictions.json" if self.output_dir else "; --output DIR lists all"
            lines.append(f"  and {len(self.passed_over) - _SHOWN} more{where}")
        if self.output_dir:
            lines.append(f"tables: {self.output_dir}")
        return "\n".join([*lines, *([self.advice] if self.advice else []), NOTICE])

    def values(self) -> dict[str, Any]:
        """For programs."""
        return {
            "model": {"name": self.model, "sha256": self.sha256, "is_shipped": self.is_shipped},
            "counts": self.counts,
            "passed_over": [{"file": name, "reason": why} for name, why in self.passed_over],
            "output": self.output_dir,
            "patients": list(self.patients),
            "notice": NOTICE,
        }


def predict(
    paths: str | Path | Iterable[str | Path],
    *,
    model: str | Path | None = None,
    output_dir: str | Path | None = None,
    by_folder: bool = False,
    figures: bool = False,
) -> Predicted:
    """Answer the patients of paths.

    Args:
        paths: as of `inputs.open_inputs`, or one of them.
        model: as of `open_model`.
        output_dir: gets `patients.csv`, `frames.csv` as patients are answered, and
            `predictions.json` at the end.
        by_folder: pictures of one folder are one patient's.
        figures: also draw every frame into `output_dir`.

    Raises:
        ValueError: if a path is a model, there is no frame, the model cannot be used, or an output
            would destroy something.
        RuntimeError: if the model is at fault.

    Example:
        Simulated frames are no livers, and the model that comes with the package says so.

        >>> from steatosis_tf.sources.phantom.study import write_phantoms
        >>> labels = write_phantoms("phantoms", num_patients=4, frames_per_patient=1, seed=0)
        >>> counts = predict([labels]).counts
        >>> counts["patients"], counts["graded"]
        (4, 0)
    """
    # Of a text the letters would be paths, "/" among them.
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    refuse_models(paths)
    if figures and output_dir is None:
        raise ValueError("Expected --output DIR with --figures. Received: no folder to draw into.")
    grader = open_model(model)
    texts: list[str] = []
    patients: list[dict[str, Any]] = []
    with ExitStack() as stack:
        inputs = stack.enter_context(open_inputs(paths, by_folder=by_folder))
        tables = None
        if output_dir is not None:
            tables = stack.enter_context(AnswerTables(output_dir, grader, paths).opened())
        drawn_into = output_dir if figures else None
        for answer, drawn, change in _answers(grader, inputs.groups, drawn_into):
            texts.append(patient_text(answer, grader.num_training, change))
            patients.append(
                tables.add(answer, drawn, change) if tables else values_of(answer, change)
            )
        counts = count_answers((one["kind"], one["num_frames"]) for one in patients)
        counts["passed_over"] = len(inputs.passed_over)
        if tables:
            tables.finish(inputs.passed_over, counts)
    return Predicted(
        grader.name, grader.sha256, model is None, counts, tuple(inputs.passed_over), tuple(texts),
        tuple(patients), None if output_dir is None else str(output_dir),
        _ALONE if inputs.are_single_pictures and len(texts) > 1 else "",
    )  # fmt: skip


def _answers(
    grader: Grader, groups: Sequence[Group], drawn_into: str | Path | None
) -> Iterator[tuple[PatientAnswer, list[str], str]]:
    """Of each patient the answer, the figures, and the change since the visit before."""
    visits = Visits(grader.change_limit)
    answered = answer_groups(grader, groups, drawn_into, desc="predict")
    for group, (answer, drawn) in zip(groups, answered, strict=True):
        yield answer, drawn, visits.add(group.person, answer)
    draw_trends(visits.by_person, drawn_into)


def answer_groups(
    grader: Grader, groups: Sequence[Group], figures_dir: str | Path | None = None, *, desc: str
) -> Iterator[tuple[PatientAnswer, list[str]]]:
    """Answer patients, in their order; frames of many are looked at on all cores.

    Args:
        grader: what answers.
        groups: files of each patient.
        figures_dir: gets each frame's figure, whose file is named beside the answer.
        desc: what the progress bar is about.
    """
    seen = _seen(grader, groups, keep_frames=figures_dir is not None)
    for number, looks, frames in tqdm(seen, desc, len(groups), unit="patient", disable=None):
        group = groups[number]
        answer = grader.answer(group.patient, looks, group.date, maps=figures_dir is not None)
        yield answer, _drawn(answer, looks, frames, figures_dir, number + 1)


def answer_group(grader: Grader, group: Group) -> tuple[PatientAnswer, list[str]]:
    """Answer one patient, in this process; beside it the names of its figures, which are none.

    Models that MLflow keeps hold a copy of `tracking/served_model.py` that calls this.
    """
    looks = [_look(grader.look, shot) for shot in group.shots()]
    return grader.answer(group.patient, looks, group.date), []


def _seen(
    grader: Grader, groups: Sequence[Group], *, keep_frames: bool
) -> Iterator[tuple[int, list[Look], list[np.ndarray | None]]]:
    """Each patient's place, what was found in its frames, and the frames if they are kept.

    Files are read here, one after the other: a zip is open in this process alone.
    """
    shots = ((place, shot) for place, group in enumerate(groups) for shot in group.shots())
    at = 0
    looks: list[Look] = []
    frames: list[np.ndarray | None] = []
    while block := _next_block(shots):
        found = map_on_cores(partial(_look, grader.look), [shot for _, shot in block], "")
        for (place, shot), look in zip(block, found, strict=True):
            while at < place:
                yield at, looks, frames
                at, looks, frames = at + 1, [], []
            looks.append(look)
            frames.append(shot.frame if keep_frames else None)
    while at < len(groups):
        yield at, looks, frames
        at, looks, frames = at + 1, [], []


def _next_block(shots: Iterator[tuple[int, Shot]]) -> list[tuple[int, Shot]]:
    block, num_bytes = [], 0
    for place, shot in shots:
        block.append((place, shot))
        num_bytes += 0 if shot.frame is None else shot.frame.nbytes
        if num_bytes > _BLOCK_BYTES:
            break
    return block


def _look(look: Callable[..., Look], shot: Shot) -> Look:
    if shot.frame is None:
        return unable(shot.name, shot.code, shot.reason)
    return look(shot.name, shot.frame, display=shot.display)


def _drawn(
    answer: PatientAnswer,
    looks: Sequence[Look],
    frames: Sequence[np.ndarray | None],
    figures_dir: str | Path | None,
    number: int,
) -> list[str]:
    """Draw a patient's frames; the names of the files, "" for what is no frame."""
    names = []
    for place, (found, look, frame) in enumerate(zip(answer.frames, looks, frames, strict=True)):
        # By number: a patient's or a file's name may be a person's.
        names.append("" if frame is None else f"figures/{number:04}_{place + 1:02}.png")
        if frame is not None and figures_dir is not None:
            draw_frame(answer, found, look, frame, Path(figures_dir) / names[-1])
    return names


def refuse_models(paths: Iterable[str | Path]) -> None:
    """Refuse a model among the frames: it would not be the one that grades.

    Raises:
        ValueError: in one line, with the command as it should be.
    """
    given = [Path(path) for path in paths]
    for path in given:
        is_run = (path / "config.json").is_file() and any(
            (path / name).is_file() for name in ("model.onnx", "model.keras")
        )
        if path.suffix.lower() in (".onnx", ".keras") or is_bundle(path) or is_run:
            rest = " ".join(str(one) for one in given if one != path) or "PATH"
            raise ValueError(
                f"Expected frames to answer. Received: {path.name!r}, which is a model. Write "
                f"`steatosis predict {rest} --model {path}`."
            )


def are_probabilities(scores: np.ndarray) -> np.ndarray:
    """Which rows are finite, within 0 to 1 and sum to 1.

    A damaged model answers NaN or any number, and the largest of them would be a grade.

    Args:
        scores: `(num_frames, num_classes)` float.

    Returns:
        `(num_frames,)` bool.

    Example:
        >>> are_probabilities(np.array([[0.1, 0.2, 0.3, 0.4], [-3, 5, 5, 10], [np.nan] * 4]))
        array([ True, False, False])
    """
    # NaN compares as False, infinity is not within 0 to 1.
    outside = ~((scores >= 0) & (scores <= 1))
    # Summed without them: infinity less infinity would warn.
    sums = np.where(outside, np.nan, scores).sum(axis=1, dtype=float)
    return np.abs(sums - 1) <= MAX_SUM_DIFFERENCE


def load_model(model_path: str | Path) -> onnxruntime.InferenceSession:
    """Open a grading model, checked.

    Raises:
        ValueError: if the file is missing, not ONNX, not a four-grade model of this package, or
            its weights are not those whose hash it carries.
    """
    return _open_bare(Path(model_path)).session


def _open_bare(path: Path) -> BareNetwork:
    try:
        with open_regular(path) as file:
            is_small = os.fstat(file.fileno()).st_size <= MAX_FILE_BYTES
            data = file.read(MAX_FILE_BYTES) if is_small else b""
    except OSError as error:
        raise ValueError(
            f"Expected {_KINDS}. Received: model={path.name!r}, which is no file that can be read."
        ) from error
    if not is_small:
        raise ValueError(
            f"Expected {_KINDS}, at most {MAX_FILE_BYTES >> 20} MiB. Received: "
            f"model={path.name!r}, which is larger."
        )
    session = open_network(data, path.name, _AGAIN)
    texts = session.get_modelmeta().custom_metadata_map
    grades = texts.get("steatosis.grades", "")
    if grades != json.dumps(GRADES):
        raise ValueError(
            f"Expected a model of steatosis_tf with the grades {', '.join(GRADES)}. Received: "
            f"model={path.name!r} with grades={grades[:_SHOWN_LETTERS]}. {_AGAIN}"
        )
    roi, aggregation = _settings(texts, path.name)
    check_network(session, input_shape(roi.view), (OUTPUT_LAYER,), path.name, _AGAIN)
    if WEIGHTS_KEY not in texts:
        tqdm.write(
            f"{path.name} carries no hash of its weights (an older version wrote it), so damage "
            "to it cannot be seen. Export it again with `steatosis export RUN_DIR`.",
            file=sys.stderr,
        )
    digest = hashlib.sha256(data).hexdigest()
    return BareNetwork(path.name, digest, session, roi, aggregation, path=path)


def _settings(texts: Mapping[str, str], name: str) -> tuple[RoiConfig, str]:
    """How frames were cut and joined where a model was evaluated, from the texts of its file."""
    roi, joined = texts.get("steatosis.roi", "{}"), texts.get("steatosis.aggregation", "mean")
    try:
        return RoiConfig(**json.loads(roi)), EvaluationConfig(joined).aggregation  # type: ignore[arg-type]
    except (RecursionError, TypeError, ValueError) as error:
        version = texts.get("steatosis.steatosis_tf", "unknown")[:_SHOWN_LETTERS]
        raise ValueError(
            f"Expected steatosis.roi and aggregation as of version {__version__}. Received: "
            f"{roi[:_SHOWN_LETTERS]} and {joined[:_SHOWN_LETTERS]} in model={name!r}, which "
            f"version {version} wrote. Answer with that one, or `steatosis export RUN_DIR` again."
        ) from error
