"""What each place adds: the dense end of an ONNX file taken apart, and the maps of a run's report.

From its last map on, a network that ends in a mean over places, normalisation, dense layers and
softmax is linear as long as its ReLUs stay as they are for the frame at hand. So the logit of a
grade is exactly a sum over the places of that map and a constant. The sum is Grad-CAM before its
own ReLU, also called HiResCAM (Draelos and Carin 2020, arXiv 2011.08891). Bundles need nothing of
this: their network gives the map of its linear rule itself. Reading the file needs the package
onnx.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pandas as pd
from tqdm import tqdm

from steatosis_tf.cohort.manifest import frame_path, read_manifest
from steatosis_tf.deploy.figures import frame_pictures, write_map, write_sheet
from steatosis_tf.grades import GRADES, OUTPUT_LAYER
from steatosis_tf.sources.images import read_frame

if TYPE_CHECKING:
    import onnx

    from steatosis_tf.deploy.predict import Grader

#: One step from the mean features to the logits: "Mul", "Add", "MatMul" with its numbers, "Relu".
Step = tuple[str, np.ndarray]

_NO_NUMBERS = np.empty(0)
# Operators that only change the shape.
_SHAPES = ("Squeeze", "Reshape", "Flatten", "Identity")
_EACH = 2

#: Patients of a run or validation with a map: each takes 70 KB and a quarter of a CPU second,
#: three quarters with a ResNet-50. What is right needs none to be looked at first.
MAX_MAPS = 20


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


@dataclass(frozen=True)
class PlaceExplainer:
    """A network file whose dense end was taken apart.

    Attributes:
        session: from `roi` to the last map.
        steps: from the map's mean to the logits.
        is_channels_last: how the map lies in memory.
    """

    session: onnxruntime.InferenceSession
    steps: tuple[Step, ...]
    is_channels_last: bool

    def explain(self, pictures: np.ndarray, label: int) -> np.ndarray:
        """Maps `(n, rows, columns)` float32 of the logit of a grade.

        Args:
            pictures: `(n, height, width)` uint8.
            label: of the grade, 0 to 3.
        """
        (maps,) = self.session.run(None, {"roi": pictures[..., None]})
        if not self.is_channels_last:
            maps = np.moveaxis(maps, 1, -1)
        return np.stack([explain_mean(one, self.steps, label) for one in maps]).astype(np.float32)


def open_explainer(path: str | Path) -> PlaceExplainer | None:
    """Take the dense end of an ONNX file of ours apart; None if it ends otherwise.

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
    steps: list[Step] = []
    name = end.input[0]
    while (node := made.get(name)) is not None:
        if node.op_type in ("GlobalAveragePool", "ReduceMean"):
            break
        taken = _step(node, numbers)
        if taken is None:
            return None
        name, more = taken
        steps += more
    if node is None:
        return None
    is_last = node.op_type == "ReduceMean" and _axes(node, numbers) == [1, 2]
    del proto.graph.output[:]
    proto.graph.output.append(onnx.ValueInfoProto(name=node.input[0]))
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return PlaceExplainer(session, tuple(reversed(steps)), is_last)


def _step(node: "onnx.NodeProto", numbers: dict[str, np.ndarray]) -> tuple[str, list[Step]] | None:
    """The tensor that a node reads, and what it does to it, last first; None if not known."""
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
    """A dense layer in one operator, last step first."""
    given = {one.name: one.f if one.name in ("alpha", "beta") else one.i for one in node.attribute}
    turned = weights.T if given.get("transB") else weights
    return [("Add", given.get("beta", 1.0) * shift.ravel()),
            ("MatMul", given.get("alpha", 1.0) * turned)]  # fmt: skip


def _axes(node: "onnx.NodeProto", numbers: dict[str, np.ndarray]) -> list[int]:
    given = [list(one.ints) for one in node.attribute if one.name == "axes"]
    return given[0] if given else [int(axis) for axis in numbers[node.input[1]]]


def draw_explanations(folder: str | Path, grader: "Grader") -> Path | None:
    """Draw where a model's score comes from: a map of each tested patient, and a sheet of four.

    `figures/maps/FRAME_ID.jpg` shows the first frame of a patient that has a map, for at most
    `MAX_MAPS` patients, the most wrong first. Of `figures/explanation.png` the four are the least
    and the most fat of those named right and the two most wrong.

    Args:
        folder: of a run or a validation, with `patient_scores.csv` and a manifest that leads to the
            frames.
        grader: its model.

    Returns:
        the sheet; None if no frame has a map.
    """
    folder = Path(folder)
    scores = pd.read_csv(folder / "patient_scores.csv", dtype={"patient_id": str})
    frames = dict(iter(read_manifest(folder / "manifest.csv").groupby("patient_id")))
    label, named = (scores[name].map(GRADES.index) for name in ("grade", "predicted"))
    scores = scores.assign(label=label, far=(label - named).abs())
    scores = scores.sort_values("far", ascending=False, kind="stable")
    right = scores.query("far == 0").sort_values("label", kind="stable")
    told = [*right.index[[0, -1][: len(right)]], *scores.query("far > 0").index[:_EACH]]
    shutil.rmtree(folder / "figures" / "maps", ignore_errors=True)
    rows = {}
    shown = tqdm(dict.fromkeys([*told, *scores.index[:MAX_MAPS]]), "maps", unit="patient")
    for place in shown:
        patient = scores.loc[place]
        listed = frames.get(patient["patient_id"], pd.DataFrame())
        frame_id, pictures = _pictures(grader, patient["patient_id"], folder, listed)
        if not pictures:
            continue
        text = (f"patient {patient['patient_id']}: reference {patient['grade']}, named "
                f"{patient['predicted']} ({'wrong' if patient['far'] else 'right'})")  # fmt: skip
        write_map(text, pictures, folder / "figures" / "maps" / f"{frame_id}.jpg")
        if place in told:
            rows[text] = pictures
    return write_sheet(list(rows.items()), folder / "figures" / "explanation.png") if rows else None


def _pictures(
    grader: "Grader", patient: str, folder: Path, frames: pd.DataFrame
) -> tuple[str, list[np.ndarray]]:
    """Outlines and map of the first frame that has a map, and its id; [] if none has."""
    for row in frames.itertuples():
        try:
            frame = read_frame(frame_path(folder / "manifest.csv", row.path))
        except ValueError:
            continue  # it was answered as one that cannot be read
        look = grader.look("", frame)
        answer = grader.answer(patient, [look], maps=True)
        (found,) = answer.frames
        if look.fan is None or found.map is None:
            continue
        # Names are burned in beside the sector.
        inside = look.fan.mask(frame.shape[:2])
        bare = np.where(inside if frame.ndim == 2 else inside[..., None], frame, np.uint8(0))
        return row.frame_id, frame_pictures(found, look, bare, answer)
    return "", []
