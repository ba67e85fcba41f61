# SPDX-License-Identifier: Apache-2.0
"""What can be said of the crash points by looking at source, binaries and documentation alone.

    points_test.py SOURCE_DIR SHIPPED... -- WITH_POINTS...

SHIPPED are the binaries that are installed, WITH_POINTS those of the tests.
"""

import pathlib
import re
import sys
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
SHIPPED: list[pathlib.Path] = []
WITH_POINTS: list[pathlib.Path] = []

FOLDERS = ("shm", "persist", "daemon", "libclient")
CALL = re.compile(r"STEPSTASH_CRASH_POINT\(([^)]*)\)")
NAME = re.compile(r'"((?:shm|persist|daemon|libclient)(?:\.[a-z][a-z0-9_]*){2,3})"')


def points(text):
    return [match.group(1) for match in CALL.finditer(text)]


def sources():
    for folder in FOLDERS:
        yield from sorted((SOURCE / folder).glob("*.cpp"))


class SourceTest(unittest.TestCase):
    def test_every_point_has_a_name_of_its_own(self):
        names = [name for file in sources() for name in points(file.read_text())]
        self.assertGreater(len(names), 150)
        self.assertEqual([name for name in names if not NAME.fullmatch(name)], [])
        self.assertEqual(sorted(set(names)), sorted(names))

    def test_a_point_is_named_after_its_folder(self):
        for file in sources():
            for name in points(file.read_text()):
                self.assertTrue(name.startswith(f'"{file.parent.name}.'), f"{file}: {name}")


class DocumentTest(unittest.TestCase):
    def test_the_document_lists_the_scenarios(self):
        page = (SOURCE / "docs" / "crash-matrix.md").read_text()
        source = (SOURCE / "tests" / "crash_matrix" / "scenarios.cpp").read_text()
        listed = re.findall(r"^\| ([a-z_]+) \| [^|]+ \|$", page, re.MULTILINE)
        there = re.findall(r'^      \{"([a-z_]+)", "', source, re.MULTILINE)
        self.assertGreater(len(there), 15)
        self.assertEqual([name for name in listed if name not in ("bug", "scenario", "client")], there)


class BinaryTest(unittest.TestCase):
    def names(self):
        return [name.strip('"').encode() for file in sources() for name in points(file.read_text())]

    def test_what_is_shipped_has_no_points(self):
        for binary in SHIPPED:
            content = binary.read_bytes()
            self.assertGreater(len(content), 10_000)
            found = [name for name in self.names() + [b"crash_point"] if name + b"\0" in content]
            self.assertEqual(found, [], binary)

    def test_what_is_killed_has_them(self):
        content = b"".join(binary.read_bytes() for binary in WITH_POINTS)
        self.assertEqual([name for name in self.names() if name + b"\0" not in content], [])


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments:
        SOURCE = pathlib.Path(arguments[0]).resolve()
        middle = arguments.index("--")
        SHIPPED = [pathlib.Path(path) for path in arguments[1:middle]]
        WITH_POINTS = [pathlib.Path(path) for path in arguments[middle + 1 :]]
    unittest.main(argv=sys.argv[:1])
