# SPDX-License-Identifier: Apache-2.0
"""The real daemon, for tests: a socket, a database and a segment of its own in a directory of its own."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from waiting import listens, until  # noqa: E402

BUILD = pathlib.Path(os.environ["STEPSTASH_BUILD_DIR"])  # set by CMakeLists.txt
os.environ["STEPSTASH_LIBRARY"] = str(BUILD / "libclient" / "libstepstash.so.0")  # before the package is imported
SHARED_MEMORY = pathlib.Path("/dev/shm")


class Daemon:
    def __init__(self, *options):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="stepstash-python-"))
        self.socket = str(self.directory / "socket")
        self.segment = "python-test-" + self.directory.name.rsplit("-", 1)[1]
        (self.directory / "empty.conf").touch()
        self.options = options
        self.start()

    def start(self):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("STEPSTASH_")}
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [
                    *(BUILD / "daemon" / "stepstashd", "--config", self.directory / "empty.conf"),
                    *("--socket", self.socket, "--db", self.directory / "db"),
                    *("--segment-name", self.segment, "--segment-size", "64MiB", *self.options),
                ],
                stderr=log,
                env=clean,
            )
        until(lambda: listens(self.socket) or self.process.poll() is not None, "the daemon to listen")
        if self.process.poll() is not None:
            raise RuntimeError("the daemon ended: " + (self.directory / "log").read_text())

    def kill(self):
        """SIGKILL. Its socket stays behind, and is removed, so that start() can tell the new one."""
        self.process.kill()
        self.process.wait()
        os.unlink(self.socket)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        for path in SHARED_MEMORY.glob(self.segment + "*"):
            shutil.rmtree(path)
        shutil.rmtree(self.directory)
        if status != 0:
            raise RuntimeError(f"the daemon ended with {status}")
