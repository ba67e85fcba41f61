# SPDX-License-Identifier: Apache-2.0
"""scripts/structure.py: the tree has no circle but those that it names, and a planted one is found."""

import pathlib
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(SOURCE / "scripts"))
import structure  # noqa: E402


def found(files, known=None):
    """What is wrong with a tree of these files."""
    with tempfile.TemporaryDirectory() as made:
        for name, text in files.items():
            path = pathlib.Path(made, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return structure.problems(structure.Structure(pathlib.Path(made)), known or {})


class TreeTest(unittest.TestCase):
    def test_the_tree_has_no_circle_that_is_not_known(self):
        self.assertEqual(structure.problems(structure.Structure(SOURCE)), [])

    def test_the_tree_is_read(self):
        tree = structure.Structure(SOURCE)
        self.assertEqual(tree.folders()["base"], set())
        self.assertLessEqual({"base", "shm", "persist", "protocol"}, tree.folders()["daemon"])
        self.assertIn("daemon/store", tree.pairs("daemon")["daemon/connection"])
        self.assertTrue(all(structure.KNOWN.values()))


class PlantedTest(unittest.TestCase):
    def test_a_circle_of_folders_is_found(self):
        files = {"base/a.hpp": '#include "shm/b.hpp"\n', "shm/b.hpp": '#include "base/c.hpp"\n', "base/c.hpp": ""}
        self.assertEqual(found(files), ["folders in a circle: base, shm"])

    def test_a_circle_of_files_is_found_across_header_and_source(self):
        files = {
            "daemon/a.hpp": "",
            "daemon/a.cpp": '#include "daemon/a.hpp"\n#include "daemon/b.hpp"\n',
            "daemon/b.hpp": '#include "daemon/c.hpp"\n',
            "daemon/c.hpp": '#include "daemon/a.hpp"\n',
        }
        self.assertEqual(found(files)[0], "files in a circle: daemon/a, daemon/b, daemon/c")

    CALLBACK = {
        "daemon/low.hpp": "struct Low {\n  std::function<void(const int&)> on_done;\n};\n",
        "daemon/high.cpp": '#include "daemon/low.hpp"\nvoid f(Low& low) {\n  low.on_done = [](const int&) {};\n}\n',
    }
    ARROW = ("daemon/low", "on_done", "daemon/high")

    def test_a_callback_into_who_includes_it_is_a_circle(self):
        self.assertEqual(found(self.CALLBACK)[0], "files in a circle: daemon/high, daemon/low")

    def test_a_known_arrow_is_let_pass(self):
        self.assertEqual(found(self.CALLBACK, {self.ARROW: "a reason"}), [])

    def test_a_known_arrow_that_is_gone_is_named(self):
        files = {**self.CALLBACK, "daemon/high.cpp": '#include "daemon/low.hpp"\n'}
        self.assertEqual(len(found(files, {self.ARROW: "a reason"})), 1)
        self.assertIn("is gone", found(files, {self.ARROW: "a reason"})[0])

    def test_a_known_arrow_without_a_circle_is_named(self):
        files = {**self.CALLBACK, "daemon/high.cpp": "void f(Low& low) {\n  low.on_done = [](const int&) {};\n}\n"}
        self.assertIn("closes no circle", found(files, {self.ARROW: "a reason"})[0])

    def test_parameters_and_names_of_types_are_no_callbacks(self):
        text = "struct A {\n  void each(const std::function<void()>& call);\n  using Call = std::function<void()>;\n};\n"
        other = '#include "daemon/a.hpp"\nint call = 1;\nvoid g(A& a) {\n  a.Call = 1;\n}\n'
        self.assertEqual(found({"daemon/a.hpp": text, "daemon/b.cpp": other}), [])


if __name__ == "__main__":
    unittest.main()
