// SPDX-License-Identifier: Apache-2.0
/// Moves entries and builds' facts into a segment that is being made: out of one that is damaged, or whose size
/// changes.
///
/// The source is not trusted (Segment::salvage): only what is sound of it arrives. Nothing here is served yet, so a
/// kill at any point leaves the source as it was.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "persist/backing_store.hpp"
#include "shm/object.hpp"
#include "shm/segment.hpp"

namespace stepstash::daemon {

/// Publishes a copy of `entry` with this id and revision; its value, if resident, is dirty. Errors: those of
/// Segment::draft and Segment::publish_record.
Result<> republish(shm::Segment& into, const shm::Entry& entry, std::uint64_t id, std::uint64_t revision);
/// Commits the value of `entry` to the database under this id and revision, and publishes its record. Errors: those of
/// BackingStore::commit and Segment::publish_record.
Result<> write_out(persist::BackingStore& database, shm::Segment& into, const shm::Entry& entry, std::uint64_t id,
                   std::uint64_t revision);

/// Which entries to move: those that their segment alone may have; also records of evicted values; also values that are
/// in a database.
enum class Which {
  dirty,
  and_evicted,
  and_clean,  ///< in a second pass, after `dirty`
};

struct Salvaged {
  std::uint64_t entries = 0;
  std::vector<std::string> left_out;  ///< what could not be moved, one line each
};

/// Copies entries, and the facts of all builds, of the segment `from`. An entry whose name is there already is skipped.
/// O(segment).
Salvaged salvage(const shm::ObjectDirectory& directory, const std::string& from, shm::Segment& into, Which which);
/// The builds' facts alone. Errors: those of Segment::salvage.
Result<> salvage_builds(const shm::ObjectDirectory& directory, const std::string& from, shm::Segment& into,
                        std::vector<std::string>& left_out);
/// Moves dirty entries that the list of `database`, already in `into`, does not have yet: values to the database, or,
/// if it does not take them, into `into`. No `database`: it is another one, and they all go into `into`, followed by
/// the clean ones, which it need not have, as far as there is room. Errors: those of Segment::salvage.
Result<Salvaged> salvage_to(persist::BackingStore* database, const shm::ObjectDirectory& directory,
                            const std::string& from, shm::Segment& into);

}  // namespace stepstash::daemon
