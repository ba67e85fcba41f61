# SPDX-License-Identifier: Apache-2.0
"""stepstash: build data in shared memory, read in place.

    import stepstash

    with stepstash.Client() as client:                    # $STEPSTASH_SOCKET, or the usual places
        client.set(42, "report", b"all 120 tests passed", "unit tests")
        with client.get(42, "report") as view:            # in place: nothing is copied
            print(bytes(view.data))

stepstash.aio has the same for asyncio. Absent is None, a condition that did not hold is None; everything else that is not success raises a subclass of Error,
whose `code` is the C ABI's. Times are seconds. Needs libstepstash.so.0 ($STEPSTASH_LIBRARY names another file), and
nothing else: no compiled part, no multiprocessing, and so no resource_tracker that would unlink a segment which is not
its own.
"""

from ._client import Build, Client, Entry, SetResult, View, Writer, version
from ._errors import (
    Corrupt,
    DeadlineExceeded,
    Error,
    Full,
    InputOutput,
    Internal,
    InvalidArgument,
    LimitReached,
    NotPermitted,
    OutOfMemory,
    Protocol,
    TooLarge,
    Unavailable,
)

__all__ = [
    "Build",
    "Client",
    "Corrupt",
    "DeadlineExceeded",
    "Entry",
    "Error",
    "Full",
    "InputOutput",
    "Internal",
    "InvalidArgument",
    "LimitReached",
    "NotPermitted",
    "OutOfMemory",
    "Protocol",
    "SetResult",
    "TooLarge",
    "Unavailable",
    "View",
    "Writer",
    "version",
]
