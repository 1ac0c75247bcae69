"""A machine that only answers has what `requirements/node.txt` pins, and that is enough."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from steatosis_tf.grades import NOTICE
from steatosis_tf.sources.phantom.study import write_phantoms
from tests.conftest import REPOSITORY
from tests.server.running import Running
from tests.sources.dicom.made_dicom import made_frame, write_made

NODE = REPOSITORY / "requirements" / "node.txt"
# Pinned for the node alone, see requirements/node.in.
_BUILDS = {"setuptools"}
_TRAINING = ("tensorflow", "keras", "mlflow", "tf2onnx", "tensorflow_datasets")

Verb = Callable[..., subprocess.CompletedProcess[str]]


def plain(name: str) -> str:
    """A package's name as an index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(path: Path) -> dict[str, str]:
    """Package -> version of a file of `name==version` lines."""
    found = re.findall(r"^([\w.-]+)==([\w.]+)", path.read_text(), re.MULTILINE)
    return {plain(name): version for name, version in found}


def test_the_node_has_the_versions_that_were_tested_together():
    node, tested = pinned(NODE), pinned(REPOSITORY / "constraints.txt")
    assert {name: tested.get(name) for name in node.keys() - _BUILDS} == {
        name: version for name, version in node.items() if name not in _BUILDS
    }
    # OpenCV without windows is the same OpenCV.
    assert tested["opencv-python-headless"] == tested["opencv-python"]


def test_the_node_is_a_part_of_what_the_package_asks_for():
    asked = {
        plain(re.match(r"[\w.-]+", line)[0])
        for line in importlib.metadata.requires("steatosis_tf")
        if ";" not in line or "pacs" in line
    }
    lines = NODE.with_suffix(".in").read_text().splitlines()
    direct = {line for line in lines if not line.startswith("#")}
    assert {name.removesuffix("-headless") for name in direct - _BUILDS} <= asked
    assert direct <= pinned(NODE).keys()
    assert not {plain(name) for name in _TRAINING} & pinned(NODE).keys()


def test_every_file_is_pinned_by_hash_and_no_address_is_given():
    text = NODE.read_text()
    assert "://" not in text
    assert not re.search(r"^-", text, re.MULTILINE)
    blocks = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", block) for block in blocks)


def dockerfile() -> tuple[list[tuple[str, ...]], dict[str, str]]:
    """COPY and RUN steps of the stage that builds, in order; the last stage's other words."""
    text = (REPOSITORY / "Dockerfile").read_text()
    lines = [line.split(" ", 1) for line in text.splitlines() if line and line[0] != "#"]
    starts = [place for place, line in enumerate(lines) if line[0] == "FROM"]
    build = lines[starts[0] : starts[1]]
    steps = [(word, *([rest] if word == "RUN" else rest.split()))
             for word, rest in build if word in ("COPY", "RUN")]  # fmt: skip
    return steps, {word: rest for word, rest in lines[starts[1] :]}


def test_the_image_runs_as_nobody_special_and_holds_only_what_is_listed():
    steps, last = dockerfile()
    assert int(last["USER"]) > 1000
    assert json.loads(last["ENTRYPOINT"]) == ["steatosis"]
    assert last["HEALTHCHECK"].endswith('CMD ["steatosis", "verify"]')
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    copied = {name for word, *names in steps if word == "COPY" for name in names[:-1]}
    assert "*" in ignored
    assert copied == let_in


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """What the Dockerfile copies, in a folder of its own: building writes beside its sources."""
    folder = tmp_path_factory.mktemp("sources")
    for word, *names in dockerfile()[0]:
        for name in names[:-1] if word == "COPY" else ():
            if (REPOSITORY / name).is_dir():
                hidden = shutil.ignore_patterns("__pycache__")
                shutil.copytree(REPOSITORY / name, folder / name, ignore=hidden)
            else:
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(REPOSITORY / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """Phantom frames with their labels, and a DICOM study."""
    folder = tmp_path_factory.mktemp("given")
    write_phantoms(folder / "phantoms", num_patients=4, frames_per_patient=1, seed=2)
    (folder / "study").mkdir()
    write_made(folder / "study" / "still.dcm", made_frame(1))
    return folder


def answer_all(verb: Verb, given: Path, output: Path) -> None:
    """Whatever the machine is for: a file, an answer, the notice; no training package asked for."""
    labels = given / "phantoms" / "labels.csv"
    done = verb("predict", labels, "--output", output / "answers", "--figures", "--json")
    said = json.loads(done.stdout)
    assert (said["counts"]["patients"], said["notice"]) == (4, NOTICE)
    assert (output / "answers" / "patients.csv").is_file()
    assert len(list((output / "answers" / "figures").iterdir())) == 4
    done = verb("sr", given / "study", "--output", output / "pacs")
    assert NOTICE in done.stdout
    assert len(list((output / "pacs").glob("*.dcm"))) == 2
    assert "answered as when it was made" in verb("verify").stdout
    verb("manifest", labels, "--output", output / "manifest.csv")
    verb("roi", output / "manifest.csv")
    verb("measure", *sorted((given / "phantoms" / "images").glob("*.png"))[:1])
    verb("key", output / "project.key")
    verb("ingest", given / "study", "--key", output / "project.key", "--output", output / "study",
         "--allow-burned-in")  # fmt: skip


#: Calls of the training half.
ELSEWHERE = (
    ("train", "manifest.csv"),
    ("records", "manifest.csv", "--output", "records"),
    ("compare", "runs/a", "runs/b"),
    ("demo",),
)


def name_what_is_missing(verb: Verb) -> None:
    """One line with the command that brings it, after what the verb says of its progress."""
    for words in ELSEWHERE:
        said = verb(*words, expected=1).stderr
        assert "Traceback" not in said
        assert re.fullmatch(
            rf"error: Expected the package \S+ for `steatosis {words[0]}`\. Received: none\. "
            r"Install it: pip install steatosis_tf",
            said.splitlines()[-1],
        ), said


_WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

absent = set(sys.argv.pop(1).split(","))

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import steatosis_tf
from steatosis_tf import cli
assert steatosis_tf.__file__.startswith(sys.argv.pop(1)), steatosis_tf.__file__
raise SystemExit(cli.main())
"""


@pytest.fixture(scope="module")
def wheel_folder(sources, tmp_path_factory) -> Path:
    """The wheel, unpacked: what an installation holds."""
    folder = tmp_path_factory.mktemp("wheel")
    words = ["wheel", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([sys.executable, "-m", "pip", *words, "-w", folder, sources], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_the_wheel_holds_every_file_of_the_package(sources, wheel_folder):
    held, given = (
        {
            path.relative_to(folder)
            for path in (folder / "steatosis_tf").rglob("*")
            if path.is_file()
        }
        for folder in (wheel_folder, sources)
    )
    assert held == given


def test_the_wheel_answers_with_the_packages_of_the_node_alone(wheel_folder, given, tmp_path):
    """The short form of the next test: whatever `node.txt` does not pin cannot be imported."""
    node = pinned(NODE).keys() | {"opencv-python", "steatosis-tf"}
    absent = {
        name
        for name, packages in importlib.metadata.packages_distributions().items()
        if not {plain(package) for package in packages} & node
    }
    assert set(_TRAINING) <= absent

    def verb(*words: object, expected: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", _WITHOUT, ",".join(absent), str(wheel_folder), *map(str, words)],
            check=False, capture_output=True, text=True, cwd=tmp_path,
            env={"PATH": "", "PYTHONPATH": str(wheel_folder), "HOME": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == expected, done.stderr
        return done

    answer_all(verb, given, tmp_path / "out")
    name_what_is_missing(verb)


@pytest.fixture(scope="module")
def installed(sources, tmp_path_factory) -> Path:
    """An environment made by the Dockerfile's own steps, in another place."""
    place = str(tmp_path_factory.mktemp("opt") / "steatosis")
    for word, *rest in dockerfile()[0]:
        if word == "RUN":
            step = rest[0].replace("/opt/steatosis", place)
            step = re.sub(r"^python\b", sys.executable, step)
            done = subprocess.run(step, shell=True, check=False, cwd=sources,
                                  capture_output=True, text=True)  # fmt: skip
            if re.search(r"NewConnectionError|Max retries|No matching distribution", done.stderr):
                pytest.skip(f"the index cannot be reached: {done.stderr.splitlines()[-1]}")
            assert done.returncode == 0, done.stderr
    return Path(place)


@pytest.mark.slow
def test_the_steps_of_the_dockerfile_make_a_node(installed, given, tmp_path):
    # The root is read-only but for a folder of answers, as `docker run --read-only` makes it.
    out = tmp_path / "out"
    out.mkdir()
    mounts = f"mount --bind '{out}' '{out}' && mount -o remount,ro,bind / && exec \"$@\""
    sealed = ["unshare", "--map-root-user", "--mount", "sh", "-c", mounts, "sh"]
    path = {"PATH": f"{installed}/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}

    def verb(*words: object, expected: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*sealed, "steatosis", *map(str, words)],
            check=False, capture_output=True, text=True, cwd=out, env=path | {"HOME": "/nowhere"},
        )  # fmt: skip
        assert done.returncode == expected, done.stderr
        return done

    assert "not installed" in verb("info").stdout  # TensorFlow
    answer_all(verb, given, out)
    verb("roi", out / "manifest.csv", "--again", "--sheet", out / "sheet.png")
    name_what_is_missing(verb)
    words = ["review", out / "manifest.csv", "--reviewer", "AB", "--port", 0, "--frames", given]
    page = Running(*words, python=installed / "bin" / "python", env=path, cwd=out)
    assert page.call("/")[0] == 200
    page.stop()
    packages = {one.name.lower() for one in installed.glob("lib/python*/site-packages/*")}
    assert not set(_TRAINING) & packages
    check = [installed / "bin" / "pip", "install", "--dry-run", "--no-index", "steatosis_tf"]
    missing = subprocess.run(check, capture_output=True, text=True, check=False).stderr
    assert "No matching distribution found for tensorflow" in missing  # so the advice is right
