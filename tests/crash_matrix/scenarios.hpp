// SPDX-License-Identifier: Apache-2.0
/// What the daemon is doing when it is killed: scripted runs that together pass every crash point of the daemon.
#pragma once

#include <string>
#include <vector>

#include "tests/crash_matrix/run.hpp"

namespace stepstash::test {

struct Scenario {
  std::string name;
  std::string what;  ///< for the documentation: one line
  /// Prepares, calls start_armed() once, and continues until the daemon dies or the script ends.
  void (*play)(Run&);
  bool needs_root = false;
};

const std::vector<Scenario>& scenarios();

}  // namespace stepstash::test
