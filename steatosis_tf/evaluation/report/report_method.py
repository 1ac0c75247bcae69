"""Sections 5 and 6 of a report: split and leak audit; preprocessing, model, computation."""

from typing import Any

import pandas as pd

from steatosis_tf.evaluation.report.document import (
    Alarm,
    Block,
    Lack,
    Picture,
    Table,
    Text,
    key_value_rows,
    side_by_side,
)
from steatosis_tf.evaluation.report.run import RunRecord
from steatosis_tf.roi.views import VIEW_COLUMN, input_shape

_PROTOCOLS = {
    "holdout": "One hold-out split, stratified by grade",
    "kfold": "Cross-validation in folds, stratified by grade",
    "lopo": "Leave one patient out",
    "logo": "Leave one group out",
    "temporal": "Split by time: earlier patients train, later ones test",
}


def split_blocks(run: RunRecord) -> list[Block]:
    """How patients were divided, what the leak gate found, and hashes of what was measured."""
    blocks: list[Block] = []
    config = (run.config or {}).get("split")
    if config:
        blocks.append(
            Text(
                f"{_PROTOCOLS.get(run.protocol, run.protocol)}; whole patients, frozen by "
                f"split_seed {config.get('split_seed')}; {run.num_folds} partition(s)."
            )
        )
    else:
        blocks.append(Lack("Not known: config.json is absent or damaged."))
    if run.split is None:
        blocks.append(Lack("Not known: split.csv is absent or damaged."))
    blocks.extend(_leak_blocks(run.leak_gate))
    rows = [(name, digest) for name, digest in run.hashes.items()]
    return [*blocks, Table(("File", "SHA-256"), rows, "What was measured, by content.")]


def _leak_blocks(gate: dict[str, Any] | None) -> list[Block]:
    if gate is None:
        return [
            Lack(
                "Leak audit (patient, exact copy, near copy, label conflict): not done; "
                "leak_gate.json is absent. Results may be too good."
            )
        ]
    blocks: list[Block] = []
    if gate.get("passed") is not True:
        blocks.append(Alarm("The leak gate did not pass: results are not to be believed."))
    findings = gate.get("findings") or []
    looked = {key: value for key, value in gate.items() if key != "findings"}
    blocks.append(Table(("Leak audit", ""), key_value_rows(looked), "leak_gate.json"))
    return blocks + [Alarm(_finding_text(finding)) for finding in findings[:10]]


def _finding_text(finding: Any) -> str:
    return str(finding.get("text", finding)) if isinstance(finding, dict) else str(finding)


def method_blocks(run: RunRecord) -> list[Block]:
    """Preprocessing, model, every setting, versions and run time."""
    blocks: list[Block] = [
        Text(
            "Pixels outside the ultrasound sector are set to 0, text and calipers inside it are "
            f"painted out, and {_view_text(run)}."
        )
    ]
    if run.config is not None:
        blocks.append(Text(_augmentation_text(run)))
    model = (run.config or {}).get("model", {})
    if "weights" in model:
        blocks.append(
            Text(
                f"A ResNet-50 (weights: {model['weights']}), frozen, gives features; a dense head "
                "trained on them gives four probabilities."
            )
        )
    blocks.extend(_roi_blocks(run.manifest))
    if run.config is None:
        blocks.append(Lack("Configuration not known: config.json is absent or damaged."))
    else:
        caption = "Every setting (config.json)."
        header = ("Setting", "Value", "Setting", "Value")
        blocks.append(Table(header, side_by_side(key_value_rows(run.config)), caption))
    curves = [path for name, path in run.figures.items() if name.startswith("training")]
    if curves:
        of = f", first of {len(curves)}" if len(curves) > 1 else ""
        blocks.append(Picture(curves[0], f"Training curves{of}."))
    if run.environment is None:
        blocks.append(Lack("Versions, hardware and run time not known: no environment.json."))
    else:
        caption = "Versions, hardware, run time (environment.json)."
        header = ("", "Value", "", "Value")
        blocks.append(Table(header, side_by_side(key_value_rows(run.environment)), caption))
    return blocks


def _augmentation_text(run: RunRecord) -> str:
    """Which changes of training frames were used, and which settings have no meaning here."""
    given = (run.config or {}).get("augment", {})
    unused = ["rotation_deg", "zoom"] if _view(run) else ["depth_scale"]
    used = [f"{name}={value}" for name, value in given.items()
            if value and name not in (*unused, "seed")]  # fmt: skip
    idle = [f"{name}={given[name]}" for name in unused if given.get(name)]
    text = f"Training frames are changed at random by {', '.join(used) or 'nothing'}."
    return text + (f" Without meaning here, and not used: {', '.join(idle)}." if idle else "")


def _view(run: RunRecord) -> str:
    rows = run.manifest
    return "" if rows is None or VIEW_COLUMN not in rows.columns else str(rows[VIEW_COLUMN].max())


def _view_text(run: RunRecord) -> str:
    height, width = input_shape(_view(run))
    if _view(run):
        return (
            f"the sector is resampled along its beams to {height} depths x {width} beams, grey, "
            "by linear interpolation"
        )
    return (
        f"the region of interest is cropped and resized to {height} x {width} px grey by area "
        "interpolation"
    )


def _roi_blocks(manifest: pd.DataFrame | None) -> list[Block]:
    if manifest is None or "roi_height" not in manifest.columns:
        return [Lack("ROI failure rate not known: no ROI columns in manifest.csv.")]
    failed = int(manifest["roi_height"].isna().sum())
    text = (
        f"No ROI could be proposed on {failed:,} of {len(manifest):,} frames "
        f"({100 * failed / len(manifest):.1f} %); these are not scored."
    )
    if "roi_source" in manifest.columns:
        sources = manifest.loc[manifest["roi_height"].notna(), "roi_source"].value_counts()
        counts = ", ".join(f"{int(count):,} {name or 'unknown'}" for name, count in sources.items())
        text += f" Source of the ROI: {counts}."
    return [Text(text)]
