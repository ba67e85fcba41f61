// SPDX-License-Identifier: Apache-2.0
/// Diagnoses problems of a stepstash from the daemon's figures.
#pragma once

#include <string>
#include <vector>

namespace stepstash::cli {

struct Finding {
  std::string what;    ///< the problem, with its figures
  std::string advice;  ///< what to do about it
};

/// Reads the result of Client::stats(). Figures that an older daemon does not report are ignored.
std::vector<Finding> diagnose(const std::string& stats);

/// "WHAT
///   ADVICE
/// " each; a single line if there are none.
std::string findings_text(const std::vector<Finding>& findings);
/// An array of {"what", "advice"}.
std::string findings_json(const std::vector<Finding>& findings);

}  // namespace stepstash::cli
