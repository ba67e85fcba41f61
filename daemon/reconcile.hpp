// SPDX-License-Identifier: Apache-2.0
/// Completes a segment by what the database lists, before anything is served.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "persist/backing_store.hpp"
#include "shm/segment.hpp"

namespace stepstash::daemon {

/// Adds the builds and, as evicted, the entries that the database has and the segment does not. Returns the number of
/// these entries. O(entries of both). Errors: lack of room in the segment (Errc::segment_full, Errc::too_many_builds,
/// ENOSPC); those of BackingStore::load_entries.
Result<std::uint64_t> add_listed(persist::BackingStore& database, shm::Segment& segment);

/// The same with a database that the segment's clean marks do not refer to. In addition, removes evicted entries that
/// it does not have, and names them in `set_aside`: their values are gone. Entries whose ids or revisions it has given
/// to others get new ones: without free room for a copy of the value, the value goes to the database. Also on failure,
/// `set_aside` names what was changed. Errors: the same; those of BackingStore::commit.
Result<std::uint64_t> verify_listed(persist::BackingStore& database, shm::Segment& segment,
                                    std::vector<std::string>& set_aside);

}  // namespace stepstash::daemon
