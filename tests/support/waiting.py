# SPDX-License-Identifier: Apache-2.0
"""What the Python tests wait for, and how."""

import socket
import time


def until(condition, what, seconds=20):
    """Polls a condition until it holds or the deadline has passed."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.005)  # between two looks


def listens(path):
    """The file alone is not enough: it exists from bind(2) on, and connections are refused until listen(2)."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
