# SPDX-License-Identifier: Apache-2.0
"""Daemon and clients agree on a place without being told, under any variables: each combination, with real processes.

Only root can be another user, whose place in /tmp is nobody's here: passed over without it.
"""

import fcntl
import itertools
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import unittest

from daemon import BUILD, SHARED_MEMORY

import stepstash

MACHINE = pathlib.Path("/run/stepstash/stepstash.sock")


@unittest.skipUnless(os.geteuid() == 0, "only root can be another user")
@unittest.skipIf(MACHINE.exists(), "this machine has a daemon")
class PlacesTest(unittest.TestCase):
    def setUp(self):
        self.uid = 50_000 + os.getpid() % 10_000  # nobody's
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="stepstash-places-"))
        self.directory.chmod(0o755)
        self.tmp = pathlib.Path(f"/tmp/stepstash-{self.uid}")
        self.segment = f"stepstash-places-{os.getpid()}"
        for binary in ("daemon/stepstashd", "cli/stepstash"):
            shutil.copy(BUILD / binary, self.directory)  # the build directory may be closed to others
        self.home = self.owned("home")
        self.daemon = None

    def tearDown(self):
        self.end()
        for path in SHARED_MEMORY.glob(self.segment + "*"):
            shutil.rmtree(path)
        shutil.rmtree(self.directory)
        shutil.rmtree(self.tmp, ignore_errors=True)

    def end(self):
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.communicate()
            self.daemon = None

    def owned(self, name, uid=None):
        path = self.directory / name
        path.mkdir(exist_ok=True, mode=0o700)
        os.chown(path, self.uid if uid is None else uid, -1)
        return path

    def options(self, variables):
        environment = {
            "PATH": os.environ["PATH"],
            **{name: value for name, value in variables.items() if value is not None},
        }
        return {
            "env": environment,
            "cwd": self.home,
            "user": self.uid,
            "group": self.uid,
            "extra_groups": [],
            "text": True,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }

    def start(self, variables):
        self.end()
        settings = {"STEPSTASH_SEGMENT_NAME": self.segment, "STEPSTASH_SEGMENT_SIZE": "8MiB"}
        self.daemon = subprocess.Popen([self.directory / "stepstashd"], **self.options({**variables, **settings}))
        said = []
        for line in self.daemon.stderr:
            said.append(line)
            if "listening on " in line:
                return line.split("listening on ")[1].strip(), "".join(said)
        self.fail("".join(said))

    def stop(self):
        self.daemon.terminate()
        self.daemon.communicate()
        self.assertEqual(self.daemon.returncode, 0)
        self.daemon = None

    def cli(self, variables, *words, input=None):
        return subprocess.run([self.directory / "stepstash", *words], input=input, timeout=60, **self.options(variables))

    def python(self, variables):
        """What a client of this user gets, or its error: in a child, for the interpreter may be closed to others."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                environment = self.options(variables)["env"]
                os.environ.clear()
                os.environ.update(environment)
                os.chdir(self.home)
                os.setgroups([])
                os.setresgid(self.uid, self.uid, self.uid)
                os.setresuid(self.uid, self.uid, self.uid)
                with stepstash.Client() as client, client.get(7, "v") as view:
                    answer = bytes(view.data)
            except Exception as error:
                answer = f"{type(error).__name__}: {error}".encode()
            os.write(write, answer)
            os._exit(0)
        os.close(write)
        with open(read, "rb") as answer:
            text = answer.read().decode()
        os.waitpid(child, 0)
        return text

    def test_daemon_and_clients_meet_under_every_combination_of_variables(self):
        runtimes = {
            None: self.tmp,
            "": self.tmp,
            "home": self.tmp,  # relative, and there
            str(self.owned("run")): self.directory / "run/stepstash",
            str(self.owned("with:colon")): self.directory / "with:colon/stepstash",
            str(self.home / "absent"): self.home / "absent/stepstash",
            str(self.owned("foreign", self.uid + 1)): self.tmp,
        }
        homes = (str(self.home), str(self.owned("home:colon")))
        for (runtime, place), home in itertools.product(runtimes.items(), homes):
            with self.subTest(XDG_RUNTIME_DIR=runtime, HOME=home):
                variables = {"XDG_RUNTIME_DIR": runtime, "HOME": home}
                listening, said = self.start(variables)
                self.assertEqual(listening, str(place / "stepstash.sock"))
                self.assertEqual("passed over" in said, runtime in ("home", str(self.directory / "foreign")), said)
                self.assertTrue((pathlib.Path(home) / ".local/state/stepstash/build_data.db").exists())
                done = self.cli(variables, "set", "7", "v", input="value")
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                self.assertEqual(self.cli(variables, "get", "7", "v").stdout, "value")
                self.assertEqual(self.python(variables), "value")
                self.stop()
                for path in SHARED_MEMORY.glob(self.segment + "*"):
                    shutil.rmtree(path)

    def test_a_daemon_that_another_user_pretends_in_tmp_gets_no_client(self):
        self.tmp.mkdir(mode=0o755)
        os.chown(self.tmp, self.uid + 1, -1)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as fake:
            fake.bind(str(self.tmp / "stepstash.sock"))
            os.chmod(self.tmp / "stepstash.sock", 0o777)
            fake.listen()
            fake.setblocking(False)
            for words in (("stats",), ("get", "7", "v"), ("set", "7", "v")):
                refused = self.cli({"HOME": str(self.home)}, *words, "--timeout", "1s", input="secret")
                self.assertEqual(refused.returncode, 69)
                self.assertIn(f"{self.tmp} is not a directory of user {self.uid} alone", refused.stderr)
            self.assertIn(f"{self.tmp} is not a directory", self.python({"HOME": str(self.home)}))
            with self.assertRaises(BlockingIOError):
                fake.accept()
            daemon = subprocess.run([self.directory / "stepstashd"], timeout=60, **self.options({"HOME": str(self.home)}))
            self.assertEqual(daemon.returncode, 78)
            self.assertIn(f"{self.tmp} is not a directory", daemon.stderr)

    def test_the_home_of_somebody_else_is_named_and_not_used(self):
        foreign = self.owned("root", 0)
        (foreign / ".config").mkdir()  # closed to this user: no reason to say that a file there cannot be read
        daemon = subprocess.run([self.directory / "stepstashd"], timeout=60, **self.options({"HOME": str(foreign)}))
        self.assertEqual(daemon.returncode, 78)
        self.assertIn(f"{foreign}: belongs to user 0, and not to user {self.uid}", daemon.stderr)
        self.assertIn("--db", daemon.stderr)

    def test_sockets_that_cannot_be_served_end_the_start_and_are_named(self):
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        unix, second, datagram = (socket.socket(socket.AF_UNIX, kind) for kind in (1, 1, 2))
        for number, one in enumerate((unix, second, datagram)):
            one.bind(str(self.directory / f"passed{number}"))
        unix.listen()
        second.listen()
        idle = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        abstract = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        abstract.bind(f"\0{self.segment}")
        abstract.listen()
        file = open("/dev/null")
        cases = (
            ([tcp], f"descriptor 3 is a TCP socket on 127.0.0.1:{tcp.getsockname()[1]}"),
            ([unix, tcp], "descriptor 4 is a TCP socket"),
            ([six], "descriptor 3 is a UDP socket on [::]:0"),
            ([datagram], "descriptor 3 is a unix socket that is no stream"),
            ([idle], "descriptor 3 is a connection, not a listening socket"),
            ([file], "descriptor 3 is not a socket"),
            ([unix, second], "there are 2"),
            ([unix], None),
            ([abstract], None),
        )
        for passed, complaint in cases:
            with self.subTest(passed=passed, complaint=complaint):
                # A shell puts them in place, and is the process that LISTEN_PID names.
                high = [fcntl.fcntl(one.fileno(), fcntl.F_DUPFD_CLOEXEC, 20) for one in passed]
                places = " ".join(f"{3 + i}<&{number}" for i, number in enumerate(high))
                script = f'exec {places}; LISTEN_PID=$$ LISTEN_FDS={len(passed)} exec "$0"'
                options = self.options({"HOME": str(self.home), "STEPSTASH_SEGMENT_NAME": self.segment})
                self.end()
                daemon = self.daemon = subprocess.Popen(
                    ["bash", "-c", script, self.directory / "stepstashd"],
                    pass_fds=high,
                    **options,
                )
                for number in high:
                    os.close(number)
                if complaint is None:
                    for line in daemon.stderr:
                        if "listening on" in line:
                            self.assertIn("passed0" if passed == [unix] else f"on @{self.segment}", line)
                            daemon.terminate()
                    daemon.communicate()
                    self.assertEqual(daemon.returncode, 0)
                    continue
                _, said = daemon.communicate(timeout=60)
                self.assertEqual(daemon.returncode, 78, said)
                self.assertIn(complaint, said)
        for one in (tcp, six, unix, second, datagram, idle, abstract, file):
            one.close()


if __name__ == "__main__":
    unittest.main()
