"""Patient-split TFRecords from a manifest, described and read by tensorflow-datasets.

The study is cut into shards before any frame is read, in the order of a hash, so that a shard
holds the same bytes whoever writes it. (The writers of tensorflow-datasets sort finished examples
instead: that sends every pixel through the runner, keeps up to 1 GB in memory on one machine and
everything in memory on Beam's DirectRunner, and begins again after a kill.)
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging as absl_logging
from filelock import FileLock

from steatosis_tf.cohort.leakage import check_leaks, pass_check
from steatosis_tf.cohort.manifest import ROI_COLUMNS, read_manifest, write_manifest
from steatosis_tf.cohort.partition import Partition, partitions_of_column
from steatosis_tf.files import clear_killed, move_into_place, replacing, write_json
from steatosis_tf.grades import GRADES, label_of
from steatosis_tf.parallel import map_on_cores, run_parts
from steatosis_tf.roi.columns import cut_roi
from steatosis_tf.roi.sector.find import ROI_VERSION, SECTOR_COLUMN, is_persons
from steatosis_tf.roi.views import VIEW_COLUMN, VIEW_VERSION, input_shape

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

# tensorflow-datasets warns of its own deprecated attribute at every read.
absl_logging.set_verbosity(absl_logging.ERROR)

#: Frames per shard: 100 MB, what a worker loses at most when it is killed.
SHARD_FRAMES = 2000


class SteatosisRecords(tfds.core.dataset_builder.FileReaderBuilder):
    """One example per graded frame; one tfds split per value of the manifest's `split`.

    Shards are written in `unfinished_dir` and moved into the data set when all are there, so a
    killed run goes on from the shards it finished. With `beam_options` in the `DownloadConfig`
    they are written by the workers of a Beam runner.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Grey ROI, label, ids and fat."}

    def __init__(
        self,
        *,
        manifest_path: str | Path,
        unfinished_dir: str | Path,
        view: str = "",
        crops_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        self._manifest_path = Path(manifest_path)
        self._unfinished_dir = Path(unfinished_dir)
        self._view = view
        self._crops_dir = crops_dir
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        info = self.dataset_info_from_configs(
            description="Hepatic steatosis ultrasound ROIs, split by patient.",
            features=record_features(self._view),
        )
        # Of a published set it would fetch the counts; of any other it leaves an empty folder.
        info.initialize_from_bucket = lambda: None  # type: ignore[method-assign]
        return info

    def _download_and_prepare(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig | None = None,
    ) -> None:
        options = download_config.beam_options if download_config else None
        rows = usable_rows(read_manifest(self._manifest_path))
        planned = {
            str(split): plan_shards(group, str(split), self._manifest_path, self._unfinished_dir)
            for split, group in rows.groupby("split")
        }
        # A runner spreads shards over cores; here the frames of a shard are.
        work = partial(write_shard, all_cores=options is None, crops_dir=self._crops_dir)
        every_shard = [shard for shards in planned.values() for shard in shards]
        run_parts(work, every_shard, options, desc="records")
        split_infos = []
        for split, shards in planned.items():
            template = self._get_filename_template(split_name=split)
            targets = template.sharded_filepaths(num_shards=len(shards))
            for shard, target in zip(shards, targets, strict=True):
                move_into_place(Path(shard.path), Path(target))
            split_infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[shard.num_frames for shard in shards],
                    num_bytes=sum(Path(target).stat().st_size for target in targets),
                    filename_template=template,
                )
            )
        self.info.set_splits(tfds.core.SplitDict(split_infos))


def write_records(
    manifest_path: str | Path,
    records_dir: str | Path,
    partitions: list[Partition] | None = None,
    *,
    time_column: str = "",
    gate_path: str | Path | None = None,
    hashes_path: str | Path | None = None,
    crops_dir: str | Path | None = None,
    options: "PipelineOptions | None" = None,
) -> Path:
    """Pass the data-leakage check, then write a manifest's records unless the same ones are there.

    A run that was killed goes on from the shards it finished. Whatever the runner, the records
    are the same bytes.

    Args:
        manifest_path: manifest with `split` and ROI columns.
        records_dir: folder for the records; `records.json` in it says what they were made of.
        partitions: who trains, validates and tests; what the `split` column says if None.
        time_column: date column of a temporal split.
        gate_path: JSON file for what the check looked at.
        hashes_path: file that keeps the check's perceptual hashes between calls.
        crops_dir: ROIs that `add_roi_columns` left; a frame of whom there is none is decoded.
        options: Beam runner whose workers write the shards, see `parallel.beam_options`; None
            writes them in this process.

    Returns:
        the folder tensorflow-datasets reads (`records_dir/steatosis_records/1.0.0`).

    Raises:
        ValueError: if the manifest has no split or ROI columns or no usable row, if the check
            finds a leak (the text lists every one), or if the folder holds other records.
        RuntimeError: if the runner gave up; finished shards stay for the next call.
        OSError: if a shard cannot be written, for example on a full disk.
    """
    records_dir = Path(records_dir)
    rows = usable_rows(read_manifest(manifest_path))
    partitions = partitions or partitions_of_column(rows)
    findings = check_leaks(
        rows, partitions, manifest_path, time_column=time_column, cache_path=hashes_path,
        options=options,
    )  # fmt: skip
    gate = pass_check(rows, partitions, findings)
    if gate_path is not None:
        write_json(gate, gate_path)
    fingerprint, view = records_fingerprint(rows), _only_view(rows)
    counts = {str(split): int(count) for split, count in rows["split"].value_counts().items()}
    del rows  # the builder reads them anew, and a large study needs them once only
    records_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(records_dir / ".lock"):
        if not _holds(records_dir, fingerprint):
            _prepare(manifest_path, records_dir, fingerprint, view, crops_dir, options)
            write_json({"fingerprint": fingerprint, "frames": counts}, records_dir / "records.json")
    return records_location(records_dir)


def _holds(records_dir: Path, fingerprint: str) -> bool:
    note_path = records_dir / "records.json"
    if not note_path.is_file():
        return False
    if json.loads(note_path.read_text())["fingerprint"] == fingerprint:
        return True
    raise ValueError(
        f"Expected an empty folder or records of this manifest. Received: {records_dir.name} "
        "with records of other frames, splits or ROIs. Name another folder, or delete it."
    )


def _prepare(
    manifest_path: str | Path,
    records_dir: Path,
    fingerprint: str,
    view: str,
    crops_dir: str | Path | None,
    options: "PipelineOptions | None",
) -> None:
    unfinished = records_dir / f"unfinished-{fingerprint[:16]}"
    # Without records.json whatever lies here is the remains of a killed run. Its whole shards are
    # of use if it was of the same rows.
    for path in records_dir.glob("unfinished-*"):
        if path != unfinished:
            shutil.rmtree(path)
    clear_killed(unfinished)
    shutil.rmtree(records_dir / SteatosisRecords.name, ignore_errors=True)
    builder = SteatosisRecords(
        manifest_path=manifest_path, unfinished_dir=unfinished, view=view, crops_dir=crops_dir,
        data_dir=str(records_dir),
    )  # fmt: skip
    config = tfds.download.DownloadConfig(beam_options=options, try_download_gcs=False)
    with contextlib.redirect_stdout(io.StringIO()):  # tfds tells of downloads; there is none
        builder.download_and_prepare(download_config=config)
    shutil.rmtree(unfinished)


def records_location(records_dir: str | Path) -> Path:
    """The folder below `records_dir` that tensorflow-datasets reads."""
    return Path(records_dir) / SteatosisRecords.name / str(SteatosisRecords.VERSION)


def records_fingerprint(rows: pd.DataFrame) -> str:
    """SHA-256 of all that the records hold: pixels, ROI, grade, patient and split of each row.

    `ROI_VERSION` and `VIEW_VERSION` stand for the code that finds the sector and cuts the
    ROI; a fan that a person has set counts by itself.
    """
    columns = ["frame_id", "pixels_sha256", *ROI_COLUMNS, "grade", "fat_percent", "patient_id",
               "split"]  # fmt: skip
    fans = rows[SECTOR_COLUMN] if SECTOR_COLUMN in rows.columns else pd.Series("", rows.index)
    rows = rows[columns].assign(view=_views(rows), fan=fans.where(is_persons(fans), ""))
    rows = rows.sort_values("frame_id")
    texts = f"{SteatosisRecords.VERSION} {ROI_VERSION} {VIEW_VERSION}\n"
    digest = hashlib.sha256(texts.encode())
    for start in range(0, len(rows), 4096):  # the text of a large study is not held at once
        part = rows.iloc[start : start + 4096]
        digest.update(part.to_csv(index=False, header=start == 0).encode())
    return digest.hexdigest()


def _views(rows: pd.DataFrame) -> pd.Series:
    """`roi_view` of each row; a manifest of before beam space has rectangles."""
    return rows[VIEW_COLUMN] if VIEW_COLUMN in rows.columns else pd.Series("", rows.index)


def _only_view(rows: pd.DataFrame) -> str:
    views = sorted(_views(rows).unique())
    if len(views) > 1:
        raise ValueError(
            f"Expected one kind of ROI in all rows. Received: {VIEW_COLUMN}="
            f"{', '.join(map(repr, views))}. An experiment makes them one in its own copy of the "
            "manifest; for `steatosis records` run `steatosis roi` with one roi.method, or review "
            "the rows of the other kind again."
        )
    return str(views[0])


def usable_rows(frame_table: pd.DataFrame) -> pd.DataFrame:
    """Rows with a grade, a split and a ROI: those a model can train on or be scored with.

    Raises:
        ValueError: if a needed column is absent or no row is usable.
    """
    missing = [name for name in ("split", *ROI_COLUMNS) if name not in frame_table.columns]
    if missing:
        raise ValueError(
            f"Expected a manifest with split and ROI. Received: one without {', '.join(missing)}. "
            "Run `steatosis split MANIFEST_CSV` and `steatosis roi MANIFEST_CSV` first."
        )
    usable = (frame_table["grade"] != "") & (frame_table["split"] != "")
    rows = frame_table.loc[usable & frame_table["roi_height"].notna()]
    if rows.empty:
        raise ValueError(
            f"Expected at least one frame with grade, split and ROI. Received: none out of "
            f"{len(frame_table)}. The column roi_reason says why."
        )
    return rows


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


def example_of(row: dict[str, Any], roi: np.ndarray) -> dict[str, Any]:
    """The example of a graded manifest row, as the records hold it.

    Args:
        row: of the manifest.
        roi: what `cut_roi` gave for it.
    """
    return {
        "roi": roi[..., np.newaxis],
        "label": label_of(row["grade"]),
        "frame_id": row["frame_id"],
        "patient_id": row["patient_id"],
        "fat_percent": row["fat_percent"],
    }


def write_shard(
    shard: Shard, *, all_cores: bool = False, crops_dir: str | Path | None = None
) -> None:
    """Write a shard, whole or not at all, unless it is there.

    Args:
        shard: what to write.
        all_cores: cut the frames on every core of this machine.
        crops_dir: of `cut_roi`.

    Raises:
        ValueError: if a frame cannot be used; the text names it.
        OSError: if the shard cannot be written, for example on a full disk.
    """
    if Path(shard.path).exists():
        return
    rows = read_manifest(shard.plan_path).to_dict("records")
    features = record_features(rows[0].get(VIEW_COLUMN, ""))
    # Worker processes only cut, in a module without TensorFlow: they start at once.
    work = partial(cut_roi, manifest_path=shard.manifest_path, crops_dir=crops_dir)
    rois = map_on_cores(work, rows, "records") if all_cores else map(work, rows)
    try:
        with (
            replacing(shard.path) as temporary,
            tf.io.TFRecordWriter(os.fspath(temporary)) as writer,
        ):
            for row, roi in zip(rows, rois, strict=True):
                writer.write(_stable(features.serialize_example(example_of(row, roi))))
    except tf.errors.OpError as error:
        raise OSError(
            f"Expected to write a shard of {shard.num_frames} records. Received: {error.message}. "
            "Free space, or choose another folder; finished shards are kept."
        ) from error


def _stable(serialized: bytes) -> bytes:
    """The same example with its fields in one order; protobuf leaves it to chance per process."""
    return tf.train.Example.FromString(serialized).SerializeToString(deterministic=True)
