// SPDX-License-Identifier: Apache-2.0
/// What each subcommand does. Returns the exit status; complaints are on stderr by then.
#pragma once

#include "cli/arguments.hpp"

namespace stepstash::cli {

int run(const Arguments& arguments);

}  // namespace stepstash::cli
