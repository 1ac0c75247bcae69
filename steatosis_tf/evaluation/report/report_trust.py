"""Sections 15 to 20 of a report: for whom it holds, what disturbs it, and what is not known."""

from typing import Any

import numpy as np

from steatosis_tf.evaluation.clinical.prediction_sets import coverage_risk_curve
from steatosis_tf.evaluation.clinical.subgroups import SHOWN_METRICS
from steatosis_tf.evaluation.figures.curves import coverage_risk_figure, robustness_figure
from steatosis_tf.evaluation.metrics.scores import labels_and_probabilities
from steatosis_tf.evaluation.report.analysis import Analysis
from steatosis_tf.evaluation.report.document import (
    Alarm,
    Block,
    Lack,
    Picture,
    Section,
    Table,
    Text,
    key_value_rows,
    number,
    with_interval,
)
from steatosis_tf.evaluation.report.report_study import stated
from steatosis_tf.evaluation.report.run import RunRecord

_WORDS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "ordinal.quadratic_kappa": "Quadratic kappa",
    "ordinal.mean_absolute_error": "Mean abs. error",
    "ordinal.auc_at_least_mild": "AUC, Mild or worse",
}

_PICTURES = {"gallery": "Worst errors, one frame per patient; the box is what the model saw."}


def trust_sections(run: RunRecord, analysis: Analysis) -> list[Section]:
    """Sections 15 to 20."""
    return [
        Section("subgroups", "Subgroups", _subgroups(analysis)),
        Section("robustness", "Robustness and repeatability", _robustness(run, analysis)),
        Section("rejection", "Rejection and abstention", _rejection(run, analysis)),
        Section("explanations", "Explanations and failures", _explanations(run)),
        Section("external", "External validation", _external(run, analysis)),
        Section("limits", "Limits, risks, monitoring, availability", _limits(run, analysis)),
    ]


def _group_table(found: dict[str, Any]) -> Table:
    rows = []
    for group in found["groups"]:
        grades = " / ".join(str(count) for count in group["patients_per_grade"].values())
        first = [group["value"], number(group["num_patients"]), grades]
        if group["suppressed"]:
            rows.append([*first, *["suppressed"] * len(SHOWN_METRICS)])
            continue
        rows.append([*first, *(with_interval(group["metrics"][name], 2) for name in SHOWN_METRICS)])
    header = (found["column"], "n", "of each grade", *(_WORDS[name] for name in SHOWN_METRICS))
    least = found["min_patients"]
    caption = f"Patients by {found['column']}. Groups under {least} patients are suppressed."
    return Table(header, rows, caption)


def _subgroups(analysis: Analysis) -> list[Block]:
    blocks: list[Block] = []
    for found in analysis.subgroups.values():
        blocks += [_group_table(found), Text(found["statement"])]
        if found["gaps"]:
            blocks.append(_gap_table(found))
    by_note: dict[str, list[str]] = {}
    for name, note in analysis.subgroup_notes.items():
        by_note.setdefault(note, []).append(name)
    if by_note:
        absent = "; ".join(f"{', '.join(names)}: {note}" for note, names in by_note.items())
        blocks.append(Lack(f"Not looked at: {absent.rstrip('.')}."))
    return blocks


def _gap_table(found: dict[str, Any]) -> Table:
    rows = [
        [_WORDS[gap["metric"]], gap["higher"], gap["lower"],
         with_interval({"value": gap["gap"], "low": gap["low"], "high": gap["high"]}, 2)]
        for gap in found["gaps"]
    ]  # fmt: skip
    header = ("Largest gap", "Higher", "Lower", "Difference")
    return Table(header, rows, f"By {found['column']}; intervals widened as stated.")


def _robustness(run: RunRecord, analysis: Analysis) -> list[Block]:
    blocks: list[Block] = []
    table = run.robustness
    columns = {"perturbation", "strength", "unit", "metric", "value"}
    if table is None or not columns <= set(table.columns):
        blocks.append(Lack("Disturbed frames: not done (no robustness.csv)."))
    else:
        for metric, words in (
            ("quadratic_kappa", "Quadratic weighted kappa"),
            ("changed_share", "Share of patients whose grade changes"),
        ):
            part = table[table["metric"] == metric]
            if part["value"].notna().any():
                path = run.run_dir / "figures" / f"robustness_{metric}.png"
                who = f"n = {int(part['num_patients'].max()):,} patients" \
                    if "num_patients" in part else ""  # fmt: skip
                robustness_figure(part, path, metric_label=words, subtitle=who)
                blocks.append(Picture(path, f"{words} when frames are disturbed."))
    found = analysis.repeatability
    if found is None:
        return [*blocks, Lack("Repeatability: not done, no frame scores.")]
    if found["within_sd"] is None:
        return [*blocks, *(Lack(f"Repeatability: {note}") for note in found["notes"])]
    low, high = found["limits_of_agreement"]
    ends = found["within_sd_interval"] or [None, None]
    spread = with_interval({"value": found["within_sd"], "low": ends[0], "high": ends[1]})
    icc = "undefined" if found["icc"] is None else f"{found['icc']:.3f}"
    blocks.append(
        Text(
            f"Repeatability over frames: {found['num_patients']:,} patients with two frames or "
            f"more ({found['num_frames']:,} frames). Within-patient SD of the expected grade "
            f"{spread} grades; 95 % limits of agreement between two frames of a "
            f"patient {low:.2f} to {high:.2f} grades; ICC(1,1) {icc}; in "
            f"{100 * found['mixed_share']:.0f} % of patients not all frames get one grade. Frames "
            "of one loop are nearly the same picture: between visits or operators it will be more."
        )
    )
    return blocks


def _rejection(run: RunRecord, analysis: Analysis) -> list[Block]:
    blocks: list[Block] = []
    if run.patient_scores is not None:
        curve = coverage_risk_curve(*labels_and_probabilities(run.patient_scores))
        coverage, risk = np.array(curve["coverage"]), np.array(curve["risk"])
        path = run.run_dir / "figures" / "coverage_risk.png"
        who = f"n = {len(run.patient_scores):,} patients, least certain left out first"
        coverage_risk_figure(coverage, {"model": risk}, path, subtitle=who)
        place = int(np.searchsorted(coverage, 0.8 - 1e-9))
        blocks += [
            Picture(path, "Coverage and risk."),
            Text(
                f"Error rate {risk[-1]:.3f} when every patient is graded, {risk[place]:.3f} when "
                f"the least certain {100 * (1 - coverage[place]):.0f} % are left to a reader."
            ),
        ]
    if analysis.abstention:
        rows = [
            [found["column"], group["value"], number(group["num_patients"]), group["suppressed"]
             or with_interval(group["left_out"], 2)]
            for found in analysis.abstention for group in found["groups"]
        ]  # fmt: skip
        share = 100 * analysis.abstention[0]["share"]
        caption = f"Who would be left to a reader if the least certain {share:.0f} % were."
        blocks.append(Table(("Covariate", "Group", "n", "Share left out"), rows, caption))
    if "rejection.json" not in run.parts:
        return [*blocks, Lack("Quality and out-of-distribution rejection: not done.")]
    content = key_value_rows(run.parts["rejection.json"])
    return [*blocks, Table(("", "Value"), content, "rejection.json")]


def _explanations(run: RunRecord) -> list[Block]:
    blocks: list[Block] = []
    for stem, path in run.figures.items():
        if stem.startswith(("gallery", "worst", "explanation", "grad_cam")):
            blocks.append(Picture(path, _PICTURES.get(stem, stem.replace("_", " ").capitalize())))
    if not any(stem.startswith(("gallery", "worst")) for stem in run.figures):
        blocks.append(Lack("Gallery of the worst errors: not drawn (no figures/gallery.png)."))
    if "explanations.json" in run.parts:
        content = key_value_rows(run.parts["explanations.json"])
        return [*blocks, Table(("", "Value"), content, "explanations.json")]
    return [*blocks, Lack("Explanations with a sanity check: not done (no explanations.json).")]


def _external(run: RunRecord, analysis: Analysis) -> list[Block]:
    settings = (run.config or {}).get("split", {})
    column = str(settings.get("column", ""))
    if run.protocol == "logo" and column in analysis.subgroups:
        text = f"Leave one {column} out: each group was graded by a model that never saw it."
        return [Text(text), _group_table(analysis.subgroups[column])]
    if run.protocol == "temporal":
        text = f"Temporal: trained on earlier, tested on later patients by {column} (section 9)."
        return [Text(text)]
    if "external.json" in run.parts:
        content = key_value_rows(run.parts["external.json"])
        return [Table(("", "Value"), content, "external.json")]
    return [
        Lack(
            "Not done: no external, temporal or leave-one-scanner-out validation is part of this "
            "run. How the model does at another place is not known."
        )
    ]


def _limits(run: RunRecord, analysis: Analysis) -> list[Block]:
    blocks: list[Block] = []
    if run.manifest is not None and "scanner" in run.manifest.columns:
        scanners = set(run.manifest["scanner"].astype(str)) - {""}
        if len(scanners) == 1:
            blocks.append(Alarm("All frames come from one scanner."))
    if analysis.metrics.get("patient", {}).get("n", 100) < 100:
        n = analysis.metrics["patient"]["n"]
        blocks.append(Alarm(f"Only {n} patients were tested; intervals are wide, read them."))
    blocks.append(
        Text(
            "Known risks: a reader may trust the grade too much; frames unlike the training frames "
            "get a grade nonetheless unless rejected; a reference by readers teaches the reader's "
            "habits; accuracy far above the readers' own agreement points to a leak."
        )
    )
    return blocks + stated(
        run, "limitations", "monitoring", "protocol", "involvement", "funding", "availability",
        "contact",
    )  # fmt: skip
