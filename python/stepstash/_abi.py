# SPDX-License-Identifier: Apache-2.0
"""stepstash/client.h, declared for ctypes. Nothing here is for users of the package.

Every function is called with the GIL released (ctypes.CDLL). The structures and numbers below are the C ABI's own: they
change only together with the soname that is loaded here.
"""

import ctypes
import os

OK, MISS, UNMET = 0, 1, 2
EINVAL, ENOMEM, EUNAVAILABLE, EDEADLINE, EFULL, ETOOLARGE = -1, -2, -3, -4, -5, -6
EPERM, ECORRUPT, EIO, EPROTOCOL, ELIMIT, EINTERNAL = -7, -8, -9, -10, -11, -12

NOW = -(2**63)
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
    """CPython's Py_buffer, part of its stable ABI since 3.11."""

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

_FUNCTIONS = {
    "version": (_text, []),
    "error_message": (_text, []),
    "connect": (ctypes.c_int, [_text, _uint32, _P(_client)]),
    "close": (None, [_client]),
    "get": (ctypes.c_int, [_client, _int64, _text, _P(View)]),
    "wait": (ctypes.c_int, [_client, _int64, _text, _uint32, _P(View)]),
    "stat": (ctypes.c_int, [_client, _int64, _text, _P(View)]),
    "release": (None, [_P(View)]),
    "list_build": (ctypes.c_int, [_client, _int64, _text, _P(_P(List))]),
    "list_free": (None, [_P(List)]),
    "list_builds": (ctypes.c_int, [_client, _P(_P(Builds))]),
    "builds_free": (None, [_P(Builds)]),
    "set": (ctypes.c_int, [_client, _int64, _text, _bytes, _size, _text, _P(SetOptions), _P(SetResult)]),
    "set_fd": (ctypes.c_int, [_client, _int64, _text, ctypes.c_int, _text, _P(SetOptions), _P(SetResult)]),
    "set_begin": (ctypes.c_int, [_client, _int64, _text, _uint64, _text, _P(SetOptions), _P(_writer)]),
    "writer_write": (ctypes.c_int, [_writer, _bytes, _size]),
    "writer_buffer": (ctypes.c_int, [_writer, _P(_bytes), _P(_size)]),
    "writer_advance": (ctypes.c_int, [_writer, _size]),
    "writer_commit": (ctypes.c_int, [_writer, _P(SetResult)]),
    "writer_abort": (None, [_writer]),
    "finish": (ctypes.c_int, [_client, _int64, _int64]),
    "prune": (ctypes.c_int, [_client, _int64, _P(_uint64)]),
    "drop": (ctypes.c_int, [_client, _int64, _P(_uint64)]),
    "hold": (ctypes.c_int, [_client, _int64, ctypes.c_int]),
    "flush": (ctypes.c_int, [_client, _uint32]),
    "stats": (ctypes.c_int, [_client, _P(ctypes.c_void_p)]),
    "free": (None, [ctypes.c_void_p]),
}


class _Library:
    """The functions of libstepstash without their prefix. $STEPSTASH_LIBRARY names another file than the usual one."""

    def __init__(self):
        path = os.environ.get("STEPSTASH_LIBRARY", "libstepstash.so.0")
        if not path:  # to dlopen(3) that would be this program itself
            raise ImportError("$STEPSTASH_LIBRARY is empty: unset it, or name the file of libstepstash")
        loaded = ctypes.CDLL(path)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(loaded, "stepstash_" + name, None)
            if function is None:
                raise ImportError(f"{path} has no stepstash_{name}: it is older than this package")
            function.restype = result
            function.argtypes = arguments
            setattr(self, name, function)


library = _Library()

get_buffer = ctypes.pythonapi.PyObject_GetBuffer
get_buffer.restype = ctypes.c_int  # raises where it is not 0
get_buffer.argtypes = [ctypes.py_object, _P(PyBuffer), ctypes.c_int]
release_buffer = ctypes.pythonapi.PyBuffer_Release
release_buffer.restype = None
release_buffer.argtypes = [_P(PyBuffer)]
memory_view = ctypes.pythonapi.PyMemoryView_FromMemory
memory_view.restype = ctypes.py_object
memory_view.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
PYBUF_SIMPLE, PYBUF_WRITE = 0, 0x200
