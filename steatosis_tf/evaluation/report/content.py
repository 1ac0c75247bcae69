"""What the templates of a report print: rows, sentences and figures, from a run and its analysis.

Words about the method come from the run's config and manifest, never from here; labels of metrics
from `metrics.registry`. `templates/report.md.j2` says in which order they stand.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from steatosis_tf.config import CLOSED_FORM, load_config, unused_settings
from steatosis_tf.evaluation.clinical.subgroups import SEVERAL, UNKNOWN, group_order
from steatosis_tf.evaluation.metrics.registry import shown_in
from steatosis_tf.evaluation.report.analysis import COVARIATES, Analysis
from steatosis_tf.evaluation.report.checks import is_consistent
from steatosis_tf.evaluation.report.run import STUDY_KEYS, RunRecord
from steatosis_tf.files import flat
from steatosis_tf.grades import GRADES
from steatosis_tf.roi.views import VIEW_COLUMN, input_shape
from steatosis_tf.sources.tables import kinds_of

_PROTOCOLS = {
    "holdout": "One hold-out split, stratified by grade",
    "kfold": "Cross-validation in folds, stratified by grade",
    "lopo": "Leave one patient out",
    "logo": "Leave one group out",
    "temporal": "Split by time: earlier patients train, later ones test",
}


def number(value: Any, digits: int = 3) -> str:
    """A number for a table cell; "undefined" for None."""
    if value is None:
        return "undefined"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def interval(entry: Mapping[str, Any] | None, digits: int = 3) -> str:
    """`0.812 (0.744 to 0.871)`; the value alone where there is no interval, or one of no width.

    Example:
        >>> interval({"value": 0.5, "low": 0.412, "high": 0.588}, 2)
        '0.50 (0.41 to 0.59)'
    """
    if not entry or entry.get("value") is None:
        return "undefined"
    value = number(float(entry["value"]), digits)
    if entry.get("low") is None:
        return f"{value} (no interval)"
    low, high = (f"{entry[end]:.{digits}f}" for end in ("low", "high"))
    # Ends that print alike say that the resamples knew nothing, not that the number is certain.
    return f"{value} (no interval)" if low == high else f"{value} ({low} to {high})"


def settings(content: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Nested settings as rows of two names and values, as they were written (1e-4, not 0.000);
    of a list its length."""
    short = {name: len(value) if isinstance(value, list) else value
             for name, value in content.items()}  # fmt: skip
    rows = [
        (name, f"{value:.6g}" if isinstance(value, float) else number(value))
        for name, value in flat(short).items()
    ]
    half = -(-len(rows) // 2)
    return [(*left, *right) for left, right in
            zip(rows[:half], [*rows[half:], ("", "")], strict=False)]  # fmt: skip


def settings_read(run: RunRecord) -> list[tuple[str, str, str, str]]:
    """`settings` of a run, less those that nothing read: epochs of a head that was solved."""
    try:
        unused = unused_settings(load_config(run.run_dir / "config.json"))
    except ValueError:  # of another version
        unused = {}
    read = {name: value for name, value in flat(run.config).items() if name not in unused}
    return settings(read)


def consistency(analysis: Analysis) -> str:
    """The self-check in one sentence."""
    checks = analysis.checks
    if is_consistent(checks):
        return (
            f"Consistent: all {len(checks)} self-checks hold. Matrix, supports, accuracy, "
            "per-class values and averages follow from the scores."
        )
    failed = sum(check.passed is False for check in checks)
    if failed:
        return f"Not consistent: {failed} of {len(checks)} self-checks failed."
    num_open = sum(check.passed is None for check in checks)
    return f"Not shown to be consistent: {num_open} self-checks could not be made."


def titles(run: RunRecord) -> tuple[str, str]:
    """Title of a report, in the author's words where there are any, and what it is about."""
    if run.external:
        model = run.external["model"]
        return (
            run.study.get("title") or f"External validation of {model['name']}",
            f"Model {model['name']}, SHA-256 {model['sha256']}, on the manifest with SHA-256 "
            f"{run.external['manifest_sha256']}",
        )
    return (
        run.study.get("title") or f"Steatosis grading from ultrasound: {run.experiment}",
        f"Experiment {run.experiment}, run {run.run_id}",
    )


def verdict(analysis: Analysis) -> str:
    """In words: is the model any better than an answer that needs no model?"""
    if not analysis.majority:
        return "No verdict: there are no scored patients."
    grade, gain = analysis.majority["grade"], analysis.majority["accuracy"]
    kappa = analysis.intervals["patient"]["ordinal.quadratic_kappa"]
    found = (
        f"accuracy {number(gain['model'])} against {number(gain['baseline'])}, difference "
        f"{interval(gain)}"
    )
    if gain["low"] is not None and gain["low"] > 0:
        return f"Better than always saying {grade}: {found}."
    if gain["high"] is not None and gain["high"] < 0:
        return f"Worse than always saying {grade}: {found}."
    text = f"Not shown to be better than always saying {grade}: {found}."
    if kappa["low"] is not None and kappa["low"] > 0:
        text += f" It orders the grades better than chance: quadratic kappa {interval(kappa)}."
    return text


def first_page(analysis: Analysis) -> list[list[str]]:
    """Rows of the overview: metric, this model, and each baseline."""
    columns = [analysis.intervals.get("patient", {}), *analysis.baselines.values()]
    return [
        [label, *(interval(entries.get(name)) for entries in columns)]
        for name, label in shown_in("first").items()
    ]


def who_was_tested(run: RunRecord, analysis: Analysis) -> str:
    """How many patients and frames, how, and how many of each grade."""
    found = analysis.metrics["patient"]
    how = "tested out of fold" if run.num_folds > 1 else "of the test part"
    if run.external:
        how = f"graded, of {run.external['counts']['patients']:,} validated"
    frames = analysis.metrics.get("frame", {}).get("n")
    grades = ", ".join(f"{found['support'][grade]} {grade}" for grade in GRADES)
    return (
        f"{found['n']:,} patients {how}"
        + (f", {frames:,} frames" if frames else "")
        + (f"; {grades}")
    )


#: What a rule of `evaluation.aggregation` takes of the frames of a patient.
RULE_WORDS = {
    "log_odds": "mean log odds",
    "trimmed_mean": "trimmed mean",
    "vote": "vote (most probable grades)",
}


def what_was_random(run: RunRecord) -> str:
    """Seeds of this run, and weights that never saw a picture; "" if the config is absent."""
    config = run.config or {}
    parts = []
    if config.get("model", {}).get("weights") == "random":
        parts.append("the weights of the backbone, which never saw a picture (model.weights)")
    draws = {
        ("split", "split_seed"): "the split",
        ("train", "seed"): "the start and order of training",
        ("augment", "seed"): "the changes of training frames",
    }
    idle = {"split"} if run.protocol not in ("holdout", "kfold") or not is_dealt(run) else set()
    idle |= {"train", "augment"} if is_solved(config) else set()
    if config.get("train", {}).get("views") == 0:  # drawn online, from the seed of training
        idle |= {"augment"}
    for (stage, name), words in draws.items():
        if stage not in idle and name in config.get(stage, {}):
            parts.append(f"{words} ({stage}.{name}={config[stage][name]})")
    if not parts:
        return ""
    once = config.get("split", {}).get("repeats", 1) == 1
    return f"Random in this run: {'; '.join(parts)}. " + (
        "One draw of each: another gives other figures." if once else "The split was drawn anew "
        f"{config['split']['repeats']} times."
    )  # fmt: skip


def is_solved(config: Mapping[str, Any]) -> bool:
    """Whether the head of a run was solved, without epochs and without a use for validation."""
    return config.get("model", {}).get("head") in CLOSED_FORM


def stated(run: RunRecord, keys: Sequence[str]) -> dict[str, list[str]]:
    """The author's words, and what the author has not stated."""
    names = {key: key.replace("_", " ").capitalize() for key in keys}
    return {
        "words": [f"{names[key]}: {run.study[key]}" for key in keys if key in run.study],
        "missing": [f"{names[key]}: {STUDY_KEYS[key]}" for key in keys if key not in run.study],
    }


def flow_rows(run: RunRecord, manifest: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Who entered, who left and why, who was trained on and tested: step, patients, frames."""
    graded = manifest[manifest["grade"] != ""]
    rows = [("In the manifest", manifest),
            ("Without a grade, left aside", manifest[manifest["grade"] == ""])]  # fmt: skip
    before: list[tuple[str, pd.DataFrame]] = []
    if run.rejected is not None and {"frame_id", "reason"} <= set(run.rejected.columns):
        early = run.rejected["frame_id"] == ""
        kinds = kinds_of(run.rejected)
        for name, mask, place in (
            ("Rejected before the manifest", early, before), ("Rejected", ~early, rows)
        ):  # fmt: skip
            part = run.rejected[mask]
            place += [(f"{name}: {kind}", of) for kind, of in part.groupby(kinds[mask])]
    rows += partitions(run, graded).items()
    return [
        (name, number(part["patient_id"].replace("", np.nan).nunique()), number(len(part)))
        for name, part in [*before, *rows]
    ]  # fmt: skip


def partitions(run: RunRecord, graded: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Graded frames of each part that have a ROI; for cross-validation the parts "tested out of
    fold" and, where there are such, "left out"."""
    if run.split is None:
        return {}
    if "roi_height" in graded:
        graded = graded[graded["roi_height"].notna()]
    if run.num_folds > 1:
        by_side = {str(side): set(part) for side, part in
                   run.split.groupby("split")["patient_id"]}  # fmt: skip
        tested = by_side.get("test", set())
        # As a patient on two scanners, where each is left out in turn.
        apart = by_side.get("left_out", set()) - tested
        named = {f"Tested out of fold, once each, in {run.num_folds} folds": tested,
                 "Left out": apart}  # fmt: skip
        return {name: graded[graded["patient_id"].isin(ids)] for name, ids in named.items() if ids}
    return {
        str(side).replace("_", " ").capitalize(): graded[
            graded["patient_id"].isin(set(part["patient_id"]))
        ]
        for side, part in run.split.groupby("split", sort=False)
    }


def characteristics(run: RunRecord, manifest: pd.DataFrame) -> dict[str, Any]:
    """Patients of each part by grade and covariate: header, rows, covariates that are absent."""
    graded = manifest[manifest["grade"] != ""]
    parts = partitions(run, graded) or {"All graded": graded}
    patients = [part.drop_duplicates("patient_id") for part in parts.values()]
    rows = [["Patients", *(number(len(part)) for part in patients)]]
    rows.append(["Frames", *(number(len(part)) for part in parts.values())])
    rows += [[grade, *(_count(part["grade"] == grade) for part in patients)] for grade in GRADES]
    for column in COVARIATES:
        if column not in graded.columns:
            continue
        if column in ("age", "bmi"):
            rows.append([column, *(_range(part, column) for part in parts.values())])
            continue
        # A patient on two scanners is not one of the first alone.
        found = [part.groupby("patient_id")[column].agg(_only_value) for part in parts.values()]
        for value in group_order(pd.concat(found)):
            rows.append([f"{column}: {value}", *(_count(values == value) for values in found)])
    absent = [name for name in ("sex", "age", "bmi", "scanner", "site") if name not in graded]
    return {"header": ["", *parts], "rows": rows, "absent": absent}


def _count(mask: pd.Series) -> str:
    return f"{int(mask.sum()):,} ({100 * mask.mean():.0f} %)" if len(mask) else "0"


def _only_value(values: pd.Series) -> str:
    texts = set(values.astype(str))
    return SEVERAL if len(texts) > 1 else texts.pop() or UNKNOWN


def _range(part: pd.DataFrame, column: str) -> str:
    numbers = pd.to_numeric(part[column], errors="coerce").groupby(part["patient_id"]).mean()
    known = numbers.dropna()
    if known.empty:
        return "unknown"
    text = f"{known.median():g} ({known.min():g} to {known.max():g})"
    missing = len(numbers) - len(known)
    return f"{text}, {missing} unknown" if missing else text


def protocol(run: RunRecord) -> str:
    """How patients were divided, in words."""
    if is_dealt(run):
        column = (run.config or {}).get("split", {}).get("column", "")
        return _PROTOCOLS.get(run.protocol, run.protocol).replace("group", column or "group")
    kinds = {"holdout": "One hold-out split", "kfold": "Cross-validation"}
    return f"{kinds.get(run.protocol, run.protocol)} as the manifest's split column has it"


def is_dealt(run: RunRecord) -> bool:
    """Whether the run has divided the patients itself, not taken them from a split column."""
    return "split" not in (run.environment or {})


def method(run: RunRecord) -> list[str]:
    """Preprocessing, augmentation and model as this run's config and manifest state them."""
    config, rows = run.config or {}, run.manifest
    has_view = rows is not None and VIEW_COLUMN in rows.columns
    view = str(rows[VIEW_COLUMN].max()) if has_view and rows is not None else ""
    height, width = input_shape(view)
    cut = (
        f"the sector is resampled along its beams to {height} depths x {width} beams, grey, "
        "by linear interpolation"
        if view
        else f"the region of interest is cropped and resized to {height} x {width} px grey by area "
        "interpolation"
    )
    # The version that began to paint marks out began to write the column, too.
    is_painted = rows is None or has_view
    painted = ", text and calipers inside it are painted out" if is_painted else ""
    sentences = [f"Pixels outside the ultrasound sector are set to 0{painted}, and {cut}."]
    if is_solved(config):
        is_used = True if rows is None else (rows["grade"] != "") & rows["roi_height"].notna()
        is_fat = rows is None or rows.loc[is_used, "fat_percent"].notna().all()
        target = "of fat" if is_fat else "of the grade, since not every patient has a fat percent"
        return [*sentences, "Training frames are taken as they are.", *_model(config, target)]
    given = config.get("augment", {})
    unused = ["rotation_deg", "zoom"] if view else ["depth_scale"]
    used = [f"{name}={value}" for name, value in given.items()
            if value and name not in (*unused, "seed")]  # fmt: skip
    idle = [f"{name}={given[name]}" for name in unused if given.get(name)]
    if given:
        sentences.append(
            f"Training frames are changed at random by {', '.join(used) or 'nothing'}."
            + (f" Without meaning here, and not used: {', '.join(idle)}." if idle else "")
        )
    return sentences + _model(config)


def _model(config: dict[str, Any], target: str = "") -> list[str]:
    model, train = config.get("model", {}), config.get("train", {})
    if "weights" not in model:
        return []
    backbone = f"Backbone {model.get('backbone', 'not stated')} (weights: {model['weights']})"
    if is_solved(config):
        measured = " and measured features" if model["head"] == "joint" else ""
        return [f"{backbone}, frozen; a fit in closed form joins its features{measured} into one "
                f"score {target}; cut-offs on that score give the grades."]  # fmt: skip
    epochs = train.get("fine_tune_epochs")
    learns = (
        f"of which the last stage is trained too, for {epochs} epochs" if epochs
        else "frozen"
    )  # fmt: skip
    head = {
        "softmax": "four probabilities without order",
        "ordinal": "one score and ordered cuts between the grades",
        "regression": "a fat percentage, read as grades",
    }.get(model.get("head", ""), str(model.get("head", "")))
    return [
        f"{backbone}, {learns}; "
        f"a head of {model.get('hidden_units', 'not stated')} units on its features gives {head}."
    ]


def roi_failures(manifest: pd.DataFrame) -> str:
    """Frames without a ROI, and where the others' ROI came from."""
    failed = int(manifest["roi_height"].isna().sum())
    text = (
        f"No ROI could be proposed on {failed:,} of {len(manifest):,} frames "
        f"({100 * failed / len(manifest):.1f} %); these are not scored."
    )
    if "roi_source" in manifest.columns:
        sources = manifest.loc[manifest["roi_height"].notna(), "roi_source"].value_counts()
        counts = ", ".join(f"{int(count):,} {name or 'unknown'}" for name, count in sources.items())
        text += f" Source of the ROI: {counts}."
    return text
