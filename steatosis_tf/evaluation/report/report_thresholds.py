"""Sections 11 to 13 of a report: operating points, calibration and grade sets, decision curves."""

from typing import Any

import numpy as np

from steatosis_tf.evaluation.clinical.calibration import NUM_BINS
from steatosis_tf.evaluation.figures.curves import decision_curve_figure, reliability_figure
from steatosis_tf.evaluation.metrics.scores import labels_and_probabilities
from steatosis_tf.evaluation.metrics.weighted import CUMULATIVE_TASKS
from steatosis_tf.evaluation.report.analysis import Analysis, Thresholds
from steatosis_tf.evaluation.report.document import (
    Alarm,
    Block,
    Lack,
    Picture,
    Table,
    Text,
    number,
    with_interval,
)
from steatosis_tf.evaluation.report.run import RunRecord
from steatosis_tf.grades import SCORE_COLUMNS, TASKS

_RULES = {
    "youden": "Youden",
    "sensitivity": "fixed sensitivity",
    "specificity": "fixed specificity",
    "cost": "least cost",
}
_RATES = {"sensitivity": "Sensitivity", "specificity": "Specificity", "ppv": "PPV", "npv": "NPV"}


def operating_blocks(run: RunRecord, analysis: Analysis) -> list[Block]:
    """Locked cut-offs on the test patients, and predictive values at stated prevalences."""
    found = analysis.thresholds
    if found.operating is None:
        return [Lack(f"Not done: {found.notes.get('operating', 'not known why')}.")]
    rates, predictive, notes = [], [], []
    for task, rules in found.operating.items():
        for rule, entry in rules.items():
            name = f"{TASKS[task][0][1]}: {_RULES.get(rule, rule)}"
            if entry["note"]:
                notes.append((name, entry["note"]))
            if "sensitivity" not in entry:
                rates.append([name, "none", *["undefined"] * len(_RATES)])
                continue
            cells = [with_interval(entry[rate], 2) for rate in _RATES]
            rates.append([name, _cuts(entry["thresholds"]), *cells])
            # The stated prevalences are those of fatty liver of any grade.
            if task == "at_least_mild":
                predictive.extend(_predictive_rows(name, entry["at_prevalence"]))
    folds = f"; cut-offs of {run.num_folds} folds" if run.num_folds > 1 else ""
    blocks: list[Block] = [
        Text(
            f"Cut-offs from {found.points_source}: chosen on validation patients and never moved. "
            "A patient at or above the cut-off is called positive."
        ),
        Table(("Test patients", "Cut-off", *_RATES.values()), rates, f"95 % intervals{folds}."),
    ]
    if predictive:
        header = ("At another prevalence", "Prevalence", "PPV", "NPV")
        caption = "Prevalence of fatty liver: 25 % in screening, 9 to 32 % reported for India."
        blocks.append(Table(header, predictive, caption))
    if notes:
        blocks.append(Table(("Cut-off", "Note"), notes, "Where validation patients are too few."))
    return blocks


def _predictive_rows(name: str, entries: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [name, f"{100 * one['prevalence']:.0f} %", with_interval(one["ppv"], 2),
         with_interval(one["npv"], 2)]
        for one in entries
    ]  # fmt: skip


def _cuts(thresholds: dict[str, float | None]) -> str:
    known = [value for value in thresholds.values() if value is not None]
    if not known:
        return "none"
    if len(known) == 1:
        return f"{known[0]:.3f}"
    return f"{min(known):.2f} to {max(known):.2f}"


def calibration_blocks(run: RunRecord, analysis: Analysis) -> list[Block]:
    """Calibration before and after the temperature, and conformal grade sets."""
    found = analysis.thresholds
    if run.patient_scores is None or not found.calibration:
        return [Lack(f"Not done: {found.notes.get('temperature', 'no patient scores')}.")]
    labels, scores = labels_and_probabilities(run.patient_scores)
    drawn = {"as scored": scores}
    if found.calibrated is not None:
        drawn["after temperature"] = found.calibrated[list(SCORE_COLUMNS)].to_numpy()
    path = run.run_dir / "figures" / "reliability_patients.png"
    reliability_figure(labels, drawn, path)
    blocks: list[Block] = [
        _calibration_table(found),
        Picture(path, "Reliability of the patients' predicted grade."),
    ]
    if found.temperatures is None:
        why = found.notes.get("temperature", "not known why")
        blocks.append(Lack(f"Temperature scaling on validation: not done, {why}."))
    else:
        blocks.append(_temperature_text(found.temperatures))
        notes = {str(fit["note"]) for fit in found.temperatures.values() if fit["note"]}
        blocks += [Alarm(note) for note in sorted(notes)]
    return blocks + _conformal_blocks(found.conformal, found.notes.get("conformal", ""))


def _calibration_table(found: Thresholds) -> Table:
    columns = {"As scored": found.calibration["before"]}
    if "after" in found.calibration:
        columns["After temperature"] = found.calibration["after"]
    rows = [
        [words, *(with_interval(entries[name]) for entries in columns.values())]
        for name, words in (
            ("brier", "Brier score (sum over grades, 0 to 2)"),
            ("nll", "Negative log-likelihood (nats)"),
        )
    ]
    tasks = {task: TASKS[task][0][1] for task in CUMULATIVE_TASKS}
    questions = {"confidence": "predicted grade"} | tasks
    for question, words in questions.items():
        for binning in ("equal_width", "equal_mass"):
            name = f"ECE, {words}, {binning.replace('_', ' ')} bins"
            rows.append([name, *(_error(e[f"{question}.{binning}"]) for e in columns.values())])
    for task, words in tasks.items():
        name = f"Calibration slope and intercept, {words}"
        rows.append([name, *(_line(entries[f"{task}.line"]) for entries in columns.values())])
    caption = (
        f"Test patients; {NUM_BINS} bins; 95 % intervals over patients. With few patients ECE is "
        "above 0 by chance: a perfectly calibrated model with these probabilities stays under the "
        "value named chance in 97.5 % of samples of this size. Slope 1 and "
        "intercept 0 are right; a slope below 1 is over-confidence."
    )
    return Table(("", *columns), rows, caption)


def _error(entry: dict[str, Any]) -> str:
    return f"{with_interval(entry)}, chance {number(entry['chance'])}"


def _line(entry: dict[str, Any]) -> str:
    if entry["slope"] is None:
        return str(entry["note"])
    return f"{entry['slope']:.2f} and {entry['intercept']:.2f}"


def _temperature_text(temperatures: dict[str, dict[str, Any]]) -> Text:
    values = [fit["temperature"] for fit in temperatures.values()]
    rows = sum(fit["num_rows"] for fit in temperatures.values())
    if len(values) == 1:
        return Text(f"Temperature {values[0]:.2f}, fitted on {rows:,} validation patients.")
    return Text(
        f"Temperature fitted for each of {len(values)} folds on its own validation patients: "
        f"median {np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})."
    )


def _conformal_blocks(found: dict[str, Any] | None, why: str) -> list[Block]:
    if found is None:
        return [Lack(f"Grade sets with a stated coverage: not done, {why}.")]
    sizes = ", ".join(f"{count} with {size}" for size, count in found["size_counts"].items())
    promise = f"{100 * found['stated_coverage']:.0f} %"
    blocks: list[Block] = [
        Text(
            f"Grade sets that promise to hold the true grade of {promise} of patients hold it for "
            f"a share of {with_interval(found['coverage'])} of "
            f"{found['num_patients']:,} test patients; mean size {found['mean_size']:.2f} grades "
            f"(patients by number of grades: {sizes})."
        )
    ]
    return [*blocks, Alarm(found["note"])] if found["note"] else blocks


def decision_blocks(run: RunRecord, analysis: Analysis) -> list[Block]:
    """Net benefit of the model against treating all and none, per task."""
    found = analysis.thresholds
    if not found.decisions:
        return [Lack("Not done: no task with patients on both sides.")]
    blocks: list[Block] = []
    for task, curve in found.decisions.items():
        words = TASKS[task][0][1]
        names = {name: name.replace("_", " ") for name in curve["net_benefit"]}
        benefit = {names[name]: np.array(v["value"]) for name, v in curve["net_benefit"].items()}
        model = curve["net_benefit"]["model"]
        path = run.run_dir / "figures" / f"decision_{task}.png"
        decision_curve_figure(
            np.array(curve["thresholds"]),
            benefit,
            path,
            subtitle=f"n = {curve['num_patients']:,} patients, "
            f"{100 * curve['prevalence']:.0f} % with it; band: 95 % over patients",
            task=words,
            bands={"model": (np.array(model["low"]), np.array(model["high"]))},
        )
        blocks.append(Picture(path, f"Decision curve, {words}."))
    how = "at the fitted temperature" if found.calibrated is not None else "as scored"
    blocks.append(
        Text(
            f"Probabilities {how}. Net benefit is on the scale of this sample's share of "
            "positives; a sample enriched with disease overstates it for a clinic."
        )
    )
    if "hepatorenal" in found.notes:
        why = found.notes["hepatorenal"]
        blocks.append(Lack(f"Against the hepatorenal index: not done, {why}."))
    else:
        blocks.append(
            Text(
                "The hepatorenal index (liver over renal cortex, measured from the frames without "
                "a person unless hepatorenal.csv says otherwise) became a probability by a "
                "logistic curve fitted on the patients of each partition that were not tested. "
                + found.notes.get("hepatorenal_lacking", "")
            )
        )
    return blocks
