# SPDX-License-Identifier: Apache-2.0
"""Runs the recipes of docs/ci.md as the CI systems run them.

    recipes.py BUILD_DIR

A block of the page whose first line is a comment with a file's name is that file, and every block is one. Each CI
system has a stand-in here that reads its file (.gitlab-ci.yml, Jenkinsfile, the workflow) and starts each script as a
process of its own, with the system's shell and variables, in an empty directory: nothing goes from job to job but what
stepstash hands over. The daemon is a real one. containers.py does the same for section 8 of the page.
Exit status 77: PyYAML is not installed.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

try:
    import yaml
except ImportError:
    yaml = None

from examples import FENCE

SOURCE = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(SOURCE / "tests" / "support"))
from waiting import listens, until  # noqa: E402

PAGE = SOURCE / "docs" / "ci.md"
BUILD = pathlib.Path()  # set by main
FILE_NAME = re.compile(r"(?:#!.*\n)?(?:#|//) ([\w./-]*\w)")
LONG_AGO = 1000  # seconds since 1970: what the tests take for "finished before this"


def files_of(page):
    """Name -> text. A block that is no file is one that nothing runs, so there is none."""
    found = {}
    for kind, body in FENCE.findall(page):
        name = FILE_NAME.match(body)
        if name is None or name[1] in found:
            raise ValueError(f"this block ({kind}) does not begin with a file's name of its own:\n{body}")
        found[name[1]] = body
    return found


FILES = files_of(PAGE.read_text())


class Machine:
    """A machine that runs jobs: a directory, a daemon with a socket in a directory of its own, the page's programs."""

    def __init__(self, *options, identity=()):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="stepstash-ci-"))
        self.directory.chmod(0o755)
        self.sockets, self.state, self.programs = (self.directory / name for name in ("sockets", "state", "programs"))
        for made in (self.sockets, self.state, self.programs):
            made.mkdir()
        self.socket = self.sockets / "stepstash.sock"
        self.segment = "ci-test-" + self.directory.name.rsplit("-", 1)[1]
        (self.directory / "empty.conf").touch()
        self.options = [*("--socket", self.socket, "--db", self.state / "db", "--segment-name", self.segment)]
        self.options += ["--segment-size", "16MiB", *options]
        self.identity = [*identity]
        shutil.copy(BUILD / "cli" / "stepstash", self.programs)
        self.install("stepstash-build")
        self.daemon = None

    def install(self, name):
        program = self.programs / name
        program.write_text(FILES[name])
        program.chmod(0o755)

    def start(self):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("STEPSTASH_")}
        command = [*self.identity, BUILD / "daemon" / "stepstashd", "--config", self.directory / "empty.conf"]
        with open(self.directory / "log", "ab") as log:
            self.daemon = subprocess.Popen([*command, *self.options], stderr=log, env=clean)
        until(lambda: listens(self.socket) or self.daemon.poll() is not None, "the daemon to listen")
        if self.daemon.poll() is not None:
            raise RuntimeError("the daemon ended: " + (self.directory / "log").read_text())

    def kill(self):
        """SIGKILL. The socket is removed, so that start() can tell the new one."""
        self.daemon.kill()
        self.daemon.wait()
        self.socket.unlink()

    def remove(self):
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait()
        for path in pathlib.Path("/dev/shm").glob(self.segment + "*"):
            shutil.rmtree(path)
        shutil.rmtree(self.directory)

    def environment(self, variables):
        """What a job gets: nothing of the environment of this test but the machine's own."""
        path = f"{self.programs}:/usr/local/bin:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(self.directory), "STEPSTASH_SOCKET": str(self.socket)} | variables

    def run(self, command, variables, script=None):
        """One process in an empty directory. `script` is the text of the file that the command gets at its end."""
        with tempfile.TemporaryDirectory(dir=self.directory) as empty:
            return self.run_in(empty, command, variables, script)

    def run_in(self, place, command, variables, script=None):
        if script is not None:
            file = self.directory / "script"
            file.write_text(script)
            command = [*command, file]
        return subprocess.run(
            command, cwd=place, env=self.environment(variables), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )

    def stepstash(self, *arguments):
        done = self.run([self.programs / "stepstash", *map(str, arguments)], {})
        if done.returncode != 0:
            raise AssertionError(f"stepstash {arguments}: exit {done.returncode}: {done.stderr}")
        return done.stdout

    def builds(self):
        return {build["buildid"]: build for build in json.loads(self.stepstash("builds", "--json"))}

    def values(self, build):
        return {entry["name"]: entry["source"] for entry in json.loads(self.stepstash("list", build, "--json"))}


class JobFailed(Exception):
    def __init__(self, done):
        super().__init__(done.stderr)
        self.status, self.said = done.returncode, done.stderr


class Job:
    """Steps that share a directory; `always`: it runs even if a job before it failed."""

    def __init__(self, name, steps, always=False, retries=0, retry_on=()):
        self.name, self.steps, self.always = name, steps, always
        self.retries, self.retry_on = retries, retry_on


class System:
    """A CI system: its jobs run in order, as they would with one runner."""

    shell = []

    def jobs(self):
        raise NotImplementedError

    def variables(self, job):
        """Those that the system sets, as strings."""
        raise NotImplementedError

    def before_job(self, machine, variables):
        """What the system runs before the scripts of a job; returns the variables that these get."""
        return variables

    def run(self, machine, *, jobs=None, broken=None, before_retry=None):
        """Runs all jobs, or those named. `broken`: a job whose first step fails. Returns job -> exit status."""
        results = {}
        for job in self.jobs():
            if jobs is not None and job.name not in jobs:
                continue
            if any(results.values()) and not job.always:
                continue
            for attempt in range(job.retries + 1):
                results[job.name] = self.run_job(machine, job, job.name == broken)
                if results[job.name] not in job.retry_on or attempt == job.retries:
                    break
                if before_retry:
                    before_retry()
        return results

    def run_job(self, machine, job, broken):
        try:
            variables = self.before_job(machine, self.variables(job.name))
        except JobFailed as failed:
            self.said = failed.said
            return failed.status
        with tempfile.TemporaryDirectory(dir=machine.directory) as workspace:
            for step in job.steps:
                done = machine.run_in(workspace, self.shell, variables, ("false\n" if broken else "") + step)
                self.said = done.stderr
                if done.returncode != 0:
                    return done.returncode
        return 0


class GitLab(System):
    """The shell executor: all lines of `script` are one bash script with -eo pipefail."""

    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail"]

    def __init__(self, pipeline, iid=1, project=1):
        self.pipeline, self.iid, self.project = pipeline, iid, project
        self.file = yaml.safe_load(FILES[".gitlab-ci.yml"])

    def jobs(self):
        retry = self.file["default"]["retry"]
        stages = [".pre", *self.file["stages"], ".post"]
        named = {name: job for name, job in self.file.items() if isinstance(job, dict) and "script" in job}
        for name, job in sorted(named.items(), key=lambda item: stages.index(item[1]["stage"])):
            script = "\n".join(job["script"]) + "\n"
            always = job.get("when", "on_success") == "always"
            yield Job(name, [script], always, retry["max"], retry["exit_codes"])

    def variables(self, job):
        predefined = {"CI": "true", "GITLAB_CI": "true", "CI_PIPELINE_ID": str(self.pipeline), "CI_JOB_NAME": job}
        predefined |= {"CI_PIPELINE_IID": str(self.iid), "CI_PROJECT_ID": str(self.project), "CI_JOB_ID": "77"}
        own = self.file["variables"].items()
        return predefined | {name: re.sub(r"\$(\w+)", lambda m: predefined[m[1]], text) for name, text in own}

    def build(self):
        return self.pipeline


class Jenkins(System):
    """`sh` runs /bin/sh -xe. Each one gets an empty directory here, as if each stage had a workspace of its own."""

    shell = ["sh", "-xe"]
    STEP = re.compile(r"sh ('''|')(.*?)\1", re.DOTALL)

    def __init__(self, number, job="app/main"):
        self.number, self.job = number, job
        self.file = FILES["Jenkinsfile"]

    def jobs(self):
        stages = re.findall(r"stage\('(\w+)'\) \{(.*?)\n    \}\n", self.file, re.DOTALL)
        for name, body in stages:
            yield Job(name, [script for _, script in self.STEP.findall(body)])
        last = re.search(r"post \{\s*always \{(.*?)\}", self.file, re.DOTALL)
        yield Job("post", [script for _, script in self.STEP.findall(last[1])] if last else [], always=True)

    def variables(self, job):
        return {"BUILD_NUMBER": str(self.number), "BUILD_ID": str(self.number), "JOB_NAME": self.job, "CI": "true"}

    def before_job(self, machine, variables):
        found = re.findall(r'(\w+) = """\$\{sh\(\s*returnStdout: true,\s*script: \'(.*?)\'\)\.trim\(\)\}"""', self.file)
        for name, script in found:
            done = machine.run(self.shell, variables, script)
            if done.returncode != 0:
                raise JobFailed(done)
            variables = variables | {name: done.stdout.strip()}
        return variables

    def build(self):
        return number_of(self.job, self.number)


class GitHub(System):
    """Without `shell:`, a step is run by bash -e."""

    shell = ["bash", "-e"]

    def __init__(self, run, attempt=1, repository=5):
        self.run_id, self.attempt, self.repository = run, attempt, repository
        self.file = yaml.safe_load(FILES[".github/workflows/build.yml"])

    def jobs(self):
        left, done = dict(self.file["jobs"]), []
        while left:
            ready = [name for name, job in left.items() if set(self.needs(job)) <= set(done)]
            for name in ready:
                job = left.pop(name)
                yield Job(name, [step["run"] for step in job["steps"]], always=job.get("if") == "always()")
            done += ready

    @staticmethod
    def needs(job):
        needs = job.get("needs", [])
        return [needs] if isinstance(needs, str) else needs

    def own(self):
        contexts = {"${{ github.run_id }}": str(self.run_id)}
        return {name: contexts[text] for name, text in self.file["env"].items()}

    def variables(self, job):
        default = {"CI": "true", "GITHUB_ACTIONS": "true", "GITHUB_RUN_ID": str(self.run_id), "GITHUB_JOB": job}
        default |= {"GITHUB_RUN_ATTEMPT": str(self.attempt), "GITHUB_REPOSITORY_ID": str(self.repository)}
        return default | {"GITHUB_RUN_NUMBER": "3"} | self.own()

    def build(self):
        return self.run_id


class GitHubWithHook(GitHub):
    """A runner of several repositories: the same workflow without `env`, and the script before each job."""

    def own(self):
        return {}

    def before_job(self, machine, variables):
        lines = machine.directory / "github_env"
        lines.write_text("")
        done = machine.run(["bash", "-e"], variables | {"GITHUB_ENV": str(lines)}, FILES["job_started.sh"])
        if done.returncode != 0:
            raise JobFailed(done)
        return variables | dict(line.split("=", 1) for line in lines.read_text().splitlines())

    def build(self):
        return number_of(self.repository, self.run_id)


def number_of(*words):
    """What stepstash-build makes of them, said once more: 60 bits of SHA-256 over one line for each."""
    return int(hashlib.sha256("".join(f"{word}\n" for word in words).encode()).hexdigest()[:15], 16)


class MachineTest(unittest.TestCase):
    def setUp(self):
        self.machine = Machine()
        self.addCleanup(self.machine.remove)
        self.machine.start()

    def assert_complete(self, build):
        """Both jobs have set what they set, and the second found what the first left."""
        self.assertEqual(sorted(self.machine.values(build)), ["objects", "report"])
        self.assertEqual(self.machine.stepstash("get", build, "report"), "100000\n")

    def finished_at(self, build):
        return self.machine.builds()[build]["complete_at"]

    def finish_long_ago(self, build):
        """Puts the mark back, so that the next finish shows."""
        self.machine.stepstash("finish", build, "--at", LONG_AGO)


class SystemsTest(MachineTest):
    """What holds for every CI system."""

    ALL = [
        lambda: GitLab(pipeline=4711),
        lambda: Jenkins(number=153),
        lambda: GitHub(run=1658821493),
        lambda: GitHubWithHook(run=1658821493),
    ]

    def each(self, check):
        for make in self.ALL:
            system = make()
            with self.subTest(system=type(system).__name__):
                check(system)

    def assert_succeeded(self, results, system):
        self.assertEqual([job for job, status in results.items() if status != 0], [], system.said)

    def test_jobs_hand_over_values_under_the_number_of_the_build(self):
        def check(system):
            results = system.run(self.machine)
            self.assert_succeeded(results, system)
            self.assertGreaterEqual(len(results), 3)
            self.assert_complete(system.build())

        self.each(check)
        self.assertEqual(sorted(self.machine.builds()), sorted(make().build() for make in self.ALL))

    def test_the_last_job_finishes_the_build(self):
        def check(system):
            *first, last = [job.name for job in system.jobs()]
            self.assert_succeeded(system.run(self.machine, jobs=first), system)
            self.finish_long_ago(system.build())
            self.assert_succeeded(system.run(self.machine, jobs=[last]), system)
            self.assertGreater(self.finished_at(system.build()), LONG_AGO)

        self.each(check)

    def test_a_build_that_fails_is_finished_by_its_last_job(self):
        def check(system):
            names = [job.name for job in system.jobs()]
            self.assert_succeeded(system.run(self.machine, jobs=["compile"]), system)
            self.finish_long_ago(system.build())
            results = system.run(self.machine, jobs=names[1:], broken="check")
            self.assertEqual((results["check"], results[names[-1]]), (1, 0), system.said)
            self.assertEqual(list(self.machine.values(system.build())), ["objects"])
            self.assertGreater(self.finished_at(system.build()), LONG_AGO)

        self.each(check)

    def test_a_build_that_is_cancelled_after_its_first_job_expires(self):
        def check(system):
            self.assert_succeeded(system.run(self.machine, jobs=["compile"]), system)
            self.assertEqual(list(self.machine.values(system.build())), ["objects"])
            self.assertIsNotNone(self.finished_at(system.build()))

        self.each(check)
        self.assertEqual(len(self.machine.builds()), len(self.ALL))
        self.machine.stepstash("prune", "--older-than", int(time.time()) + 60)
        self.assertEqual(self.machine.builds(), {})

    def test_a_job_that_is_repeated_finds_what_the_others_set(self):
        def check(system):
            results = system.run(self.machine, broken="check")
            self.assertEqual(results["check"], 1)
            if isinstance(system, GitHub):
                system.attempt += 1
            self.assert_succeeded(system.run(self.machine, jobs=["check"]), system)
            self.assert_complete(system.build())

        self.each(check)

    def test_a_job_without_the_one_that_sets_the_value_ends_with_1(self):
        def check(system):
            self.assertEqual(system.run(self.machine, jobs=["check"])["check"], 1, system.said)

        self.each(check)

    def test_a_variable_that_the_system_does_not_set_is_an_error_and_no_build(self):
        def check(system):
            system.variables = lambda job, set_by=system.variables: {name: "" for name in set_by(job)}
            self.assertEqual(system.run(self.machine, jobs=["compile"])["compile"], 64, system.said)

        self.each(check)
        self.assertEqual(self.machine.builds(), {})

    def test_what_systems_count_per_project_does_not_mix_builds(self):
        pairs = [
            (GitLab(pipeline=801, iid=1, project=1), GitLab(pipeline=802, iid=1, project=2)),
            (Jenkins(number=9, job="app/main"), Jenkins(number=9, job="app/fix")),
            (GitHubWithHook(run=9, repository=1), GitHubWithHook(run=9, repository=2)),
        ]
        for one, other in pairs:
            with self.subTest(system=type(one).__name__):
                self.assert_succeeded(one.run(self.machine, jobs=["compile"]), one)
                self.assertEqual(other.run(self.machine, jobs=["check"])["check"], 1)  # not the other's value
                self.assert_succeeded(other.run(self.machine), other)
                self.assert_succeeded(one.run(self.machine, jobs=["check"]), one)
                self.assert_complete(one.build())
                self.assert_complete(other.build())


class HorizonTest(unittest.TestCase):
    def test_the_horizon_deletes_a_build_whose_last_job_never_ran(self):
        machine = Machine("--build-data-horizon", "1s", "--prune-interval", "100ms")
        self.addCleanup(machine.remove)
        machine.start()
        self.assertEqual(GitLab(14).run(machine, jobs=["compile"]), {"compile": 0})
        until(lambda: machine.builds() == {}, "the horizon to delete the build")


class GitLabTest(MachineTest):
    def test_a_job_is_retried_while_the_daemon_is_away(self):
        self.machine.kill()
        tries = []

        def restart():
            tries.append(1)
            if len(tries) == 2:
                self.machine.start()

        system = GitLab(pipeline=12)
        self.assertEqual(system.run(self.machine, before_retry=restart), {"compile": 0, "check": 0, "expire": 0})
        self.assertEqual(len(tries), 2)
        self.assert_complete(12)

    def test_a_job_is_not_retried_after_a_miss(self):
        tries = []
        self.assertEqual(GitLab(13).run(self.machine, jobs=["check"], before_retry=lambda: tries.append(1)), {"check": 1})
        self.assertEqual(tries, [])


class ShellTest(MachineTest):
    def nightly(self, check=""):
        with tempfile.TemporaryDirectory(dir=self.machine.directory) as place:
            for name in ("nightly.sh", "compile.sh", "check.sh"):
                pathlib.Path(place, name).write_text(FILES[name])
            with open(pathlib.Path(place, "check.sh"), "a") as script:
                script.write(check)
            os.chmod(pathlib.Path(place, "nightly.sh"), 0o755)
            return self.machine.run_in(place, ["./nightly.sh"], {})

    def test_the_steps_of_a_script_hand_over_values(self):
        before = time.time_ns()
        for _ in range(2):
            done = self.nightly()
            self.assertEqual(done.returncode, 0, done.stderr)
        builds = self.machine.builds()
        self.assertEqual(len(builds), 2)  # a number of its own for each run
        for build in builds:
            self.assertTrue(before < build < time.time_ns())
            self.assert_complete(build)
            self.assertIsNotNone(self.finished_at(build))

    def test_a_script_that_fails_finishes_its_build_and_keeps_the_status(self):
        done = self.nightly("stepstash finish --at 1000\nexit 3\n")
        self.assertEqual(done.returncode, 3)
        (build,) = self.machine.builds()
        self.assertGreater(self.finished_at(build), LONG_AGO)

    def test_a_script_that_is_killed_leaves_a_build_that_expires(self):
        self.assertNotEqual(self.nightly("kill -KILL $PPID\nkill -KILL $$\n").returncode, 0)
        (build,) = self.machine.builds()
        self.assertIsNotNone(self.finished_at(build))

    def test_a_cache_is_taken_if_it_is_there_and_only_a_miss_means_that_it_is_not(self):
        optional = FILES["optional.sh"]
        build = {"STEPSTASH_BUILD": "5"}
        use = "ls -d cache\ntest -e cache/warm && echo warm\n:\n"
        done = self.machine.run(["bash"], build, optional + use)
        self.assertEqual((done.returncode, done.stdout), (0, "cache\n"), done.stderr)
        keep = "mkdir cache\ntouch cache/warm\ntar -cf cache.tar cache\nstepstash set cache cache.tar\n"
        self.assertEqual(self.machine.run(["bash", "-e"], build, keep).returncode, 0)
        done = self.machine.run(["bash"], build, optional + use)
        self.assertEqual((done.returncode, done.stdout), (0, "cache\nwarm\n"), done.stderr)
        self.machine.kill()
        self.assertEqual(self.machine.run(["bash"], build, optional + use).returncode, 69)


class AgainTest(MachineTest):
    """again.sh, with a stepstash that counts its calls."""

    def setUp(self):
        super().setUp()
        self.calls = self.machine.directory / "calls"
        self.calls.write_text("")
        (self.machine.programs / "stepstash").rename(self.machine.programs / "stepstash-itself")
        counting = self.machine.programs / "stepstash"
        counting.write_text(f'#!/bin/sh\necho "$@" >> {self.calls}\nexec stepstash-itself "$@"\n')
        counting.chmod(0o755)

    def count(self):
        return len(self.calls.read_text().splitlines())

    def start(self, command, shell="bash"):
        script = self.machine.directory / "script"
        script.write_text(FILES["again.sh"] + command)
        environment = self.machine.environment({"STEPSTASH_BUILD": "6"})
        return subprocess.Popen([shell, "-eu", script], cwd=self.machine.directory, env=environment, stderr=subprocess.PIPE)

    def end(self, process):
        said = process.communicate(timeout=60)[1].decode()
        return process.returncode, said

    def test_a_command_is_repeated_until_the_daemon_is_back(self):
        for shell in ("bash", "dash"):
            with self.subTest(shell=shell):
                self.machine.kill()
                self.calls.write_text("")
                (self.machine.directory / "report.txt").write_text(shell)
                process = self.start("again stepstash set report report.txt\n", shell)
                until(lambda: self.count() == 1, "the first call")
                self.machine.start()
                status, said = self.end(process)
                self.assertEqual((status, self.count()), (0, 2), said)
                self.assertEqual(self.machine.stepstash("get", 6, "report"), shell)
                self.assertEqual(self.count(), 3)

    def test_what_a_repetition_does_not_change_is_not_repeated(self):
        for command, expected in (("again stepstash get nothing", 1), ("again stepstash set", 64), ("again true", 0)):
            self.calls.write_text("")
            self.assertEqual(self.end(self.start(command + "\n"))[0], expected)
            self.assertLessEqual(self.count(), 1)

    def test_it_ends_with_the_last_status(self):
        nap = self.machine.programs / "sleep"  # the pauses themselves are not waited for
        nap.write_text("#!/bin/sh\n")
        nap.chmod(0o755)
        self.assertEqual(self.end(self.start("again stepstash get nothing --wait 1ms\n"))[0], 75)
        self.assertEqual(self.count(), 4)


class StatusTest(MachineTest):
    """Section 4: each status means what the table says, and no status is left out."""

    def test_the_table_has_every_status_of_the_manual_page(self):
        section = (SOURCE / "docs" / "man" / "stepstash.1").read_text().partition(".SH EXIT STATUS")[2].partition(".SH ")[0]
        manual = re.findall(r"^\.B (\d+)$", section, re.MULTILINE)
        self.assertEqual(re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE), manual)

    def test_each_status_is_the_one_of_the_table(self):
        value, large = self.machine.directory / "value", self.machine.directory / "large"
        value.write_text("x")
        large.write_bytes(bytes(17 << 20))
        cases = [
            (0, ["set", "7", "name", value], {}),
            (1, ["get", "7", "no such name"], {}),
            (64, ["get", "name"], {"STEPSTASH_BUILD": ""}),
            (64, ["get", "name"], {"STEPSTASH_BUILD": "main-17"}),
            (69, ["get", "7", "name"], {"STEPSTASH_SOCKET": str(self.machine.directory / "none")}),
            (73, ["set", "7", "name", value, "--if-absent"], {}),
            (73, ["set", "7", "large", large], {}),
            (73, ["get", "7", "name", "-o", self.machine.directory / "none" / "file"], {}),
            (74, ["set", "7", "name", self.machine.directory / "none"], {}),
            (75, ["get", "7", "no such name", "--wait", "1ms"], {}),
        ]
        for expected, arguments, variables in cases:
            done = self.machine.run(["stepstash", *arguments], variables)
            self.assertEqual(done.returncode, expected, f"stepstash {arguments}: {done.stderr}")


class NumberTest(MachineTest):
    """Section 2."""

    def number(self, *words):
        return self.machine.run(["stepstash-build", *words], {})

    def test_a_number_depends_on_the_words_and_on_nothing_else(self):
        self.assertEqual(int(self.number("app/main", "153").stdout), number_of("app/main", 153))
        alike = [("app/main", "15"), ("app/main1", "5"), ("app", "main", "15"), ("15", "app/main"), ("app/main 15",)]
        numbers = {self.number(*words).stdout for words in alike}
        self.assertEqual(len(numbers), len(alike))
        for number in numbers:
            self.assertTrue(1 <= int(number) < 2**63)

    def test_an_empty_or_missing_word_is_an_error(self):
        for words in ((), ("",), ("app/main", "")):
            done = self.number(*words)
            self.assertEqual((done.returncode, done.stdout), (64, ""))

    def test_the_largest_number_is_accepted_as_a_build(self):
        self.machine.stepstash("finish", 2**63 - 1)
        self.assertEqual(self.machine.run(["stepstash", "finish", str(2**63)], {}).returncode, 64)


class PageTest(unittest.TestCase):
    RUN_HERE = {".gitlab-ci.yml", "Jenkinsfile", ".github/workflows/build.yml", "job_started.sh", "stepstash-build"}
    RUN_HERE |= {"nightly.sh", "compile.sh", "check.sh", "optional.sh", "again.sh", "etc/stepstash/stepstashd.conf"}
    IN_CONTAINERS = {"in_docker.sh", "in_podman.sh"}  # containers.py

    def test_every_file_of_the_page_is_run(self):
        self.assertEqual({name.lstrip("/") for name in FILES}, self.RUN_HERE | self.IN_CONTAINERS)

    def test_the_configuration_is_valid(self):
        machine = Machine()
        self.addCleanup(machine.remove)
        file = machine.directory / "stepstashd.conf"
        file.write_text(FILES["/etc/stepstash/stepstashd.conf"].replace('"stepstash"', str(os.getgid())))
        check = [BUILD / "daemon" / "stepstashd", "--config", file, "--check-config"]
        done = subprocess.run(check, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_a_block_without_a_name_is_found(self):
        self.assertEqual(files_of("```sh\n#!/bin/sh\n# a.sh: does\nx\n```\n"), {"a.sh": "#!/bin/sh\n# a.sh: does\nx\n"})
        for page in ("```sh\nx\n```\n", "```sh\n# a.sh\n```\n```yaml\n# a.sh\n```\n"):
            with self.assertRaises(ValueError):
                files_of(page)


if __name__ == "__main__":
    if yaml is None:
        print("recipes.py: PyYAML (python3-yaml) is not installed")
        sys.exit(77)
    BUILD = pathlib.Path(sys.argv[1]).resolve()
    unittest.main(argv=sys.argv[:1])
