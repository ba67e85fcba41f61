// SPDX-License-Identifier: Apache-2.0
#include "daemon/phase.hpp"

#include <algorithm>

namespace stepstash::daemon {
namespace {

struct Names {
  std::string_view name;
  std::string_view text;
};

constexpr Names names_of(Phase phase) noexcept {
  switch (phase) {
    case Phase::opening_database:
      return {"opening_database", "opening the database"};
    case Phase::waiting_for_database:
      return {"waiting_for_database", "waiting for the database"};
    case Phase::counting_entries:
      return {"counting_entries", "counting the entries in the database"};
    case Phase::attaching_segment:
      return {"attaching_segment", "attaching the segment"};
    case Phase::creating_segment:
      return {"creating_segment", "creating the segment"};
    case Phase::resizing_segment:
      return {"resizing_segment", "moving what is not in the database yet to a segment of the configured size"};
    case Phase::enlarging_segment:
      return {"enlarging_segment", "moving to a larger segment: not all entries of the database fit"};
    case Phase::salvaging_segment:
      return {"salvaging_segment", "saving what is sound of a damaged segment"};
    case Phase::writing_out:
      return {"writing_out", "writing what is sound of a damaged segment to the database: there is no room for it"};
    case Phase::reading_list:
      return {"reading_list", "reading the list of entries from the database"};
    case Phase::building_catalog:
      return {"building_catalog", "building the catalogue"};
  }
  return {};
}

}  // namespace

std::string_view name_of(Phase phase) noexcept { return names_of(phase).name; }

std::string_view text_of(Phase phase) noexcept { return names_of(phase).text; }

void PhaseTimes::enter(Phase phase, Instant now) {
  end(now);
  const auto known = std::find_if(all_.begin(), all_.end(), [&](const Time& time) { return time.phase == phase; });
  running_ = static_cast<std::size_t>(known - all_.begin());
  if (known == all_.end()) all_.push_back({phase});
  since_ = now;
}

void PhaseTimes::end(Instant now) {
  if (running_ < all_.size()) all_[running_].spent += now - since_;
  running_ = SIZE_MAX;
}

}  // namespace stepstash::daemon
