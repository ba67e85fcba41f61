// SPDX-License-Identifier: Apache-2.0
/// Runs the command line tool in a test, against a private daemon.
#pragma once

#include <fstream>
#include <iterator>

#include "tests/support/harness.hpp"

namespace stepstash::test {

/// A daemon, and the command run against it.
struct Command {
  explicit Command(std::vector<std::string> options = {}) : daemon(std::move(options)) { daemon.start(); }

  Outcome cli(std::vector<std::string> words, RunOptions options = {}) const {
    words.insert(words.begin(), STEPSTASH_CLI_PATH);
    options.environment.push_back("STEPSTASH_SOCKET=" + daemon.socket());
    return run(words, options);
  }
  std::string file(std::string_view name) const { return daemon.directory().file(name); }

  DaemonProcess daemon;
};

/// The whole content of a file.
inline std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace stepstash::test
