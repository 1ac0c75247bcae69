"""What was left out of a study: read back, added to, and refused if it is no such file."""

import pandas as pd
import pytest

from steatosis_tf.sources.tables import add_rejected, read_rejected


def test_what_is_added_stands_behind_what_was_there(tmp_path):
    path = tmp_path / "rejected.csv"
    assert read_rejected(path).empty
    path.write_text("row,path,patient_id,reason\n3,NA.png,007,unknown grade\n")
    later = pd.DataFrame({"path": ["b.png"], "patient_id": ["P1"], "reason": ["a copy"]})
    add_rejected(later, tmp_path / "manifest.csv")  # goes on from the table of an earlier version
    table = read_rejected(tmp_path / "manifest.rejected.csv")
    assert len(read_rejected(path)) == 1
    assert table["row"].tolist() == ["3", ""]
    assert table["path"].tolist() == ["NA.png", "b.png"]
    assert table["patient_id"].tolist() == ["007", "P1"]
    assert table["reason"].tolist() == ["unknown grade", "a copy"]


def test_another_table_is_refused(tmp_path):
    (tmp_path / "rejected.csv").write_text("path,why\na.png,dark\n")
    with pytest.raises(ValueError, match=r"rejected\.csv without patient_id, reason\. Move"):
        read_rejected(tmp_path / "rejected.csv")
