# SPDX-License-Identifier: Apache-2.0
"""stepstash.aio against the real daemon, which is stopped (SIGSTOP) where a call must be seen to wait or not to."""

import asyncio
import gc
import io
import os
import signal
import subprocess
import sys
import threading
import time
import unittest

from daemon import Daemon, until  # also names the library

import stepstash
from stepstash.aio import AsyncClient

MEGABYTE = bytes(range(256)) * 4096


class AsyncTest(unittest.IsolatedAsyncioTestCase):
    build = 0

    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon()
        cls.addClassCleanup(cls.daemon.stop)
        cls.control = stepstash.Client(cls.daemon.socket)
        cls.addClassCleanup(cls.control.close)

    async def asyncSetUp(self):
        AsyncTest.build += 1
        asyncio.get_running_loop().slow_callback_duration = 60  # tests look at the daemon on the loop's own thread
        self.client = AsyncClient(self.daemon.socket, threads=2)
        await self.client.connect()
        self.addCleanup(self.client.close)

    def open_views(self):
        return self.control.stats()["open_views"]

    def stop_daemon(self):
        self.daemon.process.send_signal(signal.SIGSTOP)
        self.addCleanup(self.go_on)

    def go_on(self):
        self.daemon.process.send_signal(signal.SIGCONT)

    def evict(self, name):
        """Sets a value, and others until it is only in the database: a finished build's values are the first to go."""
        self.control.set(self.build, name, MEGABYTE)
        self.control.finish(self.build)
        for i in range(100):
            self.control.set(10_000, f"other {i % 8}", MEGABYTE * 8)
            self.control.flush()
            known, view = self.control._resident(self.build, name)
            if not known:
                return
            view.release()
        self.fail("it is still in memory")

    async def eventually(self, condition):
        deadline = time.monotonic() + 20
        while not condition():
            self.assertLess(time.monotonic(), deadline)
            await asyncio.sleep(0.005)

    async def test_every_method_of_the_client_is_there_and_does_the_same(self):
        def public(kind):
            return {name for name in dir(kind) if not name.startswith("_")}

        self.assertEqual(public(AsyncClient) - public(stepstash.Client), {"connect"})
        self.assertEqual(public(stepstash.Client) - public(AsyncClient), set())

        b, c = self.build, self.client
        done = await c.set(b, "x", MEGABYTE, "here", durable=True)
        with await c.get(b, "x") as view:
            self.assertEqual((view.data, view.source), (MEGABYTE, "here"))
        self.assertIsNone(await c.get(b, "absent"))
        entry = await c.stat(b, "x")
        self.assertEqual((entry.id, entry.revision), done)
        self.assertEqual(await c.list(b), [entry])
        self.assertEqual(await c.list(b, "absent"), [])
        self.assertEqual([one.entries for one in await c.builds() if one.build == b], [1])
        self.assertIsNone(await c.set(b, "x", b"other", if_absent=True))
        await c.set(b, "memory", io.BytesIO(MEGABYTE))
        await c.set_file(b, "file", io.BytesIO(MEGABYTE))
        self.assertEqual([one.length for one in await c.list(b)], [len(MEGABYTE)] * 3)
        await c.flush()
        await c.hold(b)
        await c.finish(b, 1000)
        self.assertEqual(await c.prune(1001), 0)
        await c.unhold(b)
        self.assertEqual(await c.prune(1001), 3)
        self.assertEqual(await c.drop(b), 0)
        self.assertIn("open_views", await c.stats())

    async def test_a_get_that_hits_or_misses_needs_neither_a_thread_nor_the_daemon(self):
        await self.client.set(self.build, "x", b"abc")
        self.stop_daemon()
        busy = [asyncio.ensure_future(self.client.stats()) for _ in range(3)]  # both threads, and one call waits
        await asyncio.sleep(0)
        with await asyncio.wait_for(self.client.get(self.build, "x"), 2) as view:
            self.assertEqual(bytes(view), b"abc")
        self.assertIsNone(await asyncio.wait_for(self.client.get(self.build, "absent"), 2))
        self.assertEqual([task.done() for task in busy], [False] * 3)
        self.go_on()
        await asyncio.gather(*busy)

    async def test_the_loop_goes_on_while_a_value_is_set_and_an_evicted_one_is_asked_for(self):
        self.evict("x")
        self.stop_daemon()
        calls = [self.client.get(self.build, "x"), self.client.set(self.build, "y", MEGABYTE)]
        tasks = [asyncio.ensure_future(call) for call in calls]
        for _ in range(20):
            await asyncio.sleep(0.001)
        self.assertEqual([task.done() for task in tasks], [False, False])
        self.go_on()
        view, done = await asyncio.gather(*tasks)
        self.assertEqual((view.data, done is None), (MEGABYTE, False))
        view.release()

    async def test_a_get_that_is_cancelled_leaves_no_pin(self):
        self.evict("x")
        gc.disable()  # which would give it back some day
        self.addCleanup(gc.enable)
        before = self.control.stats()["reloads"]
        self.stop_daemon()
        tasks = [asyncio.ensure_future(self.client.get(self.build, "x")) for _ in range(5)]
        await asyncio.sleep(0)
        await asyncio.sleep(0.05)  # two of them are with the daemon, three are queued
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        self.assertEqual([type(one) for one in done], [asyncio.CancelledError] * 5)
        self.go_on()
        await self.eventually(lambda: self.control.stats()["reloads"] > before)
        await self.client.stats()
        await self.eventually(lambda: self.open_views() == 0)

    async def test_a_get_that_is_cancelled_after_it_has_ended_leaves_no_pin(self):
        self.evict("x")
        gc.disable()
        self.addCleanup(gc.enable)
        task = asyncio.ensure_future(self.client.get(self.build, "x"))
        await asyncio.sleep(0)
        until(lambda: self.open_views() == 1, "the thread to have it")  # the loop does not run meanwhile
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        await self.eventually(lambda: self.open_views() == 0)

    async def test_a_view_that_came_by_a_thread_goes_with_its_last_reference(self):
        self.evict("x")
        gc.disable()
        self.addCleanup(gc.enable)
        view = await self.client.get(self.build, "x")
        self.assertEqual(self.open_views(), 1)
        del view
        await self.eventually(lambda: self.open_views() == 0)

    async def test_many_wait_for_a_name_without_a_thread(self):
        waiting = [asyncio.ensure_future(self.client.wait(self.build, "late", 20)) for _ in range(50)]
        gone = asyncio.ensure_future(self.client.wait(self.build, "late", 20))
        await asyncio.sleep(0.01)
        gone.cancel()
        self.assertIsNone(await self.client.wait(self.build, "never", 0.02))
        await self.client.set(self.build, "late", b"here")
        views = await asyncio.gather(*waiting)
        self.assertEqual([bytes(view) for view in views], [b"here"] * 50)
        for view in views:
            view.release()
        self.assertTrue(gone.cancelled())
        self.assertEqual(self.open_views(), 0)

    async def test_an_asynchronous_iterable_is_taken_and_one_that_fails_sets_nothing(self):
        async def pieces(fail):
            for start in range(0, len(MEGABYTE), 100_000):
                await asyncio.sleep(0)
                yield MEGABYTE[start : start + 100_000]
            if fail:
                raise KeyError("later")

        await self.client.set(self.build, "x", pieces(False))
        with await self.client.get(self.build, "x") as view:
            self.assertEqual(view.data, MEGABYTE)
        with self.assertRaises(KeyError):
            await self.client.set(self.build, "y", pieces(True))
        self.assertIsNone(await self.client.get(self.build, "y"))

    async def test_a_writer_whose_write_is_cancelled_sets_nothing_and_its_connection_is_used_again(self):
        writer = await self.client.begin(self.build, "x")
        self.stop_daemon()

        async def fill():
            async with writer:
                while True:
                    await writer.write(MEGABYTE)  # waits when the ring is full

        task = asyncio.ensure_future(fill())
        await asyncio.sleep(0.05)
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        self.go_on()
        await self.eventually(lambda: writer._writer.closed)
        self.assertIsNone(await self.client.get(self.build, "x"))
        await self.client.set(self.build, "x", MEGABYTE)

    async def test_calls_of_a_writer_at_one_time_are_refused_and_one_that_was_cancelled_is_final(self):
        def occupy():
            """Both threads, until go_on."""
            return [asyncio.ensure_future(self.client._threads.run(go_on.wait, 20)) for _ in range(2)]

        writer = await self.client.begin(self.build, "x")
        go_on = threading.Event()
        busy = occupy()
        await asyncio.sleep(0)
        writes = [asyncio.ensure_future(writer.write(MEGABYTE)) for _ in range(8)]
        await asyncio.sleep(0)  # all have begun
        go_on.set()
        done = await asyncio.gather(*writes, return_exceptions=True)
        await asyncio.gather(*busy)
        self.assertEqual([type(one) for one in done], [int] + [RuntimeError] * 7)
        await writer.commit()
        self.assertEqual((await self.client.stat(self.build, "x")).length, len(MEGABYTE))

        async with await self.client.begin(self.build, "y") as writer:
            await writer.write(b"first")
            go_on = threading.Event()
            busy = occupy()
            await asyncio.sleep(0)
            second = asyncio.ensure_future(writer.write(b"second"))
            await asyncio.sleep(0)
            second.cancel()  # in the queue: its bytes will never come
            await asyncio.gather(second, return_exceptions=True)
            go_on.set()
            await asyncio.gather(*busy)
            with self.assertRaises(RuntimeError):
                await writer.write(b"third")
            with self.assertRaises(RuntimeError):
                await writer.commit()
        self.assertIsNone(await self.client.get(self.build, "y"))

    async def test_a_writer_that_is_aborted_after_the_client_was_closed_leaves_no_thread(self):
        writer = await self.client.begin(self.build, "x")
        await writer.write(MEGABYTE)
        self.client.close()
        writer.abort()
        await self.eventually(lambda: writer._writer.closed)
        await self.eventually(lambda: threading.active_count() == 1)
        self.assertIsNone(self.control.get(self.build, "x"))

    async def test_what_is_closed_while_it_connects_is_not_connected_afterwards(self):
        client = AsyncClient(self.daemon.socket)
        connecting = asyncio.ensure_future(client.connect())
        await asyncio.sleep(0)
        client.close()
        with self.assertRaises(ValueError):
            await connecting
        with self.assertRaises(ValueError):
            await client.get(self.build, "x")
        await asyncio.gather(client.connect(), client.connect())
        self.assertIsNone(await client.get(self.build, "x"))
        client.close()

    async def test_errors_are_those_of_the_client(self):
        with self.assertRaisesRegex(stepstash.InvalidArgument, "9223372036854775807"):
            await self.client.get(0, "x")
        with self.assertRaises(stepstash.InvalidArgument):
            await asyncio.wait_for(self.client.wait(self.build, "x", float("nan")), 2)
        with self.assertRaisesRegex(stepstash.TooLarge, "70000000.*67108864"):
            await self.client.set(self.build, "x", bytes(70_000_000))
        with self.assertRaisesRegex(stepstash.Unavailable, "-none"):
            async with AsyncClient(self.daemon.socket + "-none"):
                pass
        self.client.close()
        with self.assertRaises(ValueError):
            await self.client.get(self.build, "x")
        with self.assertRaises(ValueError):
            await AsyncClient(self.daemon.socket).get(self.build, "x")


class ExitTest(unittest.TestCase):
    def test_a_writer_may_be_aborted_when_the_interpreter_ends(self):
        daemon = Daemon()
        self.addCleanup(daemon.stop)
        script = (
            "import asyncio, atexit, sys\n"
            "from stepstash.aio import AsyncClient\n"
            "async def main():\n"
            "    client = AsyncClient(sys.argv[1])\n"
            "    await client.connect()\n"
            "    writer = await client.begin(1, 'x')\n"
            "    await writer.write(bytes(300000))\n"
            "    atexit.register(writer.abort)\n"
            "asyncio.run(main())\n"
        )
        ended = subprocess.run([sys.executable, "-c", script, daemon.socket], capture_output=True, text=True)
        self.assertEqual((ended.returncode, ended.stderr), (0, ""))


class ForkTest(unittest.TestCase):
    def test_a_forked_child_goes_on_with_a_loop_and_threads_of_its_own(self):
        daemon = Daemon()
        self.addCleanup(daemon.stop)
        client = AsyncClient(daemon.socket)

        async def use(number):
            await client.connect()
            await client.set(1, f"x{number}", MEGABYTE)
            with await client.get(1, f"x{number}") as view:
                return view.data == MEGABYTE and len(await client.list(1)) == number

        self.assertTrue(asyncio.run(use(1)))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if asyncio.run(asyncio.wait_for(use(2), 20)) else 2
            finally:
                os._exit(status)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        self.assertTrue(asyncio.run(use(3)))
        client.close()
        until(lambda: threading.active_count() == 1, "the threads to end")


if __name__ == "__main__":
    unittest.main()
