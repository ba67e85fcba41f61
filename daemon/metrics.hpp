// SPDX-License-Identifier: Apache-2.0
/// The counters behind `stats`, as one JSON object. docs/operations.md says which ones to watch.
#pragma once

#include <string>

#include "daemon/services.hpp"
#include "daemon/startup.hpp"
#include "persist/backing_store.hpp"

namespace stepstash::daemon {

/// Figures that only the server has.
struct ServerFigures {
  std::size_t connections = 0;
  std::uint64_t accepted = 0;
  std::uint64_t refused = 0;
  std::chrono::seconds uptime{0};
};

/// O(pin pages + descriptors). Loop's thread only.
std::string stats_json(const Services& services, const Startup& startup, const ServerFigures& server);

}  // namespace stepstash::daemon
