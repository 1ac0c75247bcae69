"""Features of a large study, computed by the workers of an Apache Beam runner.

The same `compute_rows` as in one process, on parts of the records. The store is what `features.py`
says it is: rows that are there are not computed again, and a killed worker loses its part only.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

from steatosis_tf.config import AugmentConfig, Config, ModelConfig
from steatosis_tf.files import replacing, write_json
from steatosis_tf.model import features
from steatosis_tf.model.backbone import build_backbone
from steatosis_tf.model.engines import BATCH, Engine, choose_engine
from steatosis_tf.model.shards import StoredViews
from steatosis_tf.parallel import run_parts
from steatosis_tf.records.pipeline import count_examples, read_part, read_records

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


#: Rows of a part: one shard of features, what a killed worker loses at most.
PART_ROWS = features.SHARD_ROWS


@dataclass(frozen=True)
class _Study:
    """What every part has in common."""

    records_dir: str
    store_dir: str
    weights_path: str
    model: ModelConfig
    augment: AugmentConfig
    engine: str
    dtype: str


def spread_features(
    records_dir: str | Path,
    store_dir: str | Path,
    backbone: keras.Model,
    engine: Engine,
    config: Config,
    options: "PipelineOptions",
) -> StoredViews:
    """As `stored_features`, with the work done by the workers of a runner.

    Args:
        records_dir: as given to `write_records`; every worker sees it.
        store_dir: folder of the store; every worker sees it.
        backbone: as `build_backbone` gives it for `config.model`.
        engine: of this process. Workers use one of the same name, held against Keras there too.
        config: backbone, augmentation, number of views and their format on disk.
        options: from `parallel.beam_options`.

    Raises:
        RuntimeError: if the runner gave up, or a worker's engine is another than the one here.
            What is stored stays, and the next call goes on from there.
        ValueError, OSError: as `stored_features`.
    """
    rows = [
        features.row_name(example["frame_id"], example["roi"])
        for example in read_records(records_dir).as_numpy_iterator()
    ]
    dtype = config.train.store_dtype
    views = features.store_views(
        store_dir, backbone, engine, config.augmentation, config.train.views, dtype=dtype
    )
    unfinished = [view for view in views if any(features.missing_rows(view, rows))]
    weights_path = views[0].folder.parent.resolve() / "weights.npz"
    study = _Study(
        str(Path(records_dir).resolve()), str(Path(store_dir).resolve()), str(weights_path),
        config.model, config.augmentation, engine.name, dtype,
    )  # fmt: skip
    with contextlib.ExitStack() as held:
        for view in unfinished:
            held.enter_context(features.writing(view))
        plans = [path for view in unfinished for path in _plan(view, records_dir, rows)]
        if plans:
            with replacing(weights_path) as temporary:
                np.savez(temporary, *backbone.get_weights())
            work = functools.partial(compute_part, study)
            run_parts(work, plans, options, desc="features")
        for view in unfinished:
            shutil.rmtree(view.folder / "parts", ignore_errors=True)
        weights_path.unlink(missing_ok=True)
    return features.open_views(views, rows)


def compute_part(study: _Study, plan_path: str) -> None:
    """Compute what a plan asks for, by the engine this process keeps.

    Raises:
        RuntimeError: if the engine is another than the plan was made with.
    """
    plan = json.loads(Path(plan_path).read_text())
    view, engine = _view_and_engine(study, plan["view"])
    if view.folder.name != plan["folder"][1] or view.folder.parent.name != plan["folder"][0]:
        raise RuntimeError(
            f"Expected the engine of {plan['folder'][0]} on every worker. Received: "
            f"{view.folder.parent.name}. Name model.engine=keras where processors differ."
        )
    examples = read_part(study.records_dir, plan["split"], plan["start"], plan["stop"])
    wanted = features.selected(examples, plan["missing"])
    features.compute_rows(view, engine, wanted, plan["rows"])


def _plan(view: features.View, records_dir: str | Path, rows: Sequence[str]) -> Iterator[str]:
    """Write down, shard of features by shard, which examples of which split are missing."""
    missing = features.missing_rows(view, rows)
    offset = 0
    for split, count in count_examples(records_dir).items():
        for start in range(0, count, PART_ROWS):
            stop = min(count, start + PART_ROWS)
            flags = missing[offset + start : offset + stop]
            names = list(itertools.compress(rows[offset + start : offset + stop], flags))
            if names:
                plan = {
                    "folder": [view.folder.parent.name, view.folder.name], "view": view.number,
                    "split": split, "start": start, "stop": stop, "missing": flags, "rows": names,
                }  # fmt: skip
                path = view.folder.resolve() / "parts" / f"{split}-{start:09d}.json"
                write_json(plan, path, indent=None)
                yield str(path)
        offset += count


def _view_and_engine(study: _Study, number: int) -> tuple[features.View, Engine]:
    backbone, engine = _backbone_and_engine(study)
    views = features.store_views(
        study.store_dir, backbone, engine, study.augment, number, dtype=study.dtype
    )
    return views[number], engine


@functools.lru_cache(maxsize=1)
def _backbone_and_engine(study: _Study) -> tuple[keras.Model, Engine]:
    """Made once in the life of a worker process.

    The weights are those of the process that started the job: a worker may have no network to fetch
    them, and random ones come out differently where other threads draw random numbers.
    """
    first = next(read_records(study.records_dir).batch(BATCH).as_numpy_iterator())
    shape = first["roi"].shape[1:3]
    backbone = build_backbone(dataclasses.replace(study.model, weights="random"), shape)
    with np.load(study.weights_path) as kept:
        backbone.set_weights([kept[name] for name in kept.files])
    return backbone, choose_engine(study.engine, backbone, first["roi"], study.store_dir)
