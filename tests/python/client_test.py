# SPDX-License-Identifier: Apache-2.0
"""The Python face against the real daemon."""

import array
import fcntl
import gc
import hashlib
import io
import itertools
import multiprocessing
import os
import pathlib
import pickle
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import tracemalloc
import unittest
import zipfile

from daemon import Daemon, until  # also names the library

import stepstash

try:
    import numpy
except ImportError:
    numpy = None

MEGABYTE = bytes(range(256)) * 4096


class WithDaemon(unittest.TestCase):
    build = 0

    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon()
        cls.addClassCleanup(cls.daemon.stop)

    def setUp(self):
        WithDaemon.build += 1  # every test has a build of its own
        self.client = stepstash.Client(self.daemon.socket)
        self.addCleanup(self.client.close)

    def open_views(self):
        return self.client.stats()["open_views"]

    def program(self, script):
        """Another Python that has run `script`: argv[1] is the socket, argv[2] the build."""
        command = [sys.executable, "-c", script, self.daemon.socket, str(self.build)]
        return subprocess.run(command, capture_output=True, text=True)

    def value(self, name):
        with self.client.get(self.build, name) as view:
            return bytes(view.data)


class Reading(WithDaemon):
    def test_a_value_comes_back_with_everything_that_was_said_of_it(self):
        done = self.client.set(self.build, "Bericht ü", b"all passed", "unit tests")
        with self.client.get(self.build, "Bericht ü") as view:
            self.assertEqual(bytes(view.data), b"all passed")
            self.assertEqual((view.id, view.revision), done)
            self.assertEqual((view.build, view.name, view.source), (self.build, "Bericht ü", "unit tests"))
            self.assertEqual(len(view), 10)

    def test_absent_is_none(self):
        self.assertIsNone(self.client.get(self.build, "x"))
        self.assertIsNone(self.client.stat(self.build, "x"))
        self.assertEqual(self.client.list(self.build), [])

    def test_an_empty_value_is_not_absent(self):
        self.client.set(self.build, "", b"")
        view = self.client.get(self.build, "")
        self.assertTrue(view)
        self.assertEqual(bytes(view.data), b"")
        view.release()

    def test_the_view_cannot_be_written_to(self):
        self.client.set(self.build, "x", b"abc")
        with self.client.get(self.build, "x") as view:
            self.assertTrue(view.data.readonly)
            with self.assertRaises(TypeError):
                view.data[0] = 0

    def test_a_view_keeps_the_old_bytes_after_a_replacement(self):
        self.client.set(self.build, "x", MEGABYTE)
        with self.client.get(self.build, "x") as view:
            self.client.set(self.build, "x", b"new")
            self.assertEqual(view.data, MEGABYTE)
            self.assertEqual(self.value("x"), b"new")

    def test_the_end_of_a_with_lets_go_of_the_value(self):
        self.client.set(self.build, "x", b"abc")
        before = self.open_views()
        with self.client.get(self.build, "x") as view:
            self.assertEqual(self.open_views(), before + 1)
        self.assertEqual(self.open_views(), before)
        with self.assertRaises(ValueError):
            view.data
        view.release()  # again: nothing

    def test_a_view_that_is_forgotten_is_let_go_of(self):
        self.client.set(self.build, "x", b"abc")
        before = self.open_views()
        views = [self.client.get(self.build, "x") for _ in range(100)]
        self.assertEqual(self.open_views(), before + 100)
        views.clear()
        gc.collect()
        self.assertEqual(self.open_views(), before)

    def test_a_slice_holds_the_value_in_place_after_its_view_was_released(self):
        self.client.set(self.build, "x", MEGABYTE)
        before = self.open_views()
        with self.client.get(self.build, "x") as view:
            part = view.data[1000:2000]
        self.client.set(self.build, "x", bytes(len(MEGABYTE)))
        for _ in range(60):  # what was released would be overwritten by now: the segment has 64 MiB
            self.client.set(self.build, "y", bytes(len(MEGABYTE)))
        self.assertEqual(part, MEGABYTE[1000:2000])
        self.assertEqual(self.open_views(), before + 1)
        part.release()
        self.assertEqual(self.open_views(), before)

    def test_a_view_outlives_its_client(self):
        self.client.set(self.build, "x", MEGABYTE)
        other = stepstash.Client(self.daemon.socket)
        view = other.get(self.build, "x")
        other.close()
        self.assertEqual(view.data, MEGABYTE)
        view.release()
        with self.assertRaises(ValueError):
            other.get(self.build, "x")

    def test_more_than_441_views_are_refused_with_a_word(self):
        self.client.set(self.build, "x", b"abc")
        views = [self.client.get(self.build, "x") for _ in range(441)]
        with self.assertRaisesRegex(stepstash.LimitReached, "441"):
            self.client.get(self.build, "x")
        views.pop()
        self.client.get(self.build, "x").release()

    def test_list_gives_everything_but_the_values_in_the_order_of_ids(self):
        ids = [self.client.set(self.build, f"n{i:03}", b"x" * i, "s").id for i in range(70)]  # three pages
        entries = self.client.list(self.build)
        self.assertEqual([e.id for e in entries], ids)
        self.assertEqual([e.length for e in entries], list(range(70)))
        self.assertEqual(self.client.list(self.build, "n007"), [entries[7]])
        self.assertEqual(self.client.stat(self.build, "n007"), entries[7])

    def test_wait_returns_when_the_name_appears(self):
        found = []
        waiter = threading.Thread(target=lambda: found.append(self.client.wait(self.build, "late", 20)))
        waiter.start()
        self.client.set(self.build, "late", b"here")
        waiter.join()
        self.assertEqual(bytes(found.pop()), b"here")

    def test_wait_gives_none_when_the_name_does_not_appear(self):
        self.assertIsNone(self.client.wait(self.build, "never", 0.02))


class InPlace(WithDaemon):
    """What reads buffers reads the segment."""

    def setUp(self):
        super().setUp()
        self.bytes = b"skipped" + bytes(range(1, 256)) * 80_000 + b"the end"
        self.client.set(self.build, "x", self.bytes, "here")
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.view = self.client.get(self.build, "x")
        self.addCleanup(self.view.release)
        self.before = self.open_views()

    def assert_nothing_was_copied(self):
        self.assertLess(tracemalloc.get_traced_memory()[1], 1_000_000)

    def assert_in_segment(self, address):
        for line in pathlib.Path("/proc/self/maps").read_text().splitlines():
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            if start <= address < end:
                return self.assertIn(self.daemon.segment, line)
        self.fail(f"{address:#x} is not mapped")

    def test_data_is_bytes_like_flat_and_of_bytes(self):
        data = self.view.data
        self.assertEqual((data.format, data.itemsize, data.ndim, data.contiguous), ("B", 1, 1, True))
        self.assertEqual((len(data), data.nbytes, data.readonly), (len(self.bytes), len(self.bytes), True))
        self.assert_nothing_was_copied()
        self.assertEqual(bytes(self.view), self.bytes)

    def test_slices_are_no_copies_and_hold_the_value(self):
        part = self.view[7:-7]
        self.assertEqual((self.view[7], part[0], part[-1], len(part)), (1, 1, 255, 255 * 80_000))
        self.assertEqual(bytes(self.view[-7:]), b"the end")
        self.assert_nothing_was_copied()
        self.view.release()
        self.assertEqual((self.open_views(), part[0]), (self.before, 1))
        del part
        self.assertEqual(self.open_views(), self.before - 1)

    def test_struct_re_and_hashlib_read_it_in_place(self):
        data = self.view.data
        self.assertEqual(struct.unpack_from("<HB", data, 7), (0x0201, 3))
        found = re.search(rb"(.{4})the end", data, re.DOTALL)
        self.assertEqual(found.start(2 - 1), 7 + 255 * 80_000 - 4)
        digest = hashlib.sha256(data).digest()
        self.assert_nothing_was_copied()
        self.assertEqual(digest, hashlib.sha256(self.bytes).digest())

    def test_a_pickle_buffer_goes_out_of_band(self):
        apart = []
        text = pickle.dumps(pickle.PickleBuffer(self.view.data), protocol=5, buffer_callback=apart.append)
        self.assertLess(len(text), 100)
        again = pickle.loads(text, buffers=apart)
        self.assert_nothing_was_copied()
        self.assertEqual(memoryview(again), self.bytes)
        del again
        self.view.release()
        self.assertEqual(self.open_views(), self.before)  # the PickleBuffer holds it
        apart.clear()
        self.assertEqual(self.open_views(), self.before - 1)

    @unittest.skipIf(numpy is None, "python3-numpy is not installed")
    def test_an_array_of_numpy_lies_in_the_segment_and_outlives_the_view(self):
        with self.client.get(self.build, "x") as view:
            values = numpy.frombuffer(view.data, dtype=numpy.uint8, offset=7)
        self.assert_nothing_was_copied()
        self.assert_in_segment(values.__array_interface__["data"][0])
        self.client.drop(self.build)
        for _ in range(60):  # what was released would be overwritten by now: the segment has 64 MiB
            self.client.set(self.build, "y", bytes(len(MEGABYTE)))
        self.assertEqual(values[:3].tolist(), [1, 2, 3])
        with self.assertRaises(ValueError):
            values[0] = 0
        self.assertEqual(self.open_views(), self.before + 1)
        del values
        self.assertEqual(self.open_views(), self.before)

    def test_from_python_3_12_on_the_view_itself_is_bytes_like(self):
        if sys.version_info < (3, 12):
            with self.assertRaises(TypeError):
                memoryview(self.view)
            return
        with self.client.get(self.build, "x") as view:
            whole = memoryview(view)
            self.assertEqual(struct.unpack_from("<HB", view, 7), (0x0201, 3))
        self.assert_nothing_was_copied()
        self.assertEqual((whole[7], whole.readonly, self.open_views()), (1, True, self.before + 1))
        whole.release()
        self.assertEqual(self.open_views(), self.before)

    def test_zipfile_reads_it_as_a_file(self):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("large", MEGABYTE * 10)
            archive.writestr("small", b"hello")
        self.client.set(self.build, "zip", packed.getbuffer())
        del packed, archive
        tracemalloc.reset_peak()
        already = tracemalloc.get_traced_memory()[0]
        with self.client.get(self.build, "zip") as view, zipfile.ZipFile(view.open()) as archive:
            self.assertEqual(archive.namelist(), ["large", "small"])
            self.assertEqual(archive.read("small"), b"hello")
        self.assertLess(tracemalloc.get_traced_memory()[1] - already, 1_000_000)

    def test_the_file_of_a_view_is_one_and_holds_the_value_until_it_is_closed(self):
        file = self.view.open()
        self.view.release()
        self.assertEqual((file.read(7), file.tell(), file.readable(), file.writable()), (b"skipped", 7, True, False))
        self.assertEqual((file.seek(-7, os.SEEK_END), file.read()), (len(self.bytes) - 7, b"the end"))
        self.assertEqual((file.seek(10**9), file.read(5)), (10**9, b""))
        room = array.array("H", [0, 0])
        file.seek(7)
        self.assertEqual((file.readinto(room), room.tobytes()), (4, bytes([1, 2, 3, 4])))
        for at in ((-1, os.SEEK_SET), (-12, os.SEEK_CUR), (0, 9)):
            with self.assertRaises((ValueError, OSError)):
                file.seek(*at)
        self.assertEqual(self.open_views(), self.before)
        file.close()
        self.assertEqual(self.open_views(), self.before - 1)
        with self.assertRaises(ValueError):
            file.read()

    def test_a_view_can_be_set_again(self):
        self.client.set(self.build, "copy", self.view)
        self.assertEqual(self.value("copy"), self.bytes)

    def test_gets_of_ever_other_lengths_leave_nothing_behind(self):
        for length in range(300):
            self.client.set(self.build, "y", bytes(length))
            with self.client.get(self.build, "y") as view:
                self.assertEqual(len(view.data), length)
        gc.collect()
        self.assert_nothing_was_copied()


class Lifetimes(WithDaemon):
    """The pin lives as long as anything that can read the value, and no longer."""

    def setUp(self):
        super().setUp()
        self.client.set(self.build, "x", MEGABYTE)

    def test_client_view_and_what_was_taken_from_it_may_go_in_any_order(self):
        for order in itertools.permutations(range(4)):
            client = stepstash.Client(self.daemon.socket)
            view = client.get(self.build, "x")
            held = [client, view, view.data[10:20], pickle.PickleBuffer(view.data)]
            del client, view
            for place in order:
                self.assertEqual(held[1] is None or held[1][257], held[1] is None or 1)
                self.assertEqual(held[2] is None or held[2][0], held[2] is None or 10)
                if [one for one in held[1:] if one is not None] == [held[place]]:
                    self.assertEqual(self.open_views(), 1)  # the last that can read it
                held[place] = None
            self.assertEqual(self.open_views(), 0)

    def test_the_collector_gives_back_a_dead_cycle_after_all_of_it_has_had_its_last_look(self):
        seen = []
        control = self.client

        class Looker:
            def __del__(self):
                seen.append((control.stats()["open_views"], self.part[0], bytes(self.view.data[:3])))

        def cycle(count):
            """Before and behind the views in the collector's list, which is in the order of creation."""
            lookers = [Looker() for _ in range(count)]
            client = stepstash.Client(self.daemon.socket)
            for looker in lookers:
                looker.view = client.get(self.build, "x")
                looker.part = looker.view.data[5:]
                looker.others = lookers
                looker.late = Looker()
                looker.late.view, looker.late.part, looker.late.others = looker.view, looker.part, lookers
            lookers[0].client = client  # open, and nobody else's

        gc.collect()
        gc.disable()
        try:
            cycle(3)
            self.assertEqual(self.open_views(), 3)
            gc.collect()
        finally:
            gc.enable()
        self.assertEqual(seen, [(3, 5, b"\0\1\2")] * 6)
        self.assertEqual(self.open_views(), 0)

    def test_what_a_finalizer_saves_from_the_collector_stays_readable(self):
        saved = []

        class Saver:
            def __del__(self):
                saved.append(self.part)

        saver = Saver()
        saver.me = saver
        with stepstash.Client(self.daemon.socket) as client:
            saver.view = client.get(self.build, "x")
        saver.part = saver.view.data[5:]
        del saver, client
        gc.collect()
        for _ in range(60):
            self.client.set(self.build, "y", bytes(len(MEGABYTE)))
        self.assertEqual((self.open_views(), saved[0]), (1, MEGABYTE[5:]))
        saved.clear()
        gc.collect()
        self.assertEqual(self.open_views(), 0)

    def test_what_a_finalizer_saves_from_the_collector_can_be_called_on(self):
        script = (
            "import gc, sys, stepstash\n"
            "saved = []\n"
            "class Saver:\n"
            "    def __del__(self):\n"
            "        self.writer.write(bytes(300000))\n"
            "        saved.append(self)\n"
            "gc.disable()\n"
            "saver = Saver()\n"
            "saver.me = saver\n"
            "saver.client = stepstash.Client(sys.argv[1])\n"
            "saver.writer = saver.client.begin(int(sys.argv[2]), 'saved')\n"
            "del saver\n"
            "gc.collect()\n"
            "saved[0].writer.commit()\n"
            "saved[0].client.set(int(sys.argv[2]), 'after', b'v')\n"
        )
        ended = self.program(script)
        self.assertEqual((ended.returncode, ended.stderr), (0, ""))
        self.assertEqual([one.name for one in self.client.list(self.build)][1:], ["saved", "after"])

    def test_a_program_may_end_with_everything_open(self):
        script = (
            "import sys, threading, stepstash\n"
            "class Loop: pass\n"
            "loop = Loop(); loop.me = loop\n"
            "loop.client = client = stepstash.Client(sys.argv[1])\n"
            "loop.view = view = client.get(int(sys.argv[2]), 'x')\n"
            "loop.part = part = view.data[1:]; loop.file = file = view.open()\n"
            "loop.writer = writer = client.begin(int(sys.argv[2]), 'never'); writer.write(bytes(300000))\n"
            "def forever():\n"
            "    while True:\n"
            "        with client.get(int(sys.argv[2]), 'x') as view: view.data[0]\n"
            "for _ in range(3): threading.Thread(target=forever, daemon=True).start()\n"
        )
        for _ in range(5):
            run = self.program(script)
            self.assertEqual((run.returncode, run.stderr), (0, ""))
        until(lambda: self.open_views() == 0, "the dead processes' pins to go")
        self.assertIsNone(self.client.get(self.build, "never"))

    def interrupted(self, call):
        """Calls it again and again, with an exception of a signal's handler at every point of it."""

        class Stop(Exception):
            pass

        def interrupt(*_):
            raise Stop

        former = signal.signal(signal.SIGALRM, interrupt)
        try:
            stopped = 0
            for i in range(300):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0005 + i * 1e-6)
                    for _ in range(2000):
                        call()
                except Stop:
                    stopped += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)
        self.assertGreater(stopped, 100)  # some come while nothing may be raised, and are only reported

    def test_an_interrupted_get_leaks_no_pin(self):
        self.interrupted(lambda: self.client.get(self.build, "x"))
        self.assertEqual(self.open_views(), 0)

    def test_an_interrupted_set_leaves_nothing_open_and_its_value_unlocked(self):
        value = bytearray(b"value")
        self.interrupted(lambda: self.client.set(self.build, "set", value))
        value.append(0)  # BufferError if a buffer of it is still held
        view = self.client.get(self.build, "set")
        self.interrupted(lambda: self.client.set(self.build, "set", view))
        view.release()
        self.assertEqual(self.open_views(), 0)
        # A set in pieces holds a connection and, from 64 KiB on, a ring and the room for the value.
        self.interrupted(lambda: self.client.begin(self.build, "never", 1 << 20).abort())
        self.client.set(self.build, "set", MEGABYTE)
        figures = self.client.stats()
        self.assertLess(figures["connections"], 8)
        self.assertLess(figures["segment"]["used_bytes"], 8 << 20)


class Writing(WithDaemon):
    def test_every_bytes_like_object_is_taken_whole_whatever_its_items_are(self):
        numbers = array.array("d", [0.5, 1.5, 2.5])
        for value in (b"bytes", bytearray(b"bytearray"), memoryview(b"memory")[1:3], numbers, memoryview(numbers)):
            self.client.set(self.build, "x", value)
            self.assertEqual(self.value("x"), bytes(value))
        self.assertEqual(self.client.stat(self.build, "x").length, 24)

    def test_set_takes_files_and_iterables_of_pieces(self):
        with tempfile.TemporaryFile() as file:
            file.write(b"skipped" + MEGABYTE)
            file.seek(7)
            self.client.set(self.build, "file", file, "from a file")
        self.client.set(self.build, "memory", io.BytesIO(MEGABYTE))
        self.client.set(self.build, "pieces", (MEGABYTE[i : i + 100_000] for i in range(0, len(MEGABYTE), 100_000)))
        self.client.set(self.build, "list", [b"one", bytearray(b"two"), array.array("H", [0x3333])])
        self.client.set(self.build, "nothing", iter(()))
        for name in ("file", "memory", "pieces"):
            self.assertEqual(self.value(name), MEGABYTE)
        self.assertEqual((self.value("list"), self.value("nothing")), (b"onetwo33", b""))
        self.assertEqual(self.client.stat(self.build, "file").source, "from a file")
        self.assertIsNone(self.client.set(self.build, "list", [b"other"], if_absent=True))
        self.assertEqual(self.value("list"), b"onetwo33")

    def test_an_iterator_that_fails_sets_nothing_and_its_exception_is_passed_on(self):
        def pieces():
            yield MEGABYTE
            raise KeyError("later")

        with self.assertRaisesRegex(KeyError, "later"):
            self.client.set(self.build, "x", pieces())
        with self.assertRaises(TypeError):
            self.client.set(self.build, "x", [b"one", "two"])
        self.assertIsNone(self.client.get(self.build, "x"))

    def test_what_is_not_contiguous_or_not_bytes_is_refused(self):
        cases = ((memoryview(b"abcdef")[::2], BufferError), ("text", TypeError), (7, TypeError), ([7], TypeError))
        for value, error in (*cases, (io.StringIO("text"), TypeError)):
            with self.assertRaises(error):
                self.client.set(self.build, "x", value)
        self.assertIsNone(self.client.get(self.build, "x"))

    def test_a_large_value_goes_through_the_ring(self):
        value = MEGABYTE * 20
        self.client.set(self.build, "x", value)
        with self.client.get(self.build, "x") as view:
            self.assertEqual(view.data, value)

    def test_conditions_that_do_not_hold_are_none_and_change_nothing(self):
        first = self.client.set(self.build, "x", b"1", if_absent=True)
        self.assertIsNone(self.client.set(self.build, "x", b"2", if_absent=True))
        self.assertIsNone(self.client.set(self.build, "x", b"2", if_revision=first.revision + 1))
        self.assertEqual(self.value("x"), b"1")
        second = self.client.set(self.build, "x", b"2", if_revision=first.revision)
        self.assertEqual(second.id, first.id)
        self.assertGreater(second.revision, first.revision)

    def test_a_durable_set_is_in_the_database_when_it_returns(self):
        self.client.set(self.build, "x", b"1", durable=True)
        import sqlite3

        with sqlite3.connect(f"file:{self.daemon.directory}/db?mode=ro", uri=True) as database:
            rows = database.execute("select value from build_data where buildid = ?", (self.build,)).fetchall()
        self.assertEqual(rows, [(b"1",)])

    def test_a_file_is_taken_from_where_it_stands_until_its_end(self):
        with tempfile.NamedTemporaryFile() as made:
            made.write(b"skipped" + MEGABYTE)
            made.flush()
            with open(made.name, "rb") as file:
                self.assertEqual(file.read(7), b"skipped")
                self.client.set_file(self.build, "buffered", file)
                self.assertEqual(file.read(), b"")
            with open(made.name, "rb", buffering=0) as file:
                file.seek(7)
                self.client.set_file(self.build, "raw", file)
            fd = os.open(made.name, os.O_RDONLY)
            os.lseek(fd, 7, os.SEEK_SET)
            self.client.set_file(self.build, "descriptor", fd)
            os.close(fd)
        for name in ("buffered", "raw", "descriptor"):
            self.assertEqual(self.value(name), MEGABYTE)

    def test_what_only_looks_like_a_file_is_taken_too(self):
        class Reader:
            pieces = [b"one", b"two", b""]

            def read(self, _):
                return self.pieces.pop(0)

        self.client.set_file(self.build, "memory", io.BytesIO(MEGABYTE))
        self.client.set_file(self.build, "reader", Reader())
        self.assertEqual(self.value("memory"), MEGABYTE)
        self.assertEqual(self.value("reader"), b"onetwo")
        with self.assertRaises(TypeError):
            self.client.set_file(self.build, "text", io.StringIO("text"))

    def test_a_pipe_is_taken_until_its_end(self):
        with subprocess.Popen(["head", "-c", "300000", "/dev/zero"], stdout=subprocess.PIPE) as made:
            self.client.set_file(self.build, "pipe", made.stdout)
        self.assertEqual(self.value("pipe"), bytes(300000))

    def test_files_that_tell_a_wrong_size_or_cannot_be_positioned_are_taken_whole(self):
        for path in ("/sys/devices/system/cpu/online", "/proc/version", "/proc/self/limits", "/proc/sys/kernel/ostype"):
            if not os.path.exists(path):
                continue
            for buffering in (-1, 0):
                with open(path, "rb", buffering) as file:
                    self.client.set_file(self.build, path, file)
                    self.assertEqual(file.read(), b"", path)
                with open(path, "rb") as file:
                    got, expected = self.value(path), file.read()
                self.assertGreater(len(got), 0, path)
                self.assertEqual(got, expected, path)

    def test_a_file_that_does_not_block_is_waited_for(self):
        class Reader:  # with read() alone, which gives None where there is nothing yet
            def __init__(self, fd):
                self.fileno = lambda: fd
                self.raw = io.FileIO(fd, closefd=False)

            def read(self, count):
                return self.raw.read(count)

        def raw(fd):
            return io.FileIO(fd, closefd=False)

        def buffered(fd):
            return os.fdopen(os.dup(fd), "rb")

        for make in (int, raw, buffered, Reader):
            reading, writing = os.pipe()
            os.set_blocking(reading, False)

            def feed(reading=reading, writing=writing):
                for _ in range(3):
                    until(lambda: fcntl.ioctl(reading, termios.FIONREAD, bytes(4)) == bytes(4), "all to be read")
                    os.write(writing, b"x" * 1000)
                until(lambda: fcntl.ioctl(reading, termios.FIONREAD, bytes(4)) == bytes(4), "all to be read")
                os.close(writing)

            feeder = threading.Thread(target=feed)
            feeder.start()
            file = make(reading)
            try:
                self.client.set_file(self.build, "slow", file)
            finally:
                feeder.join()
                if hasattr(file, "close"):
                    file.close()
                os.close(reading)
            self.assertEqual(self.value("slow"), b"x" * 3000)

    def test_what_does_not_block_and_cannot_be_waited_for_is_an_error_and_no_value(self):
        class Reader:
            def read(self, _):
                return None

        with self.assertRaises(BlockingIOError):
            self.client.set_file(self.build, "x", Reader())
        self.assertIsNone(self.client.get(self.build, "x"))

    def test_what_reads_something_else_than_its_descriptor_is_asked_itself(self):
        class Upper(io.FileIO):
            def readinto(self, room):
                count = super().readinto(room)
                room[:count] = bytes(room[:count]).upper()
                return count

        with tempfile.NamedTemporaryFile() as made:
            made.write(b"content")
            made.flush()
            for file in (Upper(made.name), io.BufferedReader(Upper(made.name))):
                with file:
                    self.client.set(self.build, "x", file)
                self.assertEqual(self.value("x"), b"CONTENT")

    def test_a_count_that_readinto_cannot_have_read_is_refused(self):
        class Reader:
            def readinto(self, _):
                return self.count

        reader = Reader()
        for reader.count, error in ((-1, ValueError), (1 << 40, ValueError), ((1 << 64) + 3, ValueError), ("3", TypeError)):
            with self.assertRaises(error):
                self.client.set_file(self.build, "x", reader)
        self.assertIsNone(self.client.get(self.build, "x"))

    def test_a_writer_reads_a_file_of_the_announced_length_to_its_end_and_no_longer_one(self):
        for length in (0, 5, len(MEGABYTE)):
            with self.client.begin(self.build, "x", length) as writer:
                file = io.BytesIO(MEGABYTE[:length])
                while writer.readinto(file):
                    pass
                writer.commit()
            self.assertEqual(self.value("x"), MEGABYTE[:length])
        with self.client.begin(self.build, "y", 5) as writer, self.assertRaises(stepstash.InvalidArgument):
            file = io.BytesIO(b"123456")
            while writer.readinto(file):
                pass

    def test_an_interrupt_ends_a_wait_and_a_set_of_what_never_comes(self):
        class Stop(Exception):
            pass

        def interrupt(*_):
            raise Stop

        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        end = os.fdopen(writing, "wb", buffering=0)
        self.addCleanup(end.close)
        watchdog = threading.Timer(25, end.close)  # so that a failing test ends
        watchdog.start()
        self.addCleanup(watchdog.cancel)
        former = signal.signal(signal.SIGALRM, interrupt)
        self.addCleanup(signal.signal, signal.SIGALRM, former)
        with open(reading, "rb", buffering=0, closefd=False) as raw:
            calls = (
                lambda: self.client.wait(self.build, "never", 25),
                lambda: self.client.set_file(self.build, "x", reading),
                lambda: self.client.set_file(self.build, "x", raw),
            )
            for call in calls:
                started = time.monotonic()
                with self.assertRaises(Stop):
                    signal.setitimer(signal.ITIMER_REAL, 0.05)
                    call()
                self.assertLess(time.monotonic() - started, 20)

    def test_nothing_of_a_writer_is_visible_before_its_commit(self):
        with self.client.begin(self.build, "x", len(MEGABYTE)) as writer:
            writer.write(MEGABYTE[:1000])
            writer.write(memoryview(MEGABYTE)[1000:])
            self.assertIsNone(self.client.get(self.build, "x"))
            writer.commit()
        self.assertEqual(self.value("x"), MEGABYTE)

    def test_a_writer_that_is_left_without_a_commit_sets_nothing(self):
        with self.client.begin(self.build, "x") as writer:
            writer.write(MEGABYTE)
        self.assertIsNone(self.client.get(self.build, "x"))
        with self.assertRaises(ValueError):
            writer.write(b"more")


class Builds(WithDaemon):
    def test_prune_deletes_what_finished_strictly_before(self):
        self.client.set(self.build, "x", b"1")
        self.client.set(self.build, "y", b"1")
        self.client.finish(self.build, 1000)
        self.assertEqual(self.client.prune(1000), 0)
        self.client.hold(self.build)
        self.assertEqual(self.client.prune(1001), 0)
        self.client.unhold(self.build)
        self.assertEqual(self.client.prune(1001), 2)
        self.assertIsNone(self.client.get(self.build, "x"))

    def test_drop_deletes_a_build_that_never_finished(self):
        self.client.set(self.build, "x", b"1")
        self.assertEqual(self.client.drop(self.build), 1)
        self.assertEqual(self.client.drop(self.build), 0)

    def test_builds_are_listed_with_what_they_take(self):
        self.client.set(self.build, "x", b"12345")
        self.client.set(self.build, "y", b"")
        mine = [build for build in self.client.builds() if build.build == self.build]
        self.assertEqual(mine, [stepstash.Build(self.build, 2, 5, 0, None, False)])
        self.client.finish(self.build, at=0)
        self.client.hold(self.build)
        mine = [build for build in self.client.builds() if build.build == self.build]
        self.assertEqual(mine, [stepstash.Build(self.build, 2, 5, 0, 0, True)])
        self.client.reopen(self.build)
        mine = [build for build in self.client.builds() if build.build == self.build]
        self.assertEqual(mine, [stepstash.Build(self.build, 2, 5, 0, None, True)])
        numbers = [build.build for build in self.client.builds()]
        self.assertEqual(numbers, sorted(numbers))
        self.client.drop(self.build)
        self.assertNotIn(self.build, [build.build for build in self.client.builds()])

    def test_flush_returns_when_nothing_waits_for_the_database(self):
        self.client.set(self.build, "x", b"1")
        self.client.flush()
        self.assertEqual(self.client.stats()["dirty_values"], 0)


class Errors(WithDaemon):
    def test_what_ctypes_would_cut_is_refused(self):
        for build in (0, -1, 2**63, 2**64 + self.build):
            with self.assertRaises(stepstash.InvalidArgument) as caught:
                self.client.get(build, "x")
            self.assertEqual(caught.exception.code, -1)
        for name in ("a\0b", "\ud800", "x" * 257):
            with self.assertRaises(ValueError):
                self.client.set(self.build, name, b"1")
        with self.assertRaises(TypeError):
            self.client.get(self.build, b"x")

    def test_a_value_that_can_never_fit_names_both_sizes(self):
        with self.assertRaisesRegex(stepstash.TooLarge, "70000000.*67108864"):
            self.client.set(self.build, "x", bytes(70_000_000))

    def test_no_daemon_is_an_error_of_its_own(self):
        with self.assertRaises(stepstash.Unavailable) as caught:
            stepstash.Client(self.daemon.socket + "-none", deadline=0.1)
        self.assertIn("-none", str(caught.exception))

    def test_empty_is_not_absent(self):
        with self.assertRaisesRegex(stepstash.InvalidArgument, "empty"):
            stepstash.Client("")
        for variable, what in (("STEPSTASH_SOCKET", "stepstash.Client()"), ("STEPSTASH_LIBRARY", "")):
            ended = subprocess.run(
                [sys.executable, "-c", "import stepstash\n" + what],
                env={**os.environ, variable: ""},
                capture_output=True,
                text=True,
                check=False,
            )
            self.assertNotEqual(ended.returncode, 0)
            self.assertIn(f"{variable} is empty", ended.stderr)

    def test_a_path_too_long_for_a_socket_is_refused(self):
        with self.assertRaises(stepstash.InvalidArgument):
            stepstash.Client("/" + "x" * 120)


def worker(what):
    """In a process of multiprocessing: the sum of a piece, by the parent's client and view where there are any."""
    build, start = what
    if worker.parent is not None:
        client, view = worker.parent
        assert view.data[start] == start % 256
    else:
        client = worker.client
    with client.get(build, "x") as mine:
        return sum(mine[start : start + 10_000])


def start_worker(socket):
    if worker.parent is None:
        worker.client = stepstash.Client(socket)


worker.parent = None
worker.start = start_worker


class Processes(WithDaemon):
    def test_threads_may_use_one_client_at_once(self):
        self.client.set(self.build, "x", MEGABYTE)
        wrong = []

        def work(number):
            for i in range(50):
                self.client.set(self.build, f"t{number}", bytes([i]) * 100_000)
                with self.client.get(self.build, f"t{number}") as view:
                    if view.data != bytes([i]) * 100_000:
                        wrong.append((number, i))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])

    def test_a_forked_child_goes_on_with_its_parents_client_and_leaves_its_views_alone(self):
        self.client.set(self.build, "x", MEGABYTE)
        view = self.client.get(self.build, "x")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                same = view.data == MEGABYTE
                view.release()
                self.client.set(self.build, "from the child", b"hello")
                with self.client.get(self.build, "x") as mine:
                    same = same and mine.data == MEGABYTE
                status = 0 if same else 2
            finally:
                os._exit(status)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        for _ in range(60):
            self.client.set(self.build, "y", bytes(len(MEGABYTE)))
        self.assertEqual(view.data, MEGABYTE)  # the child's release has not released it
        view.release()
        self.assertEqual(self.value("from the child"), b"hello")

    def test_children_may_be_forked_while_other_threads_get_and_set(self):
        self.client.set(self.build, "x", MEGABYTE)
        stop = threading.Event()

        def work(number):
            while not stop.is_set():
                with self.client.get(self.build, "x") as view:
                    view.data[number]
                self.client.set(self.build, f"t{number}", b"x" * 1000)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(20):
                child = os.fork()
                if child == 0:
                    status = 1
                    try:
                        with self.client.get(self.build, "x") as view:
                            status = 0 if view.data == MEGABYTE else 2
                        self.client.set(self.build, "child", b"hello")
                    finally:
                        os._exit(status)
                self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        until(lambda: self.open_views() == 0, "the children's pins to go")

    def test_workers_of_multiprocessing_read_in_place_whether_forked_or_spawned(self):
        self.client.set(self.build, "x", MEGABYTE)
        for method in ("fork", "spawn"):
            with self.subTest(method), self.client.get(self.build, "x") as view:
                worker.parent = (self.client, view) if method == "fork" else None
                with multiprocessing.get_context(method).Pool(2, worker.start, (self.daemon.socket,)) as pool:
                    sums = pool.map(worker, [(self.build, start) for start in range(0, 100_000, 10_000)])
                    pool.close()
                    pool.join()
                self.assertEqual(sums, [sum(MEGABYTE[start : start + 10_000]) for start in range(0, 100_000, 10_000)])
                self.assertEqual(view.data, MEGABYTE)
        until(lambda: self.open_views() == 0, "the workers' pins to go")

    def test_a_multiprocessing_child_keeps_nothing_of_a_dead_parent(self):
        self.client.set(self.build, "x", MEGABYTE)
        script = (
            "import multiprocessing, os, signal, sys, time, stepstash\n"
            "context = multiprocessing.get_context('fork')\n"
            "client = stepstash.Client(sys.argv[1])\n"
            "client.set(int(sys.argv[2]), 'y', bytes(300000))\n"
            "view = client.get(int(sys.argv[2]), 'x')\n"
            "server = context.Process(target=time.sleep, args=(600,))\n"
            "server.start()\n"
            "print(server.pid, flush=True)\n"
            "sys.stdin.read()\n"
        )
        run = [sys.executable, "-c", script, self.daemon.socket, str(self.build)]
        step = subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        server = int(step.stdout.readline())
        try:
            self.assertEqual(self.open_views(), 1)
            step.kill()
            step.wait()
            until(lambda: self.open_views() == 0, "the dead step's pin to go", 1)
            until(lambda: self.client.stats()["pin_pages"] == 1, "its pin page to go", 1)
            until(lambda: self.client.stats()["connections"] == 1, "its connection to go", 1)
            until(lambda: self.client.stats()["staging_rings"] == 1, "its ring to go", 1)  # ours stays
            os.kill(server, 0)  # it lives all the while
        finally:
            os.kill(server, signal.SIGKILL)
            step.stdin.close()
            step.stdout.close()

    def test_what_a_program_without_standard_descriptors_prints_reaches_nobody(self):
        self.client.set(7, "kept", b"v")
        script = (
            "import os, sys, stepstash\n"
            "c = stepstash.Client(sys.argv[1])\n"
            "c.set(1, 'large', bytes(300000))\n"
            "taken = [fd for fd in (0, 1, 2) if os.path.exists(f'/proc/self/fd/{fd}')]\n"
            "try:\n"
            "    os.write(1, bytes.fromhex('080000000c000000' '0700000000000000'))\n"  # docs/protocol.md: drop build 7
            "except OSError:\n"
            "    pass\n"
            "with c.get(1, 'large') as view:\n"
            "    sys.exit(0 if not taken and len(view.data) == 300000 else 1)\n"
        )
        run = subprocess.run(
            ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", script, self.daemon.socket]
        )
        self.assertEqual(run.returncode, 0)
        with self.client.get(7, "kept") as kept:
            self.assertEqual(bytes(kept.data), b"v")

    def test_a_thread_that_has_read_may_end_after_the_library_was_closed(self):
        self.client.set(self.build, "x", b"v")
        script = (
            "import _ctypes, ctypes, os, sys, threading\n"
            "library = ctypes.CDLL(os.environ['STEPSTASH_LIBRARY'])\n"
            "used, closed = threading.Event(), threading.Event()\n"
            "def step():\n"
            "    client, view = ctypes.c_void_p(), (ctypes.c_uint64 * 12)()\n"
            "    assert library.stepstash_connect(sys.argv[1].encode(), 10000, ctypes.byref(client)) == 0\n"
            "    assert library.stepstash_get(client, ctypes.c_int64(int(sys.argv[2])), b'x', view) == 0\n"
            "    library.stepstash_release(view)\n"
            "    library.stepstash_close(client)\n"
            "    used.set()\n"
            "    closed.wait()\n"
            "thread = threading.Thread(target=step)\n"
            "thread.start()\n"
            "used.wait(60)\n"
            "_ctypes.dlclose(library._handle)\n"
            "closed.set()\n"
            "thread.join()\n"
            "print('ended')\n"
        )
        done = self.program(script)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "ended\n", ""))

    def test_the_resource_tracker_is_never_started(self):
        script = (
            "import sys, stepstash\n"
            "c = stepstash.Client(sys.argv[1])\n"
            "c.set(1, 'tracked', b'x' * 100000)\n"
            "view = c.get(1, 'tracked')\n"
            "print('multiprocessing' in sys.modules or '_posixshmem' in sys.modules)\n"
        )
        run = self.program(script)
        self.assertEqual((run.returncode, run.stdout, run.stderr), (0, "False\n", ""))
        # It ended with an open view: segment and value are there, and the pin goes with the process.
        self.assertTrue(pathlib.Path("/dev/shm", self.daemon.segment + ".d", "segment").exists())
        until(lambda: self.open_views() == 0, "the dead process's pin to go")

    def test_gets_go_on_while_the_daemon_is_dead_and_sets_when_it_is_back(self):
        daemon = Daemon("--flush-interval", "1h")  # what is found again comes from the segment
        self.addCleanup(daemon.stop)
        client = stepstash.Client(daemon.socket)
        client.set(1, "x", MEGABYTE)
        view = client.get(1, "x")
        daemon.kill()
        with client.get(1, "x") as again:
            self.assertEqual(again.data, MEGABYTE)
        self.assertIsNone(client.get(1, "y"))
        daemon.start()
        client.set(1, "y", b"after")
        with client.get(1, "y") as after:
            self.assertEqual(bytes(after.data), b"after")
        self.assertEqual(view.data, MEGABYTE)
        view.release()
        client.close()


if __name__ == "__main__":
    unittest.main()
