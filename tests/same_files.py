"""What two runs of one command share: all but the fields that docs/reliability.md lists."""

import json
import re
from pathlib import Path

# Text with the run's id; beside them only the cost in environment.json may differ.
_NAMES_THE_RUN = ("report.html", "report.md", "model_card.md", "checklists.md")


def contents(run_dir: Path) -> dict[str, bytes]:
    """Every file of a run by its name, hidden ones too, without the listed fields."""
    found = {}
    for path in sorted(run_dir.rglob("*")):
        name = path.relative_to(run_dir).as_posix()
        if path.is_dir():
            continue
        content = path.read_bytes()
        if name in _NAMES_THE_RUN:
            content = content.replace(run_dir.name.encode(), b"RUN")
        elif name == "environment.json":
            content = json.dumps(json.loads(content) | {"cost": None}).encode()
        elif name == "SHA256SUMS":
            others = "|".join((*_NAMES_THE_RUN, "environment.json"))
            content = re.sub(rf"(?m)^.*  ({others})\n".encode(), b"", content)
        found[name] = content
    return found
