// SPDX-License-Identifier: Apache-2.0
/// The default socket of a daemon and its clients. stepstashd(8), section PLACES, has the same as a table.
///
/// Both sides use these functions, so that they agree. All inputs are arguments, so that a test can be any user.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>

namespace stepstash {

/// A place, and which places were skipped and why, as text for messages; empty: none.
struct Place {
  std::string path;
  /// Set if the socket lies in a directory that anyone could have created first (/tmp/stepstash-UID): it must pass
  /// is_private_directory() before anything in it is used. Empty otherwise.
  std::string private_directory;
  std::string passed_over;
};

/// Where a daemon of user `uid` listens: in `runtime_directory`, which a service manager sets for a daemon but not for
/// clients; for root in /run/stepstash; else in stepstash below `xdg_runtime_dir`, if that is an absolute path and not
/// another user's directory; else in /tmp/stepstash-UID. Each value is taken as one path; empty: not set.
Place place_to_listen(uid_t uid, std::string_view runtime_directory, std::string_view xdg_runtime_dir);

/// Where a client of user `uid` connects: to this user's own daemon if its socket exists, else to the system-wide one.
Place place_to_connect(uid_t uid, std::string_view xdg_runtime_dir);

/// Whether `path` is a directory (not a link to one) that belongs to `uid` and is closed to all others, so that only
/// that user can have created what is in it.
bool is_private_directory(const std::string& path, uid_t uid) noexcept;

/// The owner of the directory at `path`, following links; nullopt: not a directory, or unknown.
std::optional<uid_t> owner_of_directory(const std::string& path) noexcept;

}  // namespace stepstash
