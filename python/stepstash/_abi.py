# SPDX-License-Identifier: Apache-2.0
"""stepstash/client.h, declared for ctypes. Nothing here is for users of the package.

The structures and numbers below are the C ABI's own: they change only together with the soname that is loaded here.
"""

import ctypes
import os
from typing import Any, Callable

OK, MISS, UNMET, ASK = 0, 1, 2, 3
EINVAL, ENOMEM, EUNAVAILABLE, EDEADLINE, EFULL, ETOOLARGE = -1, -2, -3, -4, -5, -6
EPERM, ECORRUPT, EIO, EPROTOCOL, ELIMIT, EINTERNAL = -7, -8, -9, -10, -11, -12

NOW = -(2**63)
REOPEN = 2**63 - 1
UNKNOWN_LENGTH = 2**64 - 1


class View(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_uint64),
        ("id", ctypes.c_uint64),
        ("revision", ctypes.c_uint64),
        ("build", ctypes.c_int64),
        ("name", ctypes.c_void_p),
        ("source", ctypes.c_void_p),
        ("name_bytes", ctypes.c_uint32),
        ("source_bytes", ctypes.c_uint32),
        ("reserved", ctypes.c_uint64 * 4),
    ]


class Entry(ctypes.Structure):
    _fields_ = [
        ("id", ctypes.c_uint64),
        ("revision", ctypes.c_uint64),
        ("build", ctypes.c_int64),
        ("length", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("source", ctypes.c_char_p),
    ]


class List(ctypes.Structure):
    _fields_ = [("count", ctypes.c_size_t), ("entries", ctypes.POINTER(Entry))]


class Build(ctypes.Structure):
    _fields_ = [
        ("build", ctypes.c_int64),
        ("entries", ctypes.c_uint64),
        ("resident_bytes", ctypes.c_uint64),
        ("evicted_bytes", ctypes.c_uint64),
        ("complete_at", ctypes.c_int64),
        ("finished", ctypes.c_int),
        ("held", ctypes.c_int),
        ("reserved", ctypes.c_uint64 * 2),
    ]


class Builds(ctypes.Structure):
    _fields_ = [("count", ctypes.c_size_t), ("builds", ctypes.POINTER(Build))]


class SetOptions(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("durable", ctypes.c_int),
        ("if_absent", ctypes.c_int),
        ("if_revision", ctypes.c_uint64),
        ("deadline_ms", ctypes.c_uint32),
    ]


class SetResult(ctypes.Structure):
    _fields_ = [("id", ctypes.c_uint64), ("revision", ctypes.c_uint64)]


class PyBuffer(ctypes.Structure):
    """CPython's Py_buffer, part of its stable ABI since 3.11 and the same since 3.3."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_P = ctypes.POINTER
_client = _writer = ctypes.c_void_p
_int64, _uint32, _uint64 = ctypes.c_int64, ctypes.c_uint32, ctypes.c_uint64
_text, _bytes, _size = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t


class _Functions:
    """The functions of libstepstash without their prefix. $STEPSTASH_LIBRARY names another file than the usual one."""

    def __init__(self) -> None:
        path = os.environ.get("STEPSTASH_LIBRARY", "libstepstash.so.0")
        if not path:  # to dlopen(3) that would be this program itself
            raise ImportError("$STEPSTASH_LIBRARY is empty: unset it, or name the file of libstepstash")
        asks = ctypes.CDLL(path)  # releases the interpreter's lock, for what may wait
        returns = ctypes.PyDLL(path)  # keeps it, for what takes less time than to get it back from another thread

        def declared(loaded: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
            try:
                function = loaded["stepstash_" + name]
            except AttributeError as error:
                raise ImportError(f"{path} is older than this package: {error}") from None
            function.restype = result
            function.argtypes = arguments
            return function

        number = ctypes.c_int
        self.version = declared(returns, "version", _text)
        self.error_message = declared(returns, "error_message", _text)
        self.connect = declared(asks, "connect", number, _text, _uint32, _P(_client))
        self.close = declared(asks, "close", None, _client)
        self.try_get = declared(returns, "try_get", number, _client, _int64, _text, _P(View))
        self.get = declared(asks, "get", number, _client, _int64, _text, _P(View))
        self.wait = declared(asks, "wait", number, _client, _int64, _text, _uint32, _P(View))
        self.stat = declared(asks, "stat", number, _client, _int64, _text, _P(View))
        self.release = declared(returns, "release", None, _P(View))
        self.list_build = declared(asks, "list_build", number, _client, _int64, _text, _P(_P(List)))
        self.list_free = declared(asks, "list_free", None, _P(List))
        self.list_builds = declared(asks, "list_builds", number, _client, _P(_P(Builds)))
        self.builds_free = declared(asks, "builds_free", None, _P(Builds))
        settings = _P(SetOptions), _P(SetResult)
        self.set = declared(asks, "set", number, _client, _int64, _text, _bytes, _size, _text, *settings)
        self.set_fd = declared(asks, "set_fd", number, _client, _int64, _text, number, _text, *settings)
        begin = _client, _int64, _text, _uint64, _text, _P(SetOptions), _P(_writer)
        self.set_begin = declared(asks, "set_begin", number, *begin)
        self.writer_write = declared(asks, "writer_write", number, _writer, _bytes, _size)
        self.writer_buffer = declared(asks, "writer_buffer", number, _writer, _P(_bytes), _P(_size))
        self.writer_advance = declared(asks, "writer_advance", number, _writer, _size)
        self.writer_commit = declared(asks, "writer_commit", number, _writer, _P(SetResult))
        self.writer_abort = declared(asks, "writer_abort", None, _writer)
        self.finish = declared(asks, "finish", number, _client, _int64, _int64)
        self.prune = declared(asks, "prune", number, _client, _int64, _P(_uint64))
        self.drop = declared(asks, "drop", number, _client, _int64, _P(_uint64))
        self.hold = declared(asks, "hold", number, _client, _int64, number)
        self.flush = declared(asks, "flush", number, _client, _uint32)
        self.stats = declared(asks, "stats", number, _client, _P(ctypes.c_void_p))
        self.free = declared(asks, "free", None, ctypes.c_void_p)


library = _Functions()


def _python(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    function = ctypes.pythonapi[name]
    function.restype = result
    function.argtypes = arguments
    return function


get_buffer = _python("PyObject_GetBuffer", ctypes.c_int, ctypes.py_object, _P(PyBuffer), ctypes.c_int)  # or raises
release_buffer = _python("PyBuffer_Release", None, _P(PyBuffer))
memory_view = _python("PyMemoryView_FromMemory", ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
decoded = _python("PyUnicode_FromStringAndSize", ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)
# Makes a method of a function that is not written in Python: no signal's handler can raise inside it.
method = _python("PyInstanceMethod_New", ctypes.py_object, ctypes.py_object)
# Hides an object from the garbage collector: its __del__ runs when its last reference goes, and never before.
untrack = _python("PyObject_GC_UnTrack", None, ctypes.py_object)
PYBUF_SIMPLE, PYBUF_WRITE = 0, 0x200
