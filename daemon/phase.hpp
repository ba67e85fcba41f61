// SPDX-License-Identifier: Apache-2.0
/// The phases of a start: which one runs is what `systemctl status` shows, how long each took is what `stats` tells.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace stepstash::daemon {

enum class Phase {
  opening_database,
  waiting_for_database,  ///< it is locked, or its disk is away
  counting_entries,      ///< in the database: what they need room for
  attaching_segment,
  creating_segment,
  resizing_segment,   ///< into a new one of the configured size goes what only the attached one has
  enlarging_segment,  ///< into a larger one goes everything, because the database's list does not fit
  salvaging_segment,  ///< into a new one goes what is sound of the damaged one
  writing_out,        ///< the same, with dirty values going to the database, for lack of room
  reading_list,       ///< of the database's entries
  building_catalog,
};

/// As `stats` and docs/operations.md call it: a word with underscores.
std::string_view name_of(Phase phase) noexcept;
/// As operators read it: "attaching the segment".
std::string_view text_of(Phase phase) noexcept;

/// How long each phase of a start took, in the order in which they first began. A phase that begins again goes on
/// counting: a start may try several times. Thread safety: none.
class PhaseTimes {
 public:
  using Instant = std::chrono::steady_clock::time_point;
  struct Time {
    Phase phase;
    std::chrono::nanoseconds spent{0};
  };

  /// Ends the phase before it.
  void enter(Phase phase, Instant now = std::chrono::steady_clock::now());
  /// Ends the last phase.
  void end(Instant now = std::chrono::steady_clock::now());
  const std::vector<Time>& all() const noexcept { return all_; }

 private:
  std::vector<Time> all_;
  std::size_t running_ = SIZE_MAX;  // index of the phase under way
  Instant since_{};
};

}  // namespace stepstash::daemon
