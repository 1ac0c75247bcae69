"""`experiments/heads.py` from its command line."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "heads.py"


def test_no_stored_views_is_refused(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("heads_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words = ["--manifest", str(tmp_path / "none.csv"), "--runs-dir", str(tmp_path)]
    assert module.main([*words, "--set", "train.views=0"]) == 1
    assert "Expected train.views of 1 or more" in capsys.readouterr().err
