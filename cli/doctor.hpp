// SPDX-License-Identifier: Apache-2.0
/// What is wrong with a stepstash, told from the daemon's figures.
#pragma once

#include <string>
#include <vector>

namespace stepstash::cli {

struct Finding {
  std::string what;    ///< what is the case, with its numbers
  std::string advice;  ///< what to do about it
};

/// Reads what Client::stats() gave. Figures that an older daemon does not have are passed over.
std::vector<Finding> diagnose(const std::string& stats);

/// "WHAT\n  ADVICE\n" each; a line that says so where there is none.
std::string findings_text(const std::vector<Finding>& findings);
/// An array of {"what", "advice"}.
std::string findings_json(const std::vector<Finding>& findings);

}  // namespace stepstash::cli
