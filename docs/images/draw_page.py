"""Draw docs/images/page.png: the reading page on a simulated patient, in a headless browser.

Command: python docs/images/draw_page.py BUNDLE (needs playwright and chromium)
"""

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
from playwright.sync_api import sync_playwright

from steatosis_tf.sources.phantom.study import simulate_patient

NUM_FRAMES = 5
TARGET = Path(__file__).with_name("page.png")


def read_and_shoot(url: str) -> None:
    """Give the frames to the page, show the map weakly, take the picture."""
    generator = np.random.default_rng(3)
    frames, _ = simulate_patient(
        25.0, num_frames=NUM_FRAMES, generator=generator, size_px=(480, 640)
    )
    files = [
        {
            "name": f"simulated_{place}.png",
            "mimeType": "image/png",
            "buffer": cv2.imencode(".png", frame)[1].tobytes(),
        }
        for place, frame in enumerate(frames)
    ]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        page.set_input_files("#files", files)
        page.wait_for_selector("#stage[data-frame]")
        page.fill("#date", "2026-03-02")
        page.wait_for_timeout(300)
        page.screenshot(path=str(TARGET))
        browser.close()


def main() -> None:
    words = ["-m", "steatosis_tf.cli", "page", "--model", sys.argv[1], "--port=0", "--no-browser"]
    server = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    try:
        read_and_shoot(server.stdout.readline().split()[-3])  # ... http://... (Ctrl+C ends)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
