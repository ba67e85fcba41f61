// SPDX-License-Identifier: Apache-2.0
/// Where a daemon and its clients meet when nobody names a socket. stepstashd(8), section PLACES, is the same as a
/// table.
///
/// Both sides ask here, so that they agree. What both must know is in the arguments, so that a test can be anybody.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>

namespace stepstash {

/// A place, and what was passed over on the way to it and why, as text for messages; empty: nothing.
struct Place {
  std::string path;
  /// Where the socket lies in a directory that anybody could have made first (/tmp/stepstash-UID): it must pass
  /// is_private_directory() before anything in it is used. Empty otherwise.
  std::string private_directory;
  std::string passed_over;
};

/// Where a daemon of user `uid` listens: in `runtime_directory`, which a service manager gives a daemon and no client;
/// for root in /run/stepstash; else in stepstash below `xdg_runtime_dir`, which counts when it is an absolute path and
/// not somebody else's directory; else in /tmp/stepstash-UID. All of a value is the path; empty: not set.
Place place_to_listen(uid_t uid, std::string_view runtime_directory, std::string_view xdg_runtime_dir);

/// Where a client of user `uid` connects: to this user's own daemon where it has a socket, else to the machine's.
Place place_to_connect(uid_t uid, std::string_view xdg_runtime_dir);

/// A directory, no link to one, of `uid`, and closed to all others: what is in it is of that user's making.
bool is_private_directory(const std::string& path, uid_t uid) noexcept;

/// The owner of the directory at `path`, links followed; nullopt: there is no directory, or nobody says.
std::optional<uid_t> owner_of_directory(const std::string& path) noexcept;

}  // namespace stepstash
