// SPDX-License-Identifier: Apache-2.0
/// The tables of a stepstash database, and the migration of older versions.
///
///   build_data        one row per entry, in Buildbot's terms. `value` is last, so that length and source are read
///                     without walking the value's overflow pages. NULL there means: `chunks` rows of value_chunks.
///   value_chunks      the chunks of large values, by (revision, seq), seq from 0.
///   chunks_to_delete  revisions whose chunks no row of build_data needs: not yet (a commit is under way) or no longer
///                     (replaced, dropped). Whatever a crash leaves behind is listed here, so no search is ever needed.
///   builds            facts about a build; outlives its data.
///   meta              store_id, commit_count, next_id. Unsigned 64-bit numbers are stored as their signed twins.
///
/// The version is in PRAGMA user_version; PRAGMA application_id distinguishes our files from other programs'.
#pragma once

#include <cstdint>
#include <span>

#include "base/result.hpp"
#include "persist/sqlite.hpp"

namespace stepstash::persist {

inline constexpr std::int32_t kApplicationId = 0x73747368;  // "stsh"

/// Migrates a database from version n-1 to n; runs inside the transaction of all steps.
using MigrationStep = Result<> (*)(Connection&);

/// All steps: the i-th (from 0) produces version i+1.
std::span<const MigrationStep> migration_steps() noexcept;

/// Migrates the database to the version of the last step, in one transaction: all of it or nothing. Errors:
/// Errc::newer_database; Errc::foreign_database; those of SQLite.
Result<> migrate(Connection& connection, std::span<const MigrationStep> steps = migration_steps());

}  // namespace stepstash::persist
