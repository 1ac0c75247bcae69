"""What every verb gives back to the command line."""

from typing import Any, NamedTuple


class Result(NamedTuple):
    """`values` for programs (`--json`, `--report`), `text` for people.

    `exit_code` is 1 where the verb did its work and the answer is no, as a failed check.
    """

    values: dict[str, Any]
    text: str
    exit_code: int = 0
