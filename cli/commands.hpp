// SPDX-License-Identifier: Apache-2.0
/// The subcommands. Returns the exit status; error messages have been written to stderr by then.
#pragma once

#include "cli/arguments.hpp"

namespace stepstash::cli {

int run(const Arguments& arguments);

}  // namespace stepstash::cli
