// SPDX-License-Identifier: Apache-2.0
/// A few pages of the segment's tmpfs that nobody else gets: with /dev/shm full, this many more clients can attach, to
/// free something (I9).
///
/// They are an unnamed file, which ends with the process. Thread safety: the loop's thread only.
#pragma once

#include <cstdint>
#include <string>

#include "base/unique_fd.hpp"

namespace stepstash::daemon {

class PageReserve {
 public:
  static constexpr std::uint64_t kPages = 64;

  /// In the tmpfs of `directory`; without a file there (O_TMPFILE) the reserve stays empty.
  explicit PageReserve(const std::string& directory);

  /// Gives the page of one client back to the tmpfs; false when none is left.
  bool free_page();
  /// Call a few times a second: fills the reserve again as soon as there is room.
  void refill();

 private:
  UniqueFd file_;
  std::uint64_t bytes_ = 0;
};

}  // namespace stepstash::daemon
