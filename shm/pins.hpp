// SPDX-License-Identifier: Apache-2.0
/// Pin pages, the daemon's side: who holds which block in place, and who is gone.
///
/// Hazard pointers (M. Michael, "Hazard Pointers: Safe Memory Reclamation for Lock-Free Objects", IEEE TPDS 15(6),
/// 2004), one page of them per client. In ten lines:
///   A reader says which block it is about to look at, before it looks: it stores the block's offset into a free pin of
///   its own page (the claim), then loads the index slot again (the second look). The writer unpublishes a block first,
///   then reads all pins, and reuses only what nobody pins. Each side stores, fences, then loads what the other stores,
///   so one of the two must see the other: either the scan finds the pin, or the second look finds the slot changed.
///   What for: a get is one claim and one look, without a lock, a call or a counter that all readers write to.
///   Price: the writer pays, O(pages * pins) a scan, so it unpublishes many blocks and scans once; and a reader that
///   stands still keeps the blocks that it pins, but no others.
///   Why not counts in the entries: clients may not write the segment, and a count cannot tell whose it was once its
///   owner is dead. Why not epochs (RCU): one reader that sleeps would keep all memory that was retired since.
///   When not: for what is looked at for long by many at one time; 441 pins a page is all there is.
///
/// A page is an object of its own, so that a restarted daemon finds it. It is locked (open file description lock) on
/// the very description that the client receives and keeps mapped: the kernel drops the lock when the last process that
/// has it mapped is gone, in whatever PID namespace it lived.
///
/// Whose a page is stands in its object's name, which its client cannot change: what stands in the page itself the
/// client can write, another user's number, too, and would be believed by the next daemon.
///
/// What one user holds is bounded: the pages of one who holds too much while others want room are *closed*. What they
/// pin at that time stays pinned for as long as it does not change; whatever appears in them later does not count, and
/// their clients find out, for they look at the page's state after they have claimed a pin (P4).
///
/// The daemon never maps a page. A client can cut its page's object short, or punch a hole into it: the daemon's next
/// look through a mapping would be SIGBUS. Read with pread(2), what is missing is no pin, to nobody's harm but the
/// client's; 4 KiB cost about as much as a scan of the mapping.
#pragma once

#include <algorithm>
#include <array>
#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "shm/block_set.hpp"
#include "shm/layout.hpp"
#include "shm/object.hpp"

namespace stepstash::shm {

/// What a scan of all pages found.
struct PinScan {
  /// For a segment whose object has `bytes` bytes.
  explicit PinScan(std::uint64_t bytes) : serving(bytes), closed(bytes), recent(bytes) {}
  bool pinned(Offset block) const noexcept { return serving.contains(block) || closed.contains(block); }

  BlockSet serving;  ///< pinned by pages that serve
  BlockSet closed;   ///< by pages that are closed, since before they were
  BlockSet recent;   ///< not pinned: hints that readers left about what they read last
};

/// Thread safety: one thread. Lifetime: the directory outlives it.
class PinRegistry {
 public:
  /// The user of a page whose name does not say whose it is: of none that there can be (setuid(2) takes no -1). Such a
  /// page holds what it pins and can be closed as any user's; it cannot be resumed, so that its client gets one of its
  /// own as soon as it connects.
  static constexpr std::uint32_t kNobody = UINT32_MAX;

  /// Pages are called `prefix` + number + "." + uid. Those of an earlier version lack the uid: kNobody's.
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

  /// Whether page `number` is this user's, serves `segment` and is held by somebody: its client may go on with it.
  bool resumable(std::uint32_t number, std::uint32_t uid, const SegmentId& segment) const;

  /// Removes the pages that nobody holds any more, and with them all pins on them; returns how many. Pages that their
  /// client made shorter or longer get their length back, and the tmpfs what they had taken of it. O(pages) system
  /// calls.
  std::size_t reap();

  /// Makes `scan` what is pinned. Call it after the stores that unpublish what is to be freed: a full fence stands
  /// between those stores and these reads, and between the reader's pin and its second look. The hints come from the
  /// same reading, where they are wanted. O(pages * kPinsPerPage), whatever stands in them. Errors: those of pread(2):
  /// a page that cannot be read may pin anything; `scan` then has what the others say.
  Result<> scan(PinScan& scan, bool hints = false);

  /// Closes the pages of this user that serve, and those that he gets later, until open(). `entries`: the blocks in use
  /// that hold entries. What else stands in a page keeps nothing from then on: numbers of blocks that do not exist yet
  /// would make a closed user the holder of all that comes to lie there. O(his pages).
  /// Errors: those of pread(2) and pwrite(2). A page that could not be read, or could not be told that it is closed,
  /// serves on, and all of its pins count; the others are closed. It is closed by the next call, if that goes well. One
  /// that nothing stands in is no error.
  Result<> close(std::uint32_t uid, const BlockSet& entries);
  void open(std::uint32_t uid);
  bool closed(std::uint32_t uid) const noexcept { return closed_.contains(uid); }
  const std::set<std::uint32_t>& closed() const noexcept { return closed_; }

  /// Calls `each` with every pin of this user that counts, repetitions included, and whether its page serves.
  /// O(pages + his pages * kPinsPerPage).
  template <class F>
  void for_each_pin(std::uint32_t uid, F&& each) const {
    for (const auto& [key, page] : pages_) {
      PinPage content;
      if (key.uid != uid || !page.current || !read(page, content)) continue;
      for (std::size_t i = 0; i < kPinsPerPage; ++i) {
        const Offset block = pin_of(content, i);
        if (block != 0 && (!page.honoured || (*page.honoured)[i] == block)) each(block, !page.honoured);
      }
    }
  }
  /// Whose pages there are.
  std::set<std::uint32_t> users() const;

  /// Calls `each` with the hints of the next `count` pages, going round. O(count * kPinLines).
  template <class F>
  void recent(F&& each, std::size_t count = SIZE_MAX) {
    auto at = pages_.upper_bound(last_hints_);
    for (count = std::min(count, pages_.size()); count > 0; --count, ++at) {
      if (at == pages_.end()) at = pages_.begin();
      last_hints_ = at->first;
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
  /// What the name of a page says.
  struct Key {
    std::uint32_t number = 0;
    std::uint32_t uid = 0;  // of the client
    auto operator<=>(const Key&) const = default;
  };
  struct Page {
    UniqueFd watch;  // another description of the same object, to ask whether the client's lock still stands
    SegmentId segment_id;
    bool current;                                                  // of the segment that is served
    std::uint32_t closings = 0;                                    // as the page says (P4)
    std::unique_ptr<std::array<Offset, kPinsPerPage>> honoured{};  // closed: what it pinned then, and has not changed
  };
  static Offset pin_of(const PinPage& copy, std::size_t i) noexcept {
    return copy.lines[i / kPinsPerLine].pins[i % kPinsPerLine].load(std::memory_order_relaxed);
  }
  /// Stores our half of the page's state. Errors: those of pwrite(2).
  static Result<> set_state(const Page& page, PageState state, std::uint32_t closings) noexcept;

  /// A copy of a page as it is now; what its object lacks is zero. Errors: those of pread(2).
  static Result<> read(const Page& page, PinPage& copy) noexcept;
  std::string name(Key key) const;
  /// The page that an object of this name is, or none: names have one spelling.
  std::optional<Key> parse(std::string_view object) const;
  static bool held(int watch);
  /// Whether anybody but us has the page's object open or mapped, its lock given up or not.
  static bool open_elsewhere(int watch);
  /// Undoes what its client did to a page's length and to the memory behind its end.
  static void restore(int watch);

  const ObjectDirectory& directory_;
  std::string prefix_;
  std::map<Key, Page> pages_;
  std::set<std::uint32_t> closed_;  // users
  std::uint32_t next_number_ = 1;
  Key last_hints_;  // the page whose hints were the last to be looked at
};

}  // namespace stepstash::shm
