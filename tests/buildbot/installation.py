# SPDX-License-Identifier: Apache-2.0
"""A real master and a real worker on the loopback interface, in a directory of their own."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

from daemon import BUILD, until

HERE = pathlib.Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "python"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Installation:
    """`configuration` is master.cfg's text, over the names that PRELUDE gives it."""

    PRELUDE = """\
import datetime
from buildbot.plugins import *
from buildbot.process.buildstep import BuildStep
from control import Control

c = BuildmasterConfig = {{}}
c["buildbotNetUsageData"] = None
c["db"] = {{"db_url": "sqlite:///state.sqlite"}}
c["protocols"] = {{"pb": {{"port": "tcp:{port}:interface=127.0.0.1"}}}}
c["workers"] = [worker.Worker("worker", "password")]
c["services"] = [Control(path={control!r})]
GATE = {gate!r}
SOCKET = {socket!r}
"""

    def __init__(self, stepstash_socket, configuration):
        """`stepstash_socket` is SOCKET in the configuration."""
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="stepstash-buildbot-"))
        self.control = str(self.directory / "control")
        self.gate = self.directory / "gate"
        self.port = free_port()
        self.stepstash_socket = stepstash_socket
        self.master = self.worker = None
        self.environment = dict(os.environ)
        for name in list(self.environment):
            if name.startswith("STEPSTASH_") and name != "STEPSTASH_LIBRARY":
                del self.environment[name]
        self.environment["PATH"] = f"{BUILD / 'cli'}:{os.environ['PATH']}"
        self.environment["PYTHONPATH"] = f"{self.metadata()}:{HERE}:{os.environ['PYTHONPATH']}"
        self.run("buildbot", "create-master", "--relocatable", "master")
        self.run("buildbot-worker", "create-worker", "--relocatable", "--maxdelay=1", "worker",
                 f"127.0.0.1:{self.port}", "worker", "password")  # fmt: skip
        self.configure(configuration)

    def metadata(self):
        """The package's entry points, from pyproject.toml and where Buildbot looks for them."""
        directory = self.directory / "metadata"
        directory.mkdir()
        program = "import setuptools; setuptools.setup()"
        subprocess.run(
            [sys.executable, "-B", "-W", "ignore", "-c", program, "-q", "egg_info", "--egg-base", directory], cwd=PACKAGE, check=True
        )
        return directory

    def run(self, *command):
        done = subprocess.run(
            command, cwd=self.directory, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode != 0:
            raise RuntimeError(f"{command}: {done.stdout.decode()}")

    def configure(self, configuration):
        prelude = self.PRELUDE.format(
            port=self.port, control=self.control, gate=str(self.gate), socket=self.stepstash_socket
        )
        (self.directory / "master" / "master.cfg").write_text(prelude + configuration)

    # ---- processes ----

    def start_master(self, **environment):
        if os.path.exists(self.control):  # of a master that was killed
            os.unlink(self.control)
        running = "BuildMaster is running"
        before = self.log().count(running)
        self.master = self._start("buildbot", "master", environment)
        until(lambda: self.master.poll() is not None or self.log().count(running) > before, "the master to start", 60)
        if self.master.poll() is not None:
            raise RuntimeError("the master ended: " + self.log())

    def start_worker(self, **environment):
        self.worker = self._start("buildbot-worker", "worker", environment)

    def _start(self, command, directory, environment={}):
        # The program that runs it in the foreground is the process itself, so that it can be killed.
        with open(self.directory / (directory + ".out"), "ab") as out:
            return subprocess.Popen(
                [command, "start", "--nodaemon", directory],
                cwd=self.directory,
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def kill_master(self):
        self.master.kill()
        self.master.wait()

    def stop_master(self):
        """In order. Its status says nothing: a reactor that ended by a signal raises that at its end."""
        self.master.send_signal(signal.SIGTERM)
        self.master.wait(60)

    def reconfigure(self, configuration):
        before = self.log().count("configuration update complete")
        self.configure(configuration)
        self.master.send_signal(signal.SIGHUP)
        until(lambda: self.log().count("configuration update complete") > before, "the reconfiguration", 60)

    def log(self):
        path = self.directory / "master" / "twistd.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def remove(self):
        for process in (self.worker, self.master):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        shutil.rmtree(self.directory)

    # ---- questions to the master (control.py) ----

    def ask(self, call, *arguments):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(self.control)
            connection.sendall(json.dumps({"call": call, "arguments": arguments}).encode() + b"\n")
            with connection.makefile() as answers:
                answer = json.loads(answers.readline())
        if "error" in answer:
            raise RuntimeError(f"{call}{arguments}: {answer['error']}")
        return answer["result"]

    def started_build(self, request):
        """The build of a request, once there is one."""
        found = []
        until(lambda: found.extend(self.ask("get", ["buildrequests", request, "builds"])) or found, "a build", 60)
        return found[0]["buildid"]

    def finished_build(self, buildid):
        """How it ended: its row, and the texts of its steps."""
        found = {}

        def complete():
            found.update(self.ask("get", ["builds", buildid]))
            return found["complete"]

        until(complete, f"the end of build {buildid}", 120)
        found["steps"] = [step["state_string"] for step in self.ask("get", ["builds", buildid, "steps"])]
        return found

    def run_build(self, builder):
        return self.finished_build(self.started_build(self.ask("force", builder)))
