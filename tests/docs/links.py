# SPDX-License-Identifier: Apache-2.0
"""Every relative link of the documentation leads to a file, and every link to a heading leads to one; every test that
docs/architecture.md names as the check of a promise exists; every test of ctest stands in tests/README.md, with its label.

    links.py [SOURCE_DIR]
"""

import pathlib
import re
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^][]*\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)


def anchors(text):
    """The names that GitHub and most other renderers give to headings."""
    found = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        plain = re.sub(r"\[([^][]*)\]\([^()]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


def broken_links(root):
    pages = sorted([*root.glob("*.md"), *(root / "docs").rglob("*.md"), *(root / "tests").glob("*.md")])
    problems = []
    for page in pages:
        for target in LINK.findall(FENCE.sub("", page.read_text())):
            if re.match(r"[a-z]+:", target):
                continue  # elsewhere: not to be asked by a test
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists():
                problems.append(f"{page.relative_to(root)}: {target}: no such file")
            elif anchor and anchor not in anchors(file.read_text()):
                problems.append(f"{page.relative_to(root)}: {target}: no such heading")
    return pages, problems


def named_checks(page):
    """What stands in backquotes between "Checked by" and the end of its paragraph."""
    paragraphs = re.findall(r"\*Checked by\*(.*?)\n\n", page, re.DOTALL)
    return [name for paragraph in paragraphs for name in re.findall(r"`(\w+)`", paragraph)]


def labelled_tests(root):
    """Test -> its labels, as the CMakeLists.txt below tests/ give them."""
    text = "".join(path.read_text() for path in sorted((root / "tests").glob("*/CMakeLists.txt")))
    found = re.findall(r"stepstash_label\((\w+) (unit|process|long)( root)?\b", text)
    return {test: tier + root for test, tier, root in found}


def described_tests(page):
    """The same as the table of tests/README.md says it: | `folder/` | question | `test` | time | label |"""
    rows = re.findall(r"^\|[^|]*\|[^|]*\| *`(\w+)` *\|[^|]*\| *(\w+)(?:, (root))?\b", page, re.MULTILINE)
    return {test: " ".join(filter(None, (tier, root))) for test, tier, root in rows}


class LabelsTest(unittest.TestCase):
    def test_every_test_is_described_with_its_label(self):
        labelled = labelled_tests(SOURCE)
        self.assertGreater(len(labelled), 30)
        self.assertEqual(described_tests((SOURCE / "tests" / "README.md").read_text()), labelled)

    def test_a_row_is_read(self):
        page = "| `a/` | why? | `a_b` | 1 s | long, root: mounts |\n| | how? | `c` | 2 s | unit |\n"
        self.assertEqual(described_tests(page), {"a_b": "long root", "c": "unit"})


class ChecksTest(unittest.TestCase):
    def test_every_test_that_a_promise_names_exists(self):
        names = named_checks((SOURCE / "docs" / "architecture.md").read_text())
        self.assertGreaterEqual(len(names), 9)
        tests = "".join(
            path.read_text()
            for path in (SOURCE / "tests").rglob("*")
            if path.suffix in (".cpp", ".py", ".txt") and path != pathlib.Path(__file__).resolve()
        )
        declared = r"add_test\(NAME {0}\b|TEST_(?:CASE|SUITE)\w*\(\s*{0}\b|def {0}\("
        self.assertEqual([name for name in names if not re.search(declared.format(name), tests)], [])

    def test_a_name_behind_checked_by_is_found(self):
        self.assertEqual(named_checks("x. *Checked by* `a` (`b_c`,\n`d`) and `e`.\n\n`f`\n"), ["a", "b_c", "d", "e"])


class LinksTest(unittest.TestCase):
    def test_every_relative_link_leads_somewhere(self):
        pages, problems = broken_links(SOURCE)
        self.assertIn(SOURCE / "README.md", pages)
        self.assertEqual(problems, [])

    def test_a_link_that_leads_nowhere_is_found(self):
        with tempfile.TemporaryDirectory() as made:
            root = pathlib.Path(made)
            (root / "docs").mkdir()
            (root / "docs" / "b.md").write_text("# Über: a `b`\n[a](../a.md#two-words) [here](#über-a-b)\n")
            (root / "a.md").write_text(
                "# Two words\n[1](docs/b.md) [2](docs/c.md) [3](docs/b.md#x) [4](https://x)\n```\n[5](no.md)\n```\n"
            )
            self.assertEqual(
                broken_links(root)[1],
                ["a.md: docs/c.md: no such file", "a.md: docs/b.md#x: no such heading"],
            )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        SOURCE = pathlib.Path(sys.argv[1]).resolve()
    unittest.main(argv=sys.argv[:1])
