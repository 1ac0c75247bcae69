"""Draw docs/images/grading.png: the grading page on simulated frames, in a headless browser.

Command: python docs/images/draw_grading.py (needs playwright and chromium)
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from steatosis_tf import cli

TARGET = Path(__file__).with_name("grading.png")
SIZES = {TARGET: (1280, 720), Path(tempfile.gettempdir()) / "grading_phone.png": (390, 844)}


def read_and_shoot(url: str) -> None:
    """Log on, answer two cases, choose in the third, take the pictures: a desk's and a phone's."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.goto(url)
        page.wait_for_selector("#logOn:not([hidden])")
        page.fill("#initials", "AB")
        for _ in range(2):  # once more begins a new reading
            page.wait_for_selector("#grading[aria-busy=false]")
            page.press("#initials", "Enter")
        for keys in ("1 h Enter", "0 m Enter", "2 m"):
            page.wait_for_selector("#grading[aria-busy=false]")
            page.wait_for_selector("#stage[data-frame]")
            for key in keys.split():
                page.keyboard.press(key)
        for target, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            page.wait_for_timeout(500)
            page.screenshot(path=str(target))
        browser.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "study"
        cli.main(["phantom", str(folder), "--patients", "12", "--frames", "4"])
        manifest = str(folder / "manifest.csv")
        cli.main(["manifest", str(folder / "labels.csv"), "--output", manifest])
        words = ["-m", "steatosis_tf.cli", "review", manifest, "--grade", "--port=0"]
        server = subprocess.Popen(
            [sys.executable, *words, "--no-browser"], stdout=subprocess.PIPE, text=True
        )
        try:
            read_and_shoot(server.stdout.readline().split()[-3])  # ... http://... (Ctrl+C ends)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
