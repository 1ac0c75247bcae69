"""Draw a picture of docs/images in a headless browser, on simulated frames.

    python docs/images/draw.py review
    python docs/images/draw.py grading
    python docs/images/draw.py page --model BUNDLE
    python docs/images/draw.py mlflow       (after `make demo`: the newest cross-validated run)

Needs playwright and chromium.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from playwright.sync_api import Error, Page, sync_playwright

from steatosis_tf import cli
from steatosis_tf.cohort.manifest import frame_id_of
from steatosis_tf.config import RoiConfig
from steatosis_tf.roi.propose import propose_roi
from steatosis_tf.sources.phantom.study import simulate_patient
from steatosis_tf.tracking import store, ui_address

FOLDER = Path(__file__).parent
DESK, PHONE = {"width": 1280, "height": 720}, {"width": 390, "height": 844}
MLFLOW_PORT = 5055


def draw_review(folder: Path) -> None:
    """Decide about some frames, change a box."""
    manifest = _proposed(folder)
    with _served("review", str(manifest), "--reviewer", "A. B.") as url, _browser() as page:
        page.goto(url)
        for keys in ("a", "a", "ArrowUp c", "a", "a", "r 3", "Shift+ArrowDown c", "a", ""):
            page.wait_for_selector("#stage[data-frame]")
            page.wait_for_selector("#review[aria-busy=false]")
            _press(page, keys)
        page.wait_for_timeout(500)
        _press(page, "h" + 6 * " Shift+ArrowLeft" + " Shift+ArrowUp")
        page.wait_for_timeout(500)
        page.screenshot(path=FOLDER / "review.png")


def draw_grading(folder: Path) -> None:
    """Log on, answer two cases, choose in the third: a desk's picture, and a phone's to look at."""
    manifest = str(folder / "manifest.csv")
    cli.main(["phantom", str(folder / "study"), "--patients", "12", "--frames", "4"])
    cli.main(["manifest", str(folder / "study" / "labels.csv"), "--output", manifest])
    with _served("review", manifest, "--grade") as url, _browser() as page:
        page.goto(url)
        page.wait_for_selector("#logOn:not([hidden])")
        page.fill("#initials", "AB")
        for _ in range(2):  # once more begins a new reading
            page.wait_for_selector("#grading[aria-busy=false]")
            page.press("#initials", "Enter")
        for keys in ("1 h Enter", "0 m Enter", "2 m"):
            page.wait_for_selector("#grading[aria-busy=false]")
            page.wait_for_selector("#stage[data-frame]")
            _press(page, keys)
        for place, size in ((FOLDER, DESK), (Path(tempfile.gettempdir()), PHONE)):
            page.set_viewport_size(size)
            page.wait_for_timeout(500)
            page.screenshot(path=place / ("grading.png" if size is DESK else "grading_phone.png"))


def draw_page(model: str) -> None:
    """Give the frames of a patient to the page."""
    generator = np.random.default_rng(3)
    frames, _ = simulate_patient(25.0, num_frames=5, generator=generator, size_px=(480, 640))
    pngs = [cv2.imencode(".png", frame)[1].tobytes() for frame in frames]
    with _served("page", "--model", model) as url, _browser() as page:
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        page.set_input_files("#files", [
            {"name": f"simulated_{place}.png", "mimeType": "image/png", "buffer": png}
            for place, png in enumerate(pngs)
        ])  # fmt: skip
        page.wait_for_selector("#stage[data-frame]")
        page.fill("#date", "2026-03-02")
        page.wait_for_timeout(300)
        page.screenshot(path=FOLDER / "page.png")


def draw_mlflow() -> None:
    """Serve the store as `make ui` does, open the link that it prints, and the newest run there."""
    words = ["-m", "mlflow", "ui", "--workers", "1", "--port", str(MLFLOW_PORT),
             "--backend-store-uri", store.store_uri()]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with _running(words, env=env, **quiet), _browser() as page:
        for _ in range(120):
            try:
                page.goto(ui_address(port=MLFLOW_PORT))
                break
            except Error:  # not up yet
                page.wait_for_timeout(1000)
        page.get_by_role("link", name="fold").first.click(timeout=60_000)
        page.get_by_text("Description").first.wait_for(timeout=60_000)
        assistant = page.get_by_role("button", name="Close", exact=True)
        if assistant.count():
            assistant.click()
        page.wait_for_timeout(1500)
        clip = {"x": 200, "y": 10, "width": 580, "height": 700}
        page.screenshot(path=FOLDER / "mlflow.png", clip=clip)


def _proposed(folder: Path) -> Path:
    """Simulated frames with the proposals of `steatosis roi`."""
    rows = []
    for at in range(24):
        generator = np.random.default_rng(at)
        frames, _ = simulate_patient(20.0, num_frames=1, generator=generator, size_px=(600, 800))
        path = f"{at:02}.png"
        cv2.imwrite(str(folder / path), frames[0])
        roi = propose_roi(frames[0], RoiConfig(method="liver"))
        box = roi.rectangle
        row = {"frame_id": frame_id_of(path), "path": path, "patient_id": f"p{at}"}
        row |= {"grade": "", "fat_percent": "", "pixels_sha256": "", "roi_top": box.top}
        row |= {"roi_left": box.left, "roi_height": box.height, "roi_width": box.width}
        rows.append({**row, "roi_source": "auto", "roi_quality": round(roi.quality, 2)})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def _press(page: Page, keys: str) -> None:
    for key in keys.split():
        page.keyboard.press(key)


@contextmanager
def _running(words: list[str], **options: object) -> Iterator[subprocess.Popen]:
    server = subprocess.Popen([sys.executable, *words], **options)
    try:
        yield server
    finally:
        server.terminate()
        server.wait()


@contextmanager
def _served(*words: str) -> Iterator[str]:
    """Address of a page of the package."""
    words = ("-m", "steatosis_tf.cli", *words, "--port=0", "--no-browser")
    with _running([*words], stdout=subprocess.PIPE, text=True) as server:
        yield server.stdout.readline().split()[-3]  # ... http://... (Ctrl+C ends)


@contextmanager
def _browser() -> Iterator[Page]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser.new_page(viewport=DESK)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", choices=("review", "grading", "page", "mlflow"))
    parser.add_argument("--model", help="bundle for the page")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if arguments.picture == "mlflow":
            draw_mlflow()
        elif arguments.picture == "page":
            draw_page(arguments.model)
        elif arguments.picture == "review":
            draw_review(Path(name))
        else:
            draw_grading(Path(name))


if __name__ == "__main__":
    main()
