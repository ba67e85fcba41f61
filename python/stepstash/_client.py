# SPDX-License-Identifier: Apache-2.0
"""Client, View and Writer: see the package's own documentation."""

import ctypes
import io
import json
import math
import operator
import os
import select
import sys
import weakref
from typing import NamedTuple, Optional

from . import _abi
from ._errors import InvalidArgument, checked

_library = _abi.library


class SetResult(NamedTuple):
    id: int
    revision: int


class Entry(NamedTuple):
    """A build datum without its value."""

    id: int
    revision: int
    build: int
    length: int
    name: str
    source: str


class Build(NamedTuple):
    """A build that has data: how many entries, and the bytes of their values in the segment and in the database alone.
    `complete_at` is in seconds since 1970, None when it has not finished."""

    build: int
    entries: int
    resident_bytes: int
    evicted_bytes: int
    complete_at: Optional[int]
    held: bool


# ctypes cuts numbers and strings to what fits, in silence: everything is checked here first.


def _integer(what, value, least, most):
    number = operator.index(value)
    if not least <= number <= most:
        raise InvalidArgument(f"{what} {number} is outside {least} .. {most}")
    return number


def _build(value):
    return _integer("build", value, -(2**63), 2**63 - 1)  # the library names the contract's own limits


def _seconds(what, value):
    """Seconds since 1970, of which one number means "now" to the library."""
    return _integer(what, value, _abi.NOW + 1, 2**63 - 1)


def _text(what, value):
    if not isinstance(value, str):
        raise TypeError(f"{what} is a str, not {type(value).__name__}")
    if "\0" in value:
        raise InvalidArgument(f"the {what} contains a NUL")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"the {what} is not valid Unicode: {error.reason}") from None


def _milliseconds(seconds):
    """0 means "the client's own deadline" to the library, so that the shortest wait is 1."""
    if seconds is None:
        return 0
    if math.isnan(seconds):
        raise InvalidArgument("a deadline is a number of seconds, not NaN")
    return int(min(max(seconds * 1000, 1), 2**32 - 1))


def _waiting(file, read):
    """What read() gives; where the file does not block and has nothing yet, waits for it as a blocking one would."""
    while True:
        try:
            result = read()
        except BlockingIOError:
            result = None
        if result is not None:
            return result
        try:
            descriptor = file.fileno()
        except (AttributeError, OSError):
            raise BlockingIOError("the file does not block, and has neither bytes now nor a descriptor") from None
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll()


def _options(durable, if_absent, if_revision, deadline):
    revision = _integer("if_revision", if_revision, 0, 2**64 - 1)
    return _abi.SetOptions(
        ctypes.sizeof(_abi.SetOptions), bool(durable), bool(if_absent), revision, _milliseconds(deadline)
    )


def _set_result(code, result):
    return None if checked(code) == _abi.UNMET else SetResult(result.id, result.revision)


class _Bytes:
    """The memory of a bytes-like object, whatever its items are, for the length of a `with`."""

    def __init__(self, value):
        self._buffer = _abi.PyBuffer()
        _abi.get_buffer(value, self._buffer, _abi.PYBUF_SIMPLE)  # BufferError where it is not contiguous

    def __enter__(self):
        return self._buffer.buf, self._buffer.len

    def __exit__(self, *_):
        _abi.release_buffer(self._buffer)


class _Handle:
    """Owns a stepstash_client. Client, views and writers refer to it, and the last of them closes it: the segment stays
    mapped as long as somebody can look at it."""

    def __init__(self, socket, deadline):
        self.pointer = ctypes.c_void_p()
        path = None if socket is None else os.fsencode(socket)
        if path is not None and b"\0" in path:
            raise InvalidArgument("the socket's path contains a NUL")
        checked(_library.connect(path, _milliseconds(deadline), self.pointer))

    def __del__(self):
        # When the interpreter ends the kernel gives back everything, and views may still be in somebody's hands.
        if self.pointer and not sys.is_finalizing():
            _library.close(self.pointer)


def _release(raw, handle):
    """Gives a pin back. It keeps `handle` alive until then; in a forked child the library does nothing."""
    _library.release(raw)


class View:
    """One build datum, held in place in the segment until it is released.

    `data` is a read-only memoryview of the value: no copy was made, and the bytes do not change, whatever happens to
    the datum, the build or the daemon. release(), the end of a `with`, or the end of the object releases it. Slices
    of `data` stay valid beyond that: the value is held until the last of them is gone. A forked child may read it as
    long as its parent holds it, if it was open before fork was called: what another thread opens meanwhile may be
    missing in the child, and reading it ends the child by a signal.
    """

    __slots__ = ("id", "revision", "build", "length", "name", "source", "_data", "__weakref__")

    def __init__(self, raw, handle):
        self.id, self.revision, self.build, self.length = raw.id, raw.revision, raw.build, raw.length
        # What owns the pin is the buffer and not this object: a slice must not outlive what holds its bytes in place.
        memory = (ctypes.c_ubyte * raw.length).from_address(raw.data)
        release = weakref.finalize(memory, _release, raw, handle)
        release.atexit = False  # at the end of the process the kernel does it
        self.name = ctypes.string_at(raw.name, raw.name_bytes).decode()
        self.source = ctypes.string_at(raw.source, raw.source_bytes).decode()
        # cast() refuses what is empty, and of no bytes there is nothing to hold.
        self._data = memoryview(memory).cast("B").toreadonly() if raw.length else memoryview(b"")

    @property
    def data(self) -> memoryview:
        if self._data is None:
            raise ValueError("the view was released")
        return self._data

    def release(self) -> None:
        """Releases the value. Again: nothing. `data` and what is bound to it are void afterwards, its slices are not.
        BufferError while something other than a slice (an array, a PickleBuffer) uses it."""
        if self._data is not None:
            self._data.release()
            self._data = None

    def __bytes__(self):
        return bytes(self.data)

    def __len__(self):
        return self.length

    def __bool__(self):
        return True  # an empty value is there, too

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()

    def __repr__(self):
        state = " released" if self._data is None else ""
        return f"<stepstash.View build={self.build} name={self.name!r} id={self.id} length={self.length}{state}>"


class Writer:
    """A set whose value comes in pieces. Nothing is visible before commit(); the end of a `with` without it aborts.
    One thread at a time."""

    def __init__(self, pointer, handle):
        self._pointer = pointer
        self._handle = handle

    def _open(self):
        if self._pointer is None:
            raise ValueError("the writer is closed")
        return self._pointer

    def write(self, data) -> int:
        """Appends a bytes-like object; returns its bytes. An error is final: abort."""
        pointer = self._open()
        with _Bytes(data) as (at, count):
            checked(_library.writer_write(pointer, at, count))
        return count

    def readinto(self, file) -> int:
        """Appends what file.readinto() fills directly into the staging ring; returns the bytes, 0 at the end."""
        pointer, at, room = self._open(), ctypes.c_void_p(), ctypes.c_size_t()
        checked(_library.writer_buffer(pointer, at, room))
        with _abi.memory_view(at, room.value, _abi.PYBUF_WRITE) as ring:
            count = file.readinto(ring)
        if count is None:
            raise BlockingIOError("the file does not block, and has nothing to read now")
        checked(_library.writer_advance(pointer, count))
        return count

    def commit(self) -> Optional[SetResult]:
        """Publishes the value. None: a condition did not hold, and nothing was changed."""
        pointer, self._pointer = self._open(), None
        result = _abi.SetResult()
        return _set_result(_library.writer_commit(pointer, result), result)

    def abort(self) -> None:
        """Forgets the value. After commit(), and again: nothing."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            _library.writer_abort(pointer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.abort()

    def __del__(self):
        if not sys.is_finalizing():
            self.abort()


class Client:
    """A connection to the daemon of this host. Any number of threads may use it at once; a forked child may go on
    using it.

    `socket` None means $STEPSTASH_SOCKET, or the usual places (stepstashd(8), PLACES). `deadline`, in seconds, bounds
    connecting now and each later call that asks the daemon unless that call names its own.
    """

    def __init__(self, socket=None, deadline: float = 10.0):
        self._handle = None
        self._handle = _Handle(socket, deadline)

    def close(self) -> None:
        """Closes the connection. Views stay valid: the segment is unmapped with the last of them."""
        self._handle = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _open(self):
        """For a local variable of the caller: close() on another thread must not end a client that is being called."""
        handle = self._handle
        if handle is None:
            raise ValueError("the client is closed")
        return handle

    # ---- reading ----

    def get(self, build: int, name: str) -> Optional[View]:
        """The build datum, held in place; None when there is none. No system call, unless the value was evicted."""
        handle, raw = self._open(), _abi.View()
        code = checked(_library.get(handle.pointer, _build(build), _text("name", name), raw))
        return None if code == _abi.MISS else View(raw, handle)

    def wait(self, build: int, name: str, timeout: float) -> Optional[View]:
        """As get, but waits up to `timeout` seconds for the name to appear; None when it did not."""
        handle, raw = self._open(), _abi.View()
        wait_ms = _milliseconds(timeout)
        code = _library.wait(handle.pointer, _build(build), _text("name", name), wait_ms, raw)
        if code == _abi.EDEADLINE:
            return None
        checked(code)
        return View(raw, handle)

    def stat(self, build: int, name: str) -> Optional[Entry]:
        """All but the value; None when there is no such build datum. Never asks the daemon."""
        handle, raw = self._open(), _abi.View()
        if checked(_library.stat(handle.pointer, _build(build), _text("name", name), raw)) == _abi.MISS:
            return None
        try:
            name = ctypes.string_at(raw.name, raw.name_bytes).decode()
            source = ctypes.string_at(raw.source, raw.source_bytes).decode()
            return Entry(raw.id, raw.revision, raw.build, raw.length, name, source)
        finally:
            _library.release(raw)

    def list(self, build: int, name: Optional[str] = None) -> "list[Entry]":
        """All entries of a build as of one instant, in id order, or the one called `name`. An unknown build has none."""
        handle, found = self._open(), ctypes.POINTER(_abi.List)()
        only = None if name is None else _text("name", name)
        checked(_library.list_build(handle.pointer, _build(build), only, found))
        try:
            rows = [found.contents.entries[i] for i in range(found.contents.count)]
            return [Entry(r.id, r.revision, r.build, r.length, r.name.decode(), r.source.decode()) for r in rows]
        finally:
            _library.list_free(found)

    def builds(self) -> "list[Build]":
        """All builds that have data, in the order of their numbers."""
        handle, found = self._open(), ctypes.POINTER(_abi.Builds)()
        checked(_library.list_builds(handle.pointer, found))
        try:
            rows = [found.contents.builds[i] for i in range(found.contents.count)]
            return [
                Build(
                    r.build,
                    r.entries,
                    r.resident_bytes,
                    r.evicted_bytes,
                    r.complete_at if r.finished else None,
                    bool(r.held),
                )
                for r in rows
            ]
        finally:
            _library.builds_free(found)

    # ---- writing ----

    def set(
        self,
        build: int,
        name: str,
        value,
        source: str = "",
        *,
        durable: bool = False,
        if_absent: bool = False,
        if_revision: int = 0,
        deadline: Optional[float] = None,
    ) -> Optional[SetResult]:
        """Adds or replaces a build datum. `value` is a bytes-like object: bytes, bytearray, memoryview, array; all of
        its bytes are taken, whatever its items are.

        Returns when every process sees the value and it survives the death of any process; with `durable` when it
        survives power loss. None: `if_absent` or `if_revision` did not hold, and nothing was changed.
        """
        handle, result = self._open(), _abi.SetResult()
        options = _options(durable, if_absent, if_revision, deadline)
        key = handle.pointer, _build(build), _text("name", name)
        with _Bytes(value) as (at, count):
            code = _library.set(*key, at, count, _text("source", source), options, result)
            return _set_result(code, result)

    def set_file(
        self,
        build: int,
        name: str,
        file,
        source: str = "",
        *,
        durable: bool = False,
        if_absent: bool = False,
        if_revision: int = 0,
        deadline: Optional[float] = None,
    ) -> Optional[SetResult]:
        """As set, with all that can be read from `file`, from where it stands until its end: a descriptor, a binary
        file, or whatever has readinto() or read()."""
        if isinstance(file, io.TextIOBase):
            raise TypeError("the file is open in text mode: open it with 'rb'")
        conditions = dict(durable=durable, if_absent=if_absent, if_revision=if_revision, deadline=deadline)
        if isinstance(file, int) or isinstance(file, io.FileIO):
            handle, result = self._open(), _abi.SetResult()
            fd = _integer("descriptor", file if isinstance(file, int) else file.fileno(), 0, 2**31 - 1)
            key = handle.pointer, _build(build), _text("name", name)
            code = _library.set_fd(*key, fd, _text("source", source), _options(**conditions), result)
            return _set_result(code, result)
        if isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO) and file.seekable():
            # Its descriptor stands behind what it has read ahead.
            os.lseek(file.fileno(), file.tell(), os.SEEK_SET)
            try:
                return self.set_file(build, name, file.fileno(), source, **conditions)
            finally:
                # To where the descriptor stands now: not every file (those of /proc) can be positioned at its end.
                file.seek(os.lseek(file.fileno(), 0, os.SEEK_CUR))
        writer = self.begin(build, name, None, source, **conditions)
        if writer is None:
            return None
        with writer:
            if hasattr(file, "readinto"):
                while _waiting(file, lambda: writer.readinto(file)):
                    pass
            else:
                while piece := _waiting(file, lambda: file.read(1 << 20)):
                    writer.write(piece)
            return writer.commit()

    def begin(
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
    ) -> Optional[Writer]:
        """Opens a set whose value comes in pieces, of `length` bytes in all (None: not known, which is dearer).
        None: the condition does not hold now already."""
        handle, pointer = self._open(), ctypes.c_void_p()
        total = _abi.UNKNOWN_LENGTH if length is None else _integer("length", length, 0, _abi.UNKNOWN_LENGTH - 1)
        options = _options(durable, if_absent, if_revision, deadline)
        key = handle.pointer, _build(build), _text("name", name)
        code = checked(_library.set_begin(*key, total, _text("source", source), options, pointer))
        return None if code == _abi.UNMET else Writer(pointer, handle)

    # ---- builds ----

    def finish(self, build: int, at: Optional[int] = None) -> None:
        """Records that the build completed `at` whole seconds since 1970 (None: now). Again: moves the time."""
        handle = self._open()
        checked(_library.finish(handle.pointer, _build(build), _abi.NOW if at is None else _seconds("time", at)))

    def prune(self, older_than: int) -> int:
        """Deletes the data of builds completed strictly before `older_than`; returns how many entries. Held ones
        stay."""
        handle, count = self._open(), ctypes.c_uint64()
        checked(_library.prune(handle.pointer, _integer("time", older_than, -(2**63), 2**63 - 1), count))
        return count.value

    def drop(self, build: int) -> int:
        """Deletes all data of one build, held or not, at one instant for every client; returns how many entries."""
        handle, count = self._open(), ctypes.c_uint64()
        checked(_library.drop(handle.pointer, _build(build), count))
        return count.value

    def hold(self, build: int) -> None:
        """Keeps a build's data from being pruned."""
        handle = self._open()
        checked(_library.hold(handle.pointer, _build(build), 1))

    def unhold(self, build: int) -> None:
        """Lets a held build's data be pruned again."""
        handle = self._open()
        checked(_library.hold(handle.pointer, _build(build), 0))

    # ---- the daemon ----

    def flush(self, deadline: Optional[float] = None) -> None:
        """Returns when all that was acknowledged before the call is committed to the database."""
        handle = self._open()
        checked(_library.flush(handle.pointer, _milliseconds(deadline)))

    def stats(self) -> dict:
        """The daemon's counters: docs/operations.md says what to watch in them."""
        handle, text = self._open(), ctypes.c_void_p()
        checked(_library.stats(handle.pointer, text))
        try:
            return json.loads(ctypes.string_at(text))
        finally:
            _library.free(text)


def version() -> str:
    """The version of the loaded libstepstash."""
    return _library.version().decode()
