"""The plan of the house: which room may import which, and how large rooms, files and functions are.

`docs/architecture.md` tells it in words. A new arrow, a fuller room or a longer file is a line here
that someone has to defend.
"""

import ast
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "steatosis_tf"

#: Room or file of the package -> what it may import, in the order of the pipeline: only from above.
ROOMS = {
    "grades": "",
    "files": "",
    "config": "files",
    "environment": "",
    "tracking": "grades files",
    "unfinished": "files config environment",
    "parallel": "files",
    "sources": "grades files environment parallel",
    "cohort": "grades files config parallel sources",
    "roi": "files config parallel sources cohort",
    "quantitative": "files parallel sources cohort roi",
    "records": "grades files config parallel cohort roi",
    "model": "grades files config parallel roi records",
    "evaluation": "grades files config parallel sources cohort roi quantitative model",
    "deploy": "grades files config unfinished parallel sources cohort roi quantitative records "
    "model",
    "validation": "grades files cohort model evaluation deploy",
    "training": "grades files config tracking unfinished cohort quantitative records model "
    "evaluation deploy",
    "recipes": "config",
    "run_log": "files config tracking unfinished evaluation training recipes",
    "pipeline": "grades files config environment tracking unfinished cohort roi quantitative "
    "records model evaluation deploy training run_log recipes",
    "server": "grades sources cohort roi quantitative model deploy",
    "verbs": "grades files config environment tracking unfinished parallel sources cohort roi "
    "quantitative records evaluation deploy validation run_log recipes pipeline server",
    "cli": "grades files verbs",
}

#: Arrows that go down all the same, module by module, each with its reason.
EXCEPTIONS = {
    # A file that MLflow runs and nothing imports: what is served answers as predict does.
    ("tracking.served_model", "deploy.inputs"),
    ("tracking.served_model", "deploy.predict"),
    ("tracking.served_model", "model.answer"),
    # A frame leaves the hospital's export only with what lies outside its sector blanked.
    ("sources.dicom.deidentify", "roi.sector"),
    # What may leave is looked at for text that is left in the pictures.
    ("sources.dicom.deidentify", "roi.anatomy.overlays"),
    # Readers agree by the same weighted kappa as models.
    ("cohort.consensus", "evaluation.metrics.weighted"),
    # Threshold, prediction set and weights are fitted with the model, on training patients.
    ("model.joint_fit", "evaluation.clinical.calibration"),
    ("model.joint_fit", "evaluation.clinical.thresholds"),
    ("model.joint_fit", "evaluation.metrics.weighted"),
}

#: Public functions that answer, measure, bring in, propose, review and verify: no TensorFlow.
WITHOUT_TENSORFLOW = (
    "deploy.predict", "deploy.bundle", "validation", "quantitative.measure", "sources.dicom.ingest",
    "roi.columns", "roi.propose", "roi.sheet", "roi.review.exchange",
    "server.review", "server.grading", "server.page",
)  # fmt: skip

MAX_PACKAGE, MAX_FILES, MAX_LINES, MAX_FUNCTION = 120, 12, 500, 60
# What is larger today, with its size: it may shrink and not grow.
LARGER_ROOMS = {"deploy": 14}


@cache
def files() -> dict[str, Path]:
    """Module, without the package's name -> its file; the package itself is ""."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """What a module imports of the package and of others, inside functions too."""
    found = set()
    for node in runs(ast.parse(files()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            own = node.module.removeprefix("steatosis_tf").removeprefix(".")
            if node.module.partition(".")[0] != "steatosis_tf":
                found.add(node.module)
                continue
            for alias in node.names:
                whole = f"{own}.{alias.name}".lstrip(".")
                found.add(whole if whole in files() else own)
    return frozenset(found)


def runs(tree: ast.AST):
    """Every node but those for the type checker alone."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from runs(node)


def room_of(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_its_row_allows(room: str) -> None:
    strangers = {
        (module, other)
        for module in files()
        if room_of(module) == room
        for other in imports(module)
        if other and other in files() and room_of(other) not in (room, *ROOMS[room].split())
    }
    assert strangers <= EXCEPTIONS


def test_the_table_has_every_room_and_points_only_up() -> None:
    assert {room_of(module) for module in files()} - {""} == set(ROOMS)
    order = list(ROOMS)
    for room, allowed in ROOMS.items():
        assert all(order.index(other) < order.index(room) for other in allowed.split()), room


def test_every_exception_is_needed() -> None:
    assert all(other in imports(module) for module, other in EXCEPTIONS)


@pytest.mark.parametrize("door", WITHOUT_TENSORFLOW)
def test_no_tensorflow_can_be_reached(door: str) -> None:
    seen, waiting = set(), [door]
    while waiting:
        module = waiting.pop()
        if module in seen or module not in files():
            continue
        seen.add(module)
        names = imports(module)
        foreign = {name.partition(".")[0] for name in names - files().keys()}
        assert not foreign & {"tensorflow", "keras", "mlflow", "tensorflow_datasets"}, module
        waiting += names
        waiting += [module.rpartition(".")[0]] if "." in module else []
    assert len(seen) > 3


def test_importing_those_doors_loads_no_tensorflow() -> None:
    code = "".join(f"import steatosis_tf.{door}\n" for door in WITHOUT_TENSORFLOW)
    code += "import sys\nprint({'tensorflow', 'keras', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_rooms_files_and_functions_stay_small() -> None:
    rooms: Counter[str] = Counter()
    too_long: dict[str, int] = {}
    for path in files().values():
        name = path.relative_to(PACKAGE).as_posix()
        text = path.read_text(encoding="utf-8")
        rooms[name.rpartition("/")[0]] += path.name != "__init__.py"
        if (lines := len(text.splitlines())) > MAX_LINES:
            too_long[name] = lines
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    too_long[f"{name} {node.name}"] = lines
    assert too_long == {}
    assert sum(rooms.values()) <= MAX_PACKAGE, "merge a file into its one reader first"
    larger = {room: n for room, n in rooms.items() if n > LARGER_ROOMS.get(room, MAX_FILES)}
    assert larger == {}
