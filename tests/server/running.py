"""A verb that serves a page, in a process of its own."""

import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

PATIENCE_MS = 30_000  # the machine may be busy with other tests


class Running:
    """`steatosis VERB` on a port that it says.

    Args:
        words: of the command line.
        python: that has the package; the one that runs the tests.
        options: of `subprocess.Popen`, for example `cwd`.
    """

    def __init__(
        self, *words: object, python: str | Path = sys.executable, **options: object
    ) -> None:
        self.process = subprocess.Popen(
            [python, "-m", "steatosis_tf.cli", *map(str, words), "--no-browser"],
            stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options,
        )  # fmt: skip
        said = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", said)
        assert found, said + self.process.communicate()[1]
        self.url, self.port = found[0], int(found[1])
        self.token = ""
        self.token = re.search(r'name="token" content="(.+?)"', self.call("/")[1])[1]

    def call(self, path: str, body: str | bytes | None = None, **headers: str) -> tuple[int, str]:
        """Status and text of an answer; a call with a body is a POST with the page's token."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            headers = {"Content-Type": "application/json", "X-Token": self.token} | headers
        data = body.encode() if isinstance(body, str) else body
        request = urllib.request.Request(self.url + path, headers=headers, data=data)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                self.headers = answer.headers
                return answer.status, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            self.headers = error.headers
            return error.code, error.read().decode()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> str:
        """End it as Ctrl+C does; returns what it wrote from its address on."""
        self.process.send_signal(signal.SIGINT)
        try:
            said, complaints = self.process.communicate(timeout=PATIENCE_MS / 1000)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert self.process.returncode == 0
        return said + complaints
