"""Files appear whole or not at all, also when the writer fails or is killed."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steatosis_tf.files import ABANDONED_AFTER_S, find_changed, renewing_sums, replacing, write_sums
from steatosis_tf.sources.phantom.study import write_phantoms


def test_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new folder" / "table.csv"
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent  # a move between disks would not be atomic
        assert temporary.suffix == ".csv"
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("former", [None, "former"])
def test_failing_writer_leaves_what_was_there(tmp_path, former):
    path = tmp_path / "table.csv"
    if former:
        path.write_text(former)
    with pytest.raises(OSError, match="disk full"), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("hal")
        raise OSError("disk full")
    assert (path.read_text() if path.exists() else None) == former
    assert [p.name for p in tmp_path.iterdir()] == (["table.csv"] if former else [])


def test_killed_writer_leaves_what_was_there(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("former")
    script = (
        "import os, signal, sys\n"
        "from steatosis_tf.files import replacing\n"
        "with replacing(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('hal')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "former"
    # what is left over is hidden and does not look like a result
    assert all(p.name.startswith(".unfinished-") for p in tmp_path.iterdir() if p != path)


def test_a_day_later_the_leftovers_of_the_same_file_are_cleared(tmp_path):
    def leave(name: str) -> Path:
        with pytest.raises(KeyboardInterrupt), replacing(tmp_path / name) as temporary:  # noqa: PT012
            temporary.write_text("hal")
            copy = temporary.with_name(temporary.name.replace(".csv", "x.csv"))
            copy.write_text("hal")  # stands in for what a kill leaves
            raise KeyboardInterrupt
        return copy

    old, young, other = leave("table.csv"), leave("table.csv"), leave("other.csv")
    yesterday = time.time() - ABANDONED_AFTER_S - 60
    for path in (old, other):
        os.utime(path, (yesterday, yesterday))
    with replacing(tmp_path / "table.csv") as temporary:
        temporary.write_text("whole")
    assert set(tmp_path.iterdir()) == {tmp_path / "table.csv", young, other}


def test_a_folder_that_a_killed_writer_left_is_cleared_a_day_later(tmp_path):
    old, young = tmp_path / ".unfinished-more-1", tmp_path / ".unfinished-more-2"
    for folder in (old, young):
        (folder / "images").mkdir(parents=True)
        (folder / "images" / "half.png").write_text("hal")
    os.utime(old, (time.time() - ABANDONED_AFTER_S - 60,) * 2)
    write_phantoms(tmp_path / "more", num_patients=4, frames_per_patient=1, seed=4)
    assert set(tmp_path.iterdir()) == {tmp_path / "more", young}


def test_any_name_can_be_written(tmp_path):
    for name in ("ü" * 120 + ".csv", "[a]*?.csv", "no_suffix"):
        with replacing(tmp_path / name) as temporary:
            temporary.write_text("whole")
        assert (tmp_path / name).read_text() == "whole"


def test_other_users_may_read_as_the_umask_says(tmp_path):
    path: Path = tmp_path / "table.csv"
    former = os.umask(0o027)
    try:
        with replacing(path) as temporary:
            temporary.write_text("whole")
    finally:
        os.umask(former)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.umask(former) == former


def test_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), replacing(tmp_path / "file" / "table.csv"):
        pass


def test_a_writer_that_wrote_nothing_leaves_what_was_there(tmp_path):
    (tmp_path / "table.csv").write_text("former")
    with pytest.raises(OSError, match="nothing was written"), replacing(tmp_path / "table.csv"):
        pass
    assert [path.read_text() for path in tmp_path.iterdir()] == ["former"]


_WRITE_ALL = """
import sys
from pathlib import Path
from steatosis_tf.files import replacing, write_json
disk = Path(sys.argv[1])
(disk / "table.json").write_text("former")
for size in (10, 100_000):
    try:
        write_json("x" * size, disk / "table.json")
    except OSError as error:
        print(error.strerror)
print((disk / "table.json").stat().st_size, len(list(disk.iterdir())))
"""


def test_a_full_disk_leaves_the_former_file(run_on_full_disk):
    done = run_on_full_disk(_WRITE_ALL)
    assert done.stdout.split("\n") == ["No space left on device", "13 1", ""], done.stderr


def test_sums_name_what_is_not_as_it_was_written(tmp_path):
    for name in ("a.csv", "ü b.csv", "figures/c.png", "gone.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    write_sums(tmp_path)
    assert find_changed(tmp_path) == {}
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
    (tmp_path / "figures" / "c.png").write_text("C")
    (tmp_path / "gone.csv").unlink()
    with renewing_sums(tmp_path):
        (tmp_path / "a.csv").write_text("written by us")
        (tmp_path / "new.csv").write_text("written by us")
    assert find_changed(tmp_path) == {"figures/c.png": "changed", "gone.csv": "missing"}
    (tmp_path / "new.csv").write_text("cut")
    assert find_changed(tmp_path)["new.csv"] == "changed"


@pytest.mark.parametrize("line", ["0" * 64 + "  ../a", "0" * 64 + "  /etc/passwd", "abc  a"])
def test_sums_of_another_form_are_refused(tmp_path, line):
    (tmp_path / "SHA256SUMS").write_text(line + "\n")
    with pytest.raises(ValueError, match="line 1 of another form"):
        find_changed(tmp_path)
