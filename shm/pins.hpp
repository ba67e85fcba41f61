/// Pin pages, the daemon's side: who holds which block in place, and who is gone.
///
/// Hazard pointers (M. Michael, "Hazard Pointers: Safe Memory Reclamation for Lock-Free Objects", IEEE TPDS 15(6),
/// 2004), one page of them per client. A page is an object of its own, so that a restarted daemon finds it. It is
/// locked (open file description lock) on the very description that the client receives and keeps mapped: the kernel
/// drops the lock when the last process that has it mapped is gone, in whatever PID namespace it lived.
///
/// The daemon never maps a page. A client can cut its page's object short, or punch a hole into it: the daemon's next
/// look through a mapping would be SIGBUS. Read with pread(2), what is missing is no pin, to nobody's harm but the
/// client's; 4 KiB cost about as much as a scan of the mapping.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "shm/block_set.hpp"
#include "shm/layout.hpp"
#include "shm/object.hpp"

namespace stepstash::shm {

/// Thread safety: one thread. Lifetime: the directory outlives it.
class PinRegistry {
 public:
  /// Pages are called `prefix` + number.
  PinRegistry(const ObjectDirectory& directory, std::string prefix);

  /// Finds the pages that an earlier daemon left. Those nobody holds are removed; those of another segment are told
  /// that theirs is superseded and are kept until their clients let go. Returns how many are in use. O(pages).
  /// Errors: those of opening and reading a page that may be somebody's (EMFILE, ENOMEM): nothing may be freed then.
  Result<std::size_t> adopt(const SegmentId& segment);

  /// A page for one client, locked on the description that is returned; it is to be passed to the client and closed
  /// here. Errors: ENOSPC, EMFILE and others of openat(2), fallocate and mmap(2).
  struct NewPage {
    UniqueFd fd;
    std::uint32_t number = 0;
  };
  Result<NewPage> create(const SegmentId& segment, std::int32_t pid, std::uint32_t uid);

  /// Whether page `number` serves `segment` and somebody holds it: its client may go on with it.
  bool resumable(std::uint32_t number, const SegmentId& segment) const;

  /// Removes the pages that nobody holds any more, and with them all pins on them; returns how many. Pages that their
  /// client made shorter or longer get their length back, and the tmpfs what they had taken of it. O(pages) system
  /// calls.
  std::size_t reap();

  /// Makes `pinned` the set of all pinned offsets. Call it after the stores that unpublish what is to be freed: a full
  /// fence stands between those stores and these reads, and between the reader's pin and its second look. With
  /// `recent`, that becomes the set of the hints that readers left about what they read last, from the same reading.
  /// O(pages * kPinsPerPage), whatever stands in them. Errors: those of pread(2): a page that cannot be read may pin
  /// anything; the sets then have what the others say.
  Result<> scan(BlockSet& pinned, BlockSet* recent = nullptr) const;

  /// Calls `each` with the hints of the next `count` pages, going round. O(count * kPinLines).
  template <class F>
  void recent(F&& each, std::size_t count = SIZE_MAX) {
    auto at = pages_.lower_bound(next_hints_);
    for (count = std::min(count, pages_.size()); count > 0; --count, ++at) {
      if (at == pages_.end()) at = pages_.begin();
      next_hints_ = at->first + 1;
      PinPage content;
      if (!read(at->second, content)) continue;
      for (const PinLine& line : content.lines) {
        if (const Offset block = line.recent.load(std::memory_order_relaxed)) each(block);  // a copy, and a hint
      }
    }
  }

  std::size_t pages() const noexcept { return pages_.size(); }
  /// Pages that clients of one user hold. O(pages).
  std::size_t pages_of(std::uint32_t uid) const noexcept;
  /// Views open now, in all and of the client that has most. O(pages * kPinsPerPage).
  struct Views {
    std::size_t open = 0;
    std::size_t most = 0;
  };
  Views views() const noexcept;

 private:
  struct Page {
    UniqueFd watch;  // another description of the same object, to ask whether the client's lock still stands
    SegmentId segment_id;
    bool current;       // of the segment that is served
    std::uint32_t uid;  // of the client
  };

  /// A copy of a page as it is now; what its object lacks is zero. Errors: those of pread(2).
  static Result<> read(const Page& page, PinPage& copy) noexcept;
  std::string name(std::uint32_t number) const { return prefix_ + std::to_string(number); }
  static bool held(int watch);
  /// Whether anybody but us has the page's object open or mapped, its lock given up or not.
  static bool open_elsewhere(int watch);
  /// Undoes what its client did to a page's length and to the memory behind its end.
  static void restore(int watch);

  const ObjectDirectory& directory_;
  std::string prefix_;
  std::map<std::uint32_t, Page> pages_;
  std::uint32_t next_number_ = 1;
  std::uint32_t next_hints_ = 0;  // the page whose hints are the next to be looked at
};

}  // namespace stepstash::shm
