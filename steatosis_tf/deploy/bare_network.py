"""A network file without a grading rule: how it is opened, what it answers, and where from.

From its last map on, a network that ends in a mean over places, normalisation, dense layers and
softmax is linear as long as its ReLUs stay as they are for the frame at hand. So the logit of a
grade is exactly a sum over the places of that map and a constant. The sum is Grad-CAM before its
own ReLU, also called HiResCAM (Draelos and Carin 2020, arXiv 2011.08891). Bundles need nothing of
this: their network gives the map of its linear rule itself. Only maps need the package onnx.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from tqdm import tqdm

from steatosis_tf import __version__
from steatosis_tf.config import EvaluationConfig, RoiConfig
from steatosis_tf.deploy.frames import Look, unable
from steatosis_tf.deploy.onnx_file import (
    MAX_FILE_BYTES,
    WEIGHTS_KEY,
    check_network,
    open_network,
    run_network,
)
from steatosis_tf.files import open_regular
from steatosis_tf.grades import GRADES, OUTPUT_LAYER
from steatosis_tf.model.answer import REASONS, FrameAnswer, PatientAnswer, join_frames
from steatosis_tf.quantitative.display import Display
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.roi.views import input_shape, model_input

if TYPE_CHECKING:
    import onnx

#: How far the sum of a frame's probabilities may lie from 1: rounding, also of an int8 model.
MAX_SUM_DIFFERENCE = 1e-3

_SHOWN_LETTERS = 200  # of what a model says of itself
_KINDS = "a bundle, an ONNX file or a run directory"
_JOINED_KEY = "steatosis.aggregation"
_MARKS_KEY = "steatosis.marks"
_AGAIN = "Copy it again whole, or export it again with `steatosis export RUN_DIR`."


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
        places = iter(self._explainer(np.stack(pictures), label))
        return tuple(
            one if one.kind == "unable" else replace(one, map=next(places)) for one in frames
        )

    @cached_property
    def _explainer(self) -> "Explainer | None":
        """Opened once: the file is read and a second session made of it."""
        return None if self.path is None or self.roi.view else open_explainer(self.path)


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


def open_bare(path: Path) -> BareNetwork:
    """Open an ONNX file, checked.

    Raises:
        ValueError: if the file is missing, not ONNX, not a four-grade model of this package, or
            its weights are not those whose hash it carries.
    """
    if path.suffix == ".json":
        raise ValueError(
            f"Expected {_KINDS}. Received: model={path.name!r}. A rule in JSON, as earlier "
            "versions had it, is not read any more: `steatosis train MANIFEST_CSV` gives a bundle."
        )
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
    lacking = {
        WEIGHTS_KEY: "carries no hash of its weights, so damage to it cannot be seen",
        _JOINED_KEY: "does not say how its run joined a patient's frames, so the mean is taken",
        _MARKS_KEY: "does not say whether marks were painted out of its frames, as they are here",
    }
    if texts.get(_MARKS_KEY) == "kept":
        tqdm.write(
            f"{path.name} learned from frames whose text and calipers were kept; here they are "
            "painted out, so that its probabilities are others. Train anew, and export that.",
            file=sys.stderr,
        )
    if said := [text for key, text in lacking.items() if key not in texts]:
        tqdm.write(
            f"{path.name} {', and '.join(said)}: an older version wrote it. Export it again with "
            "`steatosis export RUN_DIR --output FILE.onnx`.",
            file=sys.stderr,
        )
    digest = hashlib.sha256(data).hexdigest()
    return BareNetwork(path.name, digest, session, roi, aggregation, path=path)


def _settings(texts: Mapping[str, str], name: str) -> tuple[RoiConfig, str]:
    """How frames were cut and joined where a model was evaluated, from the texts of its file."""
    roi, joined = texts.get("steatosis.roi", "{}"), texts.get(_JOINED_KEY, "mean")
    try:
        return RoiConfig(**json.loads(roi)), EvaluationConfig(joined).aggregation  # type: ignore[arg-type]
    except (RecursionError, TypeError, ValueError) as error:
        version = texts.get("steatosis.steatosis_tf", "unknown")[:_SHOWN_LETTERS]
        raise ValueError(
            f"Expected steatosis.roi and aggregation as of version {__version__}. Received: "
            f"{roi[:_SHOWN_LETTERS]} and {joined[:_SHOWN_LETTERS]} in model={name!r}, which "
            f"version {version} wrote. Answer with that one, or `steatosis export RUN_DIR` again."
        ) from error


#: One step from the mean features to the logits: "Mul", "Add", "MatMul" with its numbers, "Relu".
Step = tuple[str, np.ndarray]

_NO_NUMBERS = np.empty(0)
# Operators that only change the shape.
_SHAPES = ("Squeeze", "Reshape", "Flatten", "Identity")


def explain_mean(last_map: np.ndarray, steps: tuple[Step, ...], label: int) -> np.ndarray:
    """What each place of a map adds to a logit that is read from the map's mean.

    Args:
        last_map: `(rows, columns, channels)`.
        steps: from the mean over places to the logits.
        label: which logit.

    Returns:
        `(rows, columns)` float64.

    Example:
        >>> steps = (("MatMul", np.array([[2.0, 0.0]])), ("Add", np.array([1.0, 0.0])))
        >>> explain_mean(np.array([[[1.0], [3.0]]]), steps, 0).tolist()
        [[1.0, 3.0]]
    """
    active = []
    x = last_map.mean(axis=(0, 1), dtype=np.float64)
    for kind, numbers in steps:
        if kind == "Relu":
            active.append(x > 0)
            x = x * active[-1]
        elif kind == "MatMul":
            x = x @ numbers
        else:
            x = x * numbers if kind == "Mul" else x + numbers
    gradient = np.eye(len(x))[label]
    for kind, numbers in reversed(steps):
        if kind == "Relu":
            gradient = gradient * active.pop()
        elif kind == "MatMul":
            gradient = numbers @ gradient
        elif kind == "Mul":
            gradient = gradient * numbers
    return last_map @ gradient / (last_map.shape[0] * last_map.shape[1])


Explainer = Callable[[np.ndarray, int], np.ndarray]


def open_explainer(path: str | Path) -> Explainer | None:
    """Take the dense end of an ONNX file of ours apart; None if it ends otherwise.

    Returns:
        from pictures `(n, height, width)` uint8 and a label 0 to 3 to maps `(n, rows, columns)`
        float32 of that grade's logit.

    Example:
        >>> open_explainer("model.onnx") is None  # doctest: +SKIP
        False
    """
    import onnx

    proto = onnx.load(str(path))
    made = {name: node for node in proto.graph.node for name in node.output}
    numbers = {one.name: onnx.numpy_helper.to_array(one) for one in proto.graph.initializer}
    end = made.get(OUTPUT_LAYER)
    if end is None or end.op_type != "Softmax":
        return None
    steps: tuple[Step, ...] = ()
    node = made.get(end.input[0])
    while node is not None and node.op_type not in ("GlobalAveragePool", "ReduceMean"):
        taken = _step(node, numbers)
        if taken is None:
            return None
        name, more = taken
        steps, node = (*more, *steps), made.get(name)
    if node is None:
        return None
    axes = next((list(one.ints) for one in node.attribute if one.name == "axes"), [])
    del proto.graph.output[:]
    proto.graph.output.append(onnx.ValueInfoProto(name=node.input[0]))
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )

    def explain(pictures: np.ndarray, label: int) -> np.ndarray:
        (maps,) = session.run(None, {"roi": pictures[..., None]})
        maps = maps if axes == [1, 2] else np.moveaxis(maps, 1, -1)  # channels last
        return np.stack([explain_mean(one, steps, label) for one in maps]).astype(np.float32)

    return explain


def _step(node: "onnx.NodeProto", numbers: dict[str, np.ndarray]) -> tuple[str, list[Step]] | None:
    """The tensor that a node reads, and what it does to it; None if not known."""
    known = [numbers[name] for name in node.input if name in numbers]
    free = [name for name in node.input if name not in numbers]
    if len(free) != 1:
        return None
    if node.op_type in _SHAPES:
        return free[0], []
    if node.op_type == "Relu":
        return free[0], [("Relu", _NO_NUMBERS)]
    if node.op_type in ("Add", "Mul") and known[0].ndim <= 2:
        return free[0], [(node.op_type, known[0].ravel().astype(np.float64))]
    if node.op_type == "MatMul" and node.input[0] == free[0]:
        return free[0], [("MatMul", known[0].astype(np.float64))]
    if node.op_type == "Gemm" and node.input[0] == free[0] and len(known) == 2:
        return free[0], _gemm(node, *(one.astype(np.float64) for one in known))
    return None


def _gemm(node: "onnx.NodeProto", weights: np.ndarray, shift: np.ndarray) -> list[Step]:
    """A dense layer in one operator."""
    given = {one.name: one.f if one.name in ("alpha", "beta") else one.i for one in node.attribute}
    turned = weights.T if given.get("transB") else weights
    return [("MatMul", given.get("alpha", 1.0) * turned),
            ("Add", given.get("beta", 1.0) * shift.ravel())]  # fmt: skip
