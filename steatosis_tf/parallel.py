"""The same work on many items: on all cores of this machine, or on an Apache Beam runner.

A part is some rows of a study whose result is a file of its own: a shard of records, proposals of
some frames. The work on a part writes its file whole or not at all, and does nothing where the
file is there. So a worker that is killed loses the part it was at and nothing else, a second call
goes on from the files, and what comes out does not depend on how many workers there were. Only
the parts' names travel through the runner, never pixels, so its memory does not grow with a study.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
from tqdm import tqdm

from steatosis_tf.files import write_bytes, write_json

if TYPE_CHECKING:  # a hundred modules that only large studies need
    from apache_beam.options.pipeline_options import PipelineOptions

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

#: Items per file of results: what a worker loses at most when it is killed.
PART_ITEMS = 500

# A new process imports for a second on its core. Work is begun here, and what is left after so many
# seconds goes to processes if it takes more than so many.
_BEGUN_S, _LEFT_S = 1.0, 3.0

# Of malloc.h: how much unused memory is given back, and how large a piece is fetched by itself.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

# Beam knows its runners by short names, but for this one.
_DASK = "apache_beam.runners.dask.dask_runner.DaskRunner"


def map_on_cores(
    work: Callable[[Item], Outcome], items: Sequence[Item], description: str
) -> Iterator[Outcome]:
    """Results in the order of the items, with a progress bar on stderr.

    Little work is done in this process. Much goes to worker processes, because half of what a frame
    costs holds Python's lock: two threads did 1.4 times the work of one, two processes 1.9 times.

    Args:
        work: a function of a module, or a partial of one, so that it reaches other processes.
        items: one per frame.
        description: what the bar is about; "" shows none.

    Raises:
        RuntimeError: if a worker process was killed.
    """
    with tqdm(total=len(items), desc=description, unit="frame", disable=not description) as bar:
        for outcome in _outcomes(work, items):
            bar.update()
            yield outcome


def map_in_threads(
    work: Callable[[Item], Outcome], items: Sequence[Item], description: str, unit: str = "frame"
) -> Iterator[Outcome]:
    """As `map_on_cores`, for work that is mostly outside Python's lock, as decoding is.

    Threads are given a part of the items at a time: each that waits takes 1.8 KB.
    """
    with (
        ThreadPoolExecutor(max_workers=os.cpu_count()) as pool,
        tqdm(total=len(items), desc=description, unit=unit, disable=not items) as bar,
    ):
        for start in range(0, len(items), PART_ITEMS):
            for outcome in pool.map(work, items[start : start + PART_ITEMS]):
                bar.update()
                yield outcome


def _outcomes(work: Callable[[Item], Outcome], items: Sequence[Item]) -> Iterator[Outcome]:
    spent_s = 0.0
    for done, item in enumerate(items):
        if spent_s > _BEGUN_S and spent_s / done * (len(items) - done) > _LEFT_S:
            yield from _outcomes_of_processes(work, items[done:])
            return
        start_s = time.thread_time()
        outcome = work(item)
        spent_s += time.thread_time() - start_s
        yield outcome


def _outcomes_of_processes(
    work: Callable[[Item], Outcome], items: Sequence[Item]
) -> Iterator[Outcome]:
    from joblib import Parallel, delayed  # a tenth of a second that one patient does not need

    # Of work that was broken off joblib would say how to save processor time; and that in a process
    # of multiprocessing, or on one core, the work is done here.
    texts = ".*(but not used|by the workers|cannot be called in)"
    warnings.filterwarnings("ignore", texts, module="joblib")
    # Without a limit of bytes joblib would leave frames in files for its workers.
    pool = Parallel(n_jobs=-1, return_as="generator", max_nbytes=None)
    try:
        yield from pool(delayed(_on_one_core)(work, os.getpid(), item) for item in items)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "Expected worker processes that live to the end. Received: one was killed, as the "
            "system does where memory is short. Close other programs and run the same command "
            "again."
        ) from error


def _on_one_core(work: Callable[[Item], Outcome], caller: int, item: Item) -> Outcome:
    if os.getpid() != caller:  # else a machine of one core: this process is not ours to settle
        _settle_worker()
    return work(item)


@lru_cache(1)
def _settle_worker() -> None:
    """Set up this worker process: one thread, memory that it keeps, and an end with its parent.

    The C library gives every picture's memory back to the system and fetches it again, which took a
    tenth of a frame's time (400 page faults).
    """
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # not of glibc
            set_option = ctypes.CDLL(None).mallopt
            set_option(_M_MMAP_THRESHOLD, 32 << 20)
            set_option(_M_TRIM_THRESHOLD, 256 << 20)


def _end_with_parent(parent: int) -> None:
    """A worker whose parent was killed would wait five minutes for work, with frames in memory."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def beam_options(runner: str, options: Sequence[str] = ()) -> "PipelineOptions":
    """Where a Beam pipeline shall run.

    Args:
        runner: `DirectRunner`, `FlinkRunner`, `SparkRunner`, `DataflowRunner`, `DaskRunner`, or
            the full name of a runner's class.
        options: `NAME=VALUE` or `NAME`, as on the command line of Beam without the dashes.

    Raises:
        ValueError: if the runner or an option is not known.
        RuntimeError: if the runner's package is not installed.
    """
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.runner import create_runner

        name = _DASK if runner == "DaskRunner" else runner
        create_runner(name)  # imports it, and with it its options
    except ImportError as error:
        raise RuntimeError(
            f"Expected Apache Beam with {runner}. Received: {error}. Install the extra: "
            "pip install 'steatosis_tf[beam]', or [dask] for DaskRunner."
        ) from error
    except (ValueError, AttributeError) as error:
        raise ValueError(f"Expected a Beam runner. Received: runner={runner!r} ({error}).") from (
            error
        )
    flags = [f"--{option}" for option in options]
    if not any(flag.startswith("--default_sdk_harness_log_level") for flag in flags):
        flags.append("--default_sdk_harness_log_level=WARNING")
    if name == _DASK and not any("partition" in flag for flag in flags):
        # Its own choice, 128 parts in a row for one worker, would leave the others idle.
        flags.append("--dask_partition_size=1")
    if name in ("DirectRunner", _DASK):  # the job services of the others know more than Beam here
        _refuse_unknown(flags, PipelineOptions)
    return PipelineOptions([f"--runner={name}", *flags])


def run_parts(
    work: Callable[[Item], None],
    parts: Sequence[Item],
    options: "PipelineOptions | None" = None,
    *,
    desc: str,
) -> None:
    """Do the work on every part.

    Args:
        work: writes the file of a part. It can be pickled: a function of a module, or a `partial`
            of one.
        parts: what `work` takes; small, because they are part of the job's description.
        options: from `beam_options`; None works here, one part after the other.
        desc: what is being done, for the progress bar.

    Raises:
        RuntimeError: if the runner gave up. Finished parts stay, and a second call goes on.
    """
    if options is None:
        for part in tqdm(parts, desc=desc, unit="part", disable=len(parts) < 2):
            work(part)
        return
    print(f"{desc}: {len(parts)} parts", file=sys.stderr)
    try:
        with _deaths_noticed():
            _run_pipeline(work, parts, options, desc)
    except Exception as error:  # every runner raises classes of its own, and those of `work`
        raise RuntimeError(
            f"Expected the runner to finish {desc}. Received: {_last_line(error)}. Finished parts "
            "are kept: run the same command again."
        ) from error


def _run_pipeline(
    work: Callable[[Item], None], parts: Sequence[Item], options: "PipelineOptions", desc: str
) -> None:
    import apache_beam as beam

    pipeline = beam.Pipeline(options=options)
    # One straight line of steps: DaskRunner computes only what leads to the last one.
    _ = (
        pipeline
        | "parts" >> beam.Create(parts)
        # Keeps the runner from handing neighbouring parts to one worker as one bundle.
        | "spread" >> beam.Reshuffle()
        | desc >> beam.Map(work)
    )
    result = pipeline.run()
    try:
        result.wait_until_finish()
    finally:
        if hasattr(result, "client"):  # DaskRunner leaves its connection open
            result.client.close()


class _WorkerDied(BaseException):
    """No Exception: nothing between a death and who waits may take it for its own."""


def _raise_death(_number: int, _frame: object) -> None:
    raise _WorkerDied


@contextlib.contextmanager
def _deaths_noticed() -> Iterator[None]:
    """Stop waiting when a local worker process dies.

    DirectRunner would wait for it for ever: a thread of its own ends with an error, and nobody
    looks. Only a signal wakes a thread that waits, and SIGINT is ignored by what a shell script
    has started in the background. Other runners give the work to another worker.
    """
    if threading.current_thread() is not threading.main_thread():  # the one that signals reach
        yield
        return
    deaths: list[str] = []
    usual = threading.excepthook

    def notice(args: threading.ExceptHookArgs) -> None:
        usual(args)
        if args.thread is not None and args.thread.name == "run_worker":
            deaths.append(str(args.exc_value))
            if len(deaths) == 1:  # a second one would break off what the first began
                if sys.platform == "win32":
                    signal.raise_signal(wake)
                else:
                    signal.pthread_kill(waiting, wake)

    waiting = threading.get_ident()
    wake = signal.SIGINT
    if sys.platform != "win32":
        wake = signal.SIGUSR1
    threading.excepthook = notice
    former = signal.signal(wake, _raise_death)
    try:
        yield
    except _WorkerDied:
        raise RuntimeError(deaths[0]) from None
    finally:
        signal.signal(wake, former)
        threading.excepthook = usual


def map_on_runner(
    work: Callable[[Any], Any],
    items: Sequence[Any],
    folder: Path,
    options: "PipelineOptions",
    *,
    desc: str,
) -> Iterator[Any]:
    """Results of small work on many items, from the workers of a runner, in the order of the items.

    They come back through files, one per `PART_ITEMS` items, so that a second call after a kill
    does only what is missing. They stay until the caller, who knows when the results are kept
    elsewhere, removes the folder.

    Args:
        work: gives something JSON can hold for something JSON can hold.
        items: what `work` takes.
        folder: for the files, to be seen by all workers; named by all that changes results.
        options: from `beam_options`.
        desc: what is being done.

    Raises:
        RuntimeError: if the runner gave up.
    """
    parts = []
    for start in range(0, len(items), PART_ITEMS):
        text = json.dumps(items[start : start + PART_ITEMS])
        plan_path = folder.resolve() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.plan"
        write_bytes(text.encode(), plan_path)
        parts.append(str(plan_path))
    if parts:
        run_parts(partial(_map_part, work), parts, options, desc=desc)
    for part in parts:
        yield from json.loads(Path(part).with_suffix(".json").read_text())


def _map_part(work: Callable[[Any], Any], plan_path: str) -> None:
    path = Path(plan_path).with_suffix(".json")
    if path.exists():
        return
    results = [work(item) for item in json.loads(Path(plan_path).read_text())]
    write_json(results, path, indent=None)


def _refuse_unknown(flags: list[str], pipeline_options: Any) -> None:
    """Beam itself leaves out a misspelt option with a warning, and runs on one worker."""
    known = pipeline_options([]).get_all_options()
    asked = pipeline_options(flags).get_all_options(retain_unknown_options=True)
    unknown = sorted(set(asked) - set(known))
    if unknown:
        raise ValueError(
            f"Expected options that Beam knows. Received: {', '.join(unknown)}. They are those of "
            "Beam's PipelineOptions, without the dashes."
        )


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
