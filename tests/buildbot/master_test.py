# SPDX-License-Identifier: Apache-2.0
"""A real master, a real worker and a real daemon: one line in master.cfg, and what it changes."""

import hashlib
import signal
import subprocess
import unittest

from daemon import BUILD, Daemon, until  # first: it names the library

import stepstash
from installation import Installation

WITHOUT = """
class SetHere(BuildStep):
    # As GitDiffInfo does it: on the master, through the data API.
    name = "set on the master"

    def run(self):
        d = self.setBuildData("from-master", b"master to worker", "SetHere")
        return d.addCallback(lambda _: 0)

def shell(script):
    return steps.ShellCommand(command=["sh", "-ec", script], env=util.stepstash_environment(SOCKET), haltOnFailure=True)

factory = util.BuildFactory([
    shell("head -c 67108864 /dev/urandom > big; sha256sum < big > sum; stepstash set big big --source worker; rm big"),
    SetHere(),
    # Also ends when the test has failed, and removed its directory.
    shell(f"touch {GATE}.reached; while [ -e {GATE}.reached ] && [ ! -e {GATE} ]; do sleep 0.05; done"),
    shell("stepstash get big | sha256sum -c sum; test \\"$(stepstash get from-master)\\" = 'master to worker'"),
])
# A horizon below zero: what has completed at all is old enough.
janitor = util.JanitorConfigurator(build_data_horizon=datetime.timedelta(seconds=-60))
c["configurators"] = [janitor]
c["schedulers"] = [schedulers.ForceScheduler(name="force", builderNames=["builder"])]
c["builders"] = [util.BuilderConfig(name="builder", workernames=["worker"], factory=factory)]
"""
WITH = WITHOUT + 'c["services"].append(util.StepstashService(socket_path=SOCKET))\n'

OURS, STOCK = "stepstash.buildbot.connector", "buildbot.db.build_data"

STEPS = """
def shell(script):
    return steps.ShellCommand(command=["sh", "-ec", script], haltOnFailure=True)

factory = util.BuildFactory([
    shell("head -c 3000000 /dev/urandom > in"),
    steps.BuildDataFromWorkerFile(workersrc="in", data_name="-file", source="worker"),
    steps.BuildDataToWorkerFile(data_name="-file", workerdest="out"),
    shell("cmp in out"),
    steps.SetBuildData(data_name="text", value=util.Interpolate("%(prop:buildername)s")),
    steps.GetBuildData(data_name="text", property_name="read"),
    steps.SetBuildData(data_name="copy", value=util.Property("read")),
    steps.BuildDataToWorkerFile(data_name="executable", workerdest="never", flunkOnFailure=False, haltOnFailure=False),
    steps.BuildDataToWorkerFile(data_name="text", workerdest="mode", mode=0o755),
    shell("test ! -e never; test -x mode; test \\"$(cat mode)\\" = builder"),
])
c["schedulers"] = [schedulers.ForceScheduler(name="force", builderNames=["builder"])]
c["builders"] = [util.BuilderConfig(name="builder", workernames=["worker"], factory=factory)]
"""

PLACES = """
def shell(script):
    return steps.ShellCommand(command=["sh", "-ec", script], haltOnFailure=True)

factory = util.BuildFactory([
    shell("echo content > in; cp in ./-; mkdir home; cp in home/tilde"),
    steps.BuildDataFromWorkerFile(workersrc="-", data_name="dash"),
    steps.BuildDataToWorkerFile(data_name="dash", workerdest="new/directory/out"),
    shell("cmp in new/directory/out; rm ./-"),
    steps.BuildDataToWorkerFile(data_name="dash", workerdest="-"),
    shell("cmp in ./-"),
    steps.BuildDataFromWorkerFile(workersrc="~/tilde", data_name="tilde"),
    steps.BuildDataFromWorkerFile(workersrc="in", data_name="large", maxsize=3, flunkOnFailure=False, haltOnFailure=False),
    steps.BuildDataToWorkerFile(data_name="dash", workerdest="large", maxsize=3, flunkOnFailure=False, haltOnFailure=False),
])
c["schedulers"] = [schedulers.ForceScheduler(name="force", builderNames=["builder"])]
c["builders"] = [util.BuilderConfig(name="builder", workernames=["worker"], factory=factory)]
c["services"].append(util.StepstashService(socket_path=SOCKET))
"""


class Master(unittest.TestCase):
    def setUp(self):
        self.daemon = Daemon("--segment-size", "256MiB")
        self.addCleanup(self.daemon.stop)
        self.client = stepstash.Client(self.daemon.socket)
        self.addCleanup(self.client.close)

    def start(self, configuration, **environment):
        self.buildbot = Installation(self.daemon.socket, configuration)
        self.addCleanup(self.buildbot.remove)
        self.buildbot.start_master(**environment)

    def connector(self):
        return self.buildbot.ask("state")["connector"]

    def test_a_build_hands_64_mebibytes_from_step_to_step_and_the_janitor_deletes_them(self):
        self.start(WITH)
        self.buildbot.start_worker()
        self.assertEqual(self.connector(), OURS)

        # The daemon is killed between the step that sets and the one that gets.
        build = self.buildbot.started_build(self.buildbot.ask("force", "builder"))
        until(lambda: self.buildbot.gate.with_suffix(".reached").exists(), "the third step", 60)
        self.daemon.kill()
        self.daemon.start()
        self.buildbot.gate.touch()
        finished = self.buildbot.finished_build(build)
        self.assertEqual(finished["results"], 0, (finished, self.buildbot.log()))

        # Everybody sees the same: the command, the data API, the daemon.
        read = subprocess.run(
            [BUILD / "cli" / "stepstash", "get", str(build), "big", "--socket", self.daemon.socket],
            stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        value = {"length": 64 << 20, "sha256": hashlib.sha256(read.stdout).hexdigest()}
        self.assertEqual(self.buildbot.ask("get", ["builds", str(build), "data", "big", "value"])["raw"], value)
        expected = [
            {"buildid": build, "name": "big", "value": None, "length": 64 << 20, "source": "worker"},
            {"buildid": build, "name": "from-master", "value": None, "length": 16, "source": "SetHere"},
        ]
        self.assertEqual(self.buildbot.ask("get", ["builds", build, "data"]), expected)
        (known,) = self.client.builds()
        self.assertEqual((known.build, known.complete_at), (build, finished["complete_at"]))

        # A master that is killed finds everything again.
        self.buildbot.kill_master()
        self.buildbot.start_master()
        self.assertEqual(self.buildbot.ask("get", ["builds", build, "data"]), expected)

        # Without the daemon's knowledge of the build's end, as if it had been down then.
        self.client.reopen(build)
        janitor = self.buildbot.run_build("__Janitor")
        self.assertEqual(janitor["steps"][-1], "deleted 2 build data key-value pairs")
        self.assertEqual(self.buildbot.ask("get", ["builds", build, "data"]), [])
        self.assertEqual(self.client.builds(), [])

    def test_a_reconfiguration_adds_moves_and_removes_it(self):
        self.start(WITHOUT)
        self.assertEqual(self.connector(), STOCK)
        self.buildbot.ask("set", 1, "x", "stock")

        self.buildbot.reconfigure(WITH)
        self.assertEqual(self.connector(), OURS)
        self.assertEqual(self.buildbot.ask("get", ["builds", 1, "data"]), [])
        self.buildbot.ask("set", 1, "x", "ours, longer")
        self.assertEqual(self.client.stat(1, "x").length, 12)

        other = Daemon()
        self.addCleanup(other.stop)
        self.buildbot.reconfigure(WITH.replace("socket_path=SOCKET", f"socket_path={other.socket!r}, deadline=5"))
        self.assertEqual(self.connector(), OURS)
        self.buildbot.ask("set", 1, "y", "elsewhere")
        self.assertIsNone(self.client.stat(1, "y"))
        with stepstash.Client(other.socket) as client:
            self.assertEqual(client.stat(1, "y").length, 9)

        self.buildbot.reconfigure(WITHOUT)
        self.assertEqual(self.buildbot.ask("state"), {"connector": STOCK, "threads": 0})
        self.assertEqual([row["length"] for row in self.buildbot.ask("get", ["builds", 1, "data"])], [5])

    def test_a_wrong_configuration_changes_nothing_and_says_why(self):
        self.start(WITH)
        self.buildbot.configure(WITH.replace("socket_path=SOCKET", "deadline=0"))
        self.buildbot.master.send_signal(signal.SIGHUP)
        until(lambda: "deadline is a number of seconds above 0" in self.buildbot.log(), "the complaint", 60)
        self.assertEqual(self.connector(), OURS)

    def test_the_master_starts_and_stops_without_a_daemon(self):
        self.daemon.kill()
        self.start(WITH.replace("socket_path=SOCKET", "socket_path=SOCKET, deadline=0.2"))
        until(lambda: "stepstash: no build data until this is solved" in self.buildbot.log(), "the log line", 60)
        with self.assertRaisesRegex(RuntimeError, "Unavailable"):
            self.buildbot.ask("set", 1, "x", "text")
        self.daemon.start()
        self.buildbot.ask("set", 1, "x", "text")
        self.buildbot.stop_master()
        self.assertIn("BuildMaster is stopped", self.buildbot.log())
        self.assertIn("Server Shut Down", self.buildbot.log())

    def steps_of_a_build(self):
        build = self.buildbot.run_build("builder")
        self.assertEqual(build["results"], 0, (build["steps"], self.buildbot.log()))
        values = [self.buildbot.ask("get", ["builds", str(build["buildid"]), "data", name]) for name in ("-file", "copy")]
        self.assertEqual([(row["length"], row["source"]) for row in values], [(3000000, "worker"), (7, "SetBuildData")])
        self.assertEqual(list((self.buildbot.directory / "master").glob("stepstash-*")), [])
        return [text for text in build["steps"] if "by the worker" in text or "through the master" in text]

    def test_files_of_a_worker_with_the_masters_daemon_do_not_go_through_the_master(self):
        self.start(STEPS + 'c["services"].append(util.StepstashService(socket_path=SOCKET))\n')
        self.buildbot.start_worker()
        ways = self.steps_of_a_build()
        self.assertEqual(ways[:2], ["-file: by the worker itself"] * 2)
        self.assertEqual(ways[-1], "text: through the master")  # it has a mode

    def test_files_of_a_worker_with_another_daemon_go_through_the_master(self):
        other = Daemon()
        self.addCleanup(other.stop)
        self.start(STEPS + 'c["services"].append(util.StepstashService())\n', STEPSTASH_SOCKET=self.daemon.socket)
        self.buildbot.start_worker(STEPSTASH_SOCKET=other.socket)
        self.assertEqual(self.steps_of_a_build()[:2], ["-file: through the master"] * 2)
        with stepstash.Client(other.socket) as client:
            self.assertEqual(client.builds(), [])

    def test_files_of_a_worker_without_a_daemon_go_through_the_master(self):
        self.start(STEPS + 'c["services"].append(util.StepstashService())\n', STEPSTASH_SOCKET=self.daemon.socket)
        self.buildbot.start_worker(PATH="/usr/bin:/bin")  # nor has it the command
        self.assertEqual(self.steps_of_a_build()[:2], ["-file: through the master"] * 2)

    def command_of_the_worker(self, script):
        """A directory for PATH, with another `stepstash` than the real one, which is $REAL in it."""
        directory = self.buildbot.directory / "bin"
        directory.mkdir()
        command = directory / "stepstash"
        command.write_text(f"#!/bin/sh\nREAL={BUILD / 'cli' / 'stepstash'}\n{script}\n")
        command.chmod(0o755)
        return f"{directory}:/usr/bin:/bin"

    def test_what_the_workers_command_cannot_do_the_transfer_does(self):
        self.start(PLACES)
        home = self.buildbot.directory / "worker" / "builder" / "build" / "home"
        self.buildbot.start_worker(HOME=str(home))
        build = self.buildbot.run_build("builder")
        self.assertEqual(build["results"], 0, (build["steps"], self.buildbot.log()))
        ways = [text.partition(" (")[0] for text in build["steps"] if "by the worker" in text or "through the master" in text]
        here, there = "by the worker itself", "through the master"
        self.assertEqual(ways[:3], [f"dash: {here}", f"dash: {there}", f"dash: {here}"])
        self.assertEqual(ways[3:], [f"tilde: {there}", f"large: {there}", f"dash: {there}"])
        names = [(entry.name, entry.length) for entry in self.client.list(build["buildid"])]
        self.assertEqual(names, [("dash", 8), ("tilde", 8)])

    def test_a_worker_that_may_read_but_not_set_transfers(self):
        self.start(STEPS + 'c["services"].append(util.StepstashService(socket_path=SOCKET))\n')
        path = self.command_of_the_worker('[ "$1" = set ] || exec $REAL "$@"; echo "not permitted" >&2; exit 77')
        self.buildbot.start_worker(PATH=path)
        ways = self.steps_of_a_build()
        self.assertEqual(ways[:2], ["-file: through the master", "-file: by the worker itself"])

    def test_a_command_of_the_worker_that_is_only_called_stepstash_is_left_alone(self):
        self.start(STEPS + 'c["services"].append(util.StepstashService(socket_path=SOCKET))\n')
        self.buildbot.start_worker(PATH=self.command_of_the_worker('[ "$1" != stats ] || echo "[7]"'))
        self.assertEqual(self.steps_of_a_build()[:2], ["-file: through the master"] * 2)

    def test_a_build_that_is_stopped_does_not_go_on_with_the_transfer(self):
        self.start(STEPS + 'c["services"].append(util.StepstashService(socket_path=SOCKET))\n')
        gate = self.buildbot.gate
        path = self.command_of_the_worker(f'[ "$1" = $(cat {gate}) ] || exec $REAL "$@"; touch {gate}.reached; exec sleep 100')
        for command in ("stats", "set"):
            gate.write_text(command)
            if self.buildbot.worker is None:
                self.buildbot.start_worker(PATH=path)
            build = self.buildbot.started_build(self.buildbot.ask("force", "builder"))
            reached = gate.with_suffix(".reached")
            until(reached.exists, "the worker's command", 60)
            self.buildbot.ask("stop", build)
            finished = self.buildbot.finished_build(build)
            self.assertEqual(finished["results"], 6, finished)  # cancelled
            self.assertFalse([text for text in finished["steps"] if "through the master" in text], finished["steps"])
            self.assertEqual(self.client.list(build), [])
            reached.unlink()
