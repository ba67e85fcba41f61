// SPDX-License-Identifier: Apache-2.0
/// How the daemon ends when it cannot start or finish: a message for the operator and a status of sysexits(3).
#pragma once

#include <string>
#include <system_error>

#include "daemon/config.hpp"
#include "daemon/instance.hpp"
#include "daemon/lock_file.hpp"

namespace stepstash::daemon {

inline constexpr int kExitOs = 71;
inline constexpr int kExitCannotCreate = 73;
inline constexpr int kExitIo = 74;
inline constexpr int kExitTemporary = 75;
inline constexpr int kExitPermission = 77;

ConfigError fail(int status, std::string message);

/// The status for a start that failed with `error`.
int exit_status_of(std::error_code error);

/// No descriptor is left, in this process or in the system.
bool lacks_descriptors(std::error_code error);

/// LockFile::acquire() and open_instance(), with errors that name the object and its holder. `object`: "database PATH".
/// `advice`: appended if another stepstashd holds it.
Configured<LockFile> lock_or_fail(const std::string& path, const std::string& object, const char* advice);
Configured<Instance> open_instance_or_fail(const Config& config, const char* advice);

}  // namespace stepstash::daemon
