"""The review page in a real browser, with the server in a process of its own."""

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from running import PATIENCE_MS, Running

from steatosis_tf import cli
from steatosis_tf.cohort.manifest import (
    frame_id_of,
    pixels_sha256,
    read_manifest,
    write_manifest,
)
from steatosis_tf.config import RoiConfig
from steatosis_tf.roi.columns import fill_manifest
from steatosis_tf.roi.sector.find import kept_fan, persons_fan
from steatosis_tf.server.review import review

playwright = pytest.importorskip(
    "playwright.sync_api", reason="browser tests need playwright (extra `dev`)"
)

HEIGHT, WIDTH = 300, 400
PROPOSAL = (120, 150, 100, 120)  # top, left, height, width
BAD_FRAMES = {
    "f/corrupt.png": "truncated PNG",
    "f/deep.png": "expected 8-bit pixels. Received: uint16",
    "f/line.png": "Received: height=1 width=300",
    "f/missing.png": "missing or unreadable file",
}
NUM_FRAMES = 16
HEADER = (
    "frame_id,path,patient_id,grade,fat_percent,pixels_sha256,"
    "roi_top,roi_left,roi_height,roi_width,roi_source,roi_quality,roi_reason"
)


def drawn_frame(seed: int) -> np.ndarray:
    """A fan of speckle on black, grey, (300, 400) uint8."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    radius = np.hypot(rows + 30, columns - WIDTH / 2)
    angle = np.abs(np.arctan2(columns - WIDTH / 2, rows + 30))
    noise = np.random.default_rng(seed).integers(60, 160, (HEIGHT, WIDTH)).astype(np.uint8)
    speckle = cv2.GaussianBlur(noise, (0, 0), 1.5)  # neighbours of an echo are alike
    return np.where((radius > 60) & (radius < 310) & (angle < 0.6), speckle, 0).astype(np.uint8)


def make_study(folder: Path, num_frames: int, extra: tuple[str, ...] = ()) -> Path:
    """Drawn frames and a manifest with a proposal for each; quality falls from frame to frame."""
    (folder / "f").mkdir(parents=True)
    lines = [HEADER]
    paths = [f"f/{at:02}.png" for at in range(num_frames)]
    for at, path in enumerate(paths):
        cv2.imwrite(str(folder / path), drawn_frame(at))
    for at, path in enumerate([*paths, *extra]):
        box = ",".join(map(str, PROPOSAL))
        quality = round(0.95 - 0.02 * at, 2)
        lines.append(f"{frame_id_of(path)},{path},p{at},Severe,70,x,{box},auto,{quality},")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


def add_bad_frames(folder: Path) -> None:
    (folder / "f/corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    cv2.imwrite(str(folder / "f/deep.png"), np.full((100, 100), 999, np.uint16))
    cv2.imwrite(str(folder / "f/line.png"), np.full((1, 300), 99, np.uint8))
    cv2.imwrite(str(folder / "f/wide.png"), cv2.resize(drawn_frame(0), (8000, 300)))


class Server(Running):
    """`steatosis review` in a process of its own, on a port that it says."""

    def __init__(self, manifest: Path, reviewer: str = "AB", *words: object, port: int = 0) -> None:
        self.manifest = manifest
        super().__init__("review", manifest, "--reviewer", reviewer, "--port", port, *words)


def eventually(condition: Callable[[], object], seconds: float = PATIENCE_MS / 1000) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def row(manifest: Path, number: int) -> dict:
    """Manifest row by the number that the page shows (from 1)."""
    return read_manifest(manifest).iloc[number - 1].to_dict()


def state(manifest: Path, number: int) -> str:
    return row(manifest, number).get("roi_state", "")


def box(manifest: Path, number: int) -> tuple:
    cells = row(manifest, number)
    return tuple(cells[f"roi_{side}"] for side in ("top", "left", "height", "width"))


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory) -> Iterator[Server]:
    """One study for the tests that each use frames of their own in it."""
    folder = tmp_path_factory.mktemp("study")
    manifest = make_study(folder, NUM_FRAMES, (*BAD_FRAMES, "f/wide.png"))
    text = manifest.read_text().splitlines()
    cells = text[NUM_FRAMES].split(",")  # the last drawn frame has no proposal
    cells[6:10] = [""] * 4
    cells[11] = "0.1"
    cells[12] = "no liver found"
    text[NUM_FRAMES] = ",".join(cells)
    manifest.write_text("\n".join(text) + "\n")
    add_bad_frames(folder)
    running = Server(manifest)
    yield running
    assert running.stop() == f"{manifest}: all decisions are saved\n"


@pytest.fixture
def open_page(browser) -> Iterator[Callable[..., "playwright.Page"]]:
    """Open the page of a server in a tab of its own, at a frame, all frames shown."""
    contexts = []

    def opened(server: Server, number: int | None = None) -> "playwright.Page":
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 720}))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: page_errors.append(str(error)))
        page.on(
            "console",
            lambda line: "Content Security" in line.text and page_errors.append(line.text),
        )
        page.set_default_timeout(PATIENCE_MS)
        page.goto(server.url)
        page.wait_for_selector("#stage[data-frame], #message:not([hidden])")
        page.wait_for_selector("#review[aria-busy=false]")
        if number is not None:
            page.select_option("#filter", "all")
            go_to(page, number)
        return page

    page_errors: list[str] = []
    yield opened
    for context in contexts:
        context.close()
    assert page_errors == []


def press(page, key: str) -> None:
    """Press a key as a person does: when the page has done what was asked of it before.

    A key that comes while a decision is on its way is meant for nothing that is shown: dropped.
    """
    page.wait_for_selector("#review[aria-busy=false]")
    page.keyboard.press(key)


def go_to(page, number: int) -> None:
    page.wait_for_selector("#review[aria-busy=false]")
    page.evaluate("delete document.querySelector('#stage').dataset.frame")
    page.fill("#number", str(number))
    page.press("#number", "Enter")
    at_number(page, number)


def at_number(page, number: int) -> None:
    """Wait until the page shows a frame, by its number."""
    try:
        page.wait_for_function(
            "n => document.querySelector('#number').value === n"
            " && document.querySelector('#stage').dataset.frame"
            " && document.querySelector('#review').getAttribute('aria-busy') === 'false'",
            arg=str(number),
        )
    except playwright.TimeoutError:
        shown = page.evaluate(
            "['#number', '#filter'].map((id) => document.querySelector(id).value).concat("
            "['#worst', '#notice', '#message'].map((id) => document.querySelector(id).outerHTML))"
        )
        pytest.fail(f"frame {number} did not come; the page shows {shown}")


def drag_part(page, part: str, right_px: int, down_px: int) -> None:
    """Drag a handle, or the whole box, by px of the frame."""
    scale = page.evaluate("parseFloat(document.querySelector('#scale').textContent) / 100")
    handle = page.locator(f"[data-part={part}]").last.bounding_box()
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + right_px * scale / 2, y + down_px * scale / 2)
    page.mouse.move(x + right_px * scale, y + down_px * scale)
    page.mouse.up()


def shown_box(page) -> tuple[int, ...]:
    fields = page.locator("#numbers input").all()
    return tuple(int(field.input_value() or -1) for field in fields)


def test_accept_goes_on_and_reaches_the_manifest(server, open_page):
    page = open_page(server, 1)
    press(page, "a")
    at_number(page, 2)
    eventually(lambda: state(server.manifest, 1) == "accepted")
    assert (row(server.manifest, 1)["roi_source"], box(server.manifest, 1)) == ("auto", PROPOSAL)
    assert row(server.manifest, 1)["roi_reviewer"] == "AB"
    assert re.fullmatch(r"20\d\d-.*T.*Z", row(server.manifest, 1)["roi_reviewed_at"])


def test_drag_save_and_undo(server, open_page):
    page = open_page(server, 3)
    drag_part(page, "se", 40, 25)
    top, left, height, width = shown_box(page)
    assert (top, left) == (120, 150)
    assert (height, width) == (pytest.approx(125, abs=1), pytest.approx(160, abs=1))
    drag_part(page, "whole", -30, 10)
    moved = shown_box(page)
    assert moved[:2] == (pytest.approx(130, abs=1), pytest.approx(120, abs=1))
    assert moved[2:] == (height, width)
    press(page, "u")  # takes the move back, keeps the resize
    assert shown_box(page) == (top, left, height, width)
    press(page, "c")
    at_number(page, 4)
    eventually(lambda: box(server.manifest, 3) == (top, left, height, width))
    assert row(server.manifest, 3)["roi_source"] == "person"

    press(page, "u")  # takes the saved decision back: the automatic box stands again
    at_number(page, 3)
    assert shown_box(page) == PROPOSAL
    eventually(lambda: box(server.manifest, 3) == PROPOSAL)
    assert (row(server.manifest, 3)["roi_source"], state(server.manifest, 3)) == ("auto", "")


def test_reject_with_a_reason_from_the_list_and_one_of_ones_own(server, open_page):
    page = open_page(server, 4)
    press(page, "r")
    press(page, "3")
    at_number(page, 5)
    press(page, "r")
    page.keyboard.type("Probe lifted")
    press(page, "Enter")
    at_number(page, 6)
    eventually(lambda: state(server.manifest, 5) == "rejected")
    assert row(server.manifest, 4)["roi_reason"] == "Shadow or poor contact"
    assert row(server.manifest, 5)["roi_reason"] == "Probe lifted"

    press(page, "r")
    press(page, "Escape")  # thought better of it
    page.wait_for_selector("#reasons:not([open])", state="attached")
    assert state(server.manifest, 6) == ""


def test_a_reload_keeps_place_decision_unsaved_box_and_undo(server, open_page):
    page = open_page(server, 6)
    press(page, "a")
    at_number(page, 7)
    press(page, "Shift+ArrowRight")
    press(page, "ArrowUp")
    assert shown_box(page) == (119, 160, 100, 120)
    page.reload()
    at_number(page, 7)
    page.wait_for_function(
        "() => document.querySelector('#notice').textContent.includes('is back')"
    )
    assert shown_box(page) == (119, 160, 100, 120)
    press(page, "Escape")
    assert shown_box(page) == PROPOSAL
    press(page, "Control+z")
    at_number(page, 6)
    assert page.inner_text("#state") == "To review"


def test_everything_by_keyboard(server, open_page):
    page = open_page(server, 8)
    press(page, "h")  # the top left corner
    press(page, "Shift+ArrowUp")
    press(page, "ArrowLeft")
    assert shown_box(page) == (110, 149, 110, 121)
    press(page, "n")  # refuses to leave an unsaved box behind
    page.wait_for_function(
        "() => document.querySelector('#notice').textContent.includes('not saved')"
    )
    press(page, "m")
    page.keyboard.type("vessel")
    press(page, "Enter")
    at_number(page, 9)
    eventually(lambda: row(server.manifest, 8).get("roi_reason") == "vessel")
    assert box(server.manifest, 8) == (110, 149, 110, 121)
    press(page, "p")
    at_number(page, 8)
    press(page, "o")  # reopen
    page.wait_for_function("() => document.querySelector('#state').textContent === 'To review'")
    assert shown_box(page) == PROPOSAL

    width = page.locator("#numbers input").nth(3)
    width.fill("9999")  # more than the frame has
    width.press("Enter")
    assert width.get_attribute("aria-invalid") == "true"
    assert page.is_disabled("#correct")
    width.fill("90")
    width.press("Enter")
    assert shown_box(page) == (120, 150, 100, 90)
    press(page, "Escape")

    press(page, "?")
    page.wait_for_selector("#helpSheet[open]")
    press(page, "Escape")
    press(page, "s")
    assert page.get_attribute("#showSector", "aria-pressed") == "false"
    press(page, "g")
    page.keyboard.type("2")
    press(page, "Enter")
    at_number(page, 2)


def test_focus_is_visible(server, open_page):
    page = open_page(server, 2)
    page.focus("#next")
    press(page, "Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert page.evaluate("document.activeElement.closest('#review') !== null")
    assert outline == "2px"


def test_worst_first_begins_with_the_frame_without_a_proposal(server, open_page):
    page = open_page(server)
    press(page, "w")
    at_number(page, 1)
    assert page.inner_text("#reason") == "no liver found"
    assert page.inner_text("#hint") == "Drag on the frame to draw a box"
    stage = page.locator("#stage").bounding_box()
    page.mouse.move(stage["x"] + 400, stage["y"] + 300)
    page.mouse.down()
    page.mouse.move(stage["x"] + 600, stage["y"] + 450, steps=3)
    page.mouse.up()
    drawn = shown_box(page)
    press(page, "Enter")
    eventually(lambda: state(server.manifest, NUM_FRAMES) == "corrected")
    assert box(server.manifest, NUM_FRAMES) == drawn
    page.select_option("#filter", "corrected")
    page.wait_for_function("() => document.querySelector('#state').textContent === 'Corrected'")


@pytest.mark.parametrize("path", BAD_FRAMES)
def test_a_bad_frame_shows_a_message_and_can_only_be_rejected(server, open_page, path):
    number = NUM_FRAMES + 1 + list(BAD_FRAMES).index(path)
    page = open_page(server, number)
    assert page.inner_text("#message h2") == "This frame cannot be shown"
    assert BAD_FRAMES[path] in page.inner_text("#message")
    assert "Traceback" not in page.content()
    assert str(server.manifest.parent) not in page.content()
    assert page.is_disabled("#accept")
    press(page, "r")
    press(page, "6")
    eventually(lambda: state(server.manifest, number) == "rejected")


def test_a_frame_8000_px_wide_is_shown_small_with_a_message(server, open_page):
    page = open_page(server, NUM_FRAMES + len(BAD_FRAMES) + 1)
    assert "8000 × 300 px is far more than an ultrasound frame has" in page.inner_text("#notice")
    assert page.evaluate("document.querySelector('#picture').width") == 4096
    press(page, "ArrowRight")
    assert shown_box(page) == (120, 151, 100, 120)  # still px of the file


def test_two_tabs_do_not_overwrite_each_other(server, open_page):
    first, second = open_page(server, 10), open_page(server, 10)
    press(first, "Shift+ArrowLeft")
    press(first, "c")
    at_number(first, 11)
    press(second, "Shift+ArrowDown")
    press(second, "c")
    second.wait_for_selector("#notice:not([hidden])")
    assert "AB corrected this frame meanwhile. Nothing was overwritten" in second.inner_text(
        "#notice"
    )
    eventually(lambda: state(server.manifest, 10) == "corrected")
    assert box(server.manifest, 10) == (120, 140, 100, 120)
    press(second, "c")  # having seen it, the second insists
    at_number(second, 11)
    eventually(lambda: box(server.manifest, 10) == (130, 150, 100, 120))


#: Press N and wait until the next frame is drawn; milliseconds.
TIME_NEXT = """() => new Promise((resolve, reject) => {
    setTimeout(() => reject(new Error('no new frame')), 30000);
    const begin = performance.now();
    const done = () => requestAnimationFrame(() => resolve(performance.now() - begin));
    new MutationObserver(done).observe(document.querySelector('#stage'),
        {attributeFilter: ['data-frame']});
    document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'n', bubbles: true}));
})"""


def test_the_next_frame_is_there_before_it_is_asked_for(server, open_page):
    page = open_page(server, 11)
    pictures: list[str] = []
    page.on("request", lambda request: pictures.append(request.url))
    took_ms = []
    for at in (11, 12, 13, 14):
        following = frame_id_of(f"f/{at}.png")
        page.wait_for_function(
            "id => performance.getEntriesByType('resource')"
            ".some(entry => entry.name.includes(`${id}/picture`))",
            arg=following,
        )
        page.wait_for_timeout(500)  # decoding, and the reviewer's look at this frame
        pictures.clear()
        took_ms.append(page.evaluate(TIME_NEXT))
        assert page.get_attribute("#stage", "data-frame") == following
        assert not [url for url in pictures if f"{following}/picture" in url]
    # Shown by -s, not asserted: the machine that tests has other work.
    print("from key to next frame, ms:", [round(ms) for ms in took_ms])


def test_the_pseudonym_of_the_patient_stands_beside_the_frame(server, open_page):
    page = open_page(server, 3)
    assert page.inner_text("#patient") == "p2"


def test_the_page_is_blind_and_stays_on_this_machine(server, browser):
    page = browser.new_page()
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    page.goto(server.url)
    page.wait_for_selector("#stage[data-frame]")
    answers = page.evaluate("fetch('/review/go?filter_by=all').then(answer => answer.text())")
    text = page.inner_text("body") + answers
    assert "Severe" not in text
    assert "f/00.png" not in text
    assert [url for url in urls if not url.startswith((server.url, "data:", "blob:"))] == []
    page.close()


def test_other_sites_are_refused(server):
    decide, go = "/review/decisions", "/review/go"
    assert server.call(decide, "{}", Origin="http://elsewhere.example")[0] == 403
    assert server.call(go, Origin="http://elsewhere.example")[0] == 403
    assert server.call(go, Origin="null")[0] == 403
    assert server.call(go, Host="elsewhere.example")[0] == 400
    assert server.call(decide, "{}", X_Token="")[0] == 403
    assert server.call(decide, "{}", X_Token="another")[0] == 403
    assert server.call(decide, "{}", Origin=server.url)[0] == 422  # let in, but no decision
    assert server.call(go, Origin=server.url)[0] == 200


@pytest.mark.parametrize("path", ["/", "/review/go", "/review/nothing", "/static/review.js"])
def test_no_other_site_may_frame_or_read_an_answer(server, path):
    server.call(path)
    policy = server.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert server.headers["X-Frame-Options"] == "DENY"
    assert server.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in server.headers


WANTED = '{{"frame_id": "{}", "revision": "x", "action": "correct", "box": [{}, 0, 50, 50]}}'


@pytest.mark.parametrize(
    "body",
    [
        WANTED.format(frame_id_of("f/00.png"), "1e400"),
        WANTED.format(frame_id_of("f/00.png"), "NaN"),
        WANTED.format(frame_id_of("f/00.png"), "1" + "0" * 400),
        WANTED.format(frame_id_of("f/00.png"), "-1"),
        WANTED.format("\\ud800", "1"),
        WANTED.format("nobody", "1"),
        "not JSON",
        "",
    ],
    ids=lambda body: body[:40] + body[-20:],
)
def test_what_no_page_would_send_is_422(server, body):
    status, text = server.call("/review/decisions", body)
    assert status == 422
    assert isinstance(json.loads(text)["detail"], str)  # a sentence, which the page shows


def test_a_body_too_long_and_a_place_that_is_none(server):
    assert server.call("/review/decisions", " " * 100_000)[0] == 413
    assert server.call("/review/decisions", "[" * 20_000)[0] == 400
    assert server.call("/review/decisions", "1" * 5_000)[0] == 400
    assert server.call("/review/go?rank=1e400")[0] == 422
    assert server.call("/review/go?order=best")[0] == 422
    assert server.call("/docs")[0] == server.call("/openapi.json")[0] == 404
    assert server.call("/static/../app.py")[0] == server.call("/static/%2e%2e/app.py")[0] == 404


def test_frames_elsewhere_are_shown_only_if_the_command_says_so(tmp_path, capsys):
    manifest = make_study(tmp_path / "frames", 3)
    moved = tmp_path / "runs" / "manifest.csv"
    moved.parent.mkdir()
    moved.write_text(manifest.read_text().replace(",f/", ",../frames/f/"))
    assert cli.main(["review", str(moved), "--reviewer", "AB", "--no-browser", "--port=0"]) == 1
    told = capsys.readouterr().err
    assert "3 of 3 frames outside of it" in told
    server = Server(moved, "AB", "--frames", told.split("--frames ")[1].strip())
    picture = f"/review/frames/{frame_id_of('f/00.png')}/picture.png"
    assert server.call(picture)[0] == 200
    server.stop()


def test_a_link_out_of_the_study_is_not_followed(tmp_path):
    manifest = make_study(tmp_path / "study", 1, ("f/link.png",))
    cv2.imwrite(str(tmp_path / "private.png"), drawn_frame(1))
    (tmp_path / "study/f/link.png").symlink_to(tmp_path / "private.png")
    server = Server(manifest)
    status, text = server.call(f"/review/frames/{frame_id_of('f/link.png')}/picture.png")
    server.stop()
    assert (status, "outside of it" in text) == (422, True)
    assert "private" not in text


def test_a_folder_that_cannot_be_written_is_named_at_the_start(tmp_path):
    manifest = make_study(tmp_path / "study", 1)
    # Root may write anywhere, so the process becomes somebody else when all is imported.
    code = (
        "import os, sys; from steatosis_tf.server.review import review\n"
        "os.chdir(sys.argv[1]); os.getuid() or os.setuid(65534)\n"
        "review('manifest.csv', reviewer='AB', port=0, open_browser=False)"
    )
    manifest.parent.chmod(0o555)
    words = [sys.executable, "-c", code, str(manifest.parent)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=90)
    manifest.parent.chmod(0o755)
    assert done.stderr.splitlines()[-1] == (
        "ValueError: Expected a folder that can be written to: decisions are kept beside the "
        "manifest. Received: Permission denied."
    )


def test_two_servers_on_one_manifest(browser, open_page, tmp_path):
    manifest = make_study(tmp_path / "study", 4)
    servers = [Server(manifest, "AB"), Server(manifest, "CD")]
    first, second = (open_page(server, 1) for server in servers)
    press(first, "a")
    at_number(first, 2)
    press(second, "r")
    press(second, "1")
    second.wait_for_selector("#notice:not([hidden])")
    assert "AB accepted this frame meanwhile" in second.inner_text("#notice")
    press(second, "n")
    at_number(second, 2)
    press(second, "a")
    at_number(second, 3)
    assert second.inner_text("#progress") == "2 of 4 reviewed"
    for server in servers:
        server.stop()
    assert [state(manifest, number) for number in (1, 2, 3)] == ["accepted", "accepted", ""]
    assert [row(manifest, number)["roi_reviewer"] for number in (1, 2)] == ["AB", "CD"]


def test_kill_9_and_restart(browser, open_page, tmp_path):
    manifest = make_study(tmp_path / "study", 6)
    server = Server(manifest)
    page = open_page(server, 1)
    for number in (1, 2):
        press(page, "a")
        at_number(page, number + 1)
    press(page, "Shift+ArrowLeft")
    press(page, "c")
    at_number(page, 4)
    server.kill()  # the manifest may or may not have been rewritten by now

    press(page, "ArrowUp")
    press(page, "c")
    page.wait_for_function(
        "() => document.querySelector('#notice').textContent.includes('not answer')"
    )
    assert shown_box(page) == (119, 150, 100, 120)  # the unsaved change stays on the screen

    again = Server(manifest, port=server.port)
    page.reload()
    at_number(page, 4)
    page.wait_for_function(
        "() => document.querySelector('#notice').textContent.includes('is back')"
    )
    assert page.inner_text("#progress") == "3 of 6 reviewed"
    press(page, "c")
    at_number(page, 5)
    again.stop()
    assert read_manifest(manifest)["roi_state"].tolist() == [
        "accepted",
        "accepted",
        "corrected",
        "corrected",
        "",
        "",
    ]
    assert box(manifest, 3) == (120, 140, 100, 120)
    assert box(manifest, 4) == (119, 150, 100, 120)


def test_a_taken_port_an_empty_name_and_a_missing_manifest_are_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port={port}, which cannot be used"):
            review(tmp_path / "manifest.csv", port=port, reviewer="AB", open_browser=False)
    with pytest.raises(ValueError, match="reviewer=' '"):
        review(tmp_path / "manifest.csv", reviewer=" ", open_browser=False)
    with pytest.raises(ValueError, match=r"path='manifest\.csv', which does not exist"):
        review(tmp_path / "manifest.csv", port=0, reviewer="AB", open_browser=False)


def test_the_fan_of_beam_space_is_corrected_by_its_corners(open_page, tmp_path):
    manifest = make_study(tmp_path, 2)
    build = read_manifest(manifest)
    build["pixels_sha256"] = [pixels_sha256(drawn_frame(at)) for at in range(2)]
    write_manifest(build.drop(columns=[c for c in build if c.startswith("roi_")]), manifest)
    fill_manifest(manifest, RoiConfig(method="beamspace"))
    before = row(manifest, 1)
    fan = kept_fan(before["pixels_sha256"], before["roi_sector"])
    running = Server(manifest)
    page = open_page(running, 1)
    assert page.is_hidden("#numbers")
    drag_part(page, "se", 0, -40)
    drag_part(page, "sw", 0, -40)
    press(page, "u")  # takes the second corner back
    drag_part(page, "sw", 0, -40)
    press(page, "c")
    at_number(page, 2)
    eventually(lambda: state(manifest, 1) == "corrected")
    after = row(manifest, 1)
    found = persons_fan(after["pixels_sha256"], after["roi_sector"])
    expected = fan.with_corners(fan.corners() - [[0, 0], [0, 0], [0, 40], [0, 40]])
    np.testing.assert_allclose(found.corners(), expected.corners(), atol=1.5)
    assert after["roi_view"] == "beamspace 384 x 320"
    assert after["roi_height"] < before["roi_height"] - 20
    press(page, "a")
    eventually(lambda: state(manifest, 2) == "accepted")
    press(page, "u")
    at_number(page, 2)
    press(page, "u")
    at_number(page, 1)
    eventually(lambda: row(manifest, 1)["roi_sector"] == before["roi_sector"])
    # What no page would send: corners of no fan, and a box where there is a fan.
    frame_id, revision = (
        before["frame_id"],
        json.loads(running.call(f"/review/go?frame_id={before['frame_id']}&filter_by=all")[1])[
            "row"
        ]["revision"],
    )
    wanted = {"frame_id": frame_id, "revision": revision, "action": "correct"}
    mirrored = {**wanted, "corners": fan.corners()[[1, 0, 3, 2]].ravel().tolist()}
    for body, text in (
        (mirrored, "a fan that opens downwards"),
        ({**wanted, "box": [10, 10, 50, 50]}, "a corrected fan where the frame is seen in beam"),
    ):
        status, said = running.call("/review/decisions", json.dumps(body))
        assert status == 422
        assert text in said
    running.stop()
