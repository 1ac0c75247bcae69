"""Which head grades best on stored features, and what does choosing it cost in honesty?

Command:
    python -m experiments.sweep_head --manifest MANIFEST_CSV --weights imagenet --trials 100
    python -m experiments.sweep_head --manifest MANIFEST_CSV --weights random --trials 100
The same command again goes on where the last one stopped, killed or not.
Expected time: see docs/speed.md.

Searched: head width, dropout, weight decay, learning rate, class weighting (0 none to 1 balanced).
Nested, by patient: each outer fold's training patients are cross-validated (inner folds), and the
trial with the best inner score is chosen for that outer fold alone. Only then is its test part
scored, once, by the chosen head. The proposals are a fixed low-discrepancy sequence (Sobol), which
no score steers: with a sampler that learns, a patient tested in one fold would help to choose
through the inner score of another.
Inner score: mean area under the ROC curve of the three cuts (>= Mild, >= Moderate, Severe) over
patients, which class weighting cannot move by shifting all probabilities.
"""

import argparse
import hashlib
import json
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.head_search.head_sweep import Sweep, ranking_score
from steatosis_tf import tracking
from steatosis_tf.cohort.manifest import read_manifest
from steatosis_tf.cohort.splits import make_partitions
from steatosis_tf.config import Config, SplitConfig, TrainConfig, flatten, override
from steatosis_tf.files import write_json
from steatosis_tf.grades import NOTICE
from steatosis_tf.pipeline import Preparation, complete_manifest, keep_records
from steatosis_tf.training import load_study
from steatosis_tf.verbs.common import add_config_arguments, given_settings

try:
    import optuna
except ImportError:
    raise SystemExit(
        "error: Expected the package optuna. Received: not installed. "
        "Install it with `pip install steatosis_tf[sweep]`."
    ) from None

EXPERIMENT = "sweep_head"
CONFIG = Config(split=SplitConfig(kind="kfold", folds=5), train=TrainConfig(epochs=60))
INNER_FOLDS = 3


def propose(trial: optuna.Trial) -> dict[str, Any]:
    """One point of the searched space."""
    return {
        "hidden_units": 2 ** trial.suggest_int("log2_hidden_units", 4, 8),
        "dropout": trial.suggest_float("dropout", 0.0, 0.8),
        "weight_decay": trial.suggest_float("weight_decay", 1e-4, 1.0, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 3e-5, 1e-2, log=True),
        "class_weighting": trial.suggest_float("class_weighting", 0.0, 1.0),
    }


def open_study(folder: Path, fingerprint: str, seed: int) -> optuna.Study:
    """The Optuna study of exactly these frames, features and settings; made if new."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():  # "QMCSampler is experimental", for years
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=seed)
    return optuna.create_study(
        study_name=fingerprint,
        storage=f"sqlite:///{(folder / 'optuna.db').absolute()}",
        sampler=sampler,
        direction="maximize",
        load_if_exists=True,
    )


def finished_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials with a score, oldest first. One that was killed half-way is not among them."""
    return study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))


def add_trials(study: optuna.Study, sweep: Sweep, num_trials: int) -> None:
    """Run trials until there are `num_trials`; each is a child run in MLflow."""
    while len(done := finished_trials(study)) < num_trials:
        trial = study.ask()
        params = propose(trial)
        with tracking.start_run(EXPERIMENT, f"trial_{trial.number:03d}", params, nested=True):
            cpu_start = time.process_time()
            scores = sweep.run_trial(params)
            cpu_seconds = time.process_time() - cpu_start
            numbers = {f"fold_{fold}": score for fold, score in enumerate(scores)}
            tracking.log_metrics({"inner_auc": numbers | {"mean": float(np.mean(scores))}})
            tracking.log_metrics({"cpu_seconds": cpu_seconds})
        trial.set_user_attr("params", params)
        trial.set_user_attr("inner_scores", scores)
        trial.set_user_attr("cpu_seconds", cpu_seconds)
        study.tell(trial, float(np.mean(scores)))
        print(f"trial {len(done) + 1}/{num_trials}: {np.mean(scores):.3f}, "
              f"{cpu_seconds:.1f} CPU-s", file=sys.stderr)  # fmt: skip


def summarize(study: optuna.Study, sweep: Sweep, num_trials: int) -> dict[str, Any]:
    """Choose per outer fold, score each test part once, and say what it came to.

    Returns:
        JSON-able: the chosen settings per fold, their inner score, the out-of-fold test score,
        the settings with the best mean inner score, CPU seconds per trial.
    """
    trials = finished_trials(study)[:num_trials]
    scores = np.array([trial.user_attrs["inner_scores"] for trial in trials])
    chosen, rows, tested = [], [], []
    for number, fold in enumerate(sweep.folds):
        best = trials[int(scores[:, number].argmax())]
        chosen.append({"trial": best.number, "inner_auc": float(scores[:, number].max()),
                       **best.user_attrs["params"]})  # fmt: skip
        rows.append(fold.test)
        tested.append(sweep.test_scores(fold, best.user_attrs["params"]))
    best = trials[int(scores.mean(axis=1).argmax())]
    cpu = [trial.user_attrs["cpu_seconds"] for trial in trials]
    return {
        "num_trials": len(trials),
        "cpu_seconds_per_trial": float(np.mean(cpu)),
        "chosen_per_outer_fold": chosen,
        "inner_auc": float(np.mean([choice["inner_auc"] for choice in chosen])),
        # Folds differ in their heads, so probabilities are ranked within a fold.
        "test_auc": float(np.mean([ranking_score(sweep.index, r, s)
                                   for r, s in zip(rows, tested, strict=True)])),
        "recommended": best.user_attrs["params"],
    }  # fmt: skip


def prepare(manifest_path: Path, config: Config, runs_dir: Path, inner: int) -> tuple[Sweep, str]:
    """The sweep on the manifest's frames, and a name for all that matters."""
    place = Preparation(config, runs_dir / EXPERIMENT, runs_dir)
    table = read_manifest(manifest_path)
    partitions = make_partitions(table, config.split)
    table = complete_manifest(table, manifest_path, partitions, place)
    records_dir, fingerprint = keep_records(table, partitions, place)
    data = load_study(records_dir, place.cache_dir / "features", config)
    text = json.dumps([fingerprint, flatten(config), inner, data.views.shape], sort_keys=True)
    digest = hashlib.sha256(text.encode() + data.views[0].tobytes()).hexdigest()
    return Sweep(data.index, data.views, config, inner), digest[:16]


def main(argv: Sequence[str] | None = None) -> int:
    """Sweep, choose, test once, print, and log to MLflow."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=NOTICE
    )
    parser.add_argument("--manifest", required=True, metavar="MANIFEST_CSV")
    add_config_arguments(parser)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--inner-folds", type=int, default=INNER_FOLDS)
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--report", metavar="FILE", help="write a JSON summary")
    args = parser.parse_args(argv)
    try:
        config = override(CONFIG, given_settings(args))
        params = flatten(config) | {"trials": args.trials, "inner_folds": args.inner_folds}
        with tracking.start_run(EXPERIMENT, "sweep", params):
            runs_dir = Path(args.runs_dir)
            sweep, digest = prepare(Path(args.manifest), config, runs_dir, args.inner_folds)
            study = open_study(runs_dir / EXPERIMENT, digest, config.train.seed)
            add_trials(study, sweep, args.trials)
            summary = summarize(study, sweep, args.trials)
            numbers = ("inner_auc", "test_auc", "cpu_seconds_per_trial")
            tracking.log_metrics({name: summary[name] for name in numbers})
            path = Path(args.report or runs_dir / EXPERIMENT / f"{digest}.json")
            write_json(summary, path)
            tracking.log_artifacts(path)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{summary['num_trials']} trials, {summary['cpu_seconds_per_trial']:.1f} CPU-s each")
    print(f"inner folds, mean AUC of three cuts, chosen heads: {summary['inner_auc']:.3f}")
    print(f"test folds, the same heads, scored once:           {summary['test_auc']:.3f}")
    print(f"for a model of all patients: {json.dumps(summary['recommended'])}")
    print(NOTICE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
