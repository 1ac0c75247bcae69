"""Processor time, wherever it was spent."""

import psutil


def processor_seconds() -> float:
    """Of this process and of all below it, finished or still there.

    The worker processes of joblib outlive the work they are given, and the system counts a child
    into its parent's time only when it has ended.
    """
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(one.user + one.system + one.children_user + one.children_system for one in times)
