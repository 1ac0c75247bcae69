"""What a machine needs that only answers: nothing its verbs reach imports the training half."""

import subprocess
import sys

# Of predict, recalibrate, measure, ingest, roi, review, verify, sr, node and the page.
_MODULES = (
    "cli", "deploy.predict", "deploy.bundle", "deploy.inputs", "deploy.figures", "deploy.tables",
    "deploy.recalibrate", "deploy.study", "deploy.sr", "deploy.node",
    "files", "cohort.manifest", "quantitative.measure", "sources.dicom.ingest",
    "sources.dicom.scan",
    "roi.propose", "roi.columns", "roi.sheet", "roi.review.store", "roi.review.exchange",
    "server.app", "server.review", "server.page",
)  # fmt: skip

# One process for all, since each would import most of what the others do.
_SCRIPT = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(f"steatosis_tf.{name}")
    found = sorted({"tensorflow", "keras", "mlflow", "tf2onnx"} & set(sys.modules))
    if found:
        sys.exit(f"steatosis_tf.{name} imports {', '.join(found)}")
"""


def test_no_module_of_the_node_imports_a_training_package():
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *_MODULES],
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
