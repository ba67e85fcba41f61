// SPDX-License-Identifier: Apache-2.0
/// The command line of stepstashd.
#pragma once

#include <optional>
#include <string>

#include "daemon/config.hpp"

namespace stepstash::daemon {

/// The result of parsing the command line. main() writes `output` to stdout and `errors` to stderr, then either serves
/// with `reading` (and keeps `inputs` for SIGHUP) or, without it, exits with `exit_status`.
struct CommandLine {
  std::string output;
  std::string errors;
  int exit_status = 0;
  std::optional<Reading> reading;  ///< present: serve
  std::string restore{};           ///< not empty: restore this backup instead of serving
  Inputs inputs;
};

/// Reads argv and the environment, and through them the configuration file. Handles --help, --version, --print-config
/// and --check-config. Throws nothing but std::bad_alloc; never exits.
CommandLine parse_command_line(int argc, const char* const* argv, const char* const* envp, uid_t uid);

}  // namespace stepstash::daemon
