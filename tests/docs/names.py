# SPDX-License-Identifier: Apache-2.0
"""Every name that the documentation puts in backquotes, outside fenced blocks, exists in the tree: members of classes
and namespaces, function(), paths, names_with_underscores, and the figures of `stats`, which are group.some_figure
anywhere and everything in the first column of the table in docs/operations.md.

    names.py [SOURCE_DIR]
"""

import pathlib
import re
import sys
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = "base protocol shm persist daemon libclient cli python tests bench scripts systemd packaging docs .ci".split()
ROOT_FILES = "CMakeLists.txt CMakePresets.json quickstart test README.md CONTRIBUTING.md LICENSE".split()
SUFFIXES = r"\.(?:cpp|hpp|h|c|py|pml|md|txt|sh|in)"
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
# Boost's, and not used; a target that CMake makes.
ELSEWHERE = {"managed_shared_memory", "open_or_create", "shared_memory_object", "stepstash::stepstash"}


def quoted(text):
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


def fields(text):
    """The keys of nested initialisers {"key", value}, each with those around it: "segment.free_bytes"."""
    found, around = set(), []
    for brace in re.finditer(r'\{(?:"(\w+)",)?|\}', text):
        if brace[0] == "}":
            around = around[:-1]
        else:
            around = [*around, brace[1]]
            if brace[1]:
                found.add(".".join(filter(None, around)))
    return found


class Tree:
    def __init__(self, root):
        self.root = root
        self.files = [path for folder in FOLDERS for path in (root / folder).rglob("*") if path.is_file()]
        self.files += [root / name for name in ROOT_FILES]
        apart = (".md", ".1", ".3", ".5", ".8", ".pyc")
        code = [path for path in self.files if path.suffix not in apart and path.name != "names.py"]
        texts = [path.read_text(errors="replace") for path in code]
        self.sources = [re.sub(r"//.*", "", text) for text in texts]
        self.words = set(re.findall(r"\w+", "\n".join(texts)))
        self.called = set(re.findall(r"\b(\w+)\(", "\n".join(self.sources)))
        self.stats = fields((root / "daemon" / "metrics.cpp").read_text())

    def has_member(self, outer, name):
        body = re.compile(rf"^( *)(?:class|struct|enum class) {outer}\b[^;{{]*\{{.*?^\1\}};", re.MULTILINE | re.DOTALL)
        inside = rf"\b(?:class|struct|enum class) {name}\b"
        return any(
            any(re.search(rf"\b{name}\b", found[0].partition("{")[2]) for found in body.finditer(text))
            or (re.search(rf"namespace (?:\w+::)*{outer}\b", text) and re.search(inside, text))
            for text in self.sources
        )

    def has_file(self, path):
        return (self.root / path).exists() or any(f"/{file}".endswith(f"/{path}") for file in self.files)

    def lacks(self, span):
        """Whether the tree lacks what this span names; False for what is no name."""
        word = span.split()[0].removeprefix("./")
        if span in ELSEWHERE or word.startswith("build/"):
            return False
        if re.fullmatch(r"\w+\.\w+_\w+", span) and span.partition(".")[0] in {name.split(".")[0] for name in self.stats}:
            return span not in self.stats
        if re.fullmatch(r"\w+(?:::\w+)+(?:\(\))?", span):
            names = span.removesuffix("()").split("::")
            return not all(self.has_member(outer, name) for outer, name in zip(names, names[1:]))
        if call := re.fullmatch(r"(\w+)\((?!\d\w*\)).*\)", span):
            return call[1] not in self.called
        if word.split("/")[0] in FOLDERS and "/" in word or re.fullmatch(rf"[\w/.-]*\w{SUFFIXES}", word):
            return not self.has_file(word)
        return bool(re.fullmatch(r"[a-z]+(?:_[a-z0-9]+)+", span)) and span not in self.words


def figures(page):
    """What stands in backquotes in the first column of the table that begins with "figure"."""
    table = re.search(r"^\| figure \|.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    return [name for row in table[1].splitlines() for name in quoted(row.split("|")[1])] if table else []


class NamesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.tree = Tree(SOURCE)

    def test_every_name_in_the_documentation_exists(self):
        pages = [*SOURCE.glob("*.md"), *(SOURCE / "docs").glob("*.md")]
        spans = [(page.relative_to(SOURCE), span) for page in pages for span in quoted(page.read_text())]
        self.assertGreater(len(spans), 1000)
        self.assertEqual([f"{page}: {span}" for page, span in sorted(set(spans)) if self.tree.lacks(span)], [])

    def test_every_figure_to_watch_is_one_of_the_stats(self):
        watched = figures((SOURCE / "docs" / "operations.md").read_text())
        self.assertGreater(len(watched), 20)
        self.assertEqual([name for name in watched if name not in self.tree.stats], [])

    def test_the_version_is_the_same_everywhere(self):
        version = re.search(r"VERSION (\d+\.\d+\.\d+) ", (SOURCE / "CMakeLists.txt").read_text())[1]
        told = {"python/pyproject.toml": re.findall(r'^version = "(.*)"', (SOURCE / "python" / "pyproject.toml").read_text(), re.MULTILINE)}
        for page in sorted((SOURCE / "docs" / "man").iterdir()):
            told[page.name] = re.findall(r'^\.TH \S+ \S+ \S* ?"stepstash ([^"]*)"', page.read_text(), re.MULTILINE)
        self.assertGreater(len(told), 4)
        self.assertEqual({place: versions for place, versions in told.items() if versions != [version]}, {})

    def test_a_name_that_does_not_exist_is_found(self):
        wrong = "Store::publishes,Stores::publish,shm::Nobody,shm::Reader::finds,no_such_call(),daemon/none.cpp,"
        wrong += "none_test.cpp,tests/none --x,no_such_name,segment.no_bytes,database.free_bytes"
        right = "Store::publish,shm::Reader::find,guarded(),poll(2),./test --all,docs/man/stepstash.1,shm/,dirty_bytes,"
        right += "segment.free_bytes,NAME.d,/etc/fstab,set --if-absent,--durable,build/dev/x.txt"
        self.assertEqual([span for span in wrong.split(",") if not self.tree.lacks(span)], [])
        self.assertEqual([span for span in right.split(",") if self.tree.lacks(span)], [])

    def test_fields_are_named_with_those_around_them(self):
        self.assertEqual(fields('f() { json = {{"a", 1}, {"b", {{"c", x(2)}, {"d", 3}}}}; }'), {"a", "b", "b.c", "b.d"})
        self.assertEqual(figures("| figure | x |\n|---|---|\n| `a`, `b.c` | `d` |\n"), ["a", "b.c"])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        SOURCE = pathlib.Path(sys.argv[1]).resolve()
    unittest.main(argv=sys.argv[:1])
