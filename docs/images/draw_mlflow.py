"""Draw docs/images/mlflow.png: the newest cross-validated run in MLflow, in a headless browser.

Command: python docs/images/draw_mlflow.py (after `make demo`; needs playwright and chromium)
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Error, sync_playwright

from steatosis_tf.tracking import store, ui_address

PORT = 5055
TARGET = Path(__file__).with_name("mlflow.png")


def main() -> None:
    """Serve the store as `make ui` does, open the link that it prints, and the newest run there."""
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--port", str(PORT),
         "--backend-store-uri", store.store_uri()],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page(viewport={"width": 1280, "height": 720})
            for _ in range(120):
                try:
                    page.goto(ui_address(port=PORT))
                    break
                except Error:  # not up yet
                    page.wait_for_timeout(1000)
            page.get_by_role("link", name="fold").first.click(timeout=60_000)
            page.get_by_text("Description").first.wait_for(timeout=60_000)
            assistant = page.get_by_role("button", name="Close", exact=True)
            if assistant.count():
                assistant.click()
            page.wait_for_timeout(1500)
            page.screenshot(path=TARGET, clip={"x": 200, "y": 10, "width": 580, "height": 700})
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
