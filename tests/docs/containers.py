# SPDX-License-Identifier: Apache-2.0
"""Section 8 of docs/ci.md in namespaces: a step in a container needs the directory of the socket and nothing else.

    containers.py BUILD_DIR

container.sh stands for Docker and Podman. The daemon has a user of its own, as the service has, and a user in the group
of its socket runs the scripts of the page; /run/stepstash is the daemon's directory for them alone.
Exit status 77: not root, or namespaces cannot be made here.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import unittest

import recipes
from recipes import FILES, Machine, until

HERE = pathlib.Path(__file__).resolve().parent
DAEMON, GROUP, RUNNER, STRANGERS = 64001, 64002, 64003, 64004  # numbers without names
MOUNTED = "--volume /run/stepstash:/run/stepstash:ro"
# A file system with the daemon's directory in the place that the page says, for one command.
PLACED = 'mount -t tmpfs tmpfs /run && mkdir /run/stepstash && mount --bind "$SOCKETS" /run/stepstash && exec "$@"'


def as_user(user, *groups):
    further = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    return ["setpriv", "--reuid", str(user), "--regid", str(user), *further]


def namespaces_work():
    """Empty, or why not."""
    if os.geteuid() != 0:
        return "only root can make these namespaces and be several users"
    make = ["unshare", "--mount", "--pid", "--fork", "--ipc", "--uts", "--net", "--cgroup"]
    try:
        done = subprocess.run([*make, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True)
    except FileNotFoundError as missing:
        return str(missing)
    return done.stderr.strip() if done.returncode != 0 else ""


def user_namespaces_work():
    make = [*as_user(RUNNER), "unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork"]
    return subprocess.run([*make, "mount", "-t", "proc", "proc", "/proc"], capture_output=True).returncode == 0


class ContainerTest(unittest.TestCase):
    def setUp(self):
        identity = ["setpriv", "--reuid", str(DAEMON), "--regid", str(GROUP), "--clear-groups"]
        self.machine = machine = Machine("--write-groups", str(GROUP), identity=identity)
        self.addCleanup(machine.remove)
        for directory in (machine.sockets, machine.state):
            os.chown(directory, DAEMON, GROUP)
        machine.state.chmod(0o700)
        image = machine.directory / "image"
        image.mkdir()
        shutil.copy(machine.programs / "stepstash", image)
        shutil.copy(recipes.BUILD / "libclient" / "libstepstash.so.0", image)
        shutil.copytree(recipes.SOURCE / "python" / "stepstash", image / "stepstash-python" / "stepstash")
        for name in ("in_docker.sh", "in_podman.sh"):
            machine.install(name)
        shutil.copy(HERE / "container.sh", machine.programs / "podman")
        # Docker's client only asks; its daemon, which is root, does it.
        docker = machine.programs / "docker"
        docker.write_text('#!/bin/sh\nprintf "%s\\0" "$@" > "$DOCKER_REQUEST"\n')
        docker.chmod(0o755)
        self.request = machine.directory / "request"
        self.roots = machine.directory / "roots"  # where containers have their file systems
        self.request.touch()
        self.request.chmod(0o666)
        self.roots.mkdir()
        self.roots.chmod(0o1777)
        machine.start()

    def environment(self, build=7):
        own = {"SOCKETS": self.machine.sockets, "CONTAINER_PROGRAMS": self.machine.directory / "image"}
        own |= {"STEPSTASH_LIBRARY": "/opt/bin/libstepstash.so.0", "PYTHONPATH": "/opt/bin/stepstash-python"}
        own |= {"STEPSTASH_BUILD": build, "DOCKER_REQUEST": self.request, "TMPDIR": self.roots}
        environment = self.machine.environment({name: str(value) for name, value in own.items()})
        del environment["STEPSTASH_SOCKET"]  # found in its place, on the machine and in the container
        return environment

    def start(self, command, identity=()):
        place = ["unshare", "--mount", "--propagation", "private", "sh", "-c", PLACED, "sh", *identity]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [str(word) for word in (*place, *command)]
        where = {"env": self.environment(), "cwd": self.machine.directory, "start_new_session": True}
        return subprocess.Popen(command, text=True, **streams, **where)

    def run_in_place(self, command, identity=()):
        process = self.start(command, identity)
        out, said = process.communicate(timeout=60)
        return subprocess.CompletedProcess(command, process.returncode, out, said)

    def docker(self, *arguments, groups=(GROUP,)):
        """The command line that Docker's daemon gets from the page's script, for its user to be root."""
        done = self.run_in_place([self.machine.programs / "in_docker.sh", *arguments], as_user(RUNNER, *groups))
        self.assertEqual(done.returncode, 0, done.stderr)
        return [HERE / "container.sh", *self.request.read_text().split("\0")[:-1]], ()

    def podman(self, *arguments, groups=(GROUP,)):
        return [self.machine.programs / "in_podman.sh", *arguments], as_user(RUNNER, *groups)

    def engines(self, check):
        for engine in (self.docker, self.podman):
            with self.subTest(engine=engine.__name__):
                if engine == self.podman and not user_namespaces_work():
                    self.skipTest("a user who is not root may not make namespaces here")
                check(engine)

    def on_the_machine(self, *arguments):
        return self.run_in_place(["stepstash", *arguments], as_user(RUNNER, GROUP))

    def generate(self, name, size):
        file = self.machine.directory / name
        file.write_bytes(os.urandom(size))
        return file

    def test_a_step_gets_and_sets_with_the_directory_of_the_socket_alone(self):
        step = """
            echo "pid $$"
            ls -d /dev /dev/shm 2>&-
            for kind in mnt pid ipc net uts cgroup user; do readlink /proc/self/ns/$kind; done
            cut -d " " -f 2,4 /proc/mounts
            set -e
            cd /tmp
            stepstash get input -o input
            cat input input > output
            stepstash set output output
            echo small > small
            stepstash set small small --durable
            stepstash get small --wait 1s
            stepstash finish
        """

        def check(engine):
            value = self.generate("value", 3_000_000)
            self.assertEqual(self.on_the_machine("set", "input", value).returncode, 0)
            done = self.run_in_place(*engine("builder", "sh", "-c", step))
            self.assertEqual(done.returncode, 0, done.stderr)
            lines = done.stdout.splitlines()

            self.assertEqual(lines[0], "pid 1")
            self.assertNotIn("/dev", lines)
            inside = dict(line.split(":", 1) for line in lines if re.fullmatch(r"[a-z]+:\[\d+\]", line))
            here = {kind: os.readlink(f"/proc/self/ns/{kind}").split(":", 1)[1] for kind in inside}
            alike = {kind for kind in inside if inside[kind] == here[kind]}
            self.assertEqual((len(inside), alike), (7, {"user"} if engine == self.docker else set()))
            mounts = {line.split()[0]: line.split()[1] for line in lines if re.match(r"/\S* r[ow],", line)}
            below = {path for path in mounts if not path.startswith("/usr/")}
            self.assertEqual(below, {"/", "/usr", "/proc", "/run/stepstash"})
            self.assertTrue(mounts["/run/stepstash"].startswith("ro,"))

            output = self.machine.directory / "output"
            self.machine.stepstash("get", 7, "output", "-o", output)
            self.assertEqual(output.read_bytes(), value.read_bytes() * 2)
            self.assertEqual(self.machine.stepstash("get", 7, "small"), "small\n")
            self.assertIsNotNone(self.machine.builds()[7]["complete_at"])
            self.machine.stepstash("drop", 7)

        self.engines(check)

    READER = """if True:
        import sys, stepstash
        with stepstash.Client() as client, client.get(7, "x") as view:
            print("in place", flush=True)
            sys.stdin.readline()
            other = client.get(7, "y")
            print(bytes(view.data) == b"x" * 100000, bytes(other.data) == b"y" * 100000)
    """

    @unittest.skipUnless(os.access("/usr/bin/python3", os.X_OK), "the image, /usr, has no python3")
    def test_a_step_reads_the_segment_itself_also_while_the_daemon_is_dead(self):
        def check(engine):
            for name in ("x", "y"):
                file = self.machine.directory / name
                file.write_text(name * 100000)
                self.machine.stepstash("set", 7, name, file)
            options = "-i --env STEPSTASH_LIBRARY --env PYTHONPATH builder /usr/bin/python3 -B -c".split()
            process = self.start(*engine(*options, self.READER))
            try:
                ready = process.stdout.readline()
                self.machine.kill()
            finally:
                out, said = process.communicate("\n", timeout=60)
            self.machine.start()
            self.assertEqual((ready, out), ("in place\n", "True True\n"), said)

        self.engines(check)

    def test_the_rights_are_those_of_the_user_who_runs_the_container(self):
        def check(engine):
            set_and_drop = 'echo x > /tmp/x; stepstash set x /tmp/x; echo "set $?"; stepstash drop; echo "drop $?"'
            done = self.run_in_place(*engine("builder", "sh", "-c", set_and_drop))
            self.assertEqual(done.stdout.splitlines(), ["set 0", "drop 77"], done.stderr)

        self.engines(check)

    def test_without_the_group_a_step_ends_with_77(self):
        command, identity = self.docker("builder", "stepstash", "stats")
        command = [str(word) for word in command]
        at = command.index("--group-add")
        done = self.run_in_place(command[:at] + command[at + 2 :], identity)
        self.assertEqual(done.returncode, 77, done.stderr)
        if user_namespaces_work():
            done = self.run_in_place(*self.podman("builder", "stepstash", "stats", groups=(STRANGERS,)))
            self.assertEqual(done.returncode, 77, done.stderr)

    def test_root_in_a_docker_container_may_do_everything(self):
        """Which is why the page gives --user."""
        command = f"run --rm {MOUNTED} --env STEPSTASH_BUILD builder stepstash drop".split()
        done = self.run_in_place([HERE / "container.sh", *command])
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_without_the_mount_a_step_ends_with_69(self):
        done = self.run_in_place([HERE / "container.sh", "run", "builder", "stepstash", "stats"])
        self.assertEqual(done.returncode, 69, done.stderr)

    def across_a_restart(self, command, identity=()):
        """The exit status of a get before, while and after the daemon is killed and started again."""
        self.machine.stepstash("set", 7, "x", self.generate("x", 1000))
        process = self.start(command, identity)
        try:
            statuses = [process.stdout.readline()]
            self.machine.kill()
            process.stdin.write("\n")
            process.stdin.flush()
            statuses.append(process.stdout.readline())
            self.machine.start()
            out, said = process.communicate("\n", timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        return [line.strip() for line in (*statuses, out)], said

    GETS = "get() { stepstash get x -o /tmp/x; echo $?; }; get; read line; get; read line; get"

    def test_a_container_finds_a_daemon_that_is_started_again(self):
        def check(engine):
            statuses, said = self.across_a_restart(*engine("-i", "builder", "sh", "-c", self.GETS))
            self.assertEqual(statuses, ["0", "69", "0"], said)

        self.engines(check)

    def test_a_container_with_the_file_of_the_socket_does_not(self):
        """Which is why the page mounts the directory."""
        file = "/run/stepstash/stepstash.sock"
        command = f"run -i --volume {file}:{file} --env STEPSTASH_BUILD builder sh -c".split()
        statuses, said = self.across_a_restart([HERE / "container.sh", *command, self.GETS])
        self.assertEqual(statuses, ["0", "69", "69"], said)

    def test_a_container_that_is_killed_leaves_no_connection(self):
        def connections():
            return json.loads(self.machine.stepstash("stats", "--json"))["connections"]

        def check(engine):
            alone = connections()
            process = self.start(*engine("builder", "sh", "-c", "echo; exec stepstash get never --wait 10min"))
            try:
                process.stdout.readline()
                until(lambda: connections() == alone + 1, "the container's connection")
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
            until(lambda: connections() == alone, "its end")

        self.engines(check)


if __name__ == "__main__":
    if reason := namespaces_work():
        print(f"containers.py: {reason}")
        sys.exit(77)
    recipes.BUILD = pathlib.Path(sys.argv[1]).resolve()
    unittest.main(argv=sys.argv[:1])
