// SPDX-License-Identifier: Apache-2.0
/// The command line of stepstashd.
#pragma once

#include <optional>
#include <string>

#include "daemon/config.hpp"

namespace stepstash::daemon {

/// What the command line asks for. main() writes `output` to stdout and `errors` to stderr, then either serves with
/// `reading` (also keeping `inputs` for SIGHUP) or, where there is none, exits with `exit_status`.
struct CommandLine {
  std::string output;
  std::string errors;
  int exit_status = 0;
  std::optional<Reading> reading;  ///< present: serve
  std::string restore{};           ///< not empty: put this backup in place instead
  Inputs inputs;
};

/// Reads argv and the environment, and through them the configuration file. --help, --version, --print-config and
/// --check-config are answered here. Never throws but std::bad_alloc, never exits.
CommandLine parse_command_line(int argc, const char* const* argv, const char* const* envp, uid_t uid);

}  // namespace stepstash::daemon
