// SPDX-License-Identifier: Apache-2.0
/// `stepstashd --restore FILE`: a backup replaces the database; everything newer is discarded.
///
/// Atomic: all of it happens, or nothing. The backup is copied to `DB-restoring` and checked there. The segment, which
/// holds the newer state, is renamed to `segment.restoring.N`. Then the copy is renamed to `DB`: the commit point. A
/// start that finds an interrupted restore puts the segment back if that rename has not happened, and removes it if it
/// has.
#pragma once

#include <string>

#include "daemon/config.hpp"
#include "shm/object.hpp"

namespace stepstash::daemon {

/// Restores from `file` and returns a summary of the restored database. No daemon may be running on the segment or the
/// database: their locks are taken. Errors: 64 (`file` is the database itself), 73, 74 (`file` is damaged or cannot be
/// read), 75 (a daemon or another program has the database), 77 (another user's database), 78 (a newer or foreign one).
Configured<std::string> restore(const Config& config, const std::string& file);

/// Completes or undoes an interrupted restore. The caller holds the locks of segment and database.
Configured<> settle_restore(const Config& config, const shm::ObjectDirectory& directory);

}  // namespace stepstash::daemon
