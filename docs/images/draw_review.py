"""Draw docs/images/review.png: the review page on simulated frames, in a headless browser.

Command: python docs/images/draw_review.py (needs playwright and chromium)
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from playwright.sync_api import sync_playwright

from steatosis_tf.cohort.manifest import frame_id_of
from steatosis_tf.config import RoiConfig
from steatosis_tf.roi.propose import propose_roi
from steatosis_tf.sources.phantom.study import simulate_patient

NUM_FRAMES = 24
TARGET = Path(__file__).with_name("review.png")


def make_study(folder: Path) -> Path:
    """Simulated frames with the proposals of `steatosis roi`."""
    rows = []
    for at in range(NUM_FRAMES):
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


def work_and_shoot(url: str) -> None:
    """Decide about some frames, change a box, take the picture."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.goto(url)
        for keys in ("a", "a", "ArrowUp c", "a", "a", "r 3", "Shift+ArrowDown c", "a", ""):
            page.wait_for_selector("#stage[data-frame]")
            page.wait_for_selector("#review[aria-busy=false]")
            for key in keys.split():
                page.keyboard.press(key)
        page.wait_for_timeout(500)
        for key in ("h", *["Shift+ArrowLeft"] * 6, "Shift+ArrowUp"):
            page.keyboard.press(key)
        page.wait_for_timeout(500)
        page.screenshot(path=str(TARGET))
        browser.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        manifest = make_study(Path(name))
        words = ["-m", "steatosis_tf.cli", "review", str(manifest), "--reviewer", "A. B."]
        server = subprocess.Popen(
            [sys.executable, *words, "--port=0", "--no-browser"], stdout=subprocess.PIPE, text=True
        )
        try:
            work_and_shoot(server.stdout.readline().split()[-3])  # ... http://... (Ctrl+C ends)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
