"""What the documents tell people to type exists: verbs, flags, scripts, make targets, links."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from steatosis_tf import __version__, cli
from steatosis_tf.config import Config, override

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]


def shell_lines(document: Path) -> list[str]:
    """Commands in the sh blocks of a document, continued lines joined, comments cut."""
    blocks = re.findall(
        r"```(?:sh|bash)\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL
    )
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


COMMANDS = [(doc.name, line) for doc in DOCUMENTS for line in shell_lines(doc)]


@pytest.mark.parametrize(("name", "line"), [c for c in COMMANDS if c[1].startswith("steatosis ")])
def test_verbs_in_documents_parse(name: str, line: str) -> None:
    cli.parse(shlex.split(line)[1:])  # argparse exits with 2 on a verb or flag that is not there


@pytest.mark.parametrize(
    ("name", "line"), [c for c in COMMANDS if re.search(r"experiments[/.]", c[1])]
)
def test_experiment_scripts_in_documents_exist(name: str, line: str) -> None:
    words = shlex.split(line)
    script = next(word for word in words if word.startswith(("experiments/", "experiments.")))
    if script.startswith("experiments."):  # run as a module, `python -m`
        script = script.replace(".", "/") + ".py"
    assert (REPOSITORY / script).is_file()
    override(Config(), [word for word in words if re.fullmatch(r"[a-z]+\.[a-z_]+=\S+", word)])


@pytest.mark.parametrize(("name", "line"), [c for c in COMMANDS if c[1].startswith("make ")])
def test_make_targets_in_documents_exist(name: str, line: str) -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert line.split()[1] in targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (document.parent / link).exists(), link


IMPORTS = {
    (document.name, *found)
    for document in DOCUMENTS
    for found in re.findall(
        r"^from (steatosis_tf\S*) import (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE
    )
}


@pytest.mark.parametrize(("document", "module", "names"), sorted(IMPORTS))
def test_what_documents_import_exists(document: str, module: str, names: str) -> None:
    for name in names.split(", "):
        assert hasattr(importlib.import_module(module), name), name


def _slow_tests() -> dict[str, str]:
    """Name of every test that is marked slow, as a whole or in one of its cases -> its file."""
    return {
        node.name: path.name
        for path in sorted((REPOSITORY / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any("pytest.mark.slow" in ast.unparse(mark) for mark in node.decorator_list)
    }


def test_every_slow_test_stands_in_the_table_with_its_short_form() -> None:
    table = (REPOSITORY / "docs" / "tests.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(test_\w+)`[^|]*\|[^|]*\| (.+) \|$", table, re.MULTILINE)
    assert {name for name, _ in rows} == set(_slow_tests())
    tests = "".join(p.read_text(encoding="utf-8") for p in (REPOSITORY / "tests").rglob("*.py"))
    for _, short in rows:
        for name in re.findall(r"`(test_\w+)`", short):
            assert f"def {name}(" in tests


def test_spelling() -> None:
    """By the settings in setup.cfg, as the hook does it."""
    pytest.importorskip("codespell_lib", reason="pip install codespell")
    words = [sys.executable, "-m", "codespell_lib"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0, done.stderr


def test_words_that_were_ours_alone_are_not_used() -> None:
    glossary = (REPOSITORY / "docs" / "glossary.md").read_text(encoding="utf-8")
    old = re.findall(r"^\| ([^|]+) \|", glossary.partition("## Not used")[2], re.MULTILINE)[2:]
    assert len(old) > 5
    ours = re.compile(r"\b(" + "|".join(old) + r")s?\b", re.IGNORECASE)
    texts = [*DOCUMENTS, *sorted((REPOSITORY / "steatosis_tf").rglob("*.py"))]
    found = [
        f"{path.name}: {match[0]}"
        for path in texts
        for match in ours.finditer(path.read_text(encoding="utf-8").partition("## Not used")[0])
    ]
    assert found == []


def test_the_index_leads_to_every_document() -> None:
    folder = REPOSITORY / "docs"
    index = "".join((folder / name).read_text() for name in ("README.md", "research/README.md"))
    missing = [
        path.name
        for path in folder.rglob("*.md")
        if f"{path.name})" not in index and path.name != "README.md"
    ]
    assert missing == []


def test_readme_names_every_verb() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    missing = [name for name, *_ in cli.VERBS if f"`{name}`" not in readme]
    assert not missing


NAMED = re.compile(r"tests/[\w/]+\.py(?:::\w+)?")
TESTS = [(doc.name, test) for doc in DOCUMENTS for test in NAMED.findall(doc.read_text("utf-8"))]


@pytest.mark.parametrize(("name", "test"), sorted(set(TESTS)))
def test_tests_in_documents_exist(name: str, test: str) -> None:
    file, _, function = test.partition("::")
    assert f"def {function}" in (REPOSITORY / file).read_text(encoding="utf-8")


def test_every_licence_of_a_node_is_listed() -> None:
    lines = (REPOSITORY / "requirements" / "licences.md").read_text().splitlines()[2:]
    listed = {line.split("|")[1].strip().lower().replace("_", "-"): line for line in lines}
    pinned = re.findall(r"^([\w.-]+)==", (REPOSITORY / "requirements/node.txt").read_text(), re.M)
    assert listed.keys() == set(pinned)
    assert not [line for line in lines if "UNKNOWN" in line]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tests_that_documents_name_exist(document: Path) -> None:
    for name, function in re.findall(
        r"`([\w/]+\.py)::(\w+)`", document.read_text(encoding="utf-8")
    ):
        path = REPOSITORY / "tests" / name.removeprefix("tests/")
        assert f"def {function}(" in path.read_text(encoding="utf-8"), f"{name}::{function}"


def test_one_version_stands_everywhere() -> None:
    changes = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changes, re.MULTILINE)[1] == __version__
    assert f"\nversion: {__version__}\n" in (REPOSITORY / "CITATION.cff").read_text()
