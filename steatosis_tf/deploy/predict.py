"""Answers for patients, by onnxruntime alone: this file and what it imports need no TensorFlow."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from steatosis_tf.deploy.bare_network import BareNetwork, open_bare
from steatosis_tf.deploy.bundle import ABOUT_NAME, SHIPPED, Bundle, is_bundle, open_bundle
from steatosis_tf.deploy.figures import draw_frame, draw_trends
from steatosis_tf.deploy.frames import Look, unable
from steatosis_tf.deploy.inputs import Group, Inputs, Shot, open_inputs
from steatosis_tf.deploy.tables import (
    AnswerTables,
    Visits,
    count_answers,
    on_one_line,
    patient_text,
    values_of,
)
from steatosis_tf.grades import NOTICE
from steatosis_tf.model.answer import PatientAnswer
from steatosis_tf.parallel import map_on_cores
from steatosis_tf.unfinished import refuse_unfinished

# Decoded frames that are held at a time, to be looked at on all cores.
_BLOCK_BYTES = 256 << 20
# Names of files passed over that are printed.
_SHOWN = 5
_ALONE = "Each picture was answered for itself; --patient folder joins the pictures of a folder."
_JOINED = "Their visits are one answer; a table of each visit gives an answer to each."


#: What answers.
Grader = Bundle | BareNetwork


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
    return open_bare(path)


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
        _advice(inputs, len(texts)),
    )  # fmt: skip


def _advice(inputs: Inputs, num_answers: int) -> str:
    """What of the inputs the caller may have meant otherwise, or ""."""
    told = [_ALONE] if inputs.are_single_pictures and num_answers > 1 else []
    if inputs.num_joined:
        told.append(f"Patients with several study_id: {inputs.num_joined}. {_JOINED}")
    return " ".join(told)


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
