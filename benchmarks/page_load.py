"""Load of the reading page: clients that read one frame after another, for a minute.

    python benchmarks/page_load.py                  (20 clients, a minute, the shipped model)
    python benchmarks/page_load.py --pause 0        (no pause: how much it can answer at all)

Each client sends a simulated frame, waits for the answer, looks at it for `--pause` seconds, and
sends the next. Printed: answers, errors, the time from question to answer, the server's processor
time per answer, and how much its memory grew. The clients run in the server's own machine and take
little of it; other work on the machine shows in the waiting time, not in the processor time.
"""

import argparse
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence

import cv2
import numpy as np
import psutil

from steatosis_tf.sources.phantom.study import simulate_patient

_SIZE_PX = (434, 636)  # as the public frames
_NUM_PICTURES = 8


def uploads() -> list[bytes]:
    """What the page sends for one frame each."""
    bodies = []
    for seed in range(_NUM_PICTURES):
        generator = np.random.default_rng(seed)
        frames, _ = simulate_patient(
            8.0 * seed, num_frames=1, generator=generator, size_px=_SIZE_PX
        )
        data = cv2.imencode(".png", frames[0])[1].tobytes()
        bodies.append(json.dumps({"files": [["a.png", len(data)]]}).encode() + b"\n" + data)
    return bodies


class Load:
    """Clients of one server, and what they have met.

    Args:
        url: of the page.
        pause_s: between an answer and the next question.
    """

    def __init__(self, url: str, pause_s: float) -> None:
        self.url, self.pause_s = url, pause_s
        with urllib.request.urlopen(url) as answer:
            (self.token,) = re.findall(r'name="token" content="(.+?)"', answer.read().decode())
        self.seconds: list[float] = []
        self.errors: list[str] = []

    def ask(self, body: bytes) -> None:
        """One question."""
        headers = {"X-Token": self.token, "Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"{self.url}/page/answers", body, headers)
        start = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                answer.read()
        except OSError as error:
            self.errors.append(str(error))
        else:
            self.seconds.append(time.monotonic() - start)

    def run(self, num_clients: int, seconds: float, bodies: Sequence[bytes]) -> None:
        """All clients at once, until the time is over."""
        end = time.monotonic() + seconds

        def client(number: int) -> None:
            time.sleep(self.pause_s * number / num_clients)  # nobody begins at the same moment
            while time.monotonic() < end:
                self.ask(bodies[number % len(bodies)])
                number += 1
                time.sleep(self.pause_s)

        threads = [threading.Thread(target=client, args=[n]) for n in range(num_clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--pause", type=float, default=10.0, help="seconds a client looks")
    parser.add_argument("--model", help="bundle; the shipped one if left out")
    args = parser.parse_args()
    words = [sys.executable, "-m", "steatosis_tf.cli", "page", "--port", "0", "--no-browser"]
    words += ["--model", args.model] if args.model else []
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        (url,) = re.findall(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
        load, bodies, process = Load(url, args.pause), uploads(), psutil.Process(server.pid)
        for body in bodies[:4]:  # the networks are loaded, buffers grown
            load.ask(body)
        load.seconds.clear()
        memory, busy = process.memory_info().rss, sum(process.cpu_times()[:2])
        machine, start = psutil.cpu_times(), time.monotonic()
        load.run(args.clients, args.seconds, bodies)
        took = time.monotonic() - start
        own = sum(process.cpu_times()[:2]) - busy
        after = psutil.cpu_times()
        spent = sum(after) - sum(machine) - (after.idle - machine.idle)
        grown = (process.memory_info().rss - memory) / 2**20
        median, p95 = np.quantile(load.seconds, [0.5, 0.95])
        print(f"{len(load.seconds)} answers in {took:.0f} s, {len(load.errors)} errors")
        print(f"from question to answer: median {median:.2f} s, 95 % within {p95:.2f} s, "
              f"longest {max(load.seconds):.2f} s")  # fmt: skip
        print(f"processor time per answer {own / len(load.seconds):.2f} s; the server took "
              f"{own / max(spent, 1e-9):.0%} of what the machine spent")  # fmt: skip
        print(f"memory grew by {grown:.0f} MB to {process.memory_info().rss / 2**20:.0f} MB")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
