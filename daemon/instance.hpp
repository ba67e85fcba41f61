// SPDX-License-Identifier: Apache-2.0
/// Where the objects of one instance lie: a directory of its own in the tmpfs, which no other user can make names in.
///
/// Anybody can make names in /dev/shm. Were the objects called NAME, NAME.new and so on there, who makes the next one
/// first could keep a later start from what it needs. So there is one name, NAME.d, mode 0700, made at the first start
/// and kept: /dev/shm is sticky, and nobody else can remove it. Where somebody was faster even then, after a boot or
/// before the very first start, the directory gets a name that nobody can know, NAME.d.RANDOM, and is found again by
/// looking for what is ours.
#pragma once

#include <string>
#include <vector>

#include "base/result.hpp"
#include "daemon/lock_file.hpp"
#include "shm/object.hpp"

namespace stepstash::daemon {

/// What the segment is called in its directory; its pin pages, and what is set aside, begin with it.
inline constexpr const char* kSegmentObject = "segment";

struct Instance {
  shm::ObjectDirectory directory;
  LockFile lock;                   ///< held for as long as the instance is served
  std::vector<std::string> notes;  ///< what an operator should know, a line each
};

/// Finds or makes the directory of instance `name` in `parent`, locks it, and moves in what a stepstashd of an earlier
/// version left under the names NAME, NAME.new, NAME.pin.N and NAME.damaged.N. `about`: the path that an error is
/// about, and for Errc::already_held who holds it. Errors: Errc::already_held; those of opening `parent` and of making
/// and locking what is ours in it (EACCES, ENOSPC, Errc::unsafe_object).
Result<Instance> open_instance(const std::string& parent, const std::string& name, std::string& about);

}  // namespace stepstash::daemon
