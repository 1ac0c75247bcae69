"""The tutorial's commands, run one after the other as printed."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from steatosis_tf.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"


def commands() -> list[list[str]]:
    """Of the part "The whole way", without the program's name."""
    way = PAGE.read_text(encoding="utf-8").split("## The whole way")[1]
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", way, re.DOTALL)).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.strip()]


def test_the_way_to_a_split_runs_as_printed(tmp_path, monkeypatch) -> None:
    """The short form: up to the first step that takes more than a second or two."""
    monkeypatch.chdir(tmp_path)
    for words in commands()[:4]:
        assert main(words) == 0, words
    table = pd.read_csv("study/manifest.csv", dtype=str)
    assert table["split"].nunique() == 3
    assert table.groupby("patient_id")["split"].nunique().max() == 1


@pytest.mark.slow
def test_the_whole_way_runs_as_printed(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands():
        if "runs/joint/RUN_ID" in words:
            (run,) = (path.parent for path in Path("runs/joint").glob("*/config.json"))
            words[words.index("runs/joint/RUN_ID")] = str(run)
        assert main(words) == 0, words
    answers = pd.read_csv("answers/patients.csv")
    assert len(answers) == 40
    assert set(answers["kind"]) <= {"graded", "score_only", "unable"}
