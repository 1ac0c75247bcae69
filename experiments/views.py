"""How many stored views do what online augmentation does?

Command:
    python -m experiments.views --manifest MANIFEST_CSV --weights imagenet
    python -m experiments.views --manifest MANIFEST_CSV --weights random --every 5
The same command again goes on where the last one stopped, killed or not.
Expected time and result: see docs/speed.md.

K = 0 is online augmentation: every epoch sees a view of its own. The backbone is frozen, so its
features of these views can be stored like any others: epoch e reads view e + 1 of every frame
(tests/model/test_views.py holds this against a fit on pixels). K = 1, 2, ... draws each frame in
each epoch from K views; "none" trains on the frames as they are.

Patients: 5 outer folds, tested out of fold; within each outer fold's training patients 3 inner
folds validate, and a patient's validation score is the mean over the outer folds it trains in.
The default is the smallest K whose validation AUC (fat >= 5 %) is at most 0.01 below that of
K = 0; the test part has no say. Numbers are means over seeds, intervals resample patients.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.fat_rules.comparison import text_of
from experiments.head_search.compiled_fit import (
    Fold,
    HeadSettings,
    StoredStudy,
    balanced,
    fit_compiled,
    probabilities,
)
from experiments.head_search.head_sweep import outer_folds, refuse_other_fits, start_weights
from steatosis_tf import tracking
from steatosis_tf.config import Config, RoiConfig, SplitConfig, TrainConfig, flatten, override
from steatosis_tf.evaluation.metrics.intervals import bootstrap_intervals, paired_bootstrap
from steatosis_tf.evaluation.metrics.scores import read_scores, score_table, write_scores
from steatosis_tf.files import replacing
from steatosis_tf.grades import GRADES, NOTICE
from steatosis_tf.pipeline import prepare_study
from steatosis_tf.training import StudyData
from steatosis_tf.verbs.common import add_config_arguments, given_settings

EXPERIMENT = "views"
CONFIG = Config(
    split=SplitConfig(kind="kfold", folds=5),
    roi=RoiConfig(method="sector"),
    train=TrainConfig(epochs=40, batch_size=8, learning_rate=1e-3),
)
ONLINE = 0
NONE = -1
NUM_VIEWS = (NONE, ONLINE, 1, 2, 4, 8, 16)
INNER_FOLDS = 3
AUC, ACCURACY = "ordinal.auc_at_least_mild", "accuracy"
TOLERANCE = 0.01


def passes_of(num_views: int, fold: Fold, study: StoredStudy, config: TrainConfig) -> np.ndarray:
    """The rows of `study.table` each epoch reads.

    Returns:
        `(epochs, len(fold.train))` int32.
    """
    generator = np.random.default_rng(config.seed)
    shape = (config.epochs, len(fold.train))
    frames = generator.permuted(np.broadcast_to(fold.train, shape), axis=1)
    if num_views == NONE:
        views = np.zeros(shape, int)
    elif num_views == ONLINE:
        views = np.broadcast_to(np.arange(1, config.epochs + 1)[:, None], shape)
    else:
        views = generator.integers(1, num_views + 1, shape)
    return (views * study.num_frames + frames).astype(np.int32)


def score_variant(
    data: StudyData, study: StoredStudy, num_views: int, config: Config
) -> dict[str, pd.DataFrame]:
    """Validation and test scores of every frame, by heads that never saw its patient."""
    params = {"hidden_units": config.model.hidden_units}
    start = start_weights(study.plain.shape[1], params, config.train.seed)

    def score(fold: Fold, rows: np.ndarray) -> np.ndarray:
        power = float(config.train.class_weights)
        weights = balanced(study.labels[fold.train], power)
        settings = HeadSettings(config.model.dropout, weights, config.train)
        passes = passes_of(num_views, fold, study, config.train)
        trained, _ = fit_compiled(start, study, fold, settings, passes)
        return probabilities(trained, study, fold, rows)

    sums = np.zeros((study.num_frames, len(GRADES)))
    tested = np.zeros_like(sums)
    folds = np.zeros(study.num_frames, int)
    for number, outer in enumerate(outer_folds(data.index, config, INNER_FOLDS)):
        for inner in outer.inner:
            sums[inner.validation] += score(inner, inner.validation)
        tested[outer.test] = score(outer.final, outer.test)
        folds[outer.test] = number
    means = sums / sums.sum(axis=1, keepdims=True)
    tables = {
        "validation": score_table(data.index, means, 0),
        "test": score_table(data.index, tested, folds),
    }
    return {part: table.assign(repeat=config.train.seed) for part, table in tables.items()}


def all_scores(
    data: StudyData, config: Config, folder: Path, num_seeds: int
) -> dict[str, dict[int, pd.DataFrame]]:
    """Score tables by part and K, all seeds in one; what is in the folder is read, not computed."""
    study = StoredStudy(data.views, data.index["label"].to_numpy())
    found: dict[str, dict[int, pd.DataFrame]] = {"validation": {}, "test": {}}
    for num_views in NUM_VIEWS:
        for seed in range(num_seeds):
            paths = {part: folder / f"{part}-{_name(num_views)}-{seed}.csv" for part in found}
            if not all(path.is_file() for path in paths.values()):
                print(f"K = {_name(num_views)}, seed {seed}", file=sys.stderr)
                train = dataclasses.replace(config.train, seed=seed)
                seeded = dataclasses.replace(config, train=train)
                for part, table in score_variant(data, study, num_views, seeded).items():
                    write_scores(table, paths[part])
        for part, tables in found.items():
            paths = [folder / f"{part}-{_name(num_views)}-{s}.csv" for s in range(num_seeds)]
            tables[num_views] = pd.concat([read_scores(path) for path in paths])
    return found


def summarize(scores: dict[str, dict[int, pd.DataFrame]]) -> pd.DataFrame:
    """One row per K: AUC and accuracy with intervals, and the AUC's difference from online."""
    rows = []
    for num_views in NUM_VIEWS:
        row: dict[str, object] = {"K": _name(num_views)}
        for part, tables in scores.items():
            numbers = bootstrap_intervals(tables[num_views])
            row |= {
                f"{part} AUC": text_of(numbers[AUC]),
                f"{part} accuracy": text_of(numbers[ACCURACY]),
            }
            paired = paired_bootstrap(tables[num_views], tables[ONLINE])[AUC]
            row[f"{part} AUC - online"] = text_of(paired) if num_views != ONLINE else "0"
        rows.append(row)
    return pd.DataFrame(rows)


def choose(scores: dict[int, pd.DataFrame]) -> int:
    """The smallest K whose validation AUC is not more than `TOLERANCE` below that of K = 0."""
    areas = {k: bootstrap_intervals(table)[AUC]["value"] for k, table in scores.items()}
    enough = (k for k in areas if k > ONLINE and areas[k] >= areas[ONLINE] - TOLERANCE)
    return min(enough, default=ONLINE)


def _name(num_views: int) -> str:
    return "none" if num_views == NONE else str(num_views)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, score, compare, print, and log to MLflow."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=NOTICE
    )
    parser.add_argument("--manifest", required=True, metavar="MANIFEST_CSV")
    add_config_arguments(parser)
    parser.add_argument("--every", type=int, default=1, help="every n-th frame of a patient")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    args = parser.parse_args(argv)
    try:
        config = override(CONFIG, given_settings(args))
        refuse_other_fits(config)
        needed = max(config.train.epochs, *NUM_VIEWS)
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, views=needed))
        params = flatten(config) | {"every": args.every, "seeds": args.seeds}
        with tracking.start_run(EXPERIMENT, "views", params):
            folder = args.runs_dir / EXPERIMENT
            data, fingerprint = prepare_study(
                args.manifest, config, folder, args.runs_dir, every=args.every
            )
            text = json.dumps([fingerprint, flatten(config)], sort_keys=True)
            digest = hashlib.sha256(text.encode() + data.views[0].tobytes()).hexdigest()[:16]
            scores = all_scores(data, config, folder / digest, args.seeds)
            table, chosen = summarize(scores), choose(scores["validation"])
            with replacing(folder / digest / "views.csv") as temporary:
                table.to_csv(temporary, index=False)
            tracking.log_artifacts(folder / digest / "views.csv")
            tracking.log_metrics({"chosen_views": chosen})
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(data.index)} frames of {data.index['patient_id'].nunique()} patients, "
          f"{config.train.epochs} epochs, {args.seeds} seeds")  # fmt: skip
    for part in scores:
        columns = ["K", *(name for name in table if name.startswith(part))]
        print("", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), sep="\n")
        for row in table[columns].itertuples(index=False):
            print("| " + " | ".join(row) + " |")
    print(f"\nchosen by validation: train.views={chosen}", NOTICE, sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
