"""What a machine needs that only answers: nothing its verbs reach imports the training half."""

import subprocess
import sys

import pytest

# Of predict, recalibrate, measure, ingest, roi, review, verify, sr, node and the page.
_MODULES = (
    "cli", "deploy.predict", "deploy.bundle", "deploy.inputs", "deploy.figures", "deploy.tables",
    "deploy.recalibrate", "deploy.study", "deploy.sr", "deploy.node",
    "files", "cohort.manifest", "quantitative.measure", "sources.dicom.ingest",
    "sources.dicom.scan",
    "roi.propose", "roi.columns", "roi.sheet", "roi.review.store", "roi.review.exchange",
    "server.app", "server.review", "server.page",
)  # fmt: skip

_SCRIPT = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(*sorted({"tensorflow", "keras", "mlflow", "tf2onnx"} & set(sys.modules)))
"""


@pytest.mark.parametrize("module", _MODULES)
def test_a_module_of_the_node_imports_no_training_package(module):
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, f"steatosis_tf.{module}"],
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
