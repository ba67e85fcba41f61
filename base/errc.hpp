// SPDX-License-Identifier: Apache-2.0
/// stepstash's own error codes. errno and SQLite keep their own categories.
///
/// The numbers are part of the protocol (docs/protocol.md): they are never reused or renumbered.
#pragma once

#include <string>
#include <system_error>

namespace stepstash {

enum class Errc {
  not_found = 1,          ///< no such build data
  invalid_argument = 2,   ///< a build id, name, source or option outside its documented range
  too_large = 3,          ///< the value can never fit into the segment
  segment_full = 4,       ///< no room before the deadline
  dirty_limit = 5,        ///< unflushed values were at their limit until the deadline
  deadline_exceeded = 6,  ///< the awaited event did not happen in time
  condition_failed = 7,   ///< if-absent or if-revision did not hold
  not_permitted = 8,      ///< the peer's user may not do this
  protocol_error = 9,     ///< a frame that docs/protocol.md does not allow at this point
  version_mismatch = 10,  ///< client and daemon share no protocol version
  format_mismatch = 11,   ///< a segment or pin page of another layout
  corrupt_segment = 12,   ///< the segment's structure is inconsistent
  corrupt_value = 13,     ///< a value's bytes do not match its checksum
  corrupt_database = 14,  ///< the database's structure is inconsistent
  newer_database = 15,    ///< the database was written by a newer stepstash
  already_held = 16,      ///< another daemon uses this segment, database or socket
  not_durable = 17,       ///< the database cannot take writes now
  too_many = 18,          ///< a per-user or total limit is reached (connections, rings, views)
  shutting_down = 19,     ///< the daemon is stopping
  unavailable = 20,       ///< the daemon cannot be reached
  unsafe_object = 21,     ///< a path the daemon should own is a link, foreign, or not a regular file
  out_of_ids = 22,        ///< no ids left until the database accepts a reservation again
  too_many_builds = 23,   ///< the segment's build table is full
  foreign_database = 24,  ///< the database belongs to another program
};

const std::error_category& category() noexcept;

inline std::error_code make_error_code(Errc e) noexcept { return {static_cast<int>(e), category()}; }

}  // namespace stepstash

template <>
struct std::is_error_code_enum<stepstash::Errc> : std::true_type {};
