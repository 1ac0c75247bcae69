"""What a tracked model does when MLflow serves it: pictures in, answers as `predict` gives them.

MLflow keeps a copy of this file with each tracked model and runs that (models from code), so what
answers is `deploy`, of the version of steatosis_tf that is installed: what this file calls must go
on giving what it gives, or no model that was registered before answers. On this machine alone:

    mlflow models serve -m models:/joint/1 --env-manager local -h 127.0.0.1
"""

import base64
import binascii
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel

from steatosis_tf.deploy.inputs import Inputs
from steatosis_tf.deploy.predict import answer_group, open_model
from steatosis_tf.grades import GRADES, NOTICE, SCORE_COLUMNS
from steatosis_tf.model.answer import PatientAnswer, plain_answer


class ServedModel(PythonModel):
    """A bundle or ONNX file as an MLflow model; the artifact `model` is the file."""

    def load_context(self, context: Any) -> None:
        self._grader = open_model(context.artifacts["model"])

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Answer the patients of pictures.

        Args:
            context: of MLflow.
            model_input: one row per frame: `image`, base64 of a picture or DICOM file as the
                scanner exports it; `patient`, a pseudonymous id, same for the frames of one
                patient. A frame without it, or without the column, is a patient by itself.
            params: none are known.

        Returns:
            one row per patient, in order of first appearance. What cannot be read or graded has no
            grade and its `reason`; `frames_left_out` names the frames of a patient that do not
            count, by their row, with the reason of each.
        """
        names = model_input.get("patient", pd.Series("", model_input.index)).fillna("")
        inputs = Inputs(by_folder=True)
        shown: dict[str, tuple[str, str]] = {}
        for row, (image, name) in enumerate(zip(model_input["image"], names, strict=True)):
            key = f"patient {name}" if name else f"row {row}"
            # By number, since an id may look like a path.
            place = shown.setdefault(key, (str(len(shown)), name or f"row {row}"))[0]
            load = partial(bytes, _decoded(image))
            inputs.add(f"row {row}", load, Path(place), named=True)
        patients = dict(shown.values())
        answers = [answer_group(self._grader, group)[0] for group in inputs.groups]
        rows = [_row(one, patients.get(one.patient, one.patient)) for one in answers]
        seen = {frame.name.partition("#")[0] for one in answers for frame in one.frames}
        rows += [
            {"patient": name, "kind": "unable", "reason": why, "notice": NOTICE}
            for name, why in inputs.passed_over
            if name not in seen
        ]
        return pd.DataFrame(rows)


def _decoded(image: Any) -> bytes:
    """The bytes of a picture; none where it is no base64: then it is an empty file."""
    try:
        return base64.b64decode(image, validate=True)
    except (TypeError, ValueError, binascii.Error):
        return b""


def _row(answer: PatientAnswer, patient: str) -> dict[str, Any]:
    values = plain_answer(answer)
    left_out = [f"{one.name}: {one.reason}" for one in answer.frames if one.reason]
    return {
        "patient": patient,
        **{name: values[name] for name in ("date", "kind", "grade", "fat_percent")},
        **{column: values["probabilities"].get(grade)
           for column, grade in zip(SCORE_COLUMNS, GRADES, strict=True)},
        "prediction_set": " or ".join(answer.prediction_set),
        **{name: values[name] for name in ("num_frames", "num_used", "reason")},
        "frames_left_out": "; ".join(left_out),
        "notice": NOTICE,
    }  # fmt: skip


mlflow.models.set_model(ServedModel())
