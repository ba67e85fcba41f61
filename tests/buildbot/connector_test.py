# SPDX-License-Identifier: Apache-2.0
"""The connector against a real daemon: what docs/buildbot.md promises, one behaviour each."""

import array
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types

import sqlalchemy

from support import WithDaemon  # first: it names the library

import stepstash
from buildbot.db import build_data
from stepstash.buildbot import BuildDataConnector
from twisted.internet import defer, reactor, task
from twisted.trial import unittest

MEBIBYTE = bytes(range(256)) * 4096


def fields(row):
    """A row, of whatever version of Buildbot, as a dict."""
    return None if row is None else dict(row) if isinstance(row, dict) else dict(vars(row))


class WithConnector(WithDaemon):
    @defer.inlineCallbacks
    def setUp(self):
        self.start_daemon("--segment-size", "256MiB")
        self.database = yield self.make_database()
        self.connector = BuildDataConnector(self.database.db, self.daemon.socket)
        self.addCleanup(self.connector.close)

    @defer.inlineCallbacks
    def names(self, build):
        rows = yield self.connector.getAllBuildDataNoValues(build)
        return [fields(row)["name"] for row in rows]


class Values(WithConnector):
    @defer.inlineCallbacks
    def test_a_row_is_of_the_running_buildbots_own_kind(self):
        yield self.connector.setBuildData(30, "mykey", b"myvalue", "mysource")
        row = yield self.connector.getBuildData(30, "mykey")
        self.assertIs(type(row), getattr(build_data, "BuildDataModel", None) or build_data.BuildDataDict)
        expected = {"buildid": 30, "name": "mykey", "value": b"myvalue", "length": 7, "source": "mysource"}
        self.assertEqual(fields(row), expected)

    @defer.inlineCallbacks
    def test_a_set_gives_none(self):
        result = yield self.connector.setBuildData(buildid=30, name="x", value=b"", source="s")
        self.assertIsNone(result)

    @defer.inlineCallbacks
    def test_a_second_set_replaces_value_length_and_source(self):
        yield self.connector.setBuildData(30, "x", b"old", "first")
        yield self.connector.setBuildData(30, "x", b"newer", "second")
        row = fields((yield self.connector.getBuildData(30, "x")))
        self.assertEqual((row["value"], row["length"], row["source"]), (b"newer", 5, "second"))

    @defer.inlineCallbacks
    def test_without_its_value_a_row_has_none_and_the_true_length(self):
        yield self.connector.setBuildData(30, "x", MEBIBYTE, "s")
        expected = {"buildid": 30, "name": "x", "value": None, "length": 1 << 20, "source": "s"}
        self.assertEqual(fields((yield self.connector.getBuildDataNoValue(30, "x"))), expected)
        rows = yield self.connector.getAllBuildDataNoValues(30)
        self.assertEqual([fields(row) for row in rows], [expected])

    @defer.inlineCallbacks
    def test_bytes_like_values_come_back_as_bytes(self):
        for value in (b"bytes", bytearray(b"bytearray"), memoryview(b"memory")[1:4], array.array("d", [0.5])):
            yield self.connector.setBuildData(30, "x", value, "s")
            row = fields((yield self.connector.getBuildData(30, "x")))
            self.assertIs(type(row["value"]), bytes)
            self.assertEqual(row["value"], bytes(value))

    @defer.inlineCallbacks
    def test_an_empty_value_an_empty_name_and_an_empty_source_are_values(self):
        yield self.connector.setBuildData(30, "", b"", "")
        row = fields((yield self.connector.getBuildData(30, "")))
        self.assertEqual(row, {"buildid": 30, "name": "", "value": b"", "length": 0, "source": ""})

    @defer.inlineCallbacks
    def test_a_large_value_comes_back_whole(self):
        value = MEBIBYTE * 64
        yield self.connector.setBuildData(30, "x", value, "s")
        row = fields((yield self.connector.getBuildData(30, "x")))
        self.assertTrue(row["value"] == value)  # not assertEqual, which would print it

    @defer.inlineCallbacks
    def test_names_are_equal_only_character_by_character(self):
        for name in ("a", "A", "a ", "\u00e9", "e\u0301", "\U0001f600"):
            yield self.connector.setBuildData(30, name, name.encode(), "s")
        for name in ("a", "A", "a ", "\u00e9", "e\u0301", "\U0001f600"):
            row = fields((yield self.connector.getBuildData(30, name)))
            self.assertEqual(row["value"], name.encode())

    @defer.inlineCallbacks
    def test_a_list_is_of_one_build_and_sorted_by_name(self):
        for name in ("zz", "aa", "mm", "B", "\u00e9", "\U0001f600", "\uffee"):
            yield self.connector.setBuildData(30, name, b"x", "s")
        yield self.connector.setBuildData(31, "other", b"x", "s")
        self.assertEqual((yield self.names(30)), ["B", "aa", "mm", "zz", "\u00e9", "\uffee", "\U0001f600"])

    @defer.inlineCallbacks
    def test_a_list_may_be_of_one_name_as_buildbot_documents_it(self):
        for name in ("a", "b"):
            yield self.connector.setBuildData(30, name, b"x", "s")
        rows = yield self.connector.getAllBuildDataNoValues(30, name="b")
        self.assertEqual([fields(row)["name"] for row in rows], ["b"])
        self.assertEqual((yield self.connector.getAllBuildDataNoValues(30, name="c")), [])

    @defer.inlineCallbacks
    def test_what_is_not_there_is_none_or_an_empty_list(self):
        yield self.connector.setBuildData(30, "x", b"x", "s")
        for build, name in ((30, "y"), (31, "x"), (None, "x"), (0, "x"), (-1, "x"), (30, None), (30, "x" * 300)):
            self.assertIsNone((yield self.connector.getBuildData(build, name)), (build, name))
            self.assertIsNone((yield self.connector.getBuildDataNoValue(build, name)), (build, name))
        for build in (31, None, 0, -1):
            self.assertEqual((yield self.connector.getAllBuildDataNoValues(build)), [], build)

    @defer.inlineCallbacks
    def test_a_build_number_may_be_text_as_on_sqlite(self):
        yield self.connector.setBuildData("30", "x", b"x", "s")
        for build in (30, "30"):
            self.assertEqual(fields((yield self.connector.getBuildData(build, "x")))["buildid"], 30)
        self.assertIsNone((yield self.connector.getBuildData("thirty", "x")))


class Failures(WithConnector):
    @defer.inlineCallbacks
    def fails(self, error, reason, *arguments):
        d = self.connector.setBuildData(*arguments)  # never raises here: the Deferred fails
        failure = yield self.assertFailure(d, error)
        self.assertRegex(str(failure), reason)

    @defer.inlineCallbacks
    def test_a_value_that_is_not_bytes_is_a_type_error(self):
        yield self.fails(TypeError, "bytes-like", 30, "x", "text", "s")
        for value in (None, {}, [], [b"pieces"], iter([b"pieces"]), io.BytesIO(b"file")):
            yield self.fails(TypeError, "bytes-like", 30, "x", value, "s")
        self.assertIsNone((yield self.connector.getBuildData(30, "x")))

    @defer.inlineCallbacks
    def test_what_stock_retries_for_ever_or_drops_fails_with_its_reason(self):
        yield self.fails(TypeError, "name is a str", 30, None, b"x", "s")
        yield self.fails(TypeError, "source is a str", 30, "x", b"x", None)
        yield self.fails(ValueError, "NUL", 30, "a\0b", b"x", "s")
        yield self.fails(ValueError, "None is not the number of a build", None, "x", b"x", "s")
        yield self.fails(stepstash.InvalidArgument, "256 characters", 30, "x" * 257, b"x", "s")
        yield self.fails(stepstash.InvalidArgument, "256 characters", 30, "x", b"x", "s" * 257)

    @defer.inlineCallbacks
    def test_256_characters_are_taken_whatever_their_bytes(self):
        name = "\U0001f600" * 256
        yield self.connector.setBuildData(30, name, b"x", name)
        self.assertEqual(fields((yield self.connector.getBuildData(30, name)))["source"], name)

    @defer.inlineCallbacks
    def test_a_value_that_can_never_fit_says_so(self):
        yield self.fails(stepstash.TooLarge, "segment", 30, "x", bytes(300 << 20), "s")

    @defer.inlineCallbacks
    def test_without_a_daemon_a_call_fails_at_its_deadline(self):
        lonely = BuildDataConnector(self.database.db, self.daemon.socket + ".none", deadline=1)
        self.addCleanup(lonely.close)
        calls = [lonely.setBuildData(30, str(i), b"x", "s") for i in range(8)]
        started = time.monotonic()
        for call in calls:
            failure = yield self.assertFailure(call, stepstash.Unavailable)
            self.assertIn(".none", str(failure))
        self.assertLess(time.monotonic() - started, 6)  # all together: one after the other they would take 8 s

    @defer.inlineCallbacks
    def test_calls_to_a_daemon_that_takes_connections_and_does_not_answer_end_together(self):
        lonely = BuildDataConnector(self.database.db, self.daemon.socket, deadline=1)
        self.addCleanup(lonely.close)
        self.daemon.process.send_signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            for call in [lonely.setBuildData(30, str(i), b"x", "s") for i in range(8)]:
                failure = yield self.assertFailure(call, stepstash.Unavailable)
                self.assertIn("no answer", str(failure))
            self.assertLess(time.monotonic() - started, 6)
        finally:
            self.daemon.process.send_signal(signal.SIGCONT)

    @defer.inlineCallbacks
    def test_after_close_a_call_fails(self):
        yield self.connector.setBuildData(30, "x", b"x", "s")
        yield self.connector.close()
        yield self.connector.close()
        yield self.assertFailure(self.connector.getBuildData(30, "x"), ValueError)

    @defer.inlineCallbacks
    def test_close_waits_for_the_calls_under_way_and_ends_the_threads(self):
        before = set(threading.enumerate())
        other = BuildDataConnector(self.database.db, self.daemon.socket)
        call = other.setBuildData(30, "x", MEBIBYTE * 64, "s")
        self.assertTrue(set(threading.enumerate()) - before)
        yield other.close()
        yield call
        left = [thread.name for thread in set(threading.enumerate()) - before if "stepstash" in thread.name]
        self.assertEqual(left, [])


class Retention(WithConnector):
    @defer.inlineCallbacks
    def four_builds(self):
        """As in Buildbot's own test: completed never, at 1000001, 1000002 and 1000003; two, two, one and one rows."""
        for number, complete_at, rows in ((50, None, 2), (51, 1000001, 2), (52, 1000002, 1), (53, 1000003, 1)):
            yield self.database.add_build(number, complete_at)
            for i in range(rows):
                yield self.connector.setBuildData(number, f"name{i}", b"value", "source")

    @defer.inlineCallbacks
    def test_what_completed_strictly_before_is_deleted_and_counted(self):
        for older_than, deleted in ((1000000, 0), (1000001, 0), (1000002, 2), (1000003, 1), (1000004, 1), (1 << 40, 0)):
            if older_than == 1000000:
                yield self.four_builds()
            self.assertEqual((yield self.connector.deleteOldBuildData(older_than)), deleted, older_than)
        self.assertEqual((yield self.names(50)), ["name0", "name1"])

    @defer.inlineCallbacks
    def test_fractions_of_a_second_count(self):
        yield self.four_builds()
        self.assertEqual((yield self.connector.deleteOldBuildData(1000001.0)), 0)
        self.assertEqual((yield self.connector.deleteOldBuildData(1000001.5)), 2)

    def test_a_time_that_is_none_fails(self):
        return self.assertFailure(self.connector.deleteOldBuildData(None), TypeError)

    @defer.inlineCallbacks
    def test_buildbots_own_table_decides_when_a_build_completed(self):
        yield self.four_builds()
        # The daemon was told something else, say by `stepstash finish` in a step of a build that goes on.
        for number in (50, 52):
            yield self.connector.setBuildComplete(number, 5)
        self.assertEqual((yield self.connector.deleteOldBuildData(1000002)), 2)
        self.assertEqual(len((yield self.names(50))), 2)
        self.assertEqual((yield self.names(52)), ["name0"])

    @defer.inlineCallbacks
    def test_data_of_builds_that_buildbot_does_not_know_is_deleted_and_counted(self):
        yield self.four_builds()
        for i in range(3):
            yield self.connector.setBuildData(999, f"orphan{i}", b"value", "source")
        self.assertEqual(len((yield self.names(999))), 3)  # readable until then
        self.assertEqual((yield self.connector.deleteOldBuildData(1)), 3)
        self.assertEqual((yield self.names(999)), [])

    @defer.inlineCallbacks
    def test_data_set_after_the_build_completed_is_deleted_as_well(self):
        yield self.four_builds()
        yield self.connector.deleteOldBuildData(1000002)
        yield self.connector.setBuildData(51, "late", b"value", "source")
        self.assertEqual((yield self.connector.deleteOldBuildData(1000002)), 1)

    @defer.inlineCallbacks
    def test_a_held_build_stays(self):
        yield self.four_builds()
        yield self.connector.setBuildData(999, "orphan", b"value", "source")
        with stepstash.Client(self.daemon.socket) as client:
            for number in (51, 999):
                client.hold(number)
            self.assertEqual((yield self.connector.deleteOldBuildData(1000003)), 1)
            for number in (51, 999):
                client.unhold(number)
        self.assertEqual((yield self.connector.deleteOldBuildData(1000003)), 3)

    @defer.inlineCallbacks
    def test_a_build_that_is_held_while_the_database_is_asked_stays(self):
        yield self.connector.setBuildData(999, "orphan", b"value", "source")
        ask = self.connector._completion_times

        @defer.inlineCallbacks
        def busy(numbers):
            with stepstash.Client(self.daemon.socket) as client:
                client.hold(999)
            return (yield ask(numbers))

        self.patch(self.connector, "_completion_times", busy)
        self.assertEqual((yield self.connector.deleteOldBuildData(1000)), 0)
        self.assertEqual((yield self.names(999)), ["orphan"])

    @defer.inlineCallbacks
    def test_more_builds_than_one_query_looks_up(self):
        for number in range(1, 1203):
            yield self.connector.setBuildData(number, "x", b"v", "s")
            if number % 2:
                yield self.database.add_build(number, 10 + number)
        # Of 1202, the 601 even ones are unknown; of the odd ones, 1 .. 1000 completed before 1011.
        self.assertEqual((yield self.connector.deleteOldBuildData(1011)), 601 + 500)

    @defer.inlineCallbacks
    def test_a_build_that_is_reopened_is_never_deleted(self):
        yield self.connector.setBuildData(60, "x", b"v", "s")
        yield self.connector.setBuildComplete(60, 1000)
        yield self.connector.setBuildComplete(60, None)
        with stepstash.Client(self.daemon.socket) as client:
            self.assertEqual(client.prune(2**63 - 1), 0)
            self.assertEqual([build.complete_at for build in client.builds()], [None])
        yield self.connector.setBuildComplete(60, 1000)
        with stepstash.Client(self.daemon.socket) as client:
            self.assertEqual(client.prune(1001), 1)

    @defer.inlineCallbacks
    def test_without_buildbots_tables_the_daemons_own_knowledge_decides(self):
        alone = BuildDataConnector(types.SimpleNamespace(master=None), self.daemon.socket)
        self.addCleanup(alone.close)
        for number in (70, 71):
            yield alone.setBuildData(number, "x", b"v", "s")
        yield alone.setBuildComplete(70, 1000)
        self.assertEqual((yield alone.deleteOldBuildData(1001)), 1)
        self.assertEqual((yield self.names(71)), ["x"])


class Independence(WithConnector):
    """Nobody else waits: neither the reactor nor what the master asks its database meanwhile."""

    @defer.inlineCallbacks
    def test_the_master_and_its_database_go_on_while_64_mebibytes_are_being_set(self):
        yield self.connector.setBuildData(30, "small", b"v", "s")
        self.daemon.process.send_signal(signal.SIGSTOP)  # a set that takes as long as the test wants
        try:
            call = self.connector.setBuildData(30, "x", MEBIBYTE * 64, "s")
            for _ in range(100):
                yield self.database.db.pool.do(lambda connection: connection.execute(sqlalchemy.text("select 1")).scalar())
                row = yield self.connector.getBuildData(30, "small")
                self.assertEqual(fields(row)["value"], b"v")
            self.assertFalse(call.called)
        finally:
            self.daemon.process.send_signal(signal.SIGCONT)
        yield call

    @defer.inlineCallbacks
    def test_values_in_memory_are_read_however_many_calls_wait(self):
        yield self.connector.setBuildData(30, "small", b"v", "s")
        self.daemon.process.send_signal(signal.SIGSTOP)
        try:
            calls = [self.connector.setBuildData(30, str(i), MEBIBYTE, "s") for i in range(12)]
            calls += [self.connector.getAllBuildDataNoValues(30) for _ in range(12)]
            reads = [self.connector.getBuildData(30, "small"), self.connector.getBuildDataNoValue(30, "small")]
            reads.append(self.connector.getBuildData(30, "absent"))
            rows = yield defer.gatherResults(reads).addTimeout(5, reactor)
            self.assertEqual([row and fields(row)["value"] for row in rows], [b"v", None, None])
            self.assertFalse(any(call.called for call in calls))
        finally:
            self.daemon.process.send_signal(signal.SIGCONT)
        yield defer.gatherResults(calls)

    @defer.inlineCallbacks
    def test_more_values_may_be_read_at_once_than_a_client_has_views(self):
        yield self.connector.setBuildData(30, "x", b"v", "s")
        free = threading.Event()
        busy = [self.connector._in_thread(lambda _: free.wait(60), waits=False) for _ in range(8)]  # all threads
        calls = [self.connector.getBuildData(30, "x") for _ in range(450)]
        yield self.connector.getAllBuildDataNoValues(30)  # behind those calls that are taken for ones that wait
        free.set()
        rows = yield defer.gatherResults(calls)
        self.assertEqual([fields(row)["value"] for row in rows], [b"v"] * 450)
        yield defer.gatherResults(busy)

    @defer.inlineCallbacks
    def test_the_reactor_goes_on_while_a_value_is_copied(self):
        yield self.connector.setBuildData(30, "x", MEBIBYTE * 100, "s")

        @defer.inlineCallbacks
        def longest_pause():
            ticks = [time.monotonic()]
            ticking = task.LoopingCall(lambda: ticks.append(time.monotonic()))
            ticking.start(0.0005)
            yield self.connector.getBuildData(30, "x")
            ticks.append(time.monotonic())
            ticking.stop()
            return max(b - a for a, b in zip(ticks, ticks[1:]))

        # Against what a copy that holds the GIL takes here and now: other tests run on the same machine. The best of
        # each, since a pause may have other reasons.
        pauses, copies = [], []
        for _ in range(8):
            pauses.append((yield longest_pause()))
            with stepstash.Client(self.daemon.socket) as client, client.get(30, "x") as view:
                started = time.monotonic()
                bytes(view.data)
                copies.append(time.monotonic() - started)
        print(f"100 MiB: the reactor paused for {min(pauses) * 1e3:.1f} ms, a copy takes {min(copies) * 1e3:.1f} ms")
        self.assertLess(min(pauses), min(copies) / 2)

    @defer.inlineCallbacks
    def test_the_database_may_be_busy_while_values_are_set_and_read(self):
        blocked, entered = threading.Event(), defer.Deferred()

        def thd(connection):
            reactor.callFromThread(entered.callback, None)
            blocked.wait(60)

        busy = self.database.db.pool.do(thd)
        yield entered
        try:
            yield self.connector.setBuildData(30, "x", b"v", "s")
            self.assertEqual(fields((yield self.connector.getBuildData(30, "x")))["value"], b"v")
            self.assertEqual((yield self.names(30)), ["x"])
        finally:
            blocked.set()
        yield busy

    @defer.inlineCallbacks
    def test_a_call_waits_for_a_daemon_that_restarts(self):
        yield self.connector.setBuildData(30, "x", b"v", "s")
        self.daemon.kill()
        call = self.connector.setBuildData(30, "y", b"w", "s")
        row = yield self.connector.getBuildData(30, "x")  # needs no daemon
        self.assertEqual(fields(row)["value"], b"v")
        self.assertFalse(call.called)
        self.daemon.start()
        yield call
        self.assertEqual((yield self.names(30)), ["x", "y"])

    @defer.inlineCallbacks
    def test_the_first_call_of_all_waits_too(self):
        with tempfile.TemporaryDirectory() as directory:
            link = os.path.join(directory, "socket")
            early = BuildDataConnector(self.database.db, link)
            self.addCleanup(early.close)
            refused, connect = defer.Deferred(), stepstash.Client

            def connecting(*arguments):
                try:
                    return connect(*arguments)
                except stepstash.Unavailable:
                    reactor.callFromThread(lambda: refused.called or refused.callback(None))
                    raise

            self.patch(stepstash, "Client", connecting)
            call = early.setBuildData(30, "x", b"v", "s")
            yield refused
            os.symlink(self.daemon.socket, link)
            yield call


class Shutdown(WithDaemon):
    def test_a_connector_may_be_closed_and_called_whenever_the_reactor_ends(self):
        self.start_daemon()
        script = (
            "import sys, types\n"
            "from stepstash.buildbot import BuildDataConnector\n"
            "from twisted.internet import reactor\n"
            "connector = BuildDataConnector(types.SimpleNamespace(master=None), sys.argv[1])\n"
            "def end():\n"
            "    connector.close().addErrback(lambda failure: print(failure.value))\n"
            "    connector.getBuildData(30, 'x').addErrback(lambda failure: print(failure.type.__name__))\n"
            "reactor.addSystemEventTrigger(sys.argv[2], 'shutdown', end)\n"
            "connector.setBuildData(30, 'x', b'v', 's').addCallback(lambda _: reactor.stop())\n"
            "reactor.run()\n"
        )
        for phase in ("before", "during", "after"):
            run = [sys.executable, "-c", script, self.daemon.socket, phase]
            ended = subprocess.run(run, capture_output=True, text=True, timeout=60)
            self.assertEqual((ended.returncode, ended.stdout, ended.stderr), (0, "ValueError\n", ""), phase)


class Imports(unittest.TestCase):
    def test_the_package_itself_imports_neither_buildbot_nor_twisted(self):
        program = "import sys, stepstash; sys.exit(any(m.split('.')[0] in ('buildbot', 'twisted') for m in sys.modules))"
        self.assertEqual(subprocess.run([sys.executable, "-c", program]).returncode, 0)
