/// Where log lines go: stderr, with priorities when the journal reads it and with the time otherwise.
#pragma once

#include "daemon/config.hpp"

namespace stepstash::daemon {

/// Call once, before the first line. Lines are written at once.
void set_up_log(LogLevel level);
void set_log_level(LogLevel level);

}  // namespace stepstash::daemon
