"""What every verb gives back to the command line."""

from typing import Any, NamedTuple


class Result(NamedTuple):
    """`values` for programs (`--json`, `--report`), `text` for people."""

    values: dict[str, Any]
    text: str
