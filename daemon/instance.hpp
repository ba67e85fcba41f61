// SPDX-License-Identifier: Apache-2.0
/// Where the objects of one instance live: a private directory in the tmpfs, in which no other user can create names.
///
/// Anybody can create names in /dev/shm. If the objects were called NAME, NAME.new and so on there, another user could
/// create the next name first and block a later start. So there is one name, NAME.d, mode 0700, created at the first
/// start and kept: /dev/shm is sticky, and nobody else can remove it. If another user took even that name, after a boot
/// or before the very first start, the directory gets an unpredictable name, NAME.d.RANDOM, and is found again by
/// looking for a directory of ours.
#pragma once

#include <string>
#include <vector>

#include "base/result.hpp"
#include "daemon/lock_file.hpp"
#include "shm/object.hpp"

namespace stepstash::daemon {

/// The segment's name in its directory; the names of pin pages and of files set aside begin with it.
inline constexpr const char* kSegmentObject = "segment";

struct Instance {
  shm::ObjectDirectory directory;
  LockFile lock;                   ///< held as long as the instance is served
  std::vector<std::string> notes;  ///< for the operator, one line each
};

/// Finds or creates the directory of instance `name` in `parent`, locks it, and moves in the objects that a stepstashd
/// of an earlier version left under the names NAME, NAME.new, NAME.pin.N and NAME.damaged.N. `about`: the path that an
/// error concerns and, for Errc::already_held, the holder. Errors: Errc::already_held; those of opening `parent` and of
/// creating and locking our objects in it (EACCES, ENOSPC, Errc::unsafe_object).
Result<Instance> open_instance(const std::string& parent, const std::string& name, std::string& about);

}  // namespace stepstash::daemon
