"""A run on disk and in MLflow: begun, gone on with, logged when it ends or later."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from steatosis_tf import tracking
from steatosis_tf.config import Config, flatten, load_config, run_name
from steatosis_tf.evaluation.metrics.comparison import COMPARED
from steatosis_tf.evaluation.metrics.scores import read_scores
from steatosis_tf.evaluation.report.report import read_opening
from steatosis_tf.files import UNFINISHED_NAME, file_sha256, flat, reason_of
from steatosis_tf.recipes import RECIPES
from steatosis_tf.training import fold_run, log_fold
from steatosis_tf.unfinished import (
    find_unfinished,
    finish,
    is_computed,
    marked,
    only_one,
    refuse_unfinished,
)

# Numbers of environment.json that stand beside the metrics of a run.
_COST = ("train_minutes", "seconds", "file_mb", "ms_per_frame")


@contextmanager
def begun(folder: Path, key: str, config: Config, repeat: int) -> Iterator[Path]:
    """Open a run: a new one, or the same run that was begun before and not finished.

    Until the block has ended well the run is marked as not finished, on disk and in MLflow; one
    that fails stays so, with its reason.

    Args:
        folder: of the experiment, which has its name.
        key: of `unfinished.run_key`.
        config: of the run.
        repeat: which round of a repeated k-fold.

    Yields:
        the folder of the run.

    Raises:
        RuntimeError: if another process computes the same run.
    """
    params = _params(folder.name, config, repeat)
    # One store may have the runs of several folders: the lock is where the run is.
    tag = f"{key} {folder.resolve()}"
    with only_one(folder, key):
        again = find_unfinished(folder, key)
        with tracking.start_run(
            folder.name, run_name(config, repeat), params, again=again, key=tag
        ) as tracked:
            run_dir = folder / tracked.run_id
            run_dir.mkdir(parents=True, exist_ok=True)
            with marked(run_dir, key):
                tracking.end_killed(_is_computed)
                yield run_dir
        finish(run_dir, key)
        if tracking.untracked():
            print(f"log it later: steatosis report {run_dir} --log", file=sys.stderr)


def _is_computed(tag: str) -> bool:
    key, _, folder = tag.partition(" ")
    return is_computed(Path(folder), key)


def read_results(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stands in metrics.json and environment.json."""
    metrics, environment = (
        json.loads((run_dir / name).read_text()) for name in ("metrics.json", "environment.json")
    )
    return metrics, environment


def track(run_dir: Path) -> None:
    """Log what a run directory holds into the run that is open."""
    metrics, environment = read_results(run_dir)
    config = load_config(run_dir / "config.json")
    tracking.log_manifest(run_dir / "manifest.csv")
    tracking.describe(_description(run_dir, config))
    # What runs are told apart by; metrics.json, which is logged too, has all.
    patient, cost = flat(metrics["patient"]), environment["cost"]
    tracking.log_metrics(
        {"patient": {name: patient[name] for name in COMPARED}}
        | {name: cost[name] for name in _COST if name in cost}
    )
    tracking.log_tags(
        {f"{name}_sha256": file_sha256(run_dir / f"{name}.csv") for name in ("manifest", "split")}
        | {
            "run_dir": f"{run_dir.parent.name}/{run_dir.name}",
            "code_sha256": environment.get("code_sha256", ""),  # a run of before is logged, too
            "engine": environment.get("engine", ""),
        }
    )
    for path in sorted(run_dir.iterdir()):
        if path.is_file() and not path.name.startswith(("model.", "bundle.", UNFINISHED_NAME)):
            tracking.log_artifacts(path)
    tracking.log_artifacts(run_dir / "figures", "figures")
    model = run_dir / "bundle.zip"
    tracking.log_model(model if model.is_file() else run_dir / "model.onnx")


def _changed(name: str, config: Config) -> dict[str, Any]:
    """Settings that are not those of the recipe with the experiment's name, or of none."""
    usual = flatten(RECIPES[name].config if name in RECIPES else Config())
    return {key: value for key, value in flatten(config).items()
            if usual[key] != value and key != "split.kind"}  # fmt: skip


def _params(name: str, config: Config, repeat: int) -> dict[str, Any]:
    """Parameters of a run in the order in which the UI shows them: first what was changed."""
    return _changed(name, config) | flatten(config) | {"repeat": repeat}


def _description(run_dir: Path, config: Config) -> str:
    """How the report opens, with the verdict first, since the UI shows three lines unasked."""
    name = run_dir.parent.name
    changed = [f"`{key}={value}`" for key, value in _changed(name, config).items()]
    told = f"Differs from {f'recipe {name}' if name in RECIPES else 'the defaults'}: "
    told += ", ".join(changed) or "nothing"
    notice, verdict, *rest = read_opening(run_dir)
    return "\n\n".join([verdict, told, notice, *rest])


def log_run(run_dir: str | Path) -> str | None:
    """Log a finished run that could not be tracked, or not as a whole; what is logged stays.

    Args:
        run_dir: `runs/<experiment>/<run_id>`.

    Returns:
        why it is not tracked now either, or None.

    Raises:
        ValueError: if it is no finished run, or one of an earlier version.
    """
    run_dir = Path(run_dir).resolve()
    refuse_unfinished(run_dir)
    config = load_config(run_dir / "config.json")
    try:
        _, environment = read_results(run_dir)
        params = _params(run_dir.parent.name, config, environment["repeat"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            "Expected a run with metrics.json and the environment.json of this version. "
            f"Received: {run_dir.name!r} ({reason_of(error)})."
        ) from error
    name = run_name(config, environment["repeat"])
    with tracking.start_run(run_dir.parent.name, name, params, again=run_dir.name):
        _log_folds(run_dir)
        track(run_dir)
    return tracking.untracked()


def _log_folds(run_dir: Path) -> None:
    """History and scores of each fold, from the tables of a run directory."""
    history_path = run_dir / "history.csv"
    history = pd.DataFrame(columns=["fold"])
    if history_path.is_file():
        history = pd.read_csv(history_path)
    scores = read_scores(run_dir / "frame_scores.csv")
    names = pd.read_csv(run_dir / "split.csv", dtype={"patient_id": str})
    names = names.drop_duplicates("fold").set_index("fold")["partition"]
    if len(names) == 1:
        tracking.log_history(history.drop(columns="fold"))
        return
    logged = tracking.finished_children()
    for fold, name in names.items():
        if name not in logged:
            with fold_run(str(name)):
                of_fold = history.loc[history["fold"] == fold]
                log_fold(scores.loc[scores["fold"] == fold], of_fold)
