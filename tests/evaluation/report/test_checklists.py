"""The checklists carry the numbers of the published ones, and an item asks for all its evidence."""

import json

import pytest

from steatosis_tf.evaluation.report.analysis import analyse_run
from steatosis_tf.evaluation.report.checks import fill_checklists, read_items
from steatosis_tf.evaluation.report.run import STUDY_KEYS, read_run

#: Sub-items of each item that has them; from the tables of the papers named in the module.
SUB_ITEMS = {
    "CLAIM 2024": (44, {}),
    "TRIPOD+AI": (
        27,
        {3: "abc", 5: "ab", 6: "abc", 8: "abc", 9: "abc", 12: "abcdefg", 18: "abcdef", 20: "abc",
         23: "ab", 27: "abc"},
    ),
    "STARD-AI": (40, {15: "abcd", 16: "abc", 17: "ab", 26: "ab", 40: "ab"}),
}  # fmt: skip


def numbers(guideline: str) -> list[str]:
    return [number for number, _, _ in read_items()[guideline]]


@pytest.mark.parametrize(
    ("guideline", "rows"), [("CLAIM 2024", 44), ("TRIPOD+AI", 52), ("STARD-AI", 48)]
)
def test_numbers_are_those_of_the_published_checklist(guideline, rows):
    count, letters = SUB_ITEMS[guideline]
    expected = [f"{n}{letter}" for n in range(1, count + 1) for letter in letters.get(n, [""])]
    assert numbers(guideline) == expected
    assert len(expected) == rows


def statuses(run_dir, guideline: str) -> dict[str, tuple[str, str]]:
    run = read_run(run_dir)
    items = fill_checklists(run, analyse_run(run, num_resamples=50))[guideline]
    return {item.number: (item.status, item.section) for item in items}


def test_an_item_that_asks_for_two_things_is_met_by_both_only(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert statuses(tmp_path, "STARD-AI")["13"] == ("not met", "method")  # no environment.json
    (tmp_path / "environment.json").write_text('{"python": "3.11"}')
    assert statuses(tmp_path, "STARD-AI")["13"] == ("needs the author", "data")  # no scanners
    (tmp_path / "study.json").write_text('{"devices": "Vivid E9"}')
    assert statuses(tmp_path, "STARD-AI")["13"][0] == "met"


def test_a_study_fully_described_leaves_the_manuscript_to_the_author(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "study.json").write_text(json.dumps(dict.fromkeys(STUDY_KEYS, "stated")))
    for guideline in read_items():
        open_items = [
            s for s in statuses(tmp_path, guideline).values() if s[0] == "needs the author"
        ]
        assert open_items
        assert all(section == "" for _, section in open_items)
