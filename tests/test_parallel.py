"""Work spread over real worker processes: all of it done, and a killed worker loses nothing."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import cv2
import parallel_work
import pytest

from steatosis_tf import cli
from steatosis_tf.parallel import beam_options, map_on_cores, map_on_runner, run_parts
from steatosis_tf.verbs.common import runner_options

pytest.importorskip("apache_beam", reason="the extra beam is not installed")

TWO_PROCESSES = ("direct_num_workers=2", "direct_running_mode=multi_processing")


@pytest.fixture
def parts(tmp_path, monkeypatch) -> list[str]:
    """Eight files to be written, by processes that can import `parallel_work`."""
    here = Path(__file__).resolve().parent
    monkeypatch.setenv("PYTHONPATH", f"{here}{os.pathsep}{here.parent}")
    return [str(tmp_path / str(number)) for number in range(8)]


def workers_of(parts: list[str]) -> set[str]:
    """The processes that did the parts; fails if a part is missing or another's."""
    texts = [Path(part).read_text().split() for part in parts]
    assert [text[0] for text in texts] == [Path(part).name for part in parts]
    return {text[1] for text in texts}


def test_little_work_is_done_here_and_much_goes_on_in_processes(monkeypatch):
    monkeypatch.setattr("steatosis_tf.parallel._BEGUN_S", 0.05)
    monkeypatch.setattr("steatosis_tf.parallel._LEFT_S", 0.25)
    work = partial(parallel_work.number_and_process, 0.01)
    little, much = (list(map_on_cores(work, range(count), "numbers")) for count in (20, 60))
    assert [number for number, _ in [*little, *much]] == [*range(20), *range(60)]
    assert {process for _, process in little} == {os.getpid()}
    assert {process for _, process in much[:4]} == {os.getpid()}
    assert os.getpid() not in {process for _, process in much[20:]}


@pytest.fixture
def all_in_processes(monkeypatch):
    """All but the first item goes to worker processes, however little it is."""
    monkeypatch.setattr("steatosis_tf.parallel._BEGUN_S", 0)
    monkeypatch.setattr("steatosis_tf.parallel._LEFT_S", 0)


def test_a_killed_worker_is_told_in_one_line(all_in_processes):
    work = partial(parallel_work.die_at_seven, os.getpid())
    with pytest.raises(RuntimeError, match=r"^Expected worker .*one was killed.* again\.$"):
        list(map_on_cores(work, range(20), "numbers"))
    assert list(map_on_cores(work, range(7), "numbers")) == [*range(7)]


def test_on_one_core_the_calling_process_stays_as_it_is(all_in_processes, monkeypatch):
    """It keeps its threads, and does not end with its own parent, as a closed terminal is."""
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    cv2.setNumThreads(2)
    work = partial(parallel_work.number_and_process, 0.01)
    found = list(map_on_cores(work, range(9), ""))
    assert found == [(number, os.getpid()) for number in range(9)]
    assert cv2.getNumThreads() == 2
    assert not [one.name for one in threading.enumerate() if "_end_with_parent" in one.name]


def test_work_that_is_broken_off_ends_without_a_word(all_in_processes, recwarn, capfd):
    work = partial(parallel_work.number_and_process, 0.01)
    found = map_on_cores(work, range(60), "")
    assert [next(found)[0] for _ in range(20)] == [*range(20)]
    found.close()
    assert not recwarn.list
    assert capfd.readouterr().err == ""


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    code = f"""
        from functools import partial
        import parallel_work
        from steatosis_tf import parallel
        parallel._BEGUN_S = parallel._LEFT_S = 0
        work = partial(parallel_work.note_process, {str(tmp_path)!r})
        list(parallel.map_on_cores(work, range(200), "numbers"))"""
    here = Path(__file__).resolve().parent
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
    )  # fmt: skip
    workers: set[int] = set()
    wait_until(lambda: workers.update(int(one.name) for one in tmp_path.iterdir())
               or workers - {parent.pid})  # fmt: skip
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(map(is_alive, workers)))


def wait_until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not status.is_file() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_two_beam_processes_do_all_parts(parts):
    run_parts(
        parallel_work.write_number,
        parts,
        beam_options("DirectRunner", TWO_PROCESSES),
        desc="numbers",
    )
    assert str(os.getpid()) not in workers_of(parts)


def test_here_one_after_the_other(parts):
    run_parts(parallel_work.write_number, parts, desc="numbers")
    assert workers_of(parts) == {str(os.getpid())}


@pytest.mark.slow  # ends a process, and wakes this one by a signal
def test_two_beam_processes_and_one_is_killed(parts):
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a script's work in the background
    try:
        kill_one_of_two(parts)
    finally:
        signal.signal(signal.SIGINT, usual)


def kill_one_of_two(parts):
    work = parallel_work.die_at_three
    with pytest.raises(RuntimeError, match=r"Worker subprocess exited.*137.*same command again"):
        run_parts(work, parts, beam_options("DirectRunner", TWO_PROCESSES), desc="numbers")
    kept = {part: Path(part).read_text() for part in parts if Path(part).exists()}
    assert parts[3] not in kept
    run_parts(work, parts, beam_options("DirectRunner", TWO_PROCESSES), desc="numbers")
    workers = workers_of(parts)
    assert len(workers) >= 2
    assert str(os.getpid()) not in workers
    assert {part: Path(part).read_text() for part in kept} == kept  # not done twice


@pytest.mark.slow  # starts a cluster
def test_a_dask_cluster_gives_a_killed_workers_part_to_another(parts, dask_options):
    run_parts(parallel_work.die_at_three, parts, dask_options, desc="numbers")
    assert str(os.getpid()) not in workers_of(parts)
    killed = Path(parts[0]).with_name("grave").read_text()
    assert Path(parts[3]).read_text().split()[1] != killed


def test_a_fault_is_told_and_the_other_parts_stay(parts):
    one_process = beam_options("DirectRunner")
    with pytest.raises(RuntimeError, match=r"numbers.*part 3 is faulty.*parts are kept"):
        run_parts(parallel_work.refuse_three, parts, one_process, desc="numbers")
    run_parts(parallel_work.write_number, parts, one_process, desc="numbers")
    workers_of(parts)


def test_answers_come_in_order_and_only_once(tmp_path, monkeypatch):
    monkeypatch.setattr("steatosis_tf.parallel.PART_ITEMS", 3)
    options = beam_options("DirectRunner")
    asked = tmp_path / "asked"
    asked.mkdir()
    work = partial(parallel_work.half_of, str(asked))
    folder = tmp_path / "work"
    received = map_on_runner(work, list(range(10)), folder, options, desc="halves")
    assert [next(received) for _ in range(4)] == [0, 0.5, 1, 1.5]
    # as after a kill: everything is computed, nothing is taken; then asked again
    again = map_on_runner(work, list(range(10)), folder, options, desc="halves")
    again_was = list(again)
    assert again_was == [number / 2 for number in range(10)]
    assert len(list(asked.iterdir())) == 10
    # The files stay: whoever takes the results may still fail to store them.
    assert list(map_on_runner(work, list(range(10)), folder, options, desc="halves")) == again_was


def test_unknown_runners_and_options_are_refused():
    with pytest.raises(ValueError, match=r"a Beam runner\. Received: runner='SlowRunner'"):
        beam_options("SlowRunner")
    with pytest.raises(ValueError, match=r"options that Beam knows\. Received: direct_num_worker"):
        beam_options("DirectRunner", ["direct_num_worker=2"])
    with pytest.raises(RuntimeError, match=r"Received: No module named 'nowhere'.*extra"):
        beam_options("nowhere.Runner")
    beam_options("FlinkRunner", ["an_option_of_its_job_service=1"])


def test_the_command_line_passes_options_on_and_refuses_them_alone():
    words = ["records", "manifest.csv", "--output", "records"]
    assert runner_options(cli.parse(words)) is None
    given = ["--beam-option", "direct_num_workers=3", "direct_running_mode=multi_threading"]
    options = runner_options(cli.parse([*words, "--runner", "DirectRunner", *given]))
    chosen = options.get_all_options(drop_default=True)
    assert (chosen["direct_num_workers"], chosen["runner"]) == (3, "DirectRunner")
    with pytest.raises(ValueError, match=r"--runner with --beam-option\. Received: direct_num"):
        runner_options(cli.parse([*words, *given]))
