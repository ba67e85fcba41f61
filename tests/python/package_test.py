# SPDX-License-Identifier: Apache-2.0
"""The package installs from the tree without a network and a compiler, is typed, and is Python 3.9.

    package_test.py SOURCE_DIR; exits 77 where pip, setuptools, wheel or mypy is missing.
"""

import ast
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

from daemon import Daemon  # also names the library

SOURCE = pathlib.Path(sys.argv.pop()).resolve() / "python"


class PackageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = pathlib.Path(tempfile.mkdtemp(prefix="stepstash-package-"))
        cls.addClassCleanup(shutil.rmtree, cls.scratch)
        shutil.copytree(SOURCE, cls.scratch / "python")  # setuptools writes into the tree that it builds
        bare = cls.scratch / "bin"
        bare.mkdir()  # a PATH without compilers
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--no-index", "--no-build-isolation", "--no-deps"),
                *("--no-compile", "--target", cls.scratch / "installed", cls.scratch / "python"),
            ],
            env={"PATH": str(bare), "HOME": str(cls.scratch)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(done.stdout)

    def run_installed(self, *command, **options):
        environment = {**os.environ, "PYTHONPATH": str(self.scratch / "installed")}
        return subprocess.run(command, cwd=self.scratch, env=environment, capture_output=True, text=True, **options)

    def test_what_is_installed_is_the_whole_package_and_no_machine_code(self):
        installed = {path.name for path in (self.scratch / "installed" / "stepstash").iterdir()}
        self.assertEqual(installed - {"__pycache__"}, {path.name for path in (SOURCE / "stepstash").iterdir()} - {"__pycache__"})
        self.assertIn("py.typed", installed)
        (wheel,) = (self.scratch / "installed").glob("*.dist-info/WHEEL")
        self.assertIn("Root-Is-Purelib: true", wheel.read_text())

    def test_what_is_installed_sets_and_gets(self):
        daemon = Daemon()
        self.addCleanup(daemon.stop)
        script = (
            "import asyncio, sys, stepstash, stepstash.aio\n"
            "async def main():\n"
            "    async with stepstash.aio.AsyncClient(sys.argv[1]) as client:\n"
            "        await client.set(1, 'x', b'abc')\n"
            "asyncio.run(main())\n"
            "with stepstash.Client(sys.argv[1]) as client, client.get(1, 'x') as view:\n"
            "    print(bytes(view), stepstash.__file__)\n"
        )
        done = self.run_installed(sys.executable, "-c", script, daemon.socket)
        self.assertEqual((done.stdout, done.stderr), (f"b'abc' {self.scratch}/installed/stepstash/__init__.py\n", ""))

    def test_mypy_finds_nothing_in_the_package_and_the_mistake_of_a_user(self):
        # Buildbot and Twisted, on which stepstash.buildbot builds, have no types.
        done = self.run_installed("mypy", "--strict", "--exclude", "/buildbot/", self.scratch / "python" / "stepstash")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        (self.scratch / "user.py").write_text(
            "import stepstash\n"
            "client = stepstash.Client()\n"
            "client.set(1, 'x', b'abc')\n"
            "client.set(1, 'x', open('f', 'rb'))\n"
            "client.set(1, 'x', [b'abc'])\n"
            "client.set('1', 'x', b'abc')\n"
            "print(client.get(1, 'x').data)\n"
        )
        done = self.run_installed("mypy", "--strict", "user.py")
        self.assertEqual(re.findall(r"user.py:(\d+): error", done.stdout), ["6", "7"], done.stdout)

    def test_the_syntax_is_that_of_the_oldest_python_that_it_says(self):
        least = re.search(r'requires-python = ">=3\.(\d+)"', (SOURCE / "pyproject.toml").read_text())
        self.assertEqual(least[1], "9")
        for path in (SOURCE / "stepstash").rglob("*.py"):
            ast.parse(path.read_text(), feature_version=(3, int(least[1])))


if __name__ == "__main__":
    missing = [name for name in ("pip", "setuptools", "wheel") if importlib.util.find_spec(name) is None]
    if shutil.which("mypy") is None:
        missing.append("mypy")
    if missing:
        print("skipped: not installed:", *missing)
        sys.exit(77)
    unittest.main()
