"""Two readers grade blind in a real browser; what they say becomes labels, a run and a report."""

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from running import PATIENCE_MS, Running

from steatosis_tf import cli
from steatosis_tf.cohort.consensus import build_consensus
from steatosis_tf.grades import GRADES, NOTICE
from steatosis_tf.server.readings import ReadingStudy
from steatosis_tf.sources.phantom.study import write_phantoms

playwright = pytest.importorskip(
    "playwright.sync_api", reason="browser tests need playwright (extra `dev`)"
)

NUM_PATIENTS, NUM_FRAMES = 4, 2


def call(*words: object) -> int:
    return cli.main([str(word) for word in words])


def make_study(folder: Path, num_patients: int, num_frames: int) -> Path:
    """Phantoms whose ids are sorted by grade, as those of the public patients are."""
    write_phantoms(folder, num_patients=num_patients, frames_per_patient=num_frames)
    labels = pd.read_csv(folder / "labels.csv")
    labels = labels.sort_values("fat_percent", kind="stable")
    order = {patient: f"P{at:02}" for at, patient in enumerate(labels["patient_id"].unique(), 1)}
    labels["patient_id"] = labels["patient_id"].map(order)
    labels.to_csv(folder / "labels.csv", index=False)
    manifest = folder / "manifest.csv"
    assert call("manifest", folder / "labels.csv", "--output", manifest) == 0
    return manifest


class Server(Running):
    """`steatosis review --grade` in a process of its own."""

    def __init__(self, manifest: Path, *words: object, port: int = 0) -> None:
        self.manifest = manifest
        super().__init__("review", manifest, "--grade", "--port", port, *words)

    def table(self) -> pd.DataFrame:
        path = self.manifest.with_name("readings.csv")
        return pd.read_csv(path, dtype=str, keep_default_na=False)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return make_study(tmp_path / "study", NUM_PATIENTS, NUM_FRAMES)


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open the page in a browser of one's own; no script may fail, no policy be broken."""
    contexts, faults = [], []

    def opened(server: Server, initials: str = "", *, width: int = 1280, height: int = 720) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: "Content Sec" in line.text and faults.append(line.text))
        page.set_default_timeout(PATIENCE_MS)
        page.goto(server.url)
        page.wait_for_selector("#logOn:not([hidden])")
        if initials:
            log_on(page, initials)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


def ready(page: Any) -> None:
    page.wait_for_selector("#grading[aria-busy=false]")
    page.wait_for_selector("#stage[data-frame], #message:not([hidden])")


def press(page: Any, *keys: str) -> None:
    """Press keys as a person does: each when the page has done what was asked before."""
    for key in keys:
        ready(page)
        page.keyboard.press(key)


def log_on(page: Any, initials: str) -> None:
    page.fill("#initials", initials)
    page.press("#initials", "Enter")
    page.wait_for_selector("#grading[aria-busy=false]")
    if page.is_visible("#logOn"):  # new here: once more
        assert "has not read here before" in page.inner_text("#logOnText")
        page.press("#initials", "Enter")
    page.wait_for_selector("#panel:not([hidden])")
    ready(page)


def at_case(page: Any, number: int) -> None:
    page.wait_for_function(
        "n => document.querySelector('#case').textContent === n"
        " && document.querySelector('#grading').getAttribute('aria-busy') === 'false'",
        arg=f"Case {number}" if number else "",
    )
    ready(page)


def read_all(page: Any, num_cases: int, grade_of: Callable[[int], int]) -> None:
    """A simulated reader: every case by keyboard."""
    for case in range(1, num_cases + 1):
        at_case(page, case)
        press(page, str(grade_of(case)), "lmh"[case % 3], "Enter")
    at_case(page, 0)
    assert page.inner_text("#message h2") == "Every case is read"


def order_of(server: Server, reader: int) -> dict[int, str]:
    """Case number -> patient, from the table that is handed on; the page does not tell."""
    table = server.table().drop_duplicates("patient_id")
    names = [f"reader_{reader}_case", f"reader_{reader}_repeat_case"]
    return {
        int(row[name]): row["patient_id"]
        for row in table.to_dict("records")
        for name in names
        if row.get(name)
    }


def test_two_readers_on_one_server_to_labels(open_page: Callable[..., Any], manifest: Path) -> None:
    server = Server(manifest, "--repeats", 0.5)
    first, second = open_page(server, "ab"), open_page(server, "CD")
    assert first.inner_text("#reader") == "AB"
    assert first.inner_text("#progress") == "0 of 6 read"
    assert first.inner_text("#decisionSupport") == NOTICE

    press(first, "Enter")  # nothing is chosen yet
    assert "Choose a grade first" in first.inner_text("#notice")
    press(first, "2", "Enter")
    assert "How sure are you?" in first.inner_text("#notice")
    press(first, "m", "ArrowRight")
    assert first.inner_text("#frameNumber") == "Frame 2 of 2"
    press(first, "Enter")
    at_case(first, 2)
    press(first, "u")  # taken back, with what was said still chosen
    at_case(first, 1)
    assert "Taken back: Moderate, medium" in first.inner_text("#notice")
    press(first, "1", "Enter")
    at_case(first, 2)
    press(first, "x", "3")
    at_case(first, 3)

    # The second reader is told nothing of the first, and sees an order of their own.
    read_all(second, 6, lambda case: case % 4)
    table = server.table().set_index("patient_id")
    of_first = order_of(server, 1)
    assert table.loc[of_first[1], "reader_1"].tolist() == ["Mild", "Mild"]
    assert table.loc[of_first[1], "reader_1_confidence"].iloc[0] == "medium"
    assert table.loc[of_first[2], "reader_1_unable"].iloc[0] == "Shadow or poor contact"
    assert table.loc[of_first[2], "reader_1"].iloc[0] == ""
    assert set(table["reader_2_initials"]) == {"CD"}
    assert (table["reader_2_repeat"] != "").sum() == 2 * NUM_FRAMES
    assert not {"grade", "fat_percent", "frame_id"} & set(table.columns)

    first.reload()  # goes on where the reader was
    at_case(first, 3)
    for case in (3, 4, 5, 6):
        at_case(first, case)
        press(first, "3", "h", "Enter")
    at_case(first, 0)
    readings = manifest.with_name("readings.csv")
    agreed = readings.with_name("agreed.csv")
    assert f"steatosis consensus {readings} --output {agreed}" in server.stop()

    folder = manifest.parent
    agreed = build_consensus(folder / "readings.csv", folder / "agreed.csv")
    assert agreed.pairwise_kappa["reader_1-reader_2"].num_patients == 3
    assert agreed.repeat_kappa["reader_2-reader_2_repeat"].num_patients == 2
    assert call("manifest", folder / "agreed.csv", "--output", folder / "read.csv") == 0


def test_the_page_tells_neither_patient_nor_grade(
    open_page: Callable[..., Any], manifest: Path
) -> None:
    server = Server(manifest)
    page = open_page(server)
    told: list[str] = []
    page.on("request", lambda request: told.append(request.url))
    page.on("response", lambda got: "json" in got.headers.get("content-type", "")
            and told.append(json.dumps(got.json())))  # fmt: skip
    log_on(page, "AB")
    press(page, "n", "0", "h", "Enter")
    at_case(page, 2)
    told.append(page.content())
    rows = pd.read_csv(manifest, dtype=str)
    secrets = {*rows["frame_id"], *rows["path"], *rows["patient_id"], "/outlines", "manifest"}
    assert [secret for secret in secrets for text in told if secret in text] == []
    server.stop()


def test_killed_and_started_again_nothing_is_lost(
    open_page: Callable[..., Any], manifest: Path
) -> None:
    server = Server(manifest, "--repeats", 0)
    page = open_page(server, "AB")
    press(page, "1", "l", "Enter")
    at_case(page, 2)
    server.kill()
    press(page, "3", "h", "Enter")
    page.wait_for_function(
        "() => document.querySelector('#notice').textContent.includes('not answer')"
    )
    again = Server(manifest, port=server.port)  # another proportion of repeats: the order stays
    page.reload()
    at_case(page, 2)
    assert page.inner_text("#progress") == "1 of 4 read"
    press(page, "3", "h", "Enter")
    at_case(page, 3)
    other = open_page(again, "ab")  # the same reader in a second window
    assert "AB has read 2 before" in other.inner_text("#notice")  # or another with these initials
    press(other, "0", "l", "Enter")
    at_case(other, 4)
    press(page, "2", "l", "Enter")
    page.wait_for_function(
        "() => document.querySelector('#notice').textContent.includes('another')"
    )
    at_case(page, 4)
    again.stop()
    read = order_of(again, 1)
    table = again.table().drop_duplicates("patient_id").set_index("patient_id")["reader_1"]
    assert [table[read[case]] for case in (1, 2, 3)] == ["Mild", "Severe", "Normal"]


def test_ctrl_c_twice_ends_in_one_line_also_in_the_middle_of_a_call(manifest: Path) -> None:
    server = Server(manifest)
    with socket.create_connection(("127.0.0.1", server.port)) as call:  # its body never comes
        call.sendall(
            b"POST /grade/log-on HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n"
            b"Content-Type: application/json\r\nX-Token: %s\r\n\r\n" % server.token.encode()
        )
        server.call("/")  # so that the one before has arrived
        for _ in range(3):
            server.process.send_signal(signal.SIGINT)
        said, complaints = server.process.communicate(timeout=PATIENCE_MS / 1000)
    assert (server.process.returncode, complaints) == (0, "")
    assert said.startswith("All answers are saved")


def test_what_no_page_would_send_is_refused_with_a_sentence(manifest: Path) -> None:
    server = Server(manifest)
    assert server.call("/grade/log-on", '{"initials": "AB", "begins": true}')[0] == 200
    for path, body, status in (
        ("/grade/log-on", '{"initials": "=1+1"}', 422),
        ("/grade/log-on", '{"initials": ""}', 422),
        ("/grade/AB/answers", '{"case": 1, "grade": 4, "confidence": "low"}', 422),
        ("/grade/AB/answers", '{"case": 1, "grade": 1}', 422),
        ("/grade/AB/answers", '{"case": 1, "reason": " "}', 422),
        ("/grade/AB/answers", '{"case": 99, "grade": 1, "confidence": "low"}', 422),
        ("/grade/ZZ/answers", '{"case": 1, "reason": "x"}', 422),
        ("/grade/ZZ/undo", "{}", 422),
        ("/grade/AB/frames/1-7/picture.png", None, 422),
        ("/grade/AB/frames/1-..%2f..%2fx/picture.png", None, 404),
    ):
        answered, said = server.call(path, body)
        assert answered == status, (path, body, said)
        if status == 422:
            assert isinstance(json.loads(said)["detail"], str)
    body = '{"case": 1, "reason": "x"}'
    assert server.call("/grade/AB/answers", body, X_Token="wrong")[0] == 403
    assert server.call("/grade/AB/answers", body, Origin="http://elsewhere.example")[0] == 403
    assert "frame-ancestors 'none'" in server.headers["Content-Security-Policy"]
    assert json.loads(server.call("/grade/AB/answers", body)[1])["num_read"] == 1
    server.stop()


def test_a_case_without_a_readable_frame_can_only_be_unable(
    open_page: Callable[..., Any], manifest: Path
) -> None:
    for path in pd.read_csv(manifest)["path"]:
        (manifest.parent / path).write_bytes(b"no picture")
    server = Server(manifest)
    page = open_page(server, "AB", width=390, height=844)
    assert page.inner_text("#message h2") == "This frame cannot be shown"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 640, "height": 360})  # enlarged to 200 %
    assert page.locator("#stage").bounding_box()["height"] >= 190
    page.locator("#save").evaluate("button => button.scrollIntoView({ block: 'center' })")
    foot = page.locator("#decisionSupport").bounding_box()["y"]
    assert page.locator("#save").bounding_box()["y"] < foot - 40
    press(page, "1", "l", "Enter")
    page.wait_for_function(
        "() => document.querySelector('#notice').textContent.includes('No frame of')"
    )
    press(page, "x")
    page.keyboard.type("All <b>broken</b>")
    page.keyboard.press("Enter")
    at_case(page, 2)
    server.stop()
    assert "All <b>broken</b>" in set(server.table()["reader_1_unable"])


@pytest.mark.slow
def test_real_frames_of_another_folder_are_read(
    open_page: Callable[..., Any], real_data_dir: Path, tmp_path: Path
) -> None:
    images = real_data_dir / "byra2018" / "images"
    paths = [path for patient in ("P02", "P15") for path in sorted(images.glob(f"{patient}_*"))[:3]]
    labels = pd.DataFrame({"path": paths, "patient_id": [path.name[:3] for path in paths]})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    manifest = tmp_path / "manifest.csv"
    assert call("manifest", tmp_path / "labels.csv", "--output", manifest) == 0
    server = Server(manifest, "--repeats", 0, "--frames", images)
    page = open_page(server, "AB")
    assert page.inner_text("#size") == "636 × 434 px"
    assert page.locator("#strip button").count() == 3
    read_all(page, 2, lambda case: case)
    server.stop()
    assert sorted(server.table()["reader_1"]) == ["Mild"] * 3 + ["Moderate"] * 3


def test_what_cannot_be_read_is_named_at_the_start_and_nothing_is_left(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = manifest.parent / "more" / "manifest.csv"
    elsewhere.parent.mkdir()
    elsewhere.write_text(manifest.read_text().replace(",images/", ",../images/"))
    for path, words, text in (
        (manifest.with_name("none.csv"), ["--grade"], "Expected a manifest"),
        (elsewhere, ["--grade"], "8 of 8 frames outside of it"),
        (manifest, ["--grade", "--repeats", 2], "repeats as a proportion of patients"),
        (manifest, [], "Expected a reviewer"),
    ):
        assert call("review", path, *words, "--port", 0, "--no-browser") == 1
        assert text in capsys.readouterr().err
    assert not list(manifest.parent.rglob("readings*"))


@pytest.mark.slow
def test_forty_frames_by_two_readers_to_a_report(
    open_page: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the browser to the report, and no file is touched by hand."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(tmp_path / "mlruns"))
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    manifest = make_study(tmp_path / "study", 20, 2)
    rows = pd.read_csv(manifest, dtype=str)
    truth = {
        manifest.parent / row["path"]: GRADES.index(row["grade"]) for row in rows.to_dict("records")
    }
    server, study = Server(manifest), ReadingStudy(manifest)
    for number, initials in enumerate(("AB", "CD")):
        page = open_page(server, initials)

        def grade_of(case: int, initials: str = initials, number: int = number) -> int:
            """The truth, but some mild ones read as normal."""
            grade = truth[study.frame_paths(initials, case)[0]]
            return 0 if grade == 1 and (case + number) % 4 == 0 else grade

        read_all(page, 22, grade_of)
    server.stop()
    folder = manifest.parent
    assert call("consensus", folder / "readings.csv", "--output", folder / "agreed.csv") == 0
    assert call("manifest", folder / "agreed.csv", "--output", folder / "read.csv") == 0
    settings = ["train.epochs=2", "train.views=1"]
    words = ("train", folder / "read.csv", "--recipe", "paper", "--weights", "random")
    assert call(*words, "--set", "roi.method=sector", *settings) == 0
    (report,) = (tmp_path / "runs").rglob("report.html")
    assert NOTICE.split(".")[0] in report.read_text()
