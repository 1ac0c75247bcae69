"""The reading page in a real browser, and what a hostile upload can do to its server."""

import io
import json
import os
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from fastapi.testclient import TestClient
from pydicom import dcmread
from running import PATIENCE_MS, Running

from steatosis_tf.deploy.bundle import open_bundle
from steatosis_tf.grades import GRADES, NOTICE
from steatosis_tf.server.app import make_app
from steatosis_tf.server.page import MAX_FILES, MAX_FRAMES, MAX_UPLOAD_BYTES, page, report_zip
from steatosis_tf.sources.phantom.study import simulate_patient
from tests.sources.dicom.made_dicom import file_bytes, made_dataset

playwright = pytest.importorskip(
    "playwright.sync_api", reason="browser tests need playwright (extra `dev`)"
)

IMAGE = "<img src=x onerror=alert(1)>"
SCRIPT = f"{IMAGE}<script>alert(2)</script>"
SIZE_PX = (240, 320)
MAX_GROWTH_BYTES = 300 << 20


def png(frame: np.ndarray) -> bytes:
    return cv2.imencode(".png", frame)[1].tobytes()


def patient(fat: float, num_frames: int = 4) -> list[np.ndarray]:
    generator = np.random.default_rng(int(fat))
    frames, _ = simulate_patient(fat, num_frames=num_frames, generator=generator, size_px=SIZE_PX)
    return list(frames)


def upload(*files: tuple[str, bytes], corrections: Any = ()) -> bytes:
    """What the page sends."""
    listed = [[name, len(data)] for name, data in files]
    head = json.dumps({"files": listed, "corrections": list(corrections)}).encode()
    return b"\n".join([head, b"".join(data for _, data in files)])


def buffers(*files: tuple[str, bytes]) -> list[dict[str, Any]]:
    """Files as a person would choose them in the browser."""
    kind = "application/octet-stream"
    return [{"name": name, "mimeType": kind, "buffer": data} for name, data in files]


def images(frames: list[np.ndarray]) -> list[tuple[str, bytes]]:
    return [(f"{place}.png", png(frame)) for place, frame in enumerate(frames)]


def study(date: str, frames: list[np.ndarray], number: int, **changes: Any) -> bytes:
    """A DICOM clip of a whole screen, which states no region."""
    changes = {"SequenceOfUltrasoundRegions": None, "StudyDate": date} | changes
    changes.setdefault("StudyInstanceUID", f"1.2.3.{number}")
    return file_bytes(made_dataset(np.stack(frames), number=number, **changes))


@pytest.fixture(scope="module")
def server(phantom_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The page with the simulated model; it must leave no file where it could write."""
    here, temporary = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("temporary")
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": os.getcwd()}
    running = Running("page", "--model", phantom_bundle, "--port", 0, cwd=here, env=environment)
    yield running
    assert list(here.iterdir()) == []
    assert list(temporary.iterdir()) == []
    said = running.stop().splitlines()
    assert said[0] == "The reading page has ended; nothing was stored."
    assert all(line.startswith("libpng") for line in said[1:]), said


@pytest.fixture
def open_page(browser: Any, server: Running) -> Iterator[Callable[..., Any]]:
    """Open the page in a tab; no script may fail, no policy be broken, no dialog open."""
    contexts, faults = [], []

    def opened(width: int = 1280, height: int = 720) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}))
        tab = contexts[-1].new_page()
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("console", lambda line: line.type == "error" and faults.append(line.text))
        tab.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        tab.set_default_timeout(PATIENCE_MS)
        tab.goto(server.url)
        tab.wait_for_selector("body[data-ready]")
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


def give(tab: Any, *files: tuple[str, bytes]) -> None:
    tab.set_input_files("#files", buffers(*files))
    tab.wait_for_selector("body[aria-busy=false]")
    tab.wait_for_selector("#stage[data-frame], #trouble:not([hidden]), #trend:not([hidden])")


def notice_is_in_view(tab: Any) -> bool:
    """Whether the notice stands on the screen and nothing lies over it."""
    return tab.evaluate(
        """() => {
          const notice = document.querySelector("#notice");
          const { left, top, width, height } = notice.getBoundingClientRect();
          const hit = document.elementFromPoint(left + width / 2, top + height / 2);
          return top + height <= innerHeight && height > 10 && hit === notice;
        }"""
    )


def text_of(tab: Any, selector: str) -> str:
    return tab.locator(selector).inner_text()


def test_a_graded_patient(server: Running, open_page: Callable[..., Any]) -> None:
    tab = open_page()
    assert notice_is_in_view(tab)
    give(tab, *images(patient(40)))
    assert text_of(tab, "#kind") == "Graded · 4 of 4 frames used"
    assert text_of(tab, "#grade") in ("Mild", "Moderate")
    assert "90 % interval" in text_of(tab, "#fatText")
    shares = tab.locator("#bars .number").all_inner_texts()
    assert sum(int(share.split()[0]) for share in shares) in (99, 100, 101)
    for outline in ("sector", "liver"):
        assert tab.locator(f"#outlines path.{outline}").get_attribute("d").startswith("M")
    assert tab.locator("#featureTable tbody tr").count() == 4
    assert tab.locator("#strip button").count() == 4
    assert tab.locator("#strip button.odd").count() == 1
    assert notice_is_in_view(tab)


def test_what_is_dropped_meanwhile_has_its_turn_and_a_cleared_patient_does_not_come_back(
    open_page: Callable[..., Any],
) -> None:
    tab = open_page()
    kept = []  # requests that the test holds back

    def hold(route: Any) -> None:
        kept.append(route)

    tab.route("**/page/answers", hold)
    name = "#frameNumber"

    def choose(*names: str) -> None:
        """Each a patient of its own, one right after the other."""
        (frame,) = patient(40, 1)
        for one in names:
            tab.set_input_files("#files", buffers((one, png(frame))))

    def answer_next(shown: str) -> None:
        while not kept:
            tab.wait_for_timeout(10)
        kept.pop(0).continue_()
        wanted = "([id, text]) => document.querySelector(id).textContent.endsWith(text)"
        tab.wait_for_function(wanted, arg=[name, shown])

    choose("a.png", "b.png")
    answer_next("a.png")
    tab.wait_for_selector("body[aria-busy=true]")
    assert tab.locator("#grade").is_hidden()  # b is read: the answer about a is not its answer
    assert tab.locator("#json").is_disabled()
    assert tab.locator("#busy progress").is_visible()
    answer_next("b.png")
    tab.wait_for_selector("body[aria-busy=false]")
    choose("c.png")
    while not kept:
        tab.wait_for_timeout(10)
    tab.click("#clear")
    choose("d.png")
    late = kept.pop(0)
    answer_next("d.png")
    late.continue_()
    tab.wait_for_timeout(1000)
    assert text_of(tab, name).endswith("d.png")
    tab.evaluate("document.querySelector('#folderFiles').dispatchEvent(new Event('change'))")
    tab.wait_for_selector("#trouble:not([hidden])")
    assert "no file" in text_of(tab, "#troubleText")
    tab.keyboard.press("j")
    assert tab.locator("#grade").is_hidden()
    tab.keyboard.press("Escape")
    assert tab.locator("#grade").is_visible()


def test_a_file_that_another_program_hands_over_is_read(open_page: Callable[..., Any]) -> None:
    tab = open_page()
    drop = """([name, bytes]) => {
      const dataTransfer = new DataTransfer();
      if (name) dataTransfer.items.add(new File([new Uint8Array(bytes)], name));
      else dataTransfer.items.add("a text", "text/plain");
      document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
    }"""
    tab.evaluate(drop, ["mail.png", list(png(patient(40, 1)[0]))])
    tab.wait_for_selector("#stage[data-frame]")
    assert text_of(tab, "#frameNumber") == "1 of 1: mail.png"
    tab.evaluate(drop, ["", []])
    tab.wait_for_selector("#trouble:not([hidden])")
    assert "Received: no file" in text_of(tab, "#troubleText")


def test_keys_walk_the_frames_and_switch_layers(open_page: Callable[..., Any]) -> None:
    tab = open_page()
    give(tab, *images(patient(40)))
    for key, shown in (("ArrowRight", "1"), ("n", "2"), ("ArrowLeft", "1"), ("p", "0")):
        tab.keyboard.press(key)
        assert tab.locator("#stage").get_attribute("data-frame") == shown
    tab.keyboard.press("l")
    assert tab.locator("#outlines path.liver").get_attribute("d") == ""
    grey = "() => document.querySelector('#picture').getContext('2d').getImageData(0, 0, 320, 240)"
    coloured = f"{grey}.data.some((value, at, all) => at % 4 === 0 && value !== all[at + 2])"
    assert not tab.evaluate(coloured)
    tab.keyboard.press("m")
    assert tab.evaluate(coloured)
    tab.keyboard.press("?")
    assert notice_is_in_view(tab) or tab.locator("#helpSheet").is_visible()
    tab.keyboard.press("Escape")
    tab.keyboard.press("x")
    assert tab.locator("#drop").is_visible()
    assert tab.locator("#answer").is_hidden()


def test_what_is_saved_is_the_answer_and_comes_back_as_an_earlier_visit(
    open_page: Callable[..., Any], tmp_path: Path
) -> None:
    tab = open_page()
    give(tab, *images(patient(5)))
    tab.fill("#date", "2020-02-03")
    with tab.expect_download() as waited:
        tab.keyboard.press("Escape")
        tab.click("#json")
    saved = tmp_path / waited.value.suggested_filename
    waited.value.save_as(saved)
    content = json.loads(saved.read_text())
    assert saved.name == "steatosis_2020-02-03.json"
    assert content["notice"] == NOTICE
    assert content["answer"]["grade"] == text_of(tab, "#grade")
    assert len(content["answer"]["frames"]) == 4
    tab.click("#clear")
    tab.set_input_files("#files", buffers((saved.name, saved.read_bytes())))
    tab.wait_for_selector("#hint:not([hidden])")
    assert "1 earlier visit." in text_of(tab, "#hint")
    give(tab, *images(patient(70, 1)))  # undated, so before or after nobody knows
    tab.wait_for_selector("#trend:not([hidden])")
    assert "without a date has no order" in text_of(tab, "#trendText")
    content["answer"]["date"] = "2019-01-01"
    earlier = [(f"{at}.json", json.dumps(content).encode()) for at in range(40)]
    give(tab, *earlier)
    tab.wait_for_selector("#trendTable tbody tr:nth-child(42)")
    assert tab.pdf(prefer_css_page_size=True).count(b"/Type /Page\n") == 1
    tab.emulate_media(media="print")
    assert "all 42 visits" in text_of(tab, "#offPaper")
    tab.emulate_media(media="screen")
    tab.click("#clear")
    give(tab, ("now.dcm", study("20210304", patient(70), 5)), (saved.name, saved.read_bytes()))
    dates = tab.locator("#trendTable tbody td:first-child").all_inner_texts()
    assert dates == ["2020-02-03", "2021-03-04"]
    assert "since 2020-02-03" in text_of(tab, "#trendText")


def test_a_score_without_a_grade_names_none(open_page: Callable[..., Any]) -> None:
    tab = open_page()
    give(tab, *images([cv2.GaussianBlur(frame, (0, 0), 2.5) for frame in patient(40, 2)]))
    assert text_of(tab, "#kind").startswith("Score only")
    assert "unlike the training data" in text_of(tab, "#reason")
    assert tab.locator("#chances").is_hidden()
    assert "Moderate" not in text_of(tab, "#panel")
    assert tab.locator("#fat").is_visible()
    assert notice_is_in_view(tab)


def test_a_score_in_the_band_of_another_grade_is_explained(open_page: Callable[..., Any]) -> None:
    tab = open_page()
    give(tab, *images(patient(5)))
    score = float(text_of(tab, "#fatText").split()[2])
    band = GRADES[sum(score >= cut for cut in (5, 33, 66))]
    explained = f"lies in the band of {band}" in text_of(tab, "#fatText")
    assert explained == (band != text_of(tab, "#grade"))
    shares = [int(share.split()[0]) for share in tab.locator("#bars .number").all_inner_texts()]
    most = GRADES[int(np.argmax(shares))]
    assert tab.locator("#ruleText").is_visible() == (most != text_of(tab, "#grade"))
    assert tab.locator("#bars .number.top").count() == 1


def test_unable_says_why(open_page: Callable[..., Any]) -> None:
    tab = open_page()
    give(tab, ("black.png", png(np.zeros((200, 300), np.uint8))))
    assert text_of(tab, "#kind").startswith("Unable to assess")
    assert "No ultrasound sector was found" in text_of(tab, "#reason")
    assert tab.locator("#fat").is_hidden()
    assert notice_is_in_view(tab)


def test_copies_of_a_frame_have_no_outlier_and_two_patients_are_named(server: Running) -> None:
    (frame,) = patient(40, 1)
    body = upload(*((name, png(frame)) for name in ("a.png", "b.png", "c.png")))
    head = json.loads(server.call("/page/answers", body)[1].partition("\n")[0])
    assert head["visits"][0]["outlier"] is None
    clip = study("20200301", [frame], 1)
    status, said = server.call("/page/answers", upload(("a.dcm", clip), ("b.png", png(frame))))
    assert (status, "a.dcm, b.png: files of different patients" in said) == (422, True)


def test_every_file_beyond_the_limit_is_named(server: Running) -> None:
    generator = np.random.default_rng(0)
    blank = [generator.integers(0, 9, (120, 160), np.uint8) for _ in range(MAX_FRAMES + 2)]
    clips = [(f"{at}.dcm", study("20200301", blank[at : at + 7], at, StudyInstanceUID="1.2.3"))
             for at in range(8)]  # fmt: skip
    for files, beyond in (
        (images(blank), [f"{MAX_FRAMES}.png", f"{MAX_FRAMES + 1}.png"]),
        (clips, ["5.dcm#6", "6.dcm", "7.dcm"]),
    ):
        status, said = server.call("/page/answers", upload(*files))
        assert status == 200
        passed = json.loads(said.partition("\n")[0])["passed_over"]
        assert [name for name, _ in passed] == beyond


def test_two_studies_are_visits_by_date(open_page: Callable[..., Any]) -> None:
    tab = open_page()
    late, early = study("20210301", patient(70, 2), 1), study("20200301", patient(5, 2), 2)
    give(tab, ("late.dcm", late), ("early.dcm", early))
    buttons = tab.locator("#visits button").all_inner_texts()
    assert buttons == ["2020-03-01", "2021-03-01"]
    assert text_of(tab, "#visitDate") == "2021-03-01"
    assert tab.locator("#trendPlot circle").count() == 2
    said = "Changed since 2020-03-01, by more than measuring anew does."
    assert text_of(tab, "#trendText") == said
    tab.keyboard.press("v")
    assert text_of(tab, "#visitDate") == "2020-03-01"
    assert tab.pdf(prefer_css_page_size=True).count(b"/Type /Page\n") == 1
    assert "Doe" not in tab.content()
    assert "0012345" not in tab.content()


def test_real_frames_have_an_answer(open_page: Callable[..., Any], real_data_dir: Path) -> None:
    tab = open_page()
    frames = sorted((real_data_dir / "byra2018" / "images").glob("P15_*.png"))[:3]
    give(tab, *((path.name, path.read_bytes()) for path in frames))
    assert text_of(tab, "#grade")
    assert tab.locator("#outlines path.liver").get_attribute("d").startswith("M")
    for key in ("c", "h", "Shift+ArrowUp"):
        tab.keyboard.press(key)
    read_again(tab, "Enter")
    assert "placed by a person" in text_of(tab, "#byPerson")


def test_a_phone_shows_all_and_prints_on_one_page(open_page: Callable[..., Any]) -> None:
    tab = open_page(390, 844)
    give(tab, *images(patient(40)))
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert notice_is_in_view(tab)
    assert tab.locator("#grade").is_visible()
    tab.set_viewport_size({"width": 1280, "height": 720})
    give(tab, *images(patient(40)), ("notes.txt", b"x"))
    assert tab.locator("#passed").bounding_box()["y"] < tab.locator("#fat").bounding_box()["y"]
    tab.keyboard.press("m")
    printed = tab.pdf(prefer_css_page_size=True)
    assert printed.count(b"/Type /Page\n") == 1
    tab.emulate_media(media="print")
    assert tab.locator("#notice").is_visible()
    assert tab.locator("#printed canvas").is_visible()
    assert text_of(tab, "#passedTitle") == "1 not looked at"
    # The viewer of a study's CD is not counted.
    tab.emulate_media(media="screen")
    viewer = [(f"{number}.html", b"x") for number in range(MAX_FILES)]
    give(tab, *images(patient(40)), ("DICOMDIR", b"x"), *viewer)
    assert text_of(tab, "#passedTitle") == f"{MAX_FILES + 1} not looked at"


@pytest.mark.parametrize(("width", "height"), [(1024, 600), (844, 390), (640, 360)])
def test_a_small_or_enlarged_page_hides_nothing(
    open_page: Callable[..., Any], width: int, height: int
) -> None:
    tab = open_page(width, height)
    give(tab, *images(patient(40)))
    tab.wait_for_selector("#mapSlide:not([hidden])")
    for part in ("#opacity", "#correct", "#strip button:last-child", "#grade"):
        shown = tab.locator(part)
        shown.evaluate("element => element.scrollIntoView({ block: 'nearest' })")
        box, view = shown.bounding_box(), tab.locator("#notice").bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width, part
        assert box["y"] + box["height"] <= view["y"] + 1, part
    strip = tab.locator("#strip").bounding_box()
    assert strip["height"] > tab.locator("#strip button:last-child").bounding_box()["height"]
    panel = tab.locator("#panel").bounding_box()
    slide = tab.locator("#mapSlide").bounding_box()
    assert panel["x"] == 0 or slide["x"] + slide["width"] <= panel["x"]
    assert notice_is_in_view(tab)


def fan_corners(server: Running, files: list[tuple[str, bytes]], frame: int = 0) -> list[float]:
    """Of the sector that the server finds."""
    said = server.call("/page/answers", upload(*files))[1]
    return json.loads(said.partition("\n")[0])["visits"][0]["pictures"][frame]["fan"]["corners"]


def read_again(tab: Any, key: str) -> None:
    """Press a key that has all frames read again; wait until it is done."""
    tab.evaluate("delete document.querySelector('#stage').dataset.frame")
    tab.keyboard.press(key)
    tab.wait_for_selector("#stage[data-frame]")
    tab.wait_for_selector("body[aria-busy=false]")


def test_a_person_corrects_the_sector_and_takes_it_back(open_page: Callable[..., Any]) -> None:
    tab = open_page()
    give(tab, *images(patient(40, 3)))
    found = text_of(tab, "#fatText")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("c")
    assert tab.locator("#editing").is_visible()
    handle = tab.locator("#handles [data-part=se]").bounding_box()
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x - 30, y - 20, steps=3)
    tab.mouse.up()
    assert text_of(tab, "#fatText") == found  # nothing is read before it is asked for
    read_again(tab, "Enter")
    assert tab.locator("#stage").get_attribute("data-frame") == "1"
    assert "sector of 1 frame was placed by a person" in text_of(tab, "#byPerson")
    assert "placed by a person" in text_of(tab, "#frameText")
    assert text_of(tab, "#fatText") != found
    with tab.expect_download() as waited:
        tab.keyboard.press("j")
    saved = json.loads(Path(waited.value.path()).read_text())["answer"]
    assert [frame["by_person"] for frame in saved["frames"]] == [False, True, False]

    tab.keyboard.press("x")
    assert "corrections would be lost" in text_of(tab, "#hint")
    for key in ("c", "h", "Shift+ArrowUp", "ArrowLeft", "Escape"):  # thought better of it
        tab.keyboard.press(key)
    assert tab.locator("#editing").is_hidden()
    tab.keyboard.press("c")
    read_again(tab, "r")
    assert text_of(tab, "#fatText") == found
    assert tab.locator("#byPerson").is_hidden()
    tab.keyboard.press("x")
    assert tab.locator("#drop").is_visible()


def test_without_a_sector_there_is_none_to_correct(
    server: Running, open_page: Callable[..., Any]
) -> None:
    tab = open_page()
    black = ("black.png", png(np.zeros((200, 300), np.uint8)))
    give(tab, black)
    tab.keyboard.press("c")
    assert "No sector was found in this frame" in text_of(tab, "#hint")
    assert tab.locator("#editing").is_hidden()
    files = images(patient(40, 1))
    corners = fan_corners(server, files)
    for given, wanted, text in (
        ([black], corners, "a frame whose sector was found"),
        (files, corners[2:4] + corners[:2] + corners[6:] + corners[4:6], "a fan that opens down"),
        (files, [value + 5000 for value in corners], "a fan over the frame"),
        (files, corners[:6], "a list of files"),
        (files, [1e300] * 8, "a list of files"),
    ):
        placed = [{"visit": 0, "frame": 0, "corners": wanted}]
        status, said = server.call("/page/answers", upload(*given, corrections=placed))
        assert (status, text in said) == (422, True), said


def test_a_report_is_that_of_the_verb_and_only_for_dicom(
    open_page: Callable[..., Any], phantom_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("highdicom")
    from steatosis_tf import cli

    tab = open_page()
    give(tab, *images(patient(40, 1)))
    assert tab.locator("#report").is_hidden()
    clip = study("20200301", patient(40, 2), 1)
    give(tab, ("a.dcm", clip), ("b/a.dcm", study("20200301", patient(5, 1), 2,
                                                 StudyInstanceUID="1.2.3.1")))  # fmt: skip
    names = [one.get_attribute("title") for one in tab.locator("#strip button").all()]
    assert names == ["a.dcm#1", "a.dcm#2", "a (2).dcm"]
    with tab.expect_download() as waited:
        tab.keyboard.press("e")
    assert waited.value.suggested_filename == "steatosis_2020-03-01_sr.zip"
    (tmp_path / "study").mkdir()
    (tmp_path / "study/a.dcm").write_bytes(clip)
    (tmp_path / "study/b.dcm").write_bytes(study("20200301", patient(5, 1), 2,
                                                 StudyInstanceUID="1.2.3.1"))  # fmt: skip
    words = ["sr", str(tmp_path / "study"), "--output", str(tmp_path / "sr")]
    assert cli.main([*words, "--model", str(phantom_bundle)]) == 0
    with zipfile.ZipFile(waited.value.path()) as archive:
        made = {name: archive.read(name) for name in archive.namelist()}
    assert made == {path.name: path.read_bytes() for path in (tmp_path / "sr").iterdir()}


def test_a_report_names_the_images_alone_that_were_looked_at(phantom_bundle: Path) -> None:
    pytest.importorskip("highdicom")
    black = np.zeros((64, 64), np.uint8)
    files = [(f"{number}.dcm", study("20200301", [black], number, StudyInstanceUID="1.2.3.1"))
             for number in range(1, MAX_FRAMES + 3)]  # fmt: skip
    made = report_zip(open_bundle(phantom_bundle), upload(*files), 0)
    with zipfile.ZipFile(io.BytesIO(made)) as archive:
        (name,) = (name for name in archive.namelist() if "-sr-" in name)
        report = dcmread(io.BytesIO(archive.read(name)))
    (of_study,) = report.CurrentRequestedProcedureEvidenceSequence
    (of_series,) = of_study.ReferencedSeriesSequence
    assert len(of_series.ReferencedSOPSequence) == MAX_FRAMES


def test_names_never_run_as_script(open_page: Callable[..., Any]) -> None:
    tab = open_page()
    (frame,) = patient(40, 1)
    named = study("20200301", [frame], 1, PatientID=SCRIPT, PatientName=SCRIPT)
    give(tab, (f"{IMAGE}.dcm", named))
    assert text_of(tab, "#frameNumber") == f"1 of 1: {IMAGE}.dcm"
    give(tab, (f"{SCRIPT}.png", png(frame)), (f"{SCRIPT}.txt", b"x"))
    answer = {"patient": SCRIPT, "kind": SCRIPT, "grade": SCRIPT, "date": "2019-01-01",
              "fat_percent": 5, "fat_interval": [1, 9]}  # fmt: skip
    earlier = {"notice": SCRIPT, "model": {"sha256": SCRIPT}, "answer": answer}
    give(tab, ("earlier.json", json.dumps(earlier).encode()))
    assert SCRIPT in text_of(tab, "#trendTable")
    assert tab.locator("img").count() == 0


def _png_claiming(width: int, height: int) -> bytes:
    """A small PNG whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + pixels + chunk(b"IEND", b"")


def _archive(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(10 << 20))
    return stream.getvalue()


def _hostile() -> dict[str, bytes]:
    """Bodies of uploads by what is wrong with them."""
    (frame,) = patient(40, 1)
    good, clip = png(frame), study("20200301", [frame, frame], 1)
    deep = np.full((100, 100), 40000, np.uint16)
    bomb = cv2.imencode(".png", np.zeros((8000, 8000), np.uint8))[1].tobytes()
    html = b"<html><script>alert(1)</script></html>"
    jpeg = cv2.imencode(".jpg", frame)[1].tobytes()
    files = {
        "decompression bomb": ("a.png", bomb),
        "huge stated size": ("a.png", _png_claiming(2**31 - 1, 2**31 - 1)),
        "zero size": ("a.png", _png_claiming(0, 0)),
        "stated size without pixels": ("a.png", _png_claiming(8000, 8000)),
        "one pixel high": ("a.png", png(frame[:1])),
        "16 bit": ("a.png", png(deep)),
        "empty": ("a.png", b""),
        "truncated png": ("a.png", good[: len(good) // 2]),
        "truncated jpeg": ("a.jpg", jpeg[: len(jpeg) // 2]),
        "png with html behind": ("a.png", good + html),
        "html as png": ("a.png", html),
        "svg": ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"),
        "html": ("a.html", html),
        "zip bomb": ("a.zip", _archive("a.png")),
        "zip as png": ("a.png", _archive("../../a.png")),
        "path traversal": ("../../../../tmp/evil.png", good),
        "windows path": ("C:\\evil\\..\\a.png", good),
        "absolute path": ("/etc/cron.d/evil.png", good),
        "null byte in name": ("a\0.png", good),
        "right-to-left name": ("a\u202egnp.exe.png", good),
        "very long name": ("a" * 5000 + ".png", good),
        "script in name": (f"{SCRIPT}.png", good),
        "truncated dicom": ("a.dcm", clip[: len(clip) // 2]),
        "dicom header alone": ("a.dcm", clip[:400]),
        "dicom that claims many frames": (
            "a.dcm", study("20200301", [frame], 1, NumberOfFrames=99999)
        ),
        "dicom that claims a huge frame": (
            "a.dcm", study("20200301", [frame], 1, Rows=65535, Columns=65535)
        ),
        "dicom with script as patient": ("a.dcm", study("20200301", [frame], 1, PatientID=SCRIPT)),
        "dicom and html polyglot": ("a.dcm", html.ljust(128, b" ") + clip[128:]),
        "noise": ("a.dcm", np.random.default_rng(0).bytes(5000)),
    }  # fmt: skip
    bodies = {name: upload(file) for name, file in files.items()}
    bodies["two patients"] = upload(
        ("a.dcm", clip), ("b.dcm", study("20200301", [frame], 2, PatientID="9", PatientName="X"))
    )
    bodies["too many files"] = upload(*[("a.png", good)] * (MAX_FILES + 1))
    viewer = [("DICOMDIR", b"x"), *[("VIEWER/Autorun.EXE", b"x")] * MAX_FILES]
    bodies["the viewer of a CD"] = upload(("a.png", good), *viewer)
    bodies["sizes that lie"] = b'{"files": [["a.png", 99999999]]}\n' + good
    bodies["negative size"] = b'{"files": [["a.png", -5], ["b.png", 5]]}\n' + good
    bodies["one odd name twice"] = upload(
        ("..", good), ("..", good), (".png", good), (".png", good)
    )
    bodies["a mark in the name"] = upload(("a.dcm#1", clip), ("a.dcm", clip))
    bodies["corrections of no frame"] = upload(
        ("a.png", good), corrections=[{"visit": -1, "frame": 99, "corners": [0] * 8}]
    )
    bodies["no list"] = good
    bodies["nested list"] = b"[" * 50000 + b"\n"
    bodies["nothing"] = upload()
    return bodies


HOSTILE = _hostile()
assert len(HOSTILE) >= 30


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_upload_is_answered_and_does_no_harm(server: Running, fault: str) -> None:
    status, said = server.call("/page/answers", HOSTILE[fault])
    assert status in (200, 422), said[:300]
    assert "Traceback" not in said
    assert "/etc/" not in said
    assert "evil\\" not in said
    if status == 200:
        head = json.loads(said.partition("\n")[0])
        for visit in head["visits"]:
            assert visit["answer"]["kind"] in ("graded", "score_only", "unable")
    assert status == 200 or fault != "the viewer of a CD"
    assert server.process.poll() is None
    assert server.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("fault", [name for name in HOSTILE if "dicom" in name or "list" in name])
def test_a_report_on_a_hostile_upload_is_answered(server: Running, fault: str) -> None:
    pytest.importorskip("highdicom")
    status, said = server.call("/page/report/0", HOSTILE[fault])
    assert status in (200, 422), said[:300]
    assert "Traceback" not in said
    assert server.process.poll() is None


def test_only_the_page_itself_may_ask(server: Running) -> None:
    body = HOSTILE["nothing"]
    assert server.call("/page/answers", body, X_Token="wrong")[0] == 403
    assert server.call("/page/answers", body, Origin="http://evil.example")[0] == 403
    assert server.call("/page/session", Host="evil.example")[0] == 400
    too_long = {"Content-Length": str(MAX_UPLOAD_BYTES + 1)}
    assert server.call("/page/answers", body, **too_long)[0] == 413


def test_another_host_opens_with_the_token_alone() -> None:
    app = make_app("page", host="reading-room")
    client = TestClient(app, base_url="http://reading-room")
    assert client.get("/").status_code == 403
    assert client.get("/?token=wrong").status_code == 403
    assert client.head("/").status_code == 403
    assert client.head("/", params={"token": app.state.token}).status_code == 200
    opened = client.get("/", params={"token": app.state.token})
    assert opened.status_code == 200
    assert NOTICE in opened.text
    assert TestClient(app, base_url="http://elsewhere").get("/").status_code == 400
    for origin, refused in (  # behind a proxy that adds TLS, or from elsewhere
        ("https://reading-room", False),
        ("http://reading-room", False),
        ("https://elsewhere", True),
        ("null", True),
    ):
        headers = {"Origin": origin, "X-Token": app.state.token}
        answered = client.post("/page/none", content=b"{}", headers=headers)
        assert (answered.status_code == 403) == refused


def test_a_bare_network_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Expected"):
        page(tmp_path / "none.onnx", port=0, open_browser=False)


@pytest.mark.parametrize(
    ("num_clients", "most_each", "most_seconds"),
    [
        pytest.param(5, 4, 600, id="short"),
        pytest.param(20, 1000, 60, id="a-minute", marks=pytest.mark.slow),
    ],
)
def test_clients_at_once_are_all_answered_in_bounded_memory(
    server: Running, num_clients: int, most_each: int, most_seconds: float
) -> None:
    """Without a pause; `benchmarks/page_load.py` measures the waiting time."""
    body = upload(*images(patient(40, 1)))
    process = psutil.Process(server.process.pid)
    server.call("/page/answers", body)  # the networks are loaded
    before, end = process.memory_info().rss, time.monotonic() + most_seconds
    statuses: list[int] = []

    def client() -> None:
        for _ in range(most_each):
            if time.monotonic() > end:
                return
            statuses.append(server.call("/page/answers", body)[0])

    threads = [threading.Thread(target=client) for _ in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(statuses) >= num_clients
    assert set(statuses) == {200}
    assert process.memory_info().rss - before < MAX_GROWTH_BYTES
