# SPDX-License-Identifier: Apache-2.0
"""Runs the examples of the documentation as they are written.

    examples.py BUILD_DIR PAGE...

Everything is installed from BUILD_DIR into a directory of the test's own. Then, for each page, in an empty directory:
  - a block marked c, cpp or python whose first line is a comment naming a file is written to that file;
  - the blocks marked sh are run, in order, by one bash that stops at the first failure;
  - a block marked text right behind one marked sh is what that must have printed; "..." stands for anything.
Blocks marked otherwise (console, toml, ...) are not run. Every page must have something to run.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"^(?://|/\*|#) ?([a-z_]+\.(?:c|cpp|py))\b")


class Page:
    def __init__(self, text):
        self.files = {}
        self.commands = []
        self.expected = {}  # number of the command -> what it must print
        end_of_last_sh = None
        for block in FENCE.finditer(text):
            kind, body = block.groups()
            name = FILE_NAME.match(body)
            if kind in ("c", "cpp", "python") and name:
                self.files[name[1]] = body
            if kind == "text" and end_of_last_sh is not None and not text[end_of_last_sh : block.start()].strip():
                self.expected[len(self.commands) - 1] = body
            end_of_last_sh = block.end() if kind == "sh" else None
            if kind == "sh":
                self.commands.append(body)

    def script(self):
        # Whatever happens, no process and no shared memory of the page stays behind.
        lines = [
            "set -euo pipefail",
            "trap 'for job in $(jobs -p); do kill -KILL $job 2> /dev/null || :; done; wait;"
            ' [ -z "${STEPSTASH_SEGMENT_NAME-}" ] || rm -rf "/dev/shm/$STEPSTASH_SEGMENT_NAME".*\' EXIT',
        ]
        for number, body in enumerate(self.commands):
            lines.append(f'printf "%s\\n" {number} > "$EXAMPLES/reached"')
            lines.append(f'exec > "$EXAMPLES/{number}.out"\n{body}')
        return "\n".join(lines)


def matches(printed, expected):
    """Compares whole texts; "..." in what is expected stands for anything, line ends included."""
    pattern = ".*".join(re.escape(part) for part in expected.rstrip("\n").split("..."))
    return re.fullmatch(pattern, printed.rstrip("\n"), re.DOTALL) is not None


class ExamplesTest(unittest.TestCase):
    build = pathlib.Path()
    pages = []

    @classmethod
    def setUpClass(cls):
        cls.scratch = pathlib.Path(tempfile.mkdtemp(prefix="stepstash-docs-"))
        cls.addClassCleanup(shutil.rmtree, cls.scratch)
        prefix = cls.scratch / "prefix"
        install = ["cmake", "--install", cls.build, "--prefix", prefix]
        done = subprocess.run(install, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stdout)
        package = next(prefix.rglob("stepstash.pc")).parent
        (cls.scratch / "empty.conf").touch()
        clean = {name: value for name, value in os.environ.items() if not name.startswith("STEPSTASH_")}
        cls.environment = clean | {
            "PATH": f"{prefix}/bin:{prefix}/sbin:{os.environ['PATH']}",
            "PKG_CONFIG_PATH": str(package),
            "LD_LIBRARY_PATH": str(package.parent),  # stands for ldconfig
            "PYTHONPATH": str(SOURCE / "python"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "STEPSTASH_CONFIG": str(cls.scratch / "empty.conf"),  # nothing of this machine shows through
            "EXAMPLES": str(cls.scratch),
        }

    def run_page(self, path):
        page = Page(path.read_text())
        self.assertTrue(page.commands, f"{path}: has no block marked sh")
        with tempfile.TemporaryDirectory(prefix="stepstash-docs-") as empty:
            for name, body in page.files.items():
                pathlib.Path(empty, name).write_text(body)
            with open(self.scratch / "errors", "w+b") as errors:
                command = ["bash", "-c", page.script()]
                status = subprocess.run(
                    command, cwd=empty, env=self.environment | {"HOME": empty}, stdin=subprocess.DEVNULL, stderr=errors
                ).returncode
                errors.seek(0)
                complaint = errors.read().decode(errors="replace")
                for log in pathlib.Path(empty).glob("*.log"):
                    complaint += f"--- {log.name}:\n{log.read_text(errors='replace')}"
        reached = int((self.scratch / "reached").read_text())
        self.assertEqual(status, 0, f"{path}: this block failed:\n{page.commands[reached]}--- it said:\n{complaint}")
        for number, expected in page.expected.items():
            printed = (self.scratch / f"{number}.out").read_text()
            self.assertTrue(
                matches(printed, expected),
                f"{path}: this block:\n{page.commands[number]}--- printed:\n{printed}--- and not:\n{expected}",
            )

    def test_the_examples_of_every_page_work_as_written(self):
        for name in self.pages:
            with self.subTest(page=name):
                self.run_page(SOURCE / name)


class HarnessTest(unittest.TestCase):
    """The runner itself: it must be able to fail."""

    def test_a_text_block_belongs_to_the_sh_block_right_before_it(self):
        page = Page("```sh\na\n```\n\n```text\nA\n```\n```sh\nb\n```\nwords\n```text\nB\n```\n")
        self.assertEqual((page.commands, page.expected), (["a\n", "b\n"], {0: "A\n"}))

    def test_programs_are_taken_by_the_name_in_their_first_line(self):
        page = Page("```c\n/* a.c */\n```\n```cpp\n// b.cpp: does\n```\n```python\n# c.py\n```\n```c\nint x;\n```\n")
        self.assertEqual(sorted(page.files), ["a.c", "b.cpp", "c.py"])

    def test_dots_stand_for_anything_and_nothing_else_does(self):
        self.assertTrue(matches("id 7\nx\ny\nend\n", "id ...\nend\n"))
        self.assertFalse(matches("id 7\nend.", "id 7\nend"))
        self.assertFalse(matches("more\nid 7", "id 7"))


if __name__ == "__main__":
    ExamplesTest.build = pathlib.Path(sys.argv[1]).resolve()
    ExamplesTest.pages = sys.argv[2:]
    unittest.main(argv=sys.argv[:1])
