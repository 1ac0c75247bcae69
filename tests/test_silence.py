"""Nothing is sent anywhere: a proxy on this machine hears what a process would say to others.

onnxruntime sends after about nine seconds, so the quick tests also look for the device id and the
store of events that it makes on import; the slow ones keep the process open long enough.
"""

import contextlib
import http.server
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED_ONNX = next((REPOSITORY / "steatosis_tf").rglob("liver_unet.onnx"))
# What onnxruntime, OpenVINO and MLflow keep in the home folder to know it again by.
_TRACES = ("deviceid", "onnxruntime.db", "openvino_ga_cid", "stats", "telemetry.json")
_HOLD_S = 20
_OPEN_SESSION = f"import onnxruntime; s = onnxruntime.InferenceSession({str(SHIPPED_ONNX)!r})"


class Witness:
    """A proxy that notes every request and answers none, and an environment that points to it."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        self.home = folder / "home"
        self.home.mkdir()

        class Note(http.server.BaseHTTPRequestHandler):
            def note(handler) -> None:
                self.requests.append(f"{handler.command} {handler.path}")
                handler.send_error(502)

            do_GET = do_HEAD = do_POST = do_PUT = do_CONNECT = note

            def log_message(handler, *words: object) -> None:
                pass

        self.proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Note)
        threading.Thread(target=self.proxy.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{self.proxy.server_port}"
        # Nothing of ours is inherited: the libraries are silent by themselves under pytest and CI.
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONPATH": str(REPOSITORY),
            **{f"{kind}_PROXY": address for kind in ("HTTP", "HTTPS", "ALL")},
            **{f"{kind}_proxy": address for kind in ("http", "https", "all")},
        }

    def start(self, *words: object, folder: Path | None = None) -> subprocess.Popen:
        return subprocess.Popen(
            [str(word) for word in words],
            cwd=folder or self.home, env=self.environment, start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *words: object, folder: Path | None = None) -> None:
        process = self.start(*words, folder=folder)
        said = process.communicate(timeout=900)[0]
        assert process.returncode == 0, said

    def python(self, code: str, *words: object, folder: Path | None = None) -> None:
        self.run(sys.executable, "-c", code, *words, folder=folder)

    def steatosis(self, *words: object, folder: Path | None = None, hold_s: int = 0) -> None:
        code = (
            "import sys, time; from steatosis_tf import cli; code = cli.main(sys.argv[1:]); "
            f"time.sleep({hold_s}); sys.exit(code)"
        )
        self.python(code, *words, folder=folder)

    def heard(self) -> list[str]:
        """Requests, and files by which a maker would know this machine again."""
        kept = [path.name for path in self.home.rglob("*") if path.name in _TRACES]
        return self.requests + sorted(kept)


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    made = Witness(tmp_path)
    yield made
    made.proxy.shutdown()
    made.proxy.server_close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grader with the shipped liver network before it, so that `predict` runs both."""
    onnx = pytest.importorskip("onnx")
    from steatosis_tf.grades import GRADES

    helper, kinds = onnx.helper, onnx.TensorProto
    quarter = helper.make_tensor("quarter", kinds.FLOAT, [1, 4], [0.25] * 4)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["roi"], ["pixels"], to=kinds.FLOAT),
            helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2], keepdims=0),
            helper.make_node("MatMul", ["mean", "quarter"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "even_grader",
        [helper.make_tensor_value_info("roi", kinds.UINT8, ["batch", 224, 224, 1])],
        [helper.make_tensor_value_info("probabilities", kinds.FLOAT, ["batch", 4])],
        [quarter],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    texts = {"steatosis.grades": json.dumps(GRADES), "steatosis.roi": json.dumps({})}
    helper.set_model_props(made, texts)
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(made, str(path))
    return path


def predict(witness: Witness, model: Path, phantom_manifest: Path, hold_s: int = 0) -> None:
    frames = next((phantom_manifest.parent / "phantoms" / "images").iterdir())
    output = witness.home / "predictions"
    witness.steatosis("predict", frames, "--model", model, "--output", output, hold_s=hold_s)
    assert (output / "predictions.json").is_file()


def test_the_libraries_alone_are_heard(witness: Witness) -> None:
    witness.python("import onnxruntime")
    assert "deviceid" in witness.heard()
    if importlib.util.find_spec("openvino"):
        witness.python("import openvino, time; time.sleep(2)")
        assert any("analytics" in request for request in witness.requests)


def test_imports_and_predict_are_silent(
    witness: Witness, model: Path, phantom_manifest: Path
) -> None:
    witness.python("import steatosis_tf, onnxruntime, importlib.util, time\n"
                   "if importlib.util.find_spec('openvino'): import openvino; openvino.Core()\n"
                   "time.sleep(2)")  # fmt: skip
    predict(witness, model, phantom_manifest)
    assert witness.heard() == []


def test_onnxruntime_that_was_faster_is_told_of(witness: Witness) -> None:
    code = "import onnxruntime, warnings; warnings.simplefilter('error'); import steatosis_tf"
    with pytest.raises(AssertionError, match="imported before steatosis_tf"):
        witness.python(code)
    witness.environment["ORT_DISABLE_TELEMETRY"] = "1"
    witness.python(code)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "host"),
    [
        (f"{_OPEN_SESSION}; import time; time.sleep({_HOLD_S})", "events.data"),
        ("import mlflow, time; mlflow.set_tracking_uri('sqlite:///x.db'); "
         "mlflow.create_experiment('x'); time.sleep(5)", "mlflow-telemetry"),
    ],
    ids=["onnxruntime", "mlflow"],
)  # fmt: skip
def test_the_library_alone_is_heard_by_the_proxy(witness: Witness, code: str, host: str) -> None:
    witness.python(code)
    assert any(host in request for request in witness.requests), witness.heard()


@pytest.mark.slow
def test_predict_held_open_is_silent(witness: Witness, model: Path, phantom_manifest: Path) -> None:
    predict(witness, model, phantom_manifest, hold_s=_HOLD_S)
    assert witness.heard() == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["keras", "tf-bf16", "openvino"])
def test_training_is_silent(witness: Witness, tmp_path: Path, engine: str) -> None:
    if engine == "openvino" and not importlib.util.find_spec("openvino"):
        pytest.skip("openvino is not installed (extra `fast`)")
    witness.steatosis("phantom", "phantoms", "--patients", 24, "--frames", 1, folder=tmp_path)
    witness.steatosis(
        "manifest", "phantoms/labels.csv", "--output", "manifest.csv", folder=tmp_path
    )
    witness.run(
        sys.executable, REPOSITORY / "experiments" / "resnet50_frozen.py",
        "--manifest", "manifest.csv", "--weights", "random", "--engine", engine,
        "--set", "roi.method=sector", "train.epochs=1", "train.views=1", folder=tmp_path,
    )  # fmt: skip
    assert list(tmp_path.rglob("model.onnx"))
    assert witness.heard() == []


@contextlib.contextmanager
def served(witness: Witness, port: int, *words: object) -> Iterator[str]:
    """A server in a process group of its own, for `_HOLD_S` seconds and the block."""
    process = witness.start(*words)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 300
    try:
        while True:
            assert process.poll() is None, process.communicate()[0]
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url, timeout=5).read()
                break
            assert time.monotonic() < deadline, f"nothing answers at {url}"
            time.sleep(0.2)
        yield url
        time.sleep(_HOLD_S)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # MLflow's server takes long to end otherwise
        process.communicate(timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def hosts_of_page(url: str) -> set[str]:
    """Hosts that a browser asks for when it opens a page."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `dev`")
    found = shutil.which("chromium") or pytest.skip("no chromium: make browser")
    hosts = set()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: hosts.add(request.url.split("/")[2].split(":")[0]))
        page.goto(url)
        page.wait_for_timeout(5000)
        browser.close()
    return hosts


@pytest.mark.slow
def test_review_is_silent(witness: Witness, phantom_manifest: Path) -> None:
    port = free_port()
    code = "import sys; from steatosis_tf import cli; sys.exit(cli.main(sys.argv[1:]))"
    words = ["review", phantom_manifest, "--reviewer", "AB", "--port", port, "--no-browser"]
    with served(witness, port, sys.executable, "-c", code, *words) as url:
        assert hosts_of_page(url) == {"127.0.0.1"}  # frame and liver outline are asked for, too
    assert witness.heard() == []


@pytest.mark.slow
def test_mlflow_ui_is_silent(witness: Witness) -> None:
    port = free_port()
    make = ["make", "-f", REPOSITORY / "Makefile", "-o", ".venv/.core", "ui", f"PORT={port}"]
    with served(witness, port, *make, f"BIN={Path(sys.executable).parent}") as url:
        assert hosts_of_page(url) == {"127.0.0.1"}
    assert witness.heard() == []
