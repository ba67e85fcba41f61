// SPDX-License-Identifier: Apache-2.0
/// `stepstashd --restore FILE`: a backup takes the place of the database, and what came after it goes.
///
/// All of it happens, or nothing. The backup is copied to `DB-restoring` and checked there; the segment is renamed to
/// `segment.restoring.N`, for it holds what came later; then the copy is renamed to `DB`, and that is the instant. A
/// start that finds a restore cut short puts the segment back where that instant had not come, and removes it where it
/// had.
#pragma once

#include <string>

#include "daemon/config.hpp"
#include "shm/object.hpp"

namespace stepstash::daemon {

/// Restores from `file`, and says what is there now. No daemon may run on segment or database: their locks are taken.
/// Errors: 64 (`file` is the database itself), 73, 74 (`file` is damaged or cannot be read), 75 (a daemon or another
/// program has the database), 77 (another user's database), 78 (a newer or foreign one).
Configured<std::string> restore(const Config& config, const std::string& file);

/// Ends what a restore that was cut short has begun. With the locks of segment and database in hand.
Configured<> settle_restore(const Config& config, const shm::ObjectDirectory& directory);

}  // namespace stepstash::daemon
