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

# What changes the segment, a pin page, a file or the database.
WRITES = re.compile(
    r"\.store\(|->store\(|\.exchange\(|compare_exchange_|fetch_(?:add|sub|or|and)\(|std::memset\(mapping|"
    r"write_header\(|::pwrite\(|::ftruncate\(|fallocate\(|::renameat2?\(|::rename\(|::unlink(?:at)?\(|"
    r"F_ADD_SEALS|\.run\(\)|(?:INSERT|UPDATE|DELETE|CREATE TABLE)|sqlite3_wal_checkpoint|::send(?:msg)?\(|O_CREAT"
)
# Functions that have such words and change nothing that outlives the process, or whose steps are their callers'.
EXCEPT = {
    ("shm/heap.cpp", "Heap::write_header"): "every caller has a point behind it",
    ("shm/index.cpp", "IndexWriter::clear"): "every caller has a point behind it",
    ("shm/reader.cpp", "first_line_of_this_thread"): "a counter of the process's own",
    ("shm/reader.cpp", "Reader::supersede"): "a client's own page, which goes with it",
    ("shm/reader.cpp", "Reader::give_back"): "memory of the process's own",
    ("shm/pins.cpp", "PinRegistry::set_state"): "every caller has a point behind it",
    ("shm/segment.cpp", "Writer::install"): "made of steps of ObjectDirectory's, which have points",
    ("persist/sqlite_store.cpp", "SqliteStore::WriterStatements"): "texts; where they are run has points",
    ("daemon/link.cpp", "Link::send"): "ends in write_out, which has points",
    ("daemon/link.cpp", "Link::close"): "a refusal; what was begun is not acknowledged",
    ("daemon/server.cpp", "Server::run"): "the loop",
    ("daemon/page_reserve.cpp", "*"): "a file without a name, which ends with the process",
    ("daemon/notify.cpp", "*"): "the service manager's socket",
    ("daemon/refusals.cpp", "*"): "a refusal, before anything was done",
    ("daemon/restore.cpp", "*"): "a program of its own; tests/system/restore_test.cpp kills it before each of its steps",
    ("persist/restore.cpp", "*"): "the same program",
    ("daemon/config.cpp", "*"): "directories, before anything is opened",
    ("daemon/tasks.hpp", "*"): "memory of the process's own",
    ("daemon/flusher.cpp", "Flusher::take"): "reads",
    ("daemon/id_range.cpp", "IdRange::skip"): "every caller has a point behind it",
    ("daemon/id_range.cpp", "IdRange::take_unreserved"): "every caller has a point behind it",
    ("daemon/id_range.cpp", "IdRange::forget_reserved"): "one store, which the next start repeats",
    ("daemon/id_range.cpp", "IdRange::copy"): "every caller has a point behind it",
    ("libclient/client.cpp", "*"): "which attachment is current: memory of the process's own",
    ("libclient/channel.cpp", "DescriptorTable::DescriptorTable"): "memory of the process's own",
    ("libclient/channel.cpp", "DescriptorTable::put"): "memory of the process's own",
    ("libclient/channel.cpp", "DescriptorTable::close_all"): "memory of the process's own",
    ("libclient/channel.cpp", "Channel::~Channel"): "memory of the process's own",
    ("libclient/channel.cpp", "Channel::take_descriptor"): "memory of the process's own",
    ("libclient/staged_set.cpp", "StagedSet::send"): "ends in Channel::send, which has points",
    ("libclient/fork_epoch.cpp", "*"): "memory of the process's own",
    ("libclient/forks.cpp", "*"): "memory of the process's own",
    ("libclient/client_c.cpp", "*"): "the C ABI: memory of the process's own, but for stepstash_release",
}


def points(text):
    return [match.group(1) for match in CALL.finditer(text)]


def functions(text):
    """(name, body) of what begins at the first column and ends with a brace there; bodies of classes as well."""
    pieces, name, lines = [], None, []
    for line in text.split("\n"):
        if re.match(r"[A-Za-z].*[({]", line) and not line.startswith(("namespace", "using", "#", "}")):
            name, lines = line, [line]
        elif name is not None:
            lines.append(line)
            if line.startswith("}"):
                found = re.findall(r"([A-Za-z_:~]+)\(", name)
                pieces.append((found[0] if found else name.split()[1], "\n".join(lines)))
                name = None
    return pieces


def unmarked(path, text):
    """Functions that write and have no point."""
    missing = []
    for name, body in functions(text):
        code = re.sub(r"//.*", "", body)
        if not WRITES.search(code) or CALL.search(code):
            continue
        if (path, name) in EXCEPT or (path, "*") in EXCEPT:
            continue
        missing.append(f"{path}: {name}: {WRITES.search(code).group(0)}")
    return missing


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

    def test_every_function_that_writes_has_a_point(self):
        missing = [line for file in sources() for line in unmarked(f"{file.parent.name}/{file.name}", file.read_text())]
        self.assertEqual(missing, [])

    def test_a_function_that_writes_without_a_point_is_found(self):
        text = "void Heap::cut(Offset at) {\n  header(at).size.store(1);\n}\n\nint Heap::size() {\n  return 1;\n}\n"
        self.assertEqual(unmarked("shm/heap.cpp", text), ["shm/heap.cpp: Heap::cut: .store("])
        marked = text.replace("  return", '  STEPSTASH_CRASH_POINT("shm.heap.cut.done");\n  return').replace(
            "store(1);", 'store(1);\n  STEPSTASH_CRASH_POINT("x");'
        )
        self.assertEqual(unmarked("shm/heap.cpp", marked), [])


class DocumentTest(unittest.TestCase):
    def test_the_document_lists_the_points_of_the_source(self):
        page = (SOURCE / "docs" / "crash-matrix.md").read_text()
        listed = dict(re.findall(r"^\| `([a-z0-9_.]+)` \| `([a-z0-9_./]+)` \|", page, re.MULTILINE))
        there = {
            name.strip('"'): f"{file.parent.name}/{file.name}" for file in sources() for name in points(file.read_text())
        }
        self.assertEqual(listed, there)

    def test_the_run_in_the_document_kept_every_promise(self):
        page = (SOURCE / "docs" / "crash-matrix.md").read_text()
        self.assertRegex(page, r"\n\| `[a-z0-9_.]+` .* \| kept \|\n")
        self.assertNotRegex(page, r" broken \|")
        killed = re.findall(r"^\| `([a-z0-9_.]+)` \| `[^`]*` \| [^|]* \| (\d+) \|", page, re.MULTILINE)
        self.assertEqual([point for point, kills in killed if kills == "0"], [])


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
