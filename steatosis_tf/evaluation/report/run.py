"""Everything a run directory holds, read once; what is absent is None, what is damaged is named."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from steatosis_tf.cohort.manifest import read_manifest
from steatosis_tf.evaluation.metrics.scores import read_scores
from steatosis_tf.files import file_sha256, reason_of, write_json
from steatosis_tf.sources.tables import read_rejected

# What the author may state in `study.json`: section of the report that has it, and what to write
# there. The report never invents these; it says that they are missing.
_STATEMENTS = {
    "title": ("", "title of the study"),
    "intended_use": ("use", "what the grade is used for, and at which point of care"),
    "users": ("use", "who uses it and with what training"),
    "population": ("use", "patients it is meant for"),
    "data_sources": ("data", "where the frames come from"),
    "dates": ("data", "first and last examination"),
    "devices": ("data", "scanners, transducers, settings"),
    "eligibility": ("data", "who was included and excluded, and how they were found"),
    "consent": ("data", "ethics approval, consent or licence of the data"),
    "deidentification": ("data", "how, and with what result"),
    "reference_standard": (
        "reference",
        "biopsy, MRI or readers; cut-offs; time between it and the ultrasound",
    ),
    "readers": ("reference", "number, training, blinding and agreement of readers"),
    "missing_data": ("reference", "missing and conflicting labels, and what was done"),
    "sample_size": ("size", "how the number of patients was arrived at"),
    "protocol": ("limits", "protocol and registration"),
    "involvement": ("limits", "patients and public"),
    "funding": ("limits", "funding, conflicts of interest"),
    "availability": ("limits", "where code, model and data can be had"),
    "limitations": ("limits", "of the study, in the author's words"),
    "monitoring": ("limits", "how performance is watched in use, and when the model is updated"),
    "contact": ("limits", "whom to ask"),
}
#: Name of a statement -> what to write there, and key of its section.
STUDY_KEYS = {name: hint for name, (_, hint) in _STATEMENTS.items()}
STUDY_SECTIONS = {name: section for name, (section, _) in _STATEMENTS.items()}

# Key of the template under which it says what to write; not a statement.
_HINTS = "_what_to_write"


@dataclass(frozen=True)
class RunRecord:
    """One run directory, or the folder of an external validation, which has `external`.

    Tables are None if absent. `faults` names files that are there but cannot be read.
    """

    run_dir: Path
    config: dict[str, Any] | None
    environment: dict[str, Any] | None
    metrics: dict[str, Any] | None
    leak_gate: dict[str, Any] | None
    manifest: pd.DataFrame | None
    split: pd.DataFrame | None
    rejected: pd.DataFrame | None
    frame_scores: pd.DataFrame | None
    patient_scores: pd.DataFrame | None
    validation_scores: pd.DataFrame | None
    robustness: pd.DataFrame | None
    hepatorenal: pd.DataFrame | None
    operating_points: dict[str, Any] | None
    external: dict[str, Any] | None
    study: dict[str, str]
    figures: dict[str, Path]
    hashes: dict[str, str]
    faults: list[str] = field(default_factory=list)

    @property
    def run_id(self) -> str:
        """Name of the run: its folder."""
        return self.run_dir.resolve().name

    @property
    def experiment(self) -> str:
        """Name of the experiment: the folder above."""
        return self.run_dir.resolve().parent.name

    @property
    def protocol(self) -> str:
        """`holdout`, `kfold`, `lopo`, ... or "" if the config is absent."""
        return str((self.config or {}).get("split", {}).get("kind", ""))

    @property
    def is_external(self) -> bool:
        """Whether the patients tested are of another place or time than those learned from."""
        return self.external is not None or self.protocol in ("logo", "temporal")

    @property
    def is_joint(self) -> bool:
        """Whether the model is a grading rule on features, as a bundle holds it."""
        if self.external is not None:  # a network alone has no sets
            return self.external.get("prediction_sets") is not None
        return (self.config or {}).get("model", {}).get("head") == "joint"

    @property
    def is_simulated(self) -> bool:
        """Whether frames are phantoms."""
        cells = None if self.manifest is None else self.manifest.get("simulated")
        return cells is not None and "true" in set(cells.astype(str).str.lower())

    @property
    def rule(self) -> str:
        """How a patient's frames are joined."""
        return str((self.config or {}).get("evaluation", {}).get("aggregation", "mean"))

    @property
    def num_folds(self) -> int:
        """Number of partitions that were tested; 0 if there is no split."""
        return 0 if self.split is None else int(self.split["fold"].nunique())


def read_run(run_dir: str | Path) -> RunRecord:
    """Read a run directory.

    Raises:
        ValueError: if it is not a run (neither config.json, metrics.json nor frame_scores.csv), or
            if `study.json`, which a person writes, is not what it should be.
    """
    run_dir = Path(run_dir)
    core = ("config.json", "metrics.json", "frame_scores.csv")
    if not any((run_dir / name).is_file() for name in core):
        raise ValueError(
            f"Expected a run directory with {', '.join(core)}. Received: run_dir={run_dir.name!r}, "
            "which has none of them. Give runs/<experiment>/<run_id>."
        )
    faults: list[str] = []

    def read(name: str, reader: Callable[[Path], Any]) -> Any:
        path = run_dir / name
        if not path.is_file():
            return None
        try:
            return reader(path)
        except (ValueError, OSError) as error:  # JSON, Unicode and CSV errors are ValueErrors
            faults.append(f"{name}: {reason_of(error)}")
            return None

    figures = sorted((run_dir / "figures").glob("*.png"))
    return RunRecord(
        run_dir=run_dir,
        config=read("config.json", read_json),
        environment=read("environment.json", read_json),
        metrics=read("metrics.json", read_json),
        leak_gate=read("leak_gate.json", read_json),
        manifest=read("manifest.csv", read_manifest),
        split=read("split.csv", read_split),
        rejected=read("rejected.csv", read_rejected),
        frame_scores=read("frame_scores.csv", read_scores),
        patient_scores=read("patient_scores.csv", read_scores),
        validation_scores=read("validation_scores.csv", partial(read_scores, validation=True)),
        robustness=read("robustness.csv", pd.read_csv),
        hepatorenal=read("hepatorenal.csv", _read_hepatorenal),
        operating_points=read("operating_points.json", read_json),
        external=read("external.json", read_json),
        study=read_study(run_dir / "study.json"),
        figures={path.stem: path for path in figures},
        hashes=_hashes(run_dir),
        faults=faults,
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object without NaN.

    Raises:
        ValueError: if the file is not a JSON object, or holds NaN or Infinity: those are not JSON,
            and a result that is undefined has to say so.
    """

    def refuse(_: str) -> None:
        raise ValueError("holds a value that is not a number; what is undefined has to be null")

    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, found a {type(content).__name__}")
    return content


def read_study(path: Path) -> dict[str, str]:
    """The author's statements, empty if the file is absent.

    Raises:
        ValueError: if the file is not a JSON object of texts under the names of `STUDY_KEYS`.
    """
    if not path.is_file():
        return {}
    try:
        study = read_json(path)
    except ValueError as error:
        raise ValueError(f"Expected study.json as a JSON object. Received: {error}.") from error
    study.pop(_HINTS, None)
    unknown = sorted(set(study) - set(STUDY_KEYS))
    wrong = sorted(name for name, text in study.items() if not isinstance(text, str))
    if unknown or wrong:
        raise ValueError(
            f"Expected texts under the names {', '.join(STUDY_KEYS)} in study.json. "
            f"Received: unknown={unknown} not_text={wrong}."
        )
    return {name: text.strip() for name, text in study.items() if text.strip()}


def init_study(run_dir: str | Path) -> Path:
    """Write the template of `study.json`: every key with an empty text, and what to write there.

    Raises:
        ValueError: if the run has a `study.json` already, or is not a run.
    """
    path = read_run(run_dir).run_dir / "study.json"
    if path.exists():
        raise ValueError(
            "Expected a run without study.json. Received: one that has it; it is left as it is. "
            "Fill it, or move it elsewhere."
        )
    write_json({_HINTS: STUDY_KEYS, **dict.fromkeys(STUDY_KEYS, "")}, path)
    return path


def read_split(path: Path) -> pd.DataFrame:
    """The `split.csv` of a run, all text.

    Raises:
        ValueError: if a column is missing.
    """
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return _with_columns(table, "fold", "patient_id", "split")


def _with_columns(table: pd.DataFrame, *names: str) -> pd.DataFrame:
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise ValueError(f"expected {', '.join(names)}; lacks {', '.join(missing)}")
    return table


def _read_hepatorenal(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path, dtype={"patient_id": str})
    table = _with_columns(table, "patient_id", "hepatorenal_index")
    table["hepatorenal_index"] = pd.to_numeric(table["hepatorenal_index"])
    # Frames of one patient: the index of a patient is their mean, as the score of a patient is.
    return table.groupby("patient_id", as_index=False)["hepatorenal_index"].mean()


def _hashes(run_dir: Path) -> dict[str, str]:
    names = ("manifest.csv", "split.csv", "config.json", "frame_scores.csv", "model.onnx")
    return {name: file_sha256(run_dir / name) for name in names if (run_dir / name).is_file()}
