# SPDX-License-Identifier: Apache-2.0
"""Client, View and Writer: see the package's own documentation."""

from __future__ import annotations

import ctypes
import io
import json
import math
import operator
import os
import select
import stat
import sys
import threading
import time
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Callable,
    Dict,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Protocol,
    SupportsIndex,
    Tuple,
    Union,
    overload,
)

from . import _abi
from ._errors import InvalidArgument, checked

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, StrPath

_library = _abi.library

# Milliseconds that wait() stays in the library, where no signal's handler of Python runs.
_LONGEST_CALL = 500
_Conditions = Tuple[bool, bool, int, Optional[float]]  # durable, if_absent, if_revision, deadline: as for _options()


class Readable(Protocol):
    """What set() reads a value from: binary files, sockets' makefile("rb"), responses. readinto() is used if it is
    there."""

    def read(self, size: int, /) -> Any: ...


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


def _integer(what: str, value: SupportsIndex, least: int, most: int) -> int:
    number = operator.index(value)
    if not least <= number <= most:
        raise InvalidArgument(f"{what} {number} is outside {least} .. {most}")
    return number


def _build(value: SupportsIndex) -> int:
    if type(value) is int and 0 < value < 2**63:  # 0.3 us less than the rest
        return value
    return _integer("build", value, -(2**63), 2**63 - 1)  # the library names the contract's own limits


def _seconds(what: str, value: SupportsIndex) -> int:
    """Seconds since 1970, of which two numbers mean something else to the library."""
    return _integer(what, value, _abi.NOW + 1, _abi.REOPEN - 1)


def _text(what: str, value: str) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"{what} is a str, not {type(value).__name__}")
    if "\0" in value:
        raise InvalidArgument(f"the {what} contains a NUL")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"the {what} is not valid Unicode: {error.reason}") from None


def _milliseconds(seconds: Optional[float]) -> int:
    """0 means "the client's own deadline" to the library, so that the shortest wait is 1."""
    if seconds is None:
        return 0
    if math.isnan(seconds):
        raise InvalidArgument("a deadline is a number of seconds, not NaN")
    return int(min(max(seconds * 1000, 1), 2**32 - 1))


def _waiting(file: Any, read: Callable[[], Any]) -> Any:
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


def _at_once(descriptor: int) -> bool:
    """Not so for a pipe, a socket or a terminal: Python waits for them, since its signals' handlers run meanwhile."""
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return True  # the library says what is wrong with it


def _options(durable: bool, if_absent: bool, if_revision: int, deadline: Optional[float]) -> _abi.SetOptions:
    revision = _integer("if_revision", if_revision, 0, 2**64 - 1)
    return _abi.SetOptions(
        ctypes.sizeof(_abi.SetOptions), bool(durable), bool(if_absent), revision, _milliseconds(deadline)
    )


def _set_result(code: int, result: _abi.SetResult) -> Optional[SetResult]:
    return None if checked(code) == _abi.UNMET else SetResult(result.id, result.revision)


class _Buffer(_abi.PyBuffer):
    """A Py_buffer, released when the last reference goes: no KeyboardInterrupt leaves an object locked."""

    __slots__ = ()
    __del__ = _abi.method(_abi.release_buffer)


class _Bytes:
    """The memory of a bytes-like object, whatever its items are, for the length of a `with`."""

    def __init__(self, value: object) -> None:
        self._buffer = _Buffer()
        # TypeError where it has no memory to look at, BufferError where it is not contiguous.
        _abi.get_buffer(value.data if isinstance(value, View) else value, self._buffer, _abi.PYBUF_SIMPLE)

    def __enter__(self) -> Tuple[int, int]:
        return self._buffer.buf, self._buffer.len

    def __exit__(self, *_: object) -> None:
        _abi.release_buffer(self._buffer)


class _Handle:
    """Owns a stepstash_client. Client, pins and writers refer to it, and the last of them closes it: the segment stays
    mapped as long as somebody can look at it. The garbage collector does not see it, as with _Pin: it would close it
    before a finalizer of the same dead cycle calls the client, or saves it."""

    __slots__ = ("pointer",)

    def __init__(self, socket: Optional[StrPath], deadline: Optional[float]) -> None:
        _abi.untrack(self)
        self.pointer = ctypes.c_void_p()
        path = None if socket is None else os.fsencode(socket)
        if path is not None and b"\0" in path:
            raise InvalidArgument("the socket's path contains a NUL")
        checked(_library.connect(path, _milliseconds(deadline), self.pointer))

    def __del__(self) -> None:
        # When the interpreter ends the kernel gives back everything, and views may still be in somebody's hands.
        if self.pointer and not sys.is_finalizing():
            _library.close(self.pointer)


class _Pin(_abi.View):
    """A stepstash_view, released when the last reference to it goes. It exists before the library fills it, and its
    finalizer is not written in Python, so that no KeyboardInterrupt loses one. In a forked child the library releases
    nothing.

    The garbage collector does not see it. It would call __del__ of all members of a dead cycle, in any order: that of
    the handle before this one, and this one before those of others that still read the value.
    """

    __slots__ = ("handle",)
    handle: _Handle

    def __init__(self, handle: _Handle) -> None:
        self.handle = handle
        _abi.untrack(self)

    __del__ = _abi.method(_library.release)


class _Staged(ctypes.c_void_p):
    """A stepstash_writer, aborted when the last reference goes. As _Pin, it exists before the library fills it, its
    finalizer is not written in Python, and the garbage collector does not see it."""

    __slots__ = ("handle",)
    handle: _Handle

    def __init__(self, handle: _Handle) -> None:
        super().__init__()
        self.handle = handle
        _abi.untrack(self)

    __del__ = _abi.method(_library.writer_abort)

    def take(self) -> Optional[int]:
        """For who frees it."""
        pointer, self.value = self.value, None
        return pointer


class _Memory(ctypes.Array):  # type: ignore[type-arg]
    """What the buffers of a value refer to, and what therefore owns the pin: a slice must not outlive what holds its
    bytes in place. Longer than any segment, and never seen whole: a type for each length would cost 10 us."""

    _type_ = ctypes.c_ubyte
    _length_ = 2**46
    __slots__ = ("pin",)
    pin: _Pin


class _Reader(io.RawIOBase):
    """A value as a file. It holds the value until it is closed or gone."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        into = memoryview(room).cast("B")
        piece = self._data[self._at : self._at + len(into)]
        into[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        starts = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._data)}
        if whence not in starts or starts[whence] + offset < 0:
            raise ValueError(f"there is no position {offset} from {whence}")
        self._at = starts[whence] + offset
        return self._at

    def close(self) -> None:
        super().close()
        self._data.release()


class View:
    """One build datum, held in place in the segment until it is released.

    `data` is a read-only memoryview of the value: no copy was made, and the bytes do not change, whatever happens to
    the datum, the build or the daemon. From Python 3.12 on the view itself is bytes-like, too; before, take `data`.

    release(), the end of a `with`, or the end of the object releases it. What was taken from `data`, a slice, an array
    of numpy, a PickleBuffer, stays valid beyond that: the value is held until the last of them is gone. A forked child
    may read it as long as its parent holds it, if it was open before fork was called: what another thread opens
    meanwhile may be missing in the child, and reading it ends the child by a signal.
    """

    __slots__ = ("id", "revision", "build", "length", "name", "source", "_data", "__weakref__")

    def __init__(self, pin: _Pin, build: int, name: str) -> None:
        self.id: int = pin.id
        self.revision: int = pin.revision
        self.build = build
        self.length: int = pin.length
        self.name = name
        self.source: str = _abi.decoded(pin.source, pin.source_bytes) if pin.source_bytes else ""
        memory = _Memory.from_address(pin.data)
        memory.pin = pin
        self._data: Optional[memoryview] = memoryview(memory).cast("B")[: self.length].toreadonly()

    @property
    def data(self) -> memoryview:
        data = self._data
        if data is None:
            raise ValueError("the view was released")
        return data

    def release(self) -> None:
        """Releases the value. Again: nothing. `data` and what is bound to it are void afterwards. What was taken from
        it is not, and holds the value."""
        data, self._data = self._data, None
        if data is not None:
            try:
                data.release()
            except BufferError:  # an array or the like uses it, and has the only reference from now on
                pass

    def open(self) -> BinaryIO:
        """The value as a binary file, for zipfile, tarfile and whatever else reads files: bytes are copied as they are
        read. Holds the value until it is closed."""
        return io.BufferedReader(_Reader(self.data[:]))

    def __buffer__(self, flags: int) -> memoryview:
        return self.data[:]

    def __bytes__(self) -> bytes:
        return bytes(self.data)

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> memoryview: ...
    def __getitem__(self, at: Union[int, slice]) -> Union[int, memoryview]:
        """A byte, or a slice, which is not a copy."""
        return self.data[at]

    def __bool__(self) -> bool:
        return True  # an empty value is there, too

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        state = " released" if self._data is None else ""
        return f"<stepstash.View build={self.build} name={self.name!r} id={self.id} length={self.length}{state}>"


class Writer:
    """A set whose value comes in pieces. Nothing is visible before commit(); the end of a `with` without it aborts.
    One thread at a time."""

    def __init__(self, staged: _Staged, length: Optional[int]) -> None:
        self._staged = staged
        self._missing = length  # None: not known

    @property
    def closed(self) -> bool:
        """Whether commit() or abort() has ended it."""
        return not self._staged

    def _open(self) -> _Staged:
        if not self._staged:
            raise ValueError("the writer is closed")
        return self._staged

    def write(self, data: Union[ReadableBuffer, View]) -> int:
        """Appends a bytes-like object; returns its bytes. An error is final: abort."""
        staged = self._open()
        with _Bytes(data) as (at, count):
            checked(_library.writer_write(staged, at, count))
        return self._came(count)

    def readinto(self, file: Any) -> int:
        """Appends what file.readinto() fills directly into the staging ring; returns the bytes, 0 at the end."""
        staged, at, room = self._open(), ctypes.c_void_p(), ctypes.c_size_t()
        # The library has no room beyond what was announced, not even to see the end.
        if self._missing == 0 and self._filled(file, bytearray(1)) == 0:
            return 0
        checked(_library.writer_buffer(staged, at, room))
        with _abi.memory_view(at, room.value, _abi.PYBUF_WRITE) as ring:
            count = self._filled(file, ring)
        checked(_library.writer_advance(staged, count))
        return self._came(count)

    @staticmethod
    def _filled(file: Any, room: Any) -> int:
        count = file.readinto(room)
        if count is None:
            raise BlockingIOError("the file does not block, and has nothing to read now")
        return _integer("readinto()'s count", count, 0, len(room))

    def _came(self, count: int) -> int:
        if self._missing is not None:
            self._missing -= count
        return count

    def commit(self) -> Optional[SetResult]:
        """Publishes the value. None: a condition did not hold, and nothing was changed."""
        staged, result = self._open(), _abi.SetResult()
        return _set_result(_library.writer_commit(staged.take(), result), result)

    def abort(self) -> None:
        """Forgets the value. After commit(), and again: nothing."""
        _library.writer_abort(self._staged.take())

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()


class Client:
    """A connection to the daemon of this host. Any number of threads may use it at once; a forked child may go on
    using it.

    `socket` None means $STEPSTASH_SOCKET, or the usual places (stepstashd(8), PLACES). `deadline`, in seconds, bounds
    connecting now and each later call that asks the daemon unless that call names its own.
    """

    def __init__(self, socket: Optional[StrPath] = None, deadline: float = 10.0) -> None:
        self._handle: Optional[_Handle] = _Handle(socket, deadline)

    def close(self) -> None:
        """Closes the connection. Views stay valid: the segment is unmapped with the last of them."""
        self._handle = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> _Handle:
        """For a local variable of the caller: close() on another thread must not end a client that is being called."""
        handle = self._handle
        if handle is None:
            raise ValueError("the client is closed")
        return handle

    # ---- reading ----

    def get(self, build: int, name: str) -> Optional[View]:
        """The build datum, held in place; None when there is none. No system call, unless the value was evicted."""
        handle = self._handle or self._open()
        pin, build, key = _Pin(handle), _build(build), _text("name", name)
        code = _library.try_get(handle.pointer, build, key, pin)
        if code == _abi.ASK:
            code = _library.get(handle.pointer, build, key, pin)
        return View(pin, build, name) if code == _abi.OK or checked(code) == _abi.OK else None

    def _resident(self, build: int, name: str) -> Tuple[bool, Optional[View]]:
        """For an event loop, which must not wait: False when get() has to be called, on another thread."""
        handle = self._open()
        pin, build, key = _Pin(handle), _build(build), _text("name", name)
        code = checked(_library.try_get(handle.pointer, build, key, pin))
        return code != _abi.ASK, View(pin, build, name) if code == _abi.OK else None

    def wait(self, build: int, name: str, timeout: float) -> Optional[View]:
        """As get, but waits up to `timeout` seconds for the name to appear; None when it did not."""
        handle, until = self._open(), time.monotonic() + timeout
        pin, build, key, left = _Pin(handle), _build(build), _text("name", name), _milliseconds(timeout)
        # Signals' handlers run between calls, on the main thread alone.
        piece = _LONGEST_CALL if threading.current_thread() is threading.main_thread() else left
        while left > piece:
            started = time.monotonic()
            code = _library.wait(handle.pointer, build, key, piece, pin)
            if code not in (_abi.EDEADLINE, _abi.EUNAVAILABLE):
                break
            if code == _abi.EUNAVAILABLE:  # at once, it may be
                time.sleep(max(0, started + piece / 1000 - time.monotonic()))
            left = _milliseconds(until - time.monotonic())
        else:
            code = _library.wait(handle.pointer, build, key, left, pin)
        if code == _abi.EDEADLINE:
            return None
        checked(code)
        return View(pin, build, name)

    def stat(self, build: int, name: str) -> Optional[Entry]:
        """All but the value; None when there is no such build datum. Never asks the daemon."""
        handle = self._open()
        pin, build, key = _Pin(handle), _build(build), _text("name", name)
        if checked(_library.stat(handle.pointer, build, key, pin)) == _abi.MISS:
            return None
        return Entry(pin.id, pin.revision, build, pin.length, name, _abi.decoded(pin.source, pin.source_bytes))

    def list(self, build: int, name: Optional[str] = None) -> List[Entry]:
        """All entries of a build as of one instant, in id order, or the one called `name`. An unknown build has none."""
        handle, found = self._open(), ctypes.POINTER(_abi.List)()
        only = None if name is None else _text("name", name)
        checked(_library.list_build(handle.pointer, _build(build), only, found))
        try:
            rows = [found.contents.entries[i] for i in range(found.contents.count)]
            return [Entry(r.id, r.revision, r.build, r.length, r.name.decode(), r.source.decode()) for r in rows]
        finally:
            _library.list_free(found)

    def builds(self) -> List[Build]:
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
        value: Union[ReadableBuffer, View, Readable, Iterable[ReadableBuffer]],
        source: str = "",
        *,
        durable: bool = False,
        if_absent: bool = False,
        if_revision: int = 0,
        deadline: Optional[float] = None,
    ) -> Optional[SetResult]:
        """Adds or replaces a build datum. `value` is a bytes-like object, all of whose bytes are taken, whatever its
        items are; or a binary file, as in set_file(); or an iterable of bytes-like pieces.

        Returns when every process sees the value and it survives the death of any process; with `durable` when it
        survives power loss. None: `if_absent` or `if_revision` did not hold, and nothing was changed. An exception of
        the file or of the iterable is passed on, and nothing is set.
        """
        handle, result = self._open(), _abi.SetResult()
        conditions = (durable, if_absent, if_revision, deadline)
        try:
            memory = _Bytes(value)
        except TypeError:
            if hasattr(value, "readinto") or hasattr(value, "read"):
                return self._set_file(build, name, value, source, conditions)
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise
            return self._set_pieces(build, name, value, source, conditions)
        with memory as (at, count):
            key = handle.pointer, _build(build), _text("name", name)
            code = _library.set(*key, at, count, _text("source", source), _options(*conditions), result)
            return _set_result(code, result)

    def set_file(
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
        """As set, with all that can be read from `file`, from where it stands until its end: a descriptor, a binary
        file, or whatever has readinto() or read()."""
        return self._set_file(build, name, file, source, (durable, if_absent, if_revision, deadline))

    def _set_file(self, build: int, name: str, file: Any, source: str, conditions: _Conditions) -> Optional[SetResult]:
        if isinstance(file, io.TextIOBase):
            raise TypeError("the file is open in text mode: open it with 'rb'")
        # Not their subclasses, which may read something else than the descriptor does.
        if isinstance(file, int) or type(file) is io.FileIO:
            handle, result = self._open(), _abi.SetResult()
            fd = _integer("descriptor", file if isinstance(file, int) else file.fileno(), 0, 2**31 - 1)
            if _at_once(fd):
                key = handle.pointer, _build(build), _text("name", name)
                code = _library.set_fd(*key, fd, _text("source", source), _options(*conditions), result)
                return _set_result(code, result)
            file = io.FileIO(fd, closefd=False)
        if type(file) is io.BufferedReader and type(file.raw) is io.FileIO and file.seekable():
            # Its descriptor stands behind what it has read ahead.
            os.lseek(file.fileno(), file.tell(), os.SEEK_SET)
            try:
                return self._set_file(build, name, file.fileno(), source, conditions)
            finally:
                # To where the descriptor stands now: not every file (those of /proc) can be positioned at its end.
                file.seek(os.lseek(file.fileno(), 0, os.SEEK_CUR))
        writer = self._begin(build, name, None, source, conditions)
        if writer is None:
            return None
        with writer:
            if hasattr(file, "readinto"):
                while _waiting(file, partial(writer.readinto, file)):
                    pass
            else:
                while piece := _waiting(file, lambda: file.read(1 << 20)):
                    writer.write(piece)
            return writer.commit()

    def _set_pieces(
        self, build: int, name: str, pieces: Iterable[Any], source: str, conditions: _Conditions
    ) -> Optional[SetResult]:
        writer = self._begin(build, name, None, source, conditions)
        if writer is None:
            return None
        with writer:
            for piece in pieces:
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
        return self._begin(build, name, length, source, (durable, if_absent, if_revision, deadline))

    def _begin(
        self, build: int, name: str, length: Optional[int], source: str, conditions: _Conditions
    ) -> Optional[Writer]:
        handle = self._open()
        staged = _Staged(handle)
        total = _abi.UNKNOWN_LENGTH if length is None else _integer("length", length, 0, _abi.UNKNOWN_LENGTH - 1)
        key = handle.pointer, _build(build), _text("name", name)
        code = checked(_library.set_begin(*key, total, _text("source", source), _options(*conditions), staged))
        return None if code == _abi.UNMET else Writer(staged, length)

    # ---- builds ----

    def finish(self, build: int, at: Optional[int] = None) -> None:
        """Records that the build completed `at` whole seconds since 1970 (None: now). Again: moves the time."""
        handle = self._open()
        checked(_library.finish(handle.pointer, _build(build), _abi.NOW if at is None else _seconds("time", at)))

    def reopen(self, build: int) -> None:
        """The build is not finished any more: its data is not pruned until it is finished again."""
        handle = self._open()
        checked(_library.finish(handle.pointer, _build(build), _abi.REOPEN))

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

    def stats(self) -> Dict[str, Any]:
        """The daemon's counters: docs/operations.md says what to watch in them."""
        handle, text = self._open(), ctypes.c_void_p()
        checked(_library.stats(handle.pointer, text))
        try:
            figures: Dict[str, Any] = json.loads(ctypes.string_at(text))
            return figures
        finally:
            _library.free(text)


def version() -> str:
    """The version of the loaded libstepstash."""
    return str(_library.version().decode())
