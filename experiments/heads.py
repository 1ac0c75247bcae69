"""Does a head that knows the order of the grades, or the patient, grade better than softmax?

    python -m experiments.heads --manifest MANIFEST_CSV --weights random --repeats 3

Every variant trains on the same stored features, in the same patient-level 5-fold rounds and with
the same seeds as the systems of Table I (sector ROI); a patient's score is the mean over frames,
but for `pooled`, which sees all frames of a patient at once (gated attention, Ilse 2018).
`uneven` keeps one to ten frames of each patient, so that reading patients equally often matters:
the ten frames each has are nearly one picture. `fine-tuned` goes on for five epochs in which conv5
learns too; it costs far more than all others, so it runs only if named:

    head -1 MANIFEST_CSV > one.csv; grep _F00 MANIFEST_CSV >> one.csv
    python -m experiments.heads --manifest one.csv --repeats 1 --only softmax fine-tuned

Epochs and rate were set for their cost, a fifth of the paper's epochs at five times its rate;
nothing is tuned. Finished variants of a round lie in runs/heads/ and are not
computed again; the same command goes on.
Time and result: docs/research/heads.md.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from experiments.fat_rules.comparison import text_of
from experiments.head_search.attention_pooling import bags, build_pooled_head, whole_patients
from experiments.table1.study import PROTOCOL, Study, load_study
from steatosis_tf import tracking
from steatosis_tf.cohort.splits import Partition
from steatosis_tf.config import Config, ModelConfig, TrainConfig, flatten, override
from steatosis_tf.evaluation.metrics.intervals import bootstrap_intervals, paired_bootstrap
from steatosis_tf.evaluation.metrics.scores import (
    patient_scores,
    read_scores,
    score_table,
    write_scores,
)
from steatosis_tf.grades import GRADES, NOTICE
from steatosis_tf.model.fine_tune import CUT_LAYER
from steatosis_tf.model.train import class_weights, fit, make_repeatable
from steatosis_tf.training import StudyData, rows_of, train_fold
from steatosis_tf.training import load_study as load_features
from steatosis_tf.verbs.common import add_config_arguments, given_settings

EXPERIMENT = "heads"
CONFIG = dataclasses.replace(
    PROTOCOL,
    model=ModelConfig(weights="random"),
    train=TrainConfig(epochs=20, learning_rate=5e-4),
)
#: Variant -> settings beside CONFIG, and the variant it is compared with.
VARIANTS: dict[str, tuple[list[str], str]] = {
    "softmax": ([], ""),
    "ordinal": (["model.head=ordinal"], "softmax"),
    "regression": (["model.head=regression"], "softmax"),
    "patients": (["train.sampling=patients"], "softmax"),
    "pooled": ([], "softmax"),
    "uneven softmax": ([], ""),
    "uneven patients": (["train.sampling=patients"], "uneven softmax"),
    "fine-tuned": (
        ["train.fine_tune_epochs=5", "train.fine_tune_learning_rate=1e-4"],
        "softmax",
    ),
}
USUAL = [name for name in VARIANTS if name != "fine-tuned"]
METRICS = {
    "AUC, Mild or worse": "ordinal.auc_at_least_mild",
    "AUC, Moderate or worse": "ordinal.auc_at_least_moderate",
    "AUC, Severe": "ordinal.auc_severe",
    "accuracy": "accuracy",
    "quadratic kappa": "ordinal.quadratic_kappa",
}
FRAMES_PER_BAG = 5


def read_features(study: Study, config: Config, runs_dir: Path, variants: list[str]) -> StudyData:
    """Stored features of the study's frames, plain and in views; for fine-tuning the maps too."""
    if "fine-tuned" in variants:
        config = override(config, VARIANTS["fine-tuned"][0])
    with tracking.start_run(EXPERIMENT, "features", flatten(config)):
        return load_features(study.records_dir, runs_dir / "cache" / "features", config)


def uneven(data: StudyData) -> StudyData:
    """One to ten frames of each patient, as a hash of the patient's id says."""
    place = data.index.groupby("patient_id").cumcount().to_numpy()
    kept = [hashlib.sha256(name.encode()).digest()[0] % 10 for name in data.index["patient_id"]]
    rows = np.flatnonzero(place <= np.array(kept))
    index = data.index.iloc[rows].reset_index(drop=True)
    return dataclasses.replace(data, index=index, views=np.asarray(data.views[:, rows]))


def frame_fold(data: StudyData, partition: Partition, config: Config, fold: int) -> pd.DataFrame:
    """Out-of-fold patient scores of a head on frames."""
    trained, _ = train_fold(data, partition, config, None)
    rows = rows_of(data, partition.test)
    if data.maps is None:
        probabilities = np.asarray(trained(data.views[0, rows], training=False))
    else:
        above = keras.Model(trained.get_layer(CUT_LAYER).output, trained.output)
        probabilities = above.predict(data.maps[0, rows], verbose=0)
    return patient_scores(score_table(data.index.iloc[rows], probabilities, fold))


def pooled_fold(data: StudyData, partition: Partition, config: Config, fold: int) -> pd.DataFrame:
    """Out-of-fold patient scores of a head on patients."""
    train, validation, tested = (
        [rows_of(data, frozenset([name])) for name in sorted(part)]
        for part in (partition.train, partition.validation, partition.test)
    )
    labels = data.index["label"].to_numpy()
    answers, held_out = (labels[[rows[0] for rows in part]] for part in (train, validation))
    seed = config.train.seed
    head = build_pooled_head(config.model, data.views[0, np.concatenate(train)], seed)
    batches = bags(
        data.views[1:], answers, train,
        frames_per_bag=FRAMES_PER_BAG, batch_size=config.train.batch_size, seed=seed,
    )  # fmt: skip
    validating = whole_patients(data.views[0, np.arange(len(labels))], held_out, validation)
    fit(head, batches, validating, class_weights(answers, len(GRADES)), config.train)
    whole = (data.views[0, rows][np.newaxis] for rows in tested)
    probabilities = [np.asarray(head(bag, training=False))[0] for bag in whole]
    index = data.index.iloc[[rows[0] for rows in tested]]  # a patient stands as one row
    return patient_scores(score_table(index, np.stack(probabilities), fold))


def run_variant(
    variant: str, data: StudyData, partitions: list[Partition], config: Config, path: Path
) -> float:
    """Every fold of a round, into one patient table; processor seconds it took."""
    config = override(config, VARIANTS[variant][0])
    make_repeatable(config.train.seed)
    run_fold = pooled_fold if variant == "pooled" else frame_fold
    if variant.startswith("uneven"):
        data = uneven(data)
    if not config.train.fine_tune_epochs:
        data = dataclasses.replace(data, maps=None)
    with tracking.start_run(EXPERIMENT, variant, flatten(config) | {"variant": variant}):
        start = time.process_time()
        tables = [run_fold(data, part, config, fold) for fold, part in enumerate(partitions)]
        cpu_seconds = time.process_time() - start
        tracking.log_metrics({"cpu_seconds": cpu_seconds})
        write_scores(pd.concat(tables, ignore_index=True), path)
        tracking.log_artifacts(path)
    return cpu_seconds


def _path(folder: Path, variant: str, repeat: int) -> Path:
    return folder / f"{variant.replace(' ', '_')}_{repeat}.csv"


def table_lines(tables: dict[str, pd.DataFrame]) -> list[str]:
    """A Markdown table: each variant's metrics with intervals, and differences to its baseline."""
    lines = ["| variant | " + " | ".join(METRICS) + " |", "|---" * (1 + len(METRICS)) + "|"]
    for variant, scores in tables.items():
        found = bootstrap_intervals(scores)
        lines.append(_line(variant, found))
        baseline = VARIANTS[variant][1]
        if baseline in tables:
            paired = paired_bootstrap(scores, tables[baseline])
            lines.append(_line(f"less {baseline}", paired, sign="+"))
    return lines


def _line(name: str, found: dict[str, dict], sign: str = "") -> str:
    cells = [text_of(found[key], sign=sign) for key in METRICS.values()]
    return f"| {name} | " + " | ".join(cells) + " |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=NOTICE
    )
    parser.add_argument("--manifest", required=True, metavar="MANIFEST_CSV")
    add_config_arguments(parser)
    parser.add_argument("--repeats", type=int, default=3, help="rounds, 1 to 5")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=USUAL)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    args = parser.parse_args(argv)
    try:
        config = override(CONFIG, given_settings(args))
        if not config.train.views:
            raise ValueError(
                "Expected train.views of 1 or more: the pooled and uneven variants draw stored "
                "views. Received: train.views=0. experiments/views.py augments online."
            )
        study = load_study(args.manifest, args.runs_dir, config)
        data = read_features(study, config, args.runs_dir, args.only)
        text = json.dumps([study.fingerprint, flatten(config)], sort_keys=True)
        folder = args.runs_dir / EXPERIMENT / hashlib.sha256(text.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        for repeat in range(args.repeats):
            partitions = [part for part in study.partitions if part.repeat == repeat]
            for variant in args.only:
                path = _path(folder, variant, repeat)
                if not path.is_file():
                    round_config = override(config, [f"train.seed={config.train.seed + repeat}"])
                    seconds = run_variant(variant, data, partitions, round_config, path)
                    print(f"{variant}, round {repeat}: {seconds:.0f} CPU-s", file=sys.stderr)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rounds = range(args.repeats)
    tables = {
        variant: pd.concat(
            [read_scores(_path(folder, variant, n)).assign(repeat=n) for n in rounds],
            ignore_index=True,
        )
        for variant in args.only
    }
    print(*table_lines(tables), "", NOTICE, sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
