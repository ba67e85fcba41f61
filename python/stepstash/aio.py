# SPDX-License-Identifier: Apache-2.0
"""stepstash for asyncio: the Client's methods as coroutines.

    from stepstash.aio import AsyncClient

    async with AsyncClient() as client:
        await client.set(42, "report", b"all 120 tests passed")
        with await client.get(42, "report") as view:      # the same View: nothing is copied
            print(bytes(view))

A get of a value that is in memory runs at once, on the event loop's thread: it waits for nothing. All that asks the
daemon runs on a few threads of the client's own, one for each call at a time, and the loop goes on.

A call that is cancelled leaves no view open: what a thread still gets is released. A set, a finish and the like that
are cancelled may have been done, as when a connection breaks.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, AsyncIterable, Callable, Dict, Iterable, List, Optional, TypeVar, Union

from ._client import Build, Client, Entry, Readable, SetResult, View, Writer, _milliseconds

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, StrPath

__all__ = ["AsyncClient", "AsyncWriter"]

_T = TypeVar("_T")

# How long wait() sleeps between two looks into the segment, in seconds: a look takes 3 us and asks nobody, so that 1000
# waiting tasks take 1 % of a processor or so, and no thread.
_FIRST_LOOK, _LAST_LOOK = 0.001, 0.05


class _Threads:
    """A pool that a forked child may go on with: it does not have its parent's threads, and starts its own."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: Optional[ThreadPoolExecutor] = None
        self._process = 0

    def submit(self, call: Callable[..., _T], *arguments: Any, **options: Any) -> Future[_T]:
        if self._pool is None or self._process != os.getpid():
            self._pool, self._process = ThreadPoolExecutor(self._count, "stepstash"), os.getpid()
        return self._pool.submit(call, *arguments, **options)

    async def run(self, call: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
        future = self.submit(call, *arguments, **options)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(self._dispose)  # at once, if it has ended already
            raise

    def forget(self, call: Callable[[], Any]) -> None:
        """Runs what nobody awaits, also after close(), without a pool that nobody would close again."""
        pool = self._pool if self._process == os.getpid() else None
        try:
            if pool is not None:
                pool.submit(call)
            else:
                threading.Thread(target=call, name="stepstash", daemon=True).start()
        except RuntimeError:  # closed by another thread, or the interpreter ends
            call()

    def _dispose(self, future: Future[Any]) -> None:
        """Gives back what nobody awaits any more."""
        if not future.cancelled() and future.exception() is None:
            result = future.result()
            if isinstance(result, View):
                result.release()
            elif isinstance(result, Writer):
                self.forget(result.abort)  # asks the daemon

    def close(self) -> None:
        """Returns at once. Calls that run go on to their end."""
        pool, self._pool = self._pool, None
        if pool is not None and self._process == os.getpid():
            pool.shutdown(wait=False)


class AsyncWriter:
    """A set whose value comes in pieces, as Writer. One call at a time; one that is cancelled is final, as an error."""

    def __init__(self, writer: Writer, threads: _Threads) -> None:
        self._writer = writer
        self._threads = threads
        self._last: Optional[Future[Any]] = None

    async def _run(self, call: Callable[..., _T], *arguments: Any) -> _T:
        last = self._last
        if last is not None and (not last.done() or last.cancelled()):
            # Two threads must not use a writer at once, and a value must not lack the piece that was cancelled.
            raise RuntimeError("a call of this writer is under way or was cancelled: abort it")
        self._last = self._threads.submit(call, *arguments)
        future: Future[_T] = self._last
        return await asyncio.wrap_future(future)

    async def write(self, data: Union[ReadableBuffer, View]) -> int:
        """Appends a bytes-like object, which must not change meanwhile; returns its bytes. An error is final: abort."""
        return await self._run(self._writer.write, data)

    async def commit(self) -> Optional[SetResult]:
        """Publishes the value. None: a condition did not hold, and nothing was changed."""
        return await self._run(self._writer.commit)

    def abort(self) -> None:
        """Forgets the value, on a thread. After commit(), and again: nothing."""
        if self._last is None:
            self._threads.forget(self._writer.abort)
        elif not self._writer.closed:  # a write that was cancelled may still run: one thread at a time
            self._last.add_done_callback(lambda _: self._threads.forget(self._writer.abort))

    async def __aenter__(self) -> AsyncWriter:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.abort()


class AsyncClient:
    """A connection to the daemon of this host, for the tasks of one event loop at a time. A forked child may go on
    using it, with a loop of its own.

    `async with` connects and closes; without it, await connect() first. `socket` and `deadline` are those of Client;
    `threads` bounds how many calls ask the daemon at once: the others wait for their turn.
    """

    def __init__(self, socket: Optional[StrPath] = None, deadline: float = 10.0, *, threads: int = 4) -> None:
        self._place = socket, deadline
        self._threads = _Threads(threads)
        self._client: Optional[Client] = None
        self._closed = 0  # how often

    async def connect(self) -> None:
        """Connects, unless it is connected."""
        if self._client is None:
            closed = self._closed
            client = await self._threads.run(Client, *self._place)
            if self._closed != closed:
                client.close()
                raise ValueError("the client was closed while it connected")
            if self._client is None:  # another task may have been faster
                self._client = client

    def close(self) -> None:
        """Closes the connection, at once. Views stay valid, and calls that run go on to their end."""
        client, self._client, self._closed = self._client, None, self._closed + 1
        if client is not None:
            client.close()
        self._threads.close()

    async def __aenter__(self) -> AsyncClient:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> Client:
        client = self._client
        if client is None:
            raise ValueError("the client is not connected")
        return client

    # ---- reading ----

    async def get(self, build: int, name: str) -> Optional[View]:
        """The build datum, held in place; None when there is none. Only an evicted value is asked for on a thread."""
        client = self._open()
        known, view = client._resident(build, name)
        return view if known else await self._threads.run(client.get, build, name)

    async def wait(self, build: int, name: str, timeout: float) -> Optional[View]:
        """As get, but waits up to `timeout` seconds for the name to appear; None when it did not. Looks for it every
        50 ms, and takes no thread."""
        _milliseconds(timeout)  # refuses what is not a number
        until = time.monotonic() + timeout
        pause = _FIRST_LOOK
        while True:
            view = await self.get(build, name)
            left = until - time.monotonic()
            if view is not None or left <= 0:
                return view
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 2, _LAST_LOOK)

    async def stat(self, build: int, name: str) -> Optional[Entry]:
        """All but the value; None when there is no such build datum."""
        return await self._threads.run(self._open().stat, build, name)

    async def list(self, build: int, name: Optional[str] = None) -> List[Entry]:
        """All entries of a build as of one instant, in id order, or the one called `name`. An unknown build has none."""
        return await self._threads.run(self._open().list, build, name)

    async def builds(self) -> List[Build]:
        """All builds that have data, in the order of their numbers."""
        return await self._threads.run(self._open().builds)

    # ---- writing ----

    async def set(
        self,
        build: int,
        name: str,
        value: Union[ReadableBuffer, View, Readable, Iterable[ReadableBuffer], AsyncIterable[ReadableBuffer]],
        source: str = "",
        *,
        durable: bool = False,
        if_absent: bool = False,
        if_revision: int = 0,
        deadline: Optional[float] = None,
    ) -> Optional[SetResult]:
        """As Client.set: a bytes-like object, which must not change meanwhile; a binary file or an iterable, which are
        read on the thread; or an asynchronous iterable of bytes-like pieces."""
        conditions = _conditions(durable, if_absent, if_revision, deadline)
        if not isinstance(value, AsyncIterable):
            return await self._threads.run(self._open().set, build, name, value, source, **conditions)
        writer = await self.begin(build, name, None, source, **conditions)
        if writer is None:
            return None
        async with writer:
            async for piece in value:
                await writer.write(piece)
            return await writer.commit()

    async def set_file(
        self,
        build: int,
        name: str,
        file: Union[int, Readable],
        source: str = "",
        *,
        durable: bool = False,
        if_absent: bool = False,
        if_revision: int = 0,
        deadline: Optional[float] = None,
    ) -> Optional[SetResult]:
        """As Client.set_file: reads on the thread."""
        conditions = _conditions(durable, if_absent, if_revision, deadline)
        return await self._threads.run(self._open().set_file, build, name, file, source, **conditions)

    async def begin(
        self,
        build: int,
        name: str,
        length: Optional[int] = None,
        source: str = "",
        *,
        durable: bool = False,
        if_absent: bool = False,
        if_revision: int = 0,
        deadline: Optional[float] = None,
    ) -> Optional[AsyncWriter]:
        """Opens a set whose value comes in pieces, of `length` bytes in all (None: not known, which is dearer).
        None: the condition does not hold now already."""
        conditions = _conditions(durable, if_absent, if_revision, deadline)
        writer = await self._threads.run(self._open().begin, build, name, length, source, **conditions)
        return None if writer is None else AsyncWriter(writer, self._threads)

    # ---- builds ----

    async def finish(self, build: int, at: Optional[int] = None) -> None:
        """Records that the build completed `at` whole seconds since 1970 (None: now). Again: moves the time."""
        await self._threads.run(self._open().finish, build, at)

    async def reopen(self, build: int) -> None:
        """The build is not finished any more: its data is not pruned until it is finished again."""
        await self._threads.run(self._open().reopen, build)

    async def prune(self, older_than: int) -> int:
        """Deletes the data of builds completed strictly before `older_than`; returns how many entries. Held ones
        stay."""
        return await self._threads.run(self._open().prune, older_than)

    async def drop(self, build: int) -> int:
        """Deletes all data of one build, held or not, at one instant for every client; returns how many entries."""
        return await self._threads.run(self._open().drop, build)

    async def hold(self, build: int) -> None:
        """Keeps a build's data from being pruned."""
        await self._threads.run(self._open().hold, build)

    async def unhold(self, build: int) -> None:
        """Lets a held build's data be pruned again."""
        await self._threads.run(self._open().unhold, build)

    # ---- the daemon ----

    async def flush(self, deadline: Optional[float] = None) -> None:
        """Returns when all that was acknowledged before the call is committed to the database."""
        await self._threads.run(self._open().flush, deadline)

    async def stats(self) -> Dict[str, Any]:
        """The daemon's counters: docs/operations.md says what to watch in them."""
        return await self._threads.run(self._open().stats)


def _conditions(durable: bool, if_absent: bool, if_revision: int, deadline: Optional[float]) -> Dict[str, Any]:
    return {"durable": durable, "if_absent": if_absent, "if_revision": if_revision, "deadline": deadline}
