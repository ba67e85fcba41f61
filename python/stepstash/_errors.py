# SPDX-License-Identifier: Apache-2.0
"""One exception for each thing a caller can act on; `code` is the C ABI's number."""

from typing import Optional

from . import _abi


class Error(Exception):
    """Something failed. str() says what happened, to what, with which numbers; `code` is one of STEPSTASH_E...."""

    code = _abi.EINTERNAL

    def __init__(self, message: str, code: Optional[int] = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class InvalidArgument(Error, ValueError):
    """A build, name, source or option outside its documented range: correct the call."""

    code = _abi.EINVAL


class OutOfMemory(Error, MemoryError):
    """This process is out of memory."""

    code = _abi.ENOMEM


class Unavailable(Error):
    """The daemon cannot be reached, or the connection broke and the outcome is unknown."""

    code = _abi.EUNAVAILABLE


class DeadlineExceeded(Error, TimeoutError):
    """The deadline passed: try later, or with a longer one."""

    code = _abi.EDEADLINE


class Full(Error):
    """No room for the value before the deadline: try later, prune, or enlarge the segment."""

    code = _abi.EFULL


class TooLarge(Error):
    """The value can never fit the segment."""

    code = _abi.ETOOLARGE


class NotPermitted(Error):
    """This user may not do that."""

    code = _abi.EPERM


class Corrupt(Error):
    """The stored value is damaged; it is not served."""

    code = _abi.ECORRUPT


class InputOutput(Error):
    """A file, pipe or database could not be read or written. A durable set that ends so is set, but not yet durable."""

    code = _abi.EIO


class Protocol(Error):
    """Daemon and library do not understand each other: are their versions alike?"""

    code = _abi.EPROTOCOL


class LimitReached(Error):
    """Too many open views or connections: release some."""

    code = _abi.ELIMIT


class Internal(Error):
    """A defect in stepstash: please report it."""

    code = _abi.EINTERNAL


_BY_CODE = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        OutOfMemory,
        Unavailable,
        DeadlineExceeded,
        Full,
        TooLarge,
        NotPermitted,
        Corrupt,
        InputOutput,
        Protocol,
        LimitReached,
        Internal,
    )
}


def checked(code: int) -> int:
    """Passes answers on and raises errors. Call it right after the function, on the same thread."""
    if code >= 0:
        return code
    message = _abi.library.error_message().decode(errors="replace")
    raise _BY_CODE.get(code, Error)(message, code)
