# SPDX-License-Identifier: Apache-2.0
"""Buildbot's build data connector, with the values in stepstash instead of Buildbot's database."""

import ctypes
import math
import operator
import threading
import time

from buildbot.db import base, build_data
from twisted.internet import defer, reactor, threads
from twisted.python.threadpool import ThreadPool

import stepstash
from stepstash._client import _Bytes

# Buildbot 4.1 made the rows a dataclass. Its BuildDataDict is a deprecated alias there, so the order matters.
_Row = getattr(build_data, "BuildDataModel", None) or build_data.BuildDataDict

# Of each pool. A call that waits (for room, for a daemon that restarts) occupies a thread until its deadline.
_THREADS = 8

# Builds that one query looks up. The master's other queries run in between: on SQLite Buildbot has one database thread.
_BUILDS_AT_ONCE = 500

_new_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)
_address_of_bytes = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(("PyBytes_AsString", ctypes.pythonapi))
_copy = ctypes.CDLL(None).memmove  # a CDLL's functions run with the GIL released
_copy.restype = ctypes.c_void_p
_copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


class BuildDataConnector(base.DBConnectorComponent):
    """In the place of `master.db.build_data`: the same methods, arguments and rows.

    Every method returns a Deferred and calls the daemon on a thread of this object's own, so that neither the reactor
    nor the master's database threads wait for it. What needs no daemon, since it is in the segment, has a pool of its
    own: calls that wait do not hold it up. Of the master's database it reads one thing: when builds completed, in
    deleteOldBuildData.

    `db` is the master's DBConnector. `socket_path` None means $STEPSTASH_SOCKET, or the usual places. `deadline`, in
    seconds, bounds each call to the daemon; it also waits that long for one that restarts.

    close() ends it. Until then it holds threads, a connection and the mapped segment.
    """

    def __init__(self, db, socket_path=None, deadline=10.0):
        super().__init__(db)
        self.socket_path = socket_path
        self._deadline = deadline
        self._client = None
        self._connecting = threading.Lock()
        self._refused = None
        self._pools = {}  # by whether its calls may wait for the daemon: the pool, and what stops it at shutdown
        self._closed = False

    # ---- Buildbot's methods ----

    def setBuildData(self, buildid, name, value, source):
        def thd(client):
            number = _number(buildid)
            if number is None:
                raise ValueError(f"{buildid!r} is not the number of a build")
            with memoryview(value):  # the client would take a list or a dict, too: as pieces
                client.set(number, name, value, source)

        return self._in_thread(thd)

    def getBuildData(self, buildid, name):
        def thd(client):
            view = _unless_impossible(client.get, buildid, name)
            if view is None:
                return None
            with view:
                return _Row(
                    buildid=view.build,
                    name=view.name,
                    value=_bytes_of(view),
                    length=view.length,
                    source=view.source,
                )

        return self._in_thread(thd, waits=not self._resident(buildid, name))

    def getBuildDataNoValue(self, buildid, name):
        def thd(client):
            entry = _unless_impossible(client.stat, buildid, name)
            return None if entry is None else _row_without_value(entry)

        return self._in_thread(thd, waits=self._client is None)

    def getAllBuildDataNoValues(self, buildid, name=None):
        """Sorted by name. `name` selects one, as Buildbot's documentation has it; no version of its code does."""

        def thd(client):
            entries = _unless_impossible(client.list, buildid, name, all_names=True) or []
            return [_row_without_value(entry) for entry in sorted(entries, key=operator.attrgetter("name"))]

        return self._in_thread(thd)

    @defer.inlineCallbacks
    def deleteOldBuildData(self, older_than_timestamp):
        """Deletes the data of builds that completed before the timestamp, and of builds that Buildbot does not know;
        returns how many rows. Builds that are held in stepstash keep their data."""
        older_than = math.ceil(older_than_timestamp)  # times are whole seconds: before 7.5 is before 8
        # In this order: a build has a row in Buildbot's database before it has data, so that none looks unknown.
        builds = yield self._in_thread(lambda client: client.builds())
        completed = yield self._completion_times([build.build for build in builds])

        def thd(client):
            unknown = []
            for build in builds if completed is not None else ():
                if build.build not in completed:
                    unknown.append(build.build)
                elif completed[build.build] != build.complete_at:
                    _finish(client, build.build, completed[build.build])
            deleted = client.prune(older_than)  # also says whether this user may prune, before the unknown are finished
            # Not drop(), which deletes what is held, too. `build.held` is of some time ago.
            for number in unknown:
                client.finish(number, older_than - 1)
            return deleted + (client.prune(older_than) if unknown else 0)

        deleted = yield self._in_thread(thd)
        return deleted

    # ---- ours ----

    def setBuildComplete(self, buildid, complete_at):
        """Tells the daemon that the build completed at `complete_at` seconds since 1970; None: that it has not.
        The daemon then prunes it by its own `build_data_horizon`, if it has one."""
        return self._in_thread(lambda client: _finish(client, operator.index(buildid), complete_at))

    def setBuildDataFromFile(self, buildid, name, path, source):
        """As setBuildData, without the whole value in the master's memory."""

        def thd(client):
            with open(path, "rb", buffering=0) as file:
                client.set_file(operator.index(buildid), name, file, source)

        return self._in_thread(thd)

    def getBuildDataIntoFile(self, buildid, name, path):
        """Writes the value into a new file, and gives True; False when there is none, and no file either."""

        def thd(client):
            view = _unless_impossible(client.get, buildid, name)
            if view is None:
                return False
            with view, open(path, "xb", buffering=0) as file:
                written = 0
                while written < view.length:  # one write(2) takes at most 2 GiB
                    written += file.write(view.data[written:])
            return True

        return self._in_thread(thd)

    def check(self):
        """Connects, and gives the daemon's counters: fails as any other call would."""
        return self._in_thread(lambda client: client.stats())

    @defer.inlineCallbacks
    def close(self):
        """Waits for the calls under way. Later ones fail. Again: nothing."""
        self._closed = True
        pools, self._pools = self._pools, {}
        for _, at_shutdown in pools.values():
            reactor.removeSystemEventTrigger(at_shutdown)
        for pool, _ in pools.values():
            yield _stopped(pool)
        self._client = None  # views that are still referred to keep the segment mapped

    def stopService(self):
        """From Buildbot 4 on, where a component is a service."""
        stopped = self.close()
        stopped.addCallback(lambda _: base.DBConnectorComponent.stopService(self))
        return stopped

    # ---- inside ----

    def _in_thread(self, thd, waits=True):
        if self._closed:
            return defer.fail(ValueError("the connector to stepstash is closed"))
        if waits not in self._pools:
            pool = ThreadPool(0, _THREADS, "stepstash")
            pool.start()
            # Threads that wait for work would keep a master alive that ends without close().
            self._pools[waits] = pool, reactor.addSystemEventTrigger("during", "shutdown", self._shut_down)
        pool, _ = self._pools[waits]
        return threads.deferToThreadPool(reactor, pool, lambda: thd(self._connected()))

    def _shut_down(self):
        self._closed = True
        pools, self._pools = self._pools, {}
        for pool, _ in pools.values():
            pool.stop()

    def _connected(self):
        """The client. The first call connects; afterwards the client reconnects by itself."""
        if self._client is not None:
            return self._client
        started = time.monotonic()
        give_up = started + self._deadline
        with self._connecting:
            while self._client is None:
                if self._refused is not None and self._refused[0] > started and time.monotonic() > give_up:
                    # Another thread has tried all the while: the calls of a deadline end together.
                    raise stepstash.Unavailable(self._refused[1])
                try:
                    self._client = stepstash.Client(self.socket_path, self._deadline)
                except stepstash.Unavailable as error:  # at once where nobody listens, but a later call would wait, too
                    self._refused = time.monotonic(), str(error)
                    if time.monotonic() > give_up:
                        raise
                    time.sleep(0.05)
            return self._client

    def _resident(self, buildid, name):
        """Whether the daemon need not be asked, as far as one can tell before a thread is free. Keeps no view until
        then: a client has a limited number of them."""
        number = _number(buildid) if isinstance(buildid, (int, str)) else None
        if self._closed or self._client is None or number is None:
            return False
        try:
            known, view = self._client._resident(number, name)
        except (stepstash.Error, TypeError):
            return False  # to be raised where the Deferred fails
        if view is not None:
            view.release()
        return known

    @defer.inlineCallbacks
    def _completion_times(self, numbers):
        """complete_at of those builds that Buildbot's database knows; None when there is no database to ask."""
        model, pool = getattr(self.db, "model", None), getattr(self.db, "pool", None)
        if model is None or pool is None:
            return None
        completed = {}

        def thd(connection, some):
            # Not select(columns): SQLAlchemy 1.3 and 2.0 want them in different ways.
            query = model.builds.select().where(model.builds.c.id.in_(some))
            return [(row.id, row.complete_at) for row in connection.execute(query)]

        for first in range(0, len(numbers), _BUILDS_AT_ONCE):
            rows = yield pool.do(thd, numbers[first : first + _BUILDS_AT_ONCE])
            completed.update(rows)
        return completed


def _stopped(pool):
    """Stops it, which joins its threads, on a thread that is not the reactor's: those end with the reactor."""
    stopped = defer.Deferred()

    def thd():
        pool.stop()
        reactor.callFromThread(stopped.callback, None)

    threading.Thread(target=thd).start()
    return stopped


def _number(buildid):
    """As SQLite takes it: text that is a number is that number. None where there can be no such build."""
    if isinstance(buildid, str):
        try:
            return int(buildid)
        except ValueError:
            return None
    return None if buildid is None else operator.index(buildid)


def _unless_impossible(read, buildid, name, all_names=False):
    """What read(build, name) gives. None for a build or a name that no daemon would accept in a set (build 0 or None, a
    name of 300 characters): such a datum does not exist, which is no error."""
    number = _number(buildid)
    if number is None or (name is None and not all_names):
        return None
    try:
        return read(number, name)
    except stepstash.InvalidArgument:
        return None


def _row_without_value(entry):
    return _Row(buildid=entry.build, name=entry.name, value=None, length=entry.length, source=entry.source)


def _bytes_of(view):
    """A copy of the value, made with the GIL released: bytes(view.data) would stop the reactor for 20 ms at 64 MiB."""
    value = _new_bytes(None, view.length)  # nobody else has seen it, so that it may still be written
    with _Bytes(view) as (at, count):
        _copy(_address_of_bytes(value), at, count)
    return value


def _finish(client, number, complete_at):
    if complete_at is None:
        client.reopen(number)
    else:
        client.finish(number, complete_at)
