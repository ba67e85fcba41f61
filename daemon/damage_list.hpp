// SPDX-License-Identifier: Apache-2.0
/// Values that are damaged now: found damaged in memory, or recorded as lost in the database.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "shm/layout.hpp"

namespace stepstash::daemon {

/// Thread safety: the loop's thread only.
class DamageList {
 public:
  /// Logs the entry and keeps a line for `stats`. Ignored once 10,000 entries are listed.
  void add(const shm::Entry& entry);
  /// The entry was set again, reloaded or deleted.
  void remove(std::uint64_t id) { lines_.erase(id); }
  /// One line per value, in id order.
  std::vector<std::string> lines() const;

 private:
  std::map<std::uint64_t, std::string> lines_;  // by id
};

}  // namespace stepstash::daemon
