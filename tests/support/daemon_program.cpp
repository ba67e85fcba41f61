// SPDX-License-Identifier: Apache-2.0
/// The program that a DaemonProcess runs. A separate file: a test that defines the function itself, as crash_matrix
/// does for the daemon with crash points, does not link this one from the library.
#include "tests/support/daemon_process.hpp"

namespace stepstash::test {

const char* DaemonProcess::program() noexcept { return STEPSTASHD_PATH; }

}  // namespace stepstash::test
