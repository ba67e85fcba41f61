// SPDX-License-Identifier: Apache-2.0
/// Exit statuses of stepstashd that are no fault of its configuration (sysexits(3)); daemon/config.hpp has the others.
#pragma once

#include <string>
#include <utility>

#include "daemon/config.hpp"

namespace stepstash::daemon {

inline constexpr int kExitOs = 71;
inline constexpr int kExitCannotCreate = 73;
inline constexpr int kExitIo = 74;
inline constexpr int kExitTemporary = 75;
inline constexpr int kExitPermission = 77;

/// A message for the operator, with the status to exit with.
inline ConfigError fail(int status, std::string message) { return {std::move(message), status}; }

}  // namespace stepstash::daemon
