"""One shard of records: planned from rows of the manifest, written by whichever worker takes it.

The study is cut into shards before any frame is read, in the order of a hash, so that a shard
holds the same bytes whoever writes it. (The writers of tensorflow-datasets sort finished examples
instead: that sends every pixel through the runner, keeps up to 1 GB in memory on one machine and
everything in memory on Beam's DirectRunner, and begins again after a kill.)
"""

import hashlib
import os
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_datasets as tfds

from steatosis_tf.cohort.manifest import read_manifest, write_manifest
from steatosis_tf.files import replacing
from steatosis_tf.grades import GRADES
from steatosis_tf.parallel import map_on_cores
from steatosis_tf.records.examples import example_of
from steatosis_tf.roi.views import VIEW_COLUMN, input_shape

#: Frames per shard: 100 MB, what a worker loses at most when it is killed.
SHARD_FRAMES = 2000


@dataclass(frozen=True)
class Shard:
    """A shard to be written.

    Attributes:
        path: of the shard.
        plan_path: manifest of its rows, in the order of the records.
        manifest_path: the study's manifest, to find the frames.
        num_frames: rows of the plan.
    """

    path: str
    plan_path: str
    manifest_path: str
    num_frames: int


def record_features(view: str = "") -> tfds.features.FeaturesDict:
    """What an example holds; `view` as the manifest's `roi_view` has it decides its size."""
    return tfds.features.FeaturesDict(
        {
            "roi": tfds.features.Tensor(
                shape=(*input_shape(view), 1),
                dtype=np.uint8,
                # Raw bytes: decoding a PNG would cost more than reading 50 kB.
                encoding=tfds.features.Encoding.BYTES,
            ),
            "label": tfds.features.ClassLabel(names=list(GRADES)),
            "frame_id": tfds.features.Text(),
            "patient_id": tfds.features.Text(),
            "fat_percent": np.float32,
        }
    )


def plan_shards(
    rows: pd.DataFrame, split: str, manifest_path: str | Path, folder: Path
) -> list[Shard]:
    """Cut the rows of one split into shards and write down what belongs in each.

    Args:
        rows: graded rows with a ROI.
        split: name of the split; salts the order, as tensorflow-datasets does.
        manifest_path: where the frames' paths begin.
        folder: for the plans and the shards.

    Returns:
        the shards, of even size, in the order of the records.
    """
    digests = [hashlib.md5(f"{split}{name}".encode()).hexdigest() for name in rows["frame_id"]]
    order = np.argsort(digests)
    num_shards = -(-len(rows) // SHARD_FRAMES)
    bounds = [round(len(rows) * number / num_shards) for number in range(num_shards + 1)]
    shards = []
    for number, (start, stop) in enumerate(pairwise(bounds)):
        path = folder / f"{split}-{number:05d}-of-{num_shards:05d}"
        plan_path = path.with_name(f"{path.name}.csv")
        write_manifest(rows.iloc[order[start:stop]], plan_path)
        shards.append(Shard(
            str(path.resolve()), str(plan_path.resolve()), str(Path(manifest_path).resolve()),
            stop - start,
        ))  # fmt: skip
    return shards


def write_shard(shard: Shard, *, all_cores: bool = False) -> None:
    """Write a shard, whole or not at all, unless it is there.

    Args:
        shard: what to write.
        all_cores: cut the frames on every core of this machine.

    Raises:
        ValueError: if a frame cannot be used; the text names it.
        OSError: if the shard cannot be written, for example on a full disk.
    """
    if Path(shard.path).exists():
        return
    rows = read_manifest(shard.plan_path).to_dict("records")
    features = record_features(rows[0].get(VIEW_COLUMN, ""))
    work = partial(example_of, shard.manifest_path)
    try:
        with (
            replacing(shard.path) as temporary,
            tf.io.TFRecordWriter(os.fspath(temporary)) as writer,
        ):
            for example in map_on_cores(work, rows, "records") if all_cores else map(work, rows):
                writer.write(_stable(features.serialize_example(example)))
    except tf.errors.OpError as error:
        raise OSError(
            f"Expected to write a shard of {shard.num_frames} records. Received: {error.message}. "
            "Free space, or choose another folder; finished shards are kept."
        ) from error


def _stable(serialized: bytes) -> bytes:
    """The same example with its fields in one order; protobuf leaves it to chance per process."""
    return tf.train.Example.FromString(serialized).SerializeToString(deterministic=True)
